"""Linear layers over rows that nearly agree, in 16 bits without losing what they differ by.

The aligned representations of an image differ from their mean by about one percent, of which rounding them to bfloat16
loses a fifth. A linear layer without bias takes the mean apart: W R = W mean + W (R - mean), one row an image in
float32, and the differences in 16 bits, where they have all the bits to themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from lewel.errors import LewelError


def chain(module: nn.Module, x: Tensor) -> Tensor:
    """Calls module, a projector or predictor, with the N L rows of x (N, L, width), and returns its output (N, L, out).

    module takes rows (N L, width) and returns rows (N L, out); its BN takes statistics over all of them. Under autocast
    x is float32, each linear layer without bias that module calls is split_linear in the dtype of autocast, and
    everything else in module runs in float32. Such a layer must get N L rows, the images' one after the other: else
    LewelError.
    """
    device, rows = x.device.type, x.flatten(0, 1)
    if x.is_meta or not torch.is_autocast_enabled(device):  # meta tensors know no autocast
        return module(rows).unflatten(0, x.shape[:2])
    splitting = _Splitting(x.shape[:2], torch.get_autocast_dtype(device))
    with torch.autocast(device, enabled=False), splitting:
        return module(rows).unflatten(0, x.shape[:2])


class _Splitting(TorchFunctionMode):
    """Inside it linear layers without bias are split_linear; a mode, so that module's own forward and hooks run."""

    def __init__(self, images: torch.Size, dtype: torch.dtype) -> None:
        super().__init__()
        self.images = images  # N, L
        self.dtype = dtype

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.linear:
            rows, weight, bias = _linear_arguments(*args, **kwargs)
            if bias is None:
                if rows.shape[:-1] != (self.images.numel(),):
                    raise LewelError(
                        f"in 16 bits a linear layer without bias in a projector or predictor of aligned vectors must "
                        f"get their {self.images.numel()} rows, but got {tuple(rows.shape)}; give it a bias, or keep "
                        "the rows as they come"
                    )
                return split_linear(rows.unflatten(0, self.images), weight, self.dtype).flatten(0, 1)
        return func(*args, **kwargs)


def _linear_arguments(
    input: Tensor, weight: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The arguments of F.linear, however they were given."""
    return input, weight, bias


def split_linear(x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """x (N, L, in), weight (out, in), both float32 -> x weight^T (N, L, out), float32.

    What the L rows of an image differ by is multiplied in dtype, forward and backward; sums are in float32.
    """
    return _SplitLinear.apply(x, weight, dtype).view(*x.shape[:2], -1)


class _SplitLinear(torch.autograd.Function):
    """The function behind split_linear: x (N, L, in) -> the rows (N L, out); their products are in dtype.

    What it returns is no view, so that a layer may work in place on it.

    dx = dy W and dW = sum_n (sum_l dy) mean^T + dy^T (x - mean). The mean is x's own, so its gradient cancels in dx.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
        mean = x.mean(1)  # [N, in]
        apart, scale = _narrow((x - mean.unsqueeze(1)).flatten(0, 1), dtype)
        ctx.save_for_backward(mean, apart, scale, weight)
        y = _times(apart, weight.to(dtype).t(), x.dtype, scale)
        y.view(*x.shape[:2], -1).add_((mean @ weight.t()).unsqueeze(1))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        mean, apart, scale, weight = ctx.saved_tensors
        needs_dx, needs_dw, _ = ctx.needs_input_grad
        dx = dw = None
        with torch.autocast(dy.device.type, enabled=False):
            rows, dy_scale = _narrow(dy, apart.dtype)
            if needs_dx:
                dx = _times(rows, weight.to(apart.dtype), dy.dtype, dy_scale).view(len(mean), -1, mean.shape[1])
            if needs_dw:
                of_images = dy.unflatten(0, (len(mean), -1)).sum(1)
                dw = _times(rows.t(), apart, dy.dtype, dy_scale, scale).addmm_(of_images.t(), mean)
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
