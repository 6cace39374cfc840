"""Linear layers over rows that nearly agree, in 16 bits without losing what they differ by.

The aligned representations of an image differ from their mean by about one percent, of which rounding them to bfloat16
loses a fifth. A linear layer without bias takes the mean apart: W R = W mean + W (R - mean), one row an image in
float32, and the differences in 16 bits, where they have all the bits to themselves.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def chain(module: nn.Module, x: Tensor) -> Tensor:
    """module, a chain of layers in the order of its parts, on the N L rows of x (N, L, width): (N, L, out).

    Its BN takes statistics over all rows. Under autocast x is float32, linear layers without bias are split_linear in
    the dtype of autocast, and the others run in float32.
    """
    device, rows = x.device.type, x.flatten(0, 1)
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return module(rows).unflatten(0, x.shape[:2])
    dtype = torch.get_autocast_dtype(device)
    with torch.autocast(device, enabled=False):
        for layer in module.modules():
            if isinstance(layer, nn.Linear) and layer.bias is None:
                rows = split_linear(rows.unflatten(0, x.shape[:2]), layer.weight, dtype).flatten(0, 1)
            elif not list(layer.children()):
                rows = layer(rows)
    return rows.unflatten(0, x.shape[:2])


def split_linear(x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """x (N, L, in), weight (out, in), both float32 -> x weight^T (N, L, out), float32.

    What the L rows of an image differ by is multiplied in dtype, forward and backward; sums are in float32.
    """
    return _SplitLinear.apply(x, weight, dtype)


class _SplitLinear(torch.autograd.Function):
    """The function behind split_linear: the products of N L rows are in dtype, forward and backward.

    dx = dy W and dW = sum_n (sum_l dy) mean^T + dy^T (x - mean). The mean is x's own, so its gradient cancels in dx.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
        mean = x.mean(1)  # [N, in]
        apart, scale = _narrow((x - mean.unsqueeze(1)).flatten(0, 1), dtype)
        ctx.save_for_backward(mean, apart, scale, weight)
        y = _times(apart, weight.to(dtype).t(), x.dtype, scale).view(*x.shape[:2], -1)
        return y.add_((mean @ weight.t()).unsqueeze(1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        mean, apart, scale, weight = ctx.saved_tensors
        needs_dx, needs_dw, _ = ctx.needs_input_grad
        dx = dw = None
        with torch.autocast(dy.device.type, enabled=False):
            rows, dy_scale = _narrow(dy.flatten(0, 1), apart.dtype)
            if needs_dx:
                dx = _times(rows, weight.to(apart.dtype), dy.dtype, dy_scale).view(*dy.shape[:2], -1)
            if needs_dw:
                dw = _times(rows.t(), apart, dy.dtype, dy_scale, scale).addmm_(dy.sum(1).t(), mean)
        return dx, dw, None


def _narrow(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """x in dtype, and the scale (0-dim) that it was divided by, or None.

    Only float16, which has few exponents, is scaled: by the power of two that brings the largest |x| between 1 and 2.
    """
    if dtype != torch.float16:
        return x.to(dtype), None
    largest = x.abs().amax()
    scale = torch.where(largest > 1e-30, torch.exp2(torch.floor(torch.log2(largest))), 1.0)
    return (x / scale).to(dtype), scale


def _times(a: Tensor, b: Tensor, dtype: torch.dtype, *scales: Tensor | None) -> Tensor:
    """The product of 16-bit a and b, times the given scales, in dtype, float32; a CPU rounds it to 16 bits first."""
    product = torch.mm(a, b, out_dtype=dtype) if a.is_cuda else torch.mm(a, b).to(dtype)
    for scale in scales:
        if scale is not None:
            product *= scale
    return product
