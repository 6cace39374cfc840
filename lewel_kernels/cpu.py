"""The cpu backend: E1-E10 by the compiled kernels of csrc/cpu, on PyTorch's own threads.

Tensors are read in place whatever their strides; contiguous and channels_last ones (also pixels narrowed from a longer
token sequence) are the fast ones. The activation of E0 and its backward E11 are PyTorch operations around the kernels.
Shapes and dtypes are those of lewel_kernels/reference.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lewel_kernels import native, reference
from lewel_kernels.signature import outputs

if TYPE_CHECKING:
    from lewel_kernels.dispatch import Request
    from lewel_kernels.signature import Gradients, Grads, Inputs, Options, Results, Saved

name = "cpu"
device_type = "cpu"
heat_rows = False

_STORAGE = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def refuse(request: Request) -> str | None:
    """Why the backend cannot run a request, or None. The first process on a machine to ask compiles the kernels."""
    if request.dtype not in _STORAGE:
        return f"it stores float32, bfloat16, float16 or float64; the features are {request.dtype}: convert them"
    return native.unavailable()


def forward(inputs: Inputs, options: Options) -> Results:
    """E0-E5; see `lewel_kernels.reference.forward`."""
    native.require()
    features, pixels, weight, bias, scale, shift = inputs
    num_groups, temperature, eps, _, return_maps, _ = options
    if scale is not None:
        pixels = reference.projection_input(features, pixels, scale, shift)
    pooled, maps, heat, norm = outputs(inputs, options, False)
    torch.ops.lewel_native.cpu_forward(
        features, pixels, weight, bias, num_groups, temperature, eps,
        pooled, maps if return_maps else None, heat, norm,
    )  # fmt: skip
    return pooled, maps, heat, norm


def backward(grads: Grads, inputs: Inputs, saved: Saved, options: Options) -> Gradients:
    """E6-E11; see `lewel_kernels.reference.backward`. The softmax is taken again from heat and norm."""
    native.require()
    features, pixels, weight, bias, scale, shift = inputs
    num_groups, temperature, eps, _, _, needs = options
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
        *grads, features, projected, weight, *saved, num_groups, temperature, eps,
        d_features, d_projected, d_weight, d_bias,
    )  # fmt: skip
    if pixels is None or scale is None or shift is None or d_projected is None:
        return d_features, d_projected, d_weight, d_bias, None, None
    d_pixels, d_scale, d_shift = reference.activate_backward(
        d_projected, pixels, scale, shift, (needs[1], needs[4], needs[5])
    )
    return d_features, d_pixels, d_weight, d_bias, d_scale, d_shift
