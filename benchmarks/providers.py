"""What is timed: the lines a user would write in plain PyTorch, the same compiled, and the op on each backend."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .cases import NUM_GROUPS, TEMPERATURE

Op = Callable[[Tensor, Tensor, Tensor], Tensor]


def eager_maps(
    pixels: Tensor, weight: Tensor, bias: Tensor | None = None, *, temperature: float = TEMPERATURE, eps: float = 1e-12
) -> Tensor:
    """E1-E4 as a PyTorch user writes them: (N, D, H, W), (K, D) -> (N, K, P)."""
    heat = F.conv2d(pixels, weight[:, :, None, None], bias)
    return (F.normalize(heat, dim=1, eps=eps).flatten(2) / temperature).softmax(-1)


def eager_pool(features: Tensor, maps: Tensor, *, num_groups: int = NUM_GROUPS) -> Tensor:
    """E5 as a PyTorch user writes it: (N, C, H, W), (N, K, P) -> (N, K // num_groups, C)."""
    maps = maps.unflatten(1, (num_groups, -1)).transpose(2, 3)  # [N, G, P, L]
    grouped = features.flatten(2).unflatten(1, (num_groups, -1))  # [N, G, C / G, P]
    return (grouped @ maps.to(features.dtype)).permute(0, 3, 1, 2).flatten(2)


def eager_align_aggregate(features: Tensor, pixels: Tensor, weight: Tensor) -> Tensor:
    """The ten lines that the op replaces: (N, C, H, W), (N, D, H, W), (K, D) -> (N, K // NUM_GROUPS, C).

    Of the twelve natural formulations (convolution, matmul or linear for E1; einsum, either order of matmul, or a loop
    over groups for E5) this one has the smallest forward+backward time over the quick suite on the CPU.
    """
    return eager_pool(features, eager_maps(pixels, weight))


def _compiled() -> Op:
    # Without a reset, shapes of earlier cases count towards the recompile limit, after which "compiled" means eager.
    torch.compiler.reset()
    return torch.compile(eager_align_aggregate, dynamic=False)


def _fused(features: Tensor, pixels: Tensor, weight: Tensor, *, backend: str) -> Tensor:
    from lewel_kernels import fused_align_aggregate

    return fused_align_aggregate(
        features, weight, pixels=pixels, num_groups=NUM_GROUPS, temperature=TEMPERATURE, backend=backend
    )


PROVIDERS: dict[str, Callable[[], Op]] = {
    "eager": lambda: eager_align_aggregate,
    "compile": _compiled,
    "cpu": lambda: functools.partial(_fused, backend="cpu"),
    "reference": lambda: functools.partial(_fused, backend="reference"),
}
