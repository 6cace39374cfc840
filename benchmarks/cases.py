"""The shapes that are timed, and the tensors of each."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

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

    def __str__(self) -> str:
        return f"{self.name} (N={self.N} C={self.C} D={self.D} K={self.K} {self.H}x{self.W})"


@dataclass(frozen=True)
class Case:
    """One row group: a shape in a memory layout and a storage dtype, on a device."""

    shape: Shape
    layout: str
    dtype: str
    device: str = "cpu"

    def __str__(self) -> str:
        return f"{self.shape}, {self.layout}, {self.dtype}"


@dataclass
class Inputs:
    """What one call reads: leaves that require a gradient, and the gradient that comes back from above."""

    features: Tensor
    pixels: Tensor
    weight: Tensor
    grad: Tensor

    @property
    def leaves(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.features, self.pixels, self.weight


# Insertion order is the order of the table.
SHAPES = {
    "m7": Shape("m7", N=64, C=2048, D=2048, K=128, H=7, W=7),
    "small": Shape("small", N=32, C=512, D=512, K=128, H=4, W=4),
    "dense": Shape("dense", N=8, C=256, D=256, K=128, H=28, W=28),
}

SUITES = {"quick": ("m7", "small", "dense")}


def make_inputs(case: Case, seed: int = 0) -> Inputs:
    """Random tensors of a case: (N, C, H, W), (N, D, H, W), a (K, D) parameter and an (N, L, C) gradient.

    The weight is a float32 parameter, in a 16-bit case too: that one runs under autocast.
    """
    s, dtype = case.shape, DTYPES[case.dtype]
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator).to(case.device)

    def image(channels: int) -> Tensor:
        # Both maps come out of a ReLU in LEWEL.
        values = normal(s.N, channels, s.H, s.W).relu().to(dtype)
        return values.contiguous(memory_format=LAYOUTS[case.layout]).requires_grad_()

    features, pixels = image(s.C), image(s.D)
    weight = (normal(s.K, s.D) / s.D**0.5).requires_grad_()
    return Inputs(features, pixels, weight, normal(s.N, s.K // NUM_GROUPS, s.C).to(dtype))
