"""The arguments and results of a backend: six tensors, the options of a call, and what a forward leaves to a backward.

lewel_kernels/reference.py says what each is; `lewel_kernels.dispatch.Backend` is the protocol.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor

# Of the inputs in the order of the op: features, pixels, weight, bias, scale, shift.
Needs = tuple[bool, bool, bool, bool, bool, bool]
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]
Grads = tuple[Tensor, Tensor | None]  # of pooled (N, L, C) and of maps (N, K, P)
Saved = tuple[Tensor, Tensor]  # heat (N, K, P) and norm (N, P), of a forward for its backward
Results = tuple[Tensor, Tensor, Tensor, Tensor]  # pooled, maps and what is saved
EVERY: Needs = (True,) * 6


class Inputs(NamedTuple):
    """The tensors that a backend is given, in the order of the op. Accumulator types are those of `accumulator`."""

    features: Tensor  # (N, C, P)
    pixels: Tensor | None  # (N, D, P); None: the features are projected
    weight: Tensor  # (K, D)
    bias: Tensor | None  # (K,)
    scale: Tensor | None = None  # (D,) in the accumulator type, with shift and pixels, or None
    shift: Tensor | None = None


class Options(NamedTuple):
    """What a backend is told beside tensors. Forwards do not read needs, backwards not out_dtype and return_maps."""

    num_groups: int
    temperature: float
    eps: float
    out_dtype: torch.dtype | None = None  # of pooled and maps; a forward is always told
    return_maps: bool = False
    needs: Needs = EVERY  # which gradients are computed


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype of norms, log-sum-exps and sums for a storage dtype."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def outputs(inputs: Inputs, options: Options, rows: bool) -> Results:
    """Tensors for a forward to fill: (pooled, maps, heat, norm) of `lewel_kernels.reference.forward`.

    ``rows``: heat is stored as `rows_like` does it; otherwise contiguous.
    """
    features, _, weight, *_ = inputs
    num_groups, _, _, out_dtype, return_maps, _ = options
    (n, c, p), k = features.shape, weight.shape[0]
    # Of the features and not by torch.empty, which has the device of torch.set_default_device.
    new = features.new_empty
    return (
        new((n, k // num_groups, c), dtype=out_dtype),
        new((n, k, p) if return_maps else (0,), dtype=out_dtype),
        rows_like(features, k) if rows else new((n, k, p)),
        new((n, p), dtype=accumulator(features.dtype)),
    )


def gradients(inputs: Inputs, needs: Needs) -> Gradients:
    """Tensors for a backward to fill, in the layouts of the inputs; None where not needed, zeros without images."""
    new = torch.empty_like if inputs.features.shape[0] else torch.zeros_like
    made = (new(x) if need and x is not None else None for x, need in zip(inputs, needs, strict=True))
    return cast(Gradients, tuple(made))


def rows_like(x: Tensor, k: int) -> Tensor:
    """A tensor for heat maps (N, K, P) of x (N, ., P), not yet filled, stored as rows of K maps."""
    n, _, p = x.shape
    return x.new_empty_strided((n, k, p), (p * k, 1, k))


def as_rows(heat: Tensor) -> Tensor:
    """heat (N, K, P) in the strides of `rows_like`; copied where it has others, as after vmap."""
    _, k, p = heat.shape
    return heat if heat.stride() == (p * k, 1, k) else rows_like(heat, k).copy_(heat)


def contiguous(inputs: Inputs) -> Inputs:
    """inputs, with scale and shift made contiguous, as kernels read them."""
    *_, scale, shift = inputs
    if scale is None or shift is None:
        return inputs
    return inputs._replace(scale=scale.contiguous(), shift=shift.contiguous())
