"""What a library of the CUDA kernels would launch, in words."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

NUMBERS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)  # in the order of csrc/cuda/numbers.h
_ALIGNED = 256  # stands for the address of a tensor that has none


def describe(
    library: ModuleType, tensors: tuple[Tensor | None, ...], num_groups: int, arch: int
) -> tuple[list[str], list[str]]:
    """The launches of a forward, and of a backward for all gradients: a line each.

    Args:
        library: As csrc/cuda/module.cpp makes it.
        tensors: features, pixels, weight, bias, scale, pooled and maps; they may have no contents.
        num_groups: As of the op.
        arch: Whose instructions the kernels have: 70, or 80 from sm_80 on.
    """
    forward, backward = library.describe(*map(_view, tensors), num_groups, arch)
    return forward.splitlines(), backward.splitlines()


def _view(x: Tensor | None) -> tuple[int, int, list[int], list[int]] | None:
    if x is None:
        return None
    address = _ALIGNED if x.is_meta else x.data_ptr()
    return address, NUMBERS.index(x.dtype), list(x.shape), list(x.stride())
