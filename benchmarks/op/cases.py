"""What is timed: shapes, suites of cases, and the tensors of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from typing import TypeVar

import torch
from torch import Tensor

from lewel_kernels.plan import Call, Sizes

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
NUM_GROUPS = 4
# At temperature 1 random maps are almost flat and a wrong pooling still looks like global average pooling.
TEMPERATURE = 0.05


@dataclass(frozen=True)
class Shape:
    """N images, C pooled channels, D projected channels, K maps over H x W positions."""

    name: str
    N: int
    C: int
    D: int
    K: int
    H: int
    W: int

    @property
    def P(self) -> int:
        return self.H * self.W

    @property
    def L(self) -> int:
        return self.K // NUM_GROUPS

    @property
    def flops(self) -> Sizes:
        """Those of the projection and of the pooling."""
        return Sizes(self.N, self.C, self.D, self.K, self.L, self.P)

    def __str__(self) -> str:
        return f"{self.name} (N={self.N} C={self.C} D={self.D} K={self.K} {self.H}x{self.W})"


@dataclass(frozen=True)
class Case:
    """One row group: a shape in a memory layout and a storage dtype, on a device."""

    shape: Shape
    layout: str
    dtype: str
    device: str = "cpu"
    axis: str = ""  # suite sweep: the one of N, P, K, D that grows along its curve

    @property
    def device_type(self) -> str:
        return torch.device(self.device).type

    def call(self, capability: tuple[int, int] = (9, 0)) -> Call:
        """The forward as the op plans it, on a GPU of that capability."""
        s = self.shape
        return Call.sized(
            N=s.N, C=s.C, D=s.D, K=s.K, P=s.P, G=NUM_GROUPS, dtype=DTYPES[self.dtype],
            layout="rows" if self.layout == "channels_last" else "planes", temperature=TEMPERATURE,
            capability=capability,
        )  # fmt: skip

    def __str__(self) -> str:
        return f"{self.shape}, {self.layout}, {self.dtype}"


@dataclass
class Inputs:
    """The tensors of one call: leaves that require a gradient, and grad, the gradient of pooled for the backward."""

    features: Tensor
    pixels: Tensor
    weight: Tensor
    grad: Tensor

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        return self.features, self.pixels, self.weight

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in (*self.leaves, self.grad))


Made = TypeVar("Made", bound=Inputs)


def _m(n: int) -> Shape:
    return Shape(f"M{n}", N=n, C=2048, D=2048, K=128, H=7, W=7)


def _b(n: int) -> Shape:
    return Shape(f"B{n}", N=n, C=2048, D=4096, K=256, H=7, W=7)


D14 = Shape("14x14", N=64, C=1024, D=1024, K=128, H=14, W=14)
D56 = Shape("56x56", N=32, C=256, D=256, K=128, H=56, W=56)

QUICK = (
    Shape("m7", N=64, C=2048, D=2048, K=128, H=7, W=7),
    Shape("small", N=32, C=512, D=512, K=128, H=4, W=4),
    Shape("dense", N=8, C=256, D=256, K=128, H=28, W=28),
)
# LEWEL_M's and LEWEL_B's head on a ResNet-50 at 224 (paper Sec. 4), and dense maps. In order of importance: a run on
# lent time may end before the list does.
PAPER = (_m(128), _b(128), _m(256), _b(256), _m(64), _b(64), _m(32), D14, D56)
# What a GPU that is at hand for minutes is timed on: the least and the largest that matter.
FIRST = (_m(64), _b(64), _b(256))
TINY = Shape("tiny", N=4, C=64, D=64, K=32, H=4, W=4)
_GROWN = Shape("dense", N=8, C=256, D=256, K=128, H=28, W=28)
SWEEP = {
    "N": [_m(n) for n in (1, 2, 4, 8, 16, 32, 64, 128, 256)],
    "P": [replace(_GROWN, name=f"{side}x{side}", H=side, W=side) for side in (1, 2, 4, 7, 14, 28, 56)],
    "K": [replace(_m(32), name=f"K{k}", K=k) for k in (32, 64, 128, 256, 512)],
    "D": [replace(_m(32), name=f"D{d}", D=d) for d in (512, 1024, 2048, 4096)],
}

SUITES: dict[str, tuple[Case, ...]] = {
    "quick": tuple(Case(s, layout, dtype) for dtype, s, layout in product(("fp32", "bf16"), QUICK, LAYOUTS)),
    "paper": tuple(
        Case(s, layout, dtype)
        for dtype, layout in (("bf16", "channels_last"), ("bf16", "nchw"), ("fp16", "channels_last"), ("fp16", "nchw"))
        for s in PAPER
    ),
    "first": tuple(
        Case(s, layout, dtype)
        for dtype, layout in (("bf16", "channels_last"), ("fp16", "channels_last"), ("bf16", "nchw"))
        for s in FIRST
    ),
    # Small enough for a processor that runs the scripts of a GPU; a suite that no document quotes.
    "rehearsal": (Case(TINY, "channels_last", "bf16"), Case(TINY, "nchw", "fp32")),
    "sweep": tuple(Case(s, "channels_last", "bf16", axis=axis) for axis, shapes in SWEEP.items() for s in shapes),
}


def make_inputs(case: Case, seed: int = 0) -> Inputs:
    """Random tensors of a case: (N, C, H, W), (N, D, H, W), a (K, D) parameter and an (N, L, C) gradient.

    The weight is a float32 parameter, in a 16-bit case too: that one runs under autocast.
    """
    s, dtype = case.shape, DTYPES[case.dtype]
    generator = torch.Generator(case.device).manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, device=case.device)

    def image(channels: int) -> Tensor:
        # Both maps come out of a ReLU in LEWEL.
        values = normal(s.N, channels, s.H, s.W).relu().to(dtype)
        return values.contiguous(memory_format=LAYOUTS[case.layout]).requires_grad_()

    features, pixels = image(s.C), image(s.D)
    weight = (normal(s.K, s.D) / s.D**0.5).requires_grad_()
    return Inputs(features, pixels, weight, normal(s.N, s.L, s.C).to(dtype))


def input_sets(case: Case, cache_bytes: int, make: Callable[..., Made] = make_inputs) -> list[Made]:  # type: ignore[assignment]
    """Inputs to take turns: together at least twice the last-level cache, so that no call finds its own still there."""
    first = make(case)
    count = max(2, -(-2 * cache_bytes // first.nbytes))
    return [first, *(make(case, seed) for seed in range(1, count))]
