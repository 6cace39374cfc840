"""The cuda backend: E0-E11 by the kernels of csrc/cuda, on NVIDIA GPUs from sm_70 (V100) on.

Features and pixels are read in place whatever their strides; channels_last is the fast layout. Shapes and dtypes are
those of lewel_kernels/reference.py.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lewel_kernels import native, reference
from lewel_kernels.native import nvcc
from lewel_kernels.native.targets import CUDA

if TYPE_CHECKING:
    from types import ModuleType

    from lewel_kernels.dispatch import Gradients, Needs, Request

NUMBERS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)  # in the order of csrc/cuda/numbers.h

name = "cuda"
heat_rows = True
device_type = "cuda"
automatic = True


class Gpus:
    """All that the backend asks of the machine's GPUs, and the name of the library (see targets.py) they run."""

    library = "cuda"

    def capability(self, device: torch.device) -> tuple[int, int] | None:
        """The compute capability of a device, such as (8, 0); None where PyTorch sees no GPU."""
        return _capability(device)


gpus = Gpus()  # read in every call


def refuse(request: Request) -> str | None:
    """Why it cannot run, or None. Compiles the kernels if this process is the first on this machine to need them."""
    if request.dtype not in NUMBERS:
        return f"it stores float32, bfloat16, float16 or float64; the features are {request.dtype}: convert them"
    if torch.version.hip is not None:
        return "it was written for NVIDIA GPUs and never compiled for AMD's"
    capability = gpus.capability(request.device)
    if capability is None:
        return "PyTorch sees no GPU"
    if capability < (7, 0):
        return (
            f"it needs the tensor cores that GPUs have from sm_70 on (V100), and {request.device} is {_sm(capability)}"
        )
    if request.dtype == torch.bfloat16 and capability < (8, 0):
        return (
            f"bfloat16 needs a GPU from sm_80 on (A100), and {request.device} is {_sm(capability)}: use float16 "
            "(torch.autocast(dtype=torch.float16) with a GradScaler)"
        )
    if request.dtype == torch.float64 and capability == (7, 5):
        return f"float64 takes more shared memory than a block has on sm_75, which {request.device} is: use float32"
    if reason := native.unavailable(gpus.library):
        return reason
    return _not_compiled_for(gpus.library, capability)


@functools.cache
def _capability(device: torch.device) -> tuple[int, int] | None:
    return torch.cuda.get_device_capability(device) if torch.cuda.is_available() else None


@functools.cache
def _not_compiled_for(library: str, capability: tuple[int, int]) -> str | None:
    """Why the library, which is there, has no code for such a GPU, or None."""
    info = native.build_info(library)
    archs = str(info["archs"]).split()
    if nvcc.runs(archs, capability):
        return None
    found = f"it was compiled for {', '.join(archs)} by nvcc {info['nvcc']}, and this GPU is {_sm(capability)}"
    if capability < (7, 5) and int(str(info["nvcc"]).split(".")[0]) >= 13:
        remedy = "CUDA 13 begins with sm_75: install a CUDA 12.x toolkit and PyTorch's CUDA 12.6 build"
    else:
        remedy = f"set {nvcc.ARCHS} to a list that has {capability[0]}.{capability[1]}, or unset it"
    return f"{found}; {remedy}, then run `{CUDA.command}`"


def _sm(capability: tuple[int, int]) -> str:
    return f"sm_{capability[0]}{capability[1]}"


@functools.cache
def _ops(library: str) -> tuple[Any, Any]:
    """The ops forward and backward of a library, which is loaded; without an overload to choose in every call."""
    native.require(library)
    ops = getattr(torch.ops, f"lewel_{library}")
    return ops.forward.default, ops.backward.default


