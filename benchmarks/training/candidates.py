"""The training steps that are timed: every method with the op, with the lines it replaces, or without the branch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import lewel_kernels
from benchmarks.op.providers import eager_maps, eager_pool
from benchmarks.training import bench
from benchmarks.training.bench import Case


def eager(
    features: Tensor, weight: Tensor, *, pixels: Tensor, num_groups: int, temperature: float, out_dtype: torch.dtype,
    backend: str | None,
) -> Tensor:  # fmt: skip
    """The lines that the op replaces, as the trainer calls it: (N, C, H, W), (K, D), (N, D, P) -> (N, L, C).

    Under autocast they pool in 16 bits and only then convert to out_dtype, as a user's lines do; the op never rounds.
    """
    maps = eager_maps(pixels.unflatten(2, features.shape[2:]), weight, temperature=temperature)
    return eager_pool(features, maps, num_groups=num_groups).to(out_dtype)


OPS: dict[str, Callable[..., Tensor]] = {"eager": eager, "fused": lewel_kernels.fused_align_aggregate}


class Candidate(bench.Candidate):
    """A method with one choice of the aligned op."""

    def __init__(self, case: Case, method: str, variant: str) -> None:
        super().__init__(case, method)
        self.op = OPS.get(variant)

    def step(self, first: Tensor, second: Tensor, op: Callable[..., Tensor] | None = None) -> Tensor:
        with mock.patch.object(lewel_kernels, "fused_align_aggregate", op or self.op):
            return super().step(first, second)

    def first_call(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, dict[str, Any]] | None:
        """Features, weight and options that a step, which this takes, first hands the op; None without the branch."""
        seen: list[tuple[Tensor, Tensor, dict[str, Any]]] = []

        def spy(features: Tensor, weight: Tensor, **options: Any) -> Tensor:
            seen.append((features.detach(), weight.detach(), options | {"pixels": options["pixels"].detach()}))
            return OPS["eager"](features, weight, **options)

        if self.op is not None:
            self.step(first, second, spy)
        return seen[0] if seen else None
