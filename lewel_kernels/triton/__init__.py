"""The triton backend: E1-E11 by the kernels of this folder, on NVIDIA GPUs from sm_80 on.

Features and pixels are read in place whatever their strides; channels_last is the fast layout. With TRITON_INTERPRET=1,
set before the first import, the kernels run on CPU tensors, very slowly: for tests. Importing this module imports no
triton; the first question to it does.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lewel_kernels.dispatch import BackendUnavailable

if TYPE_CHECKING:
    from lewel_kernels.dispatch import Gradients, Needs, Request
    from lewel_kernels.triton import launch

name = "triton"
heat_rows = True
# Decided once, as triton decides it: where its kernels are defined.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
device_type = "cpu" if INTERPRETED else "cuda"

_MOST_ROWS = 2**31 - 1  # their indices are 32-bit, unlike the offsets made of them
_MOST_POSITIONS = 2**20  # of which each tile is a program along an axis of the grid that has 2^16
# A program holds a row of them in registers.
MOST_MAPS = {torch.float32: 512, torch.bfloat16: 512, torch.float16: 512, torch.float64: 256}


def refuse(request: Request) -> str | None:
    """Why it cannot run, or None."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed; pip install triton"
    if request.dtype not in MOST_MAPS:
        return f"it stores float32, bfloat16, float16 or float64; the features are {request.dtype}: convert them"
    if request.num_maps > (most := MOST_MAPS[request.dtype]):
        return f"it computes at most {most} maps in {request.dtype}; weight has {request.num_maps} rows"
    if not INTERPRETED:
        major, minor = _capability(request.device)
        if major < 8:
            return (
                f"it needs a GPU from sm_80 on (A100), and {request.device} is sm_{major}{minor}, for which Triton "
                "would compile matrix products to scalar code"
            )
    return None


@functools.cache
def _capability(device: torch.device) -> tuple[int, int]:
    return (9, 0) if INTERPRETED else torch.cuda.get_device_capability(device)


def _call(
    features: Tensor, pixels: Tensor | None, weight: Tensor, bias: Tensor | None,
    scale: Tensor | None, shift: Tensor | None, num_groups: int, temperature: float, eps: float,
) -> launch.Call:  # fmt: skip
    from lewel_kernels.triton import launch

    n, _, p = features.shape
    if n * p > _MOST_ROWS or p > _MOST_POSITIONS:
        raise BackendUnavailable(
            f"the triton backend takes at most {_MOST_POSITIONS} positions in an image and {_MOST_ROWS} in a batch; "
            f"got {p} and {n * p}: split the batch, or use backend='reference'"
        )
    if scale is not None and shift is not None:
        scale, shift = scale.contiguous(), shift.contiguous()
    arch = _architecture(features.device)
    return launch.Call(features, pixels, weight, bias, scale, shift, num_groups, temperature, eps, arch)


def _architecture(device: torch.device) -> str:
    from lewel_kernels.triton import configs

    return configs.architecture(_capability(device))


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
    from lewel_kernels.triton import forward_launches, launch

    call = _call(features, pixels, weight, bias, scale, shift, num_groups, temperature, eps)
    outputs, launches = forward_launches.plan(call, out_dtype=out_dtype, return_maps=return_maps)
    launch.run(launches, features.device)
    return outputs


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
    from lewel_kernels.triton import backward_launches, launch

    call = _call(features, pixels, weight, bias, scale, shift, num_groups, temperature, eps)
    heat, norm = launch.as_rows(heat), norm.contiguous()
    gradients, launches = backward_launches.plan(call, grad_pooled, grad_maps, heat, norm, needs)
    launch.run(launches, features.device)
    return gradients


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
    """The design that a call would take, each kernel that it would launch with its configuration, and whose that is."""
    from lewel_kernels.triton import backward_launches, forward_launches, launch

    tensors = [x if x is None else _without_contents(x) for x in (features, pixels, weight, bias, scale, shift)]
    call = launch.Call(*tensors, num_groups, temperature, eps, _architecture(features.device))  # type: ignore[arg-type, call-arg]
    outputs, first = forward_launches.plan(call, out_dtype=out_dtype, return_maps=False)
    _, second = backward_launches.plan(call, outputs[0], None, *outputs[2:], needs=(True,) * 6)
    design = "projection kept on chip" if forward_launches.is_dense(call) else "projection, then pooling"
    lines = [f"forward ({design}):", *(f"  {x}" for x in first), "backward:", *(f"  {x}" for x in second)]
    return "\n".join(lines)


def _without_contents(x: Tensor) -> Tensor:
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")