def forward(
    features: Tensor,
    pixels: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    *,
    num_groups: int,
    temperature: float,
    eps: float,
    out_dtype: torch.dtype,
    return_maps: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """E0-E5; see `lewel_kernels.reference.forward`."""
    run, _ = _ops(gpus.library)
    (n, c, p), k = features.shape, weight.shape[0]
    pooled = features.new_empty((n, k // num_groups, c), dtype=out_dtype)
    maps = features.new_empty((n, k, p) if return_maps else (0,), dtype=out_dtype)
    heat = _rows_like(features, k)
    norm = features.new_empty((n, p), dtype=reference.accumulator(features.dtype))
    if n:
        run(
            features, pixels, weight, bias, _contiguous(scale), _contiguous(shift), num_groups, temperature, eps,
            pooled, maps if return_maps else None, heat, norm,
        )  # fmt: skip
    return pooled, maps, heat, norm


def backward(
    grad_pooled: Tensor,
    grad_maps: Tensor | None,
    features: Tensor,
    pixels: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    heat: Tensor,
    norm: Tensor,
    *,
    num_groups: int,
    temperature: float,
    eps: float,
    needs: Needs,
) -> Gradients:
    """E6-E11; see `lewel_kernels.reference.backward`. The softmax is taken again from heat and norm."""
    _, run = _ops(gpus.library)
    inputs = (features, pixels, weight, bias, scale, shift)
    new = torch.empty_like if features.shape[0] else torch.zeros_like  # sums over no images
    d_features, d_pixels, d_weight, d_bias, d_scale, d_shift = (
        new(x) if need and x is not None else None for x, need in zip(inputs, needs, strict=True)
    )
    if features.shape[0]:
        run(
            grad_pooled, grad_maps, features, pixels, weight, _contiguous(scale), _contiguous(shift), _as_rows(heat),
            norm.contiguous(), num_groups, temperature, eps, d_features, d_pixels, d_weight, d_bias, d_scale, d_shift,
        )  # fmt: skip
    return d_features, d_pixels, d_weight, d_bias, d_scale, d_shift


def describe(
    features: Tensor,
    pixels: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    *,
    num_groups: int,
    temperature: float,
    eps: float,
    out_dtype: torch.dtype,
) -> str:
    """Each kernel that a call would launch, with its grid and shared memory, and what the kernels were compiled for."""
    (n, c, _), k = features.shape, weight.shape[0]
    capability = gpus.capability(features.device)
    assert capability is not None  # nothing is described that was refused
    info = native.build_info(gpus.library)
    origin = f"compiled for {info['archs']} by nvcc {info['nvcc']}"
    if not n:
        return f"nothing is launched for no images; kernels {origin}"
    pooled = torch.empty(n, k // num_groups, c, dtype=out_dtype, device="meta")
    tensors = (features, pixels, weight, bias, scale, pooled, None)
    arch = 80 if capability >= (8, 0) else 70
    forward, backward = launches(native.module(gpus.library), tensors, num_groups, arch)
    lines = [f"forward, kernels {origin}:", *(f"  {x}" for x in forward), "backward:", *(f"  {x}" for x in backward)]
    return "\n".join(lines)


def launches(
    library: ModuleType, tensors: tuple[Tensor | None, ...], num_groups: int, arch: int
) -> tuple[list[str], list[str]]:
    """The launches of a forward, and of a backward for all gradients: a line each.

    Args:
        library: The loaded extension, as csrc/cuda/module.cpp makes it.
        tensors: features, pixels, weight, bias, scale, pooled and maps; they may be on device "meta".
        num_groups: As of the op.
        arch: Whose instructions the kernels have: 70, or 80 from sm_80 on.
    """
    forward, backward = library.describe(*map(_view, tensors), num_groups, arch)
    return forward.splitlines(), backward.splitlines()


def _view(x: Tensor | None) -> tuple[int, int, list[int], list[int]] | None:
    """What library.describe takes for a tensor: an address, which it never reads, its type, sizes and strides."""
    if x is None:
        return None
    address = 256 if x.is_meta else x.data_ptr()  # as aligned as torch's memory is
    return address, NUMBERS.index(x.dtype), list(x.shape), list(x.stride())


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _rows_like(x: Tensor, k: int) -> Tensor:
    """(N, K, P) for x (N, ., P), stored as rows of K maps."""
    n, _, p = x.shape
    return x.new_empty_strided((n, k, p), (p * k, 1, k))


def _as_rows(heat: Tensor) -> Tensor:
    """The heat maps (N, K, P) in the strides of `_rows_like`, which they have unless vmap took them apart."""
    _, k, p = heat.shape
    return heat if heat.stride() == (p * k, 1, k) else _rows_like(heat, k).copy_(heat)
