"""The cpu backend: E1-E10 by the compiled kernels of csrc/cpu, on PyTorch's own threads.

Tensors are read in place whatever their strides; contiguous and channels_last ones (also pixels narrowed from a longer
token sequence) are the fast ones. The activation of E0 and its backward E11 are PyTorch operations around the kernels.
Shapes and dtypes are those of lewel_kernels/reference.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lewel_kernels import native, reference

if TYPE_CHECKING:
    from lewel_kernels.dispatch import Gradients, Needs, Request

name = "cpu"
device_type = "cpu"
heat_rows = False

_STORAGE = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def refuse(request: Request) -> str | None:
    """Why it cannot run, or None. Compiles the extension if this process is the first on this machine to need it."""
    if request.dtype not in _STORAGE:
        return f"it stores float32, bfloat16, float16 or float64; the features are {request.dtype}: convert them"
    return native.unavailable()


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
    native.require()
    if scale is not None:
        pixels = reference.projection_input(features, pixels, scale, shift)
    (n, c, p), k = features.shape, weight.shape[0]
    acc = reference.accumulator(features.dtype)
    # Of the features and not by torch.empty, which has the device of torch.set_default_device.
    pooled = features.new_empty((n, k // num_groups, c), dtype=out_dtype)
    maps = features.new_empty((n, k, p) if return_maps else (0,), dtype=out_dtype)
    heat = features.new_empty((n, k, p))
    norm = features.new_empty((n, p), dtype=acc)
    torch.ops.lewel_native.cpu_forward(
        features, pixels, weight, bias, num_groups, temperature, eps,
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
    native.require()
    needs_projected = needs[1] or (scale is not None and (needs[4] or needs[5]))
    projected = pixels
    if scale is not None and needs[2]:  # only the gradient of the weight reads what was projected
        projected = reference.projection_input(features, pixels, scale, shift)
    d_features, d_projected, d_weight, d_bias = (
        torch.empty_like(x) if need and x is not None else None
        for x, need in (
            (features, needs[0]), (projected, needs_projected), (weight, needs[2]), (bias, needs[3]),
        )
    )  # fmt: skip
    torch.ops.lewel_native.cpu_backward(
        grad_pooled, grad_maps, features, projected, weight, heat, norm, num_groups, temperature, eps,
        d_features, d_projected, d_weight, d_bias,
    )  # fmt: skip
    if pixels is None or scale is None or shift is None or d_projected is None:
        return d_features, d_projected, d_weight, d_bias, None, None
    d_pixels, d_scale, d_shift = reference.activate_backward(
        d_projected, pixels, scale, shift, (needs[1], needs[4], needs[5])
    )
    return d_features, d_pixels, d_weight, d_bias, d_scale, d_shift
