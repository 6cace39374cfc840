"""Registers the op with other tools: its flops with PyTorch's flop counter, its sharding with DTensor.

Only where the tool has been imported already, for importing it is slow.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

import torch
from torch import Tensor

from lewel_kernels.plan import Sizes


def exports_to_onnx() -> bool:
    """Whether torch.onnx.export is running, with dynamo or without."""
    return "torch.onnx" in sys.modules and bool(torch.onnx.is_in_onnx_export())


def prepare(tensors: tuple[Tensor | None, ...]) -> None:
    """Registers the op with the tools in use; called before a call on these tensors that is not `tracing.is_plain`."""
    if "torch.utils.flop_counter" in sys.modules:
        _count_flops()
    if (distributed := sys.modules.get("torch.distributed.tensor")) is not None and any(
        isinstance(x, distributed.DTensor) for x in tensors
    ):
        _shard()


def _count_flops() -> None:
    """Registers the formulas of both ops, also with counters that are active: those copied the table when made."""
    from torch.utils import flop_counter
    from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

    formulas = {
        torch.ops.lewel_kernels.align_aggregate_fwd: _forward_flops,
        torch.ops.lewel_kernels.align_aggregate_bwd: _backward_flops,
    }
    if not formulas.keys() <= flop_counter.flop_registry.keys():
        for op, formula in formulas.items():
            flop_counter.register_flop_formula(op)(formula)  # type: ignore[arg-type]
    for mode in _get_current_dispatch_mode_stack():
        if isinstance(mode, flop_counter._FlopCounterMode):
            for op in formulas:
                mode.counter.flop_registry.setdefault(op, flop_counter.flop_registry[op])


def _forward_flops(features: Any, pixels: Any, weight: Any, *args: Any, **_: Any) -> int:
    """Flops of E1 and E5. The arguments are those of the forward op, with shapes in place of tensors."""
    sizes = _sizes(features, weight, args[3])
    return sizes.projection + sizes.pooling


def _backward_flops(
    grad_pooled: Any, grad_maps: Any, features: Any, pixels: Any, weight: Any, *args: Any, **_: Any
) -> int:
    """Flops of E6, E7 and the two products of E10, as far as they are needed.

    The arguments are those of the backward op, with shapes in place of tensors.
    """
    sizes, needs = _sizes(features, weight, args[5]), args[8]
    needs_features, needs_pixels, needs_weight, *others = needs
    projected = needs_features if pixels is None else needs_pixels or any(others[1:])
    return sizes.pooling * (needs_features + (projected or needs_weight or others[0])) + (
        sizes.projection * (bool(projected) + needs_weight)
    )


def _sizes(features: Any, weight: Any, num_groups: int) -> Sizes:
    (n, c, p), (k, d) = features, weight
    return Sizes(n, c, d, k, k // num_groups, p)


@functools.cache
def _shard() -> None:
    """Registers how DTensor may shard both ops: images over devices, each of which has the whole parameters.

    The gradients of the parameters are then partial sums.
    """
    from torch.distributed.tensor import Partial, Replicate, Shard
    from torch.distributed.tensor.experimental import register_sharding

    images, all_of_it, sums = Shard(0), Replicate(), Partial()

    @register_sharding(torch.ops.lewel_kernels.align_aggregate_fwd.default)
    def forward(features: Any, pixels: Any, weight: Any, bias: Any, scale: Any, shift: Any, *args: Any) -> Any:
        tensors = (features, pixels, weight, bias, scale, shift)
        return_maps = args[4]
        placed = (images, images, all_of_it, all_of_it, all_of_it, all_of_it)
        results = [images, images if return_maps else all_of_it, images, images]
        return [
            ([all_of_it] * 4, _present(tensors, [all_of_it] * 6) + [None] * len(args)),
            (results, _present(tensors, placed) + [None] * len(args)),
        ]

    @register_sharding(torch.ops.lewel_kernels.align_aggregate_bwd.default)
    def backward(*args: Any) -> Any:
        tensors, rest = args[:10], args[10:]
        needs = rest[3]
        placed = (*(images,) * 4, *(all_of_it,) * 4, images, images)
        gradients = (images, images, sums, sums, sums, sums)
        results = [placement if need else all_of_it for placement, need in zip(gradients, needs, strict=True)]
        return [
            ([all_of_it] * 6, _present(tensors, [all_of_it] * 10) + [None] * len(rest)),
            (results, _present(tensors, placed) + [None] * len(rest)),
        ]


def _present(tensors: Any, placements: Any) -> list[Any]:
    return [x if x is None else placement for x, placement in zip(tensors, placements, strict=True)]
