"""Shapes, inputs and the float64 truth that the op's tests share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.op.parity import Errors, compare, typical_share
from benchmarks.op.providers import eager_activated, eager_maps, eager_pool
from lewel_kernels import dispatch, fused_align_aggregate
from lewel_kernels.signature import accumulator

# At temperature 1 the maps are nearly flat, the result is nearly a mean over positions, and a broken pooling passes.
SHARP = 0.05

# The reference has the bits of PyTorch's matrix products, which change with the batch and the threads.
kernels = pytest.mark.parametrize("backend", [name for name in dispatch.BACKENDS if name != "reference"], indirect=True)


@dataclass(frozen=True)
class OpCase:
    """One request. ``space`` is (H, W) or (P,); D None means that features are projected (D == C).

    With ``affine``, relu(scale * pixels + shift) is projected.
    """

    name: str
    N: int
    C: int
    D: int | None
    K: int
    G: int
    space: tuple[int, ...]
    bias: bool = False
    affine: bool = False

    def __str__(self) -> str:
        return self.name


CASES = (
    OpCase("usual_7x7", N=5, C=64, D=48, K=16, G=4, space=(7, 7), bias=True),
    OpCase("tall", N=3, C=24, D=40, K=8, G=2, space=(5, 3)),
    OpCase("one_position", N=6, C=32, D=24, K=8, G=4, space=(1, 1), bias=True),
    OpCase("prime_positions", N=3, C=40, D=16, K=12, G=4, space=(97,), bias=True),
    OpCase("dense", N=2, C=32, D=24, K=16, G=4, space=(28, 28)),
    OpCase("odd_widths", N=3, C=45, D=37, K=15, G=5, space=(7, 7), bias=True),
    OpCase("one_vector", N=4, C=32, D=16, K=4, G=4, space=(4, 4)),
    OpCase("one_group", N=4, C=24, D=16, K=10, G=1, space=(4, 4), bias=True),
    OpCase("one_channel_groups", N=4, C=4, D=32, K=8, G=4, space=(4, 4)),
    OpCase("one_image", N=1, C=64, D=64, K=32, G=4, space=(7, 7), bias=True),
    OpCase("no_image", N=0, C=16, D=8, K=8, G=4, space=(7, 7), bias=True),
    OpCase("shared", N=5, C=48, D=None, K=16, G=4, space=(7, 7), bias=True),
    OpCase("shared_3d", N=4, C=33, D=None, K=9, G=3, space=(49,)),
    OpCase("few_channels", N=4, C=12, D=3, K=20, G=2, space=(6, 8), bias=True),
    OpCase("full_width", N=2, C=512, D=384, K=128, G=4, space=(7, 7)),
)
BY_NAME = {case.name: case for case in CASES}
SMALL = (
    OpCase("pixels", N=2, C=6, D=3, K=4, G=2, space=(2, 3), bias=True),
    OpCase("shared", N=2, C=4, D=None, K=4, G=2, space=(5,)),
    OpCase("one_vector", N=1, C=4, D=3, K=2, G=2, space=(2, 2), bias=True),
)


@dataclass
class OpInputs:
    """The tensors of a case; ``call`` runs the op on them, ``truth`` the plain PyTorch lines."""

    case: OpCase
    features: Tensor
    pixels: Tensor | None
    weight: Tensor
    bias: Tensor | None
    grad_pooled: Tensor
    grad_maps: Tensor
    scale: Tensor | None = None
    shift: Tensor | None = None

    @property
    def leaves(self) -> dict[str, Tensor]:
        named = {"features": self.features, "pixels": self.pixels, "weight": self.weight, "bias": self.bias}
        named |= {"scale": self.scale, "shift": self.shift}
        return {name: x for name, x in named.items() if x is not None}

    @property
    def affine(self) -> tuple[Tensor, Tensor] | None:
        return None if self.scale is None or self.shift is None else (self.scale, self.shift)

    def to(self, dtype: torch.dtype) -> OpInputs:
        """Fresh leaves holding the same values in another dtype; scale and shift in its accumulator type."""

        def cast(x: Tensor | None, dtype: torch.dtype = dtype) -> Tensor | None:
            return None if x is None else x.detach().to(dtype, copy=True).requires_grad_(x.requires_grad)

        features, weight = cast(self.features), cast(self.weight)
        assert features is not None
        assert weight is not None
        return OpInputs(
            self.case, features, cast(self.pixels), weight, cast(self.bias),
            self.grad_pooled.to(dtype), self.grad_maps.to(dtype),
            cast(self.scale, accumulator(dtype)), cast(self.shift, accumulator(dtype)),
        )  # fmt: skip


def make(
    case: OpCase, *, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu", seed: int = 0
) -> OpInputs:
    """Fresh random inputs; every leaf requires a gradient."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int, scale: float = 1.0, dtype: torch.dtype = dtype) -> Tensor:
        return (torch.randn(size, generator=generator, dtype=torch.float64) * scale).to(device, dtype)

    width = case.C if case.D is None else case.D
    p = torch.Size(case.space).numel()
    inputs = OpInputs(
        case,
        features=normal(case.N, case.C, *case.space),
        pixels=None if case.D is None else normal(case.N, case.D, *case.space),
        weight=normal(case.K, width, scale=width**-0.5),
        bias=normal(case.K, scale=0.3) if case.bias else None,
        grad_pooled=normal(case.N, case.K // case.G, case.C),
        grad_maps=normal(case.N, case.K, p),
    )
    if case.affine:
        inputs.scale, inputs.shift = (normal(width, dtype=accumulator(dtype)) for _ in range(2))
    for x in inputs.leaves.values():
        x.requires_grad_()
    return inputs


def run_op(
    inputs: OpInputs, backend: str, *, temperature: float = SHARP, return_maps: bool = False, **options: object
) -> dict[str, Tensor]:
    """The op's output and gradients by name: pooled, (maps,) d_features, d_pixels, d_weight and so on."""
    result = fused_align_aggregate(
        inputs.features, inputs.weight, inputs.bias, pixels=inputs.pixels, pixels_affine=inputs.affine,
        num_groups=inputs.case.G, temperature=temperature, return_maps=return_maps, backend=backend, **options,
    )  # type: ignore[call-overload]  # fmt: skip
    outputs = dict(zip(("pooled", "maps"), result, strict=True)) if return_maps else {"pooled": result}
    return outputs | gradients(outputs, inputs)


def run_eager(
    inputs: OpInputs, *, temperature: float = SHARP, return_maps: bool = False, eps: float = 1e-12
) -> dict[str, Tensor]:
    """The same names from the plain PyTorch lines and autograd, in the dtype of the inputs."""

    def image(x: Tensor) -> Tensor:
        return x if x.dim() == 4 else x.unsqueeze(-1)

    features = image(inputs.features)
    pixels = features if inputs.pixels is None else image(inputs.pixels)
    if inputs.scale is not None and inputs.shift is not None:
        pixels = eager_activated(pixels, inputs.scale, inputs.shift)
    maps = eager_maps(pixels, inputs.weight, inputs.bias, temperature=temperature, eps=eps)
    outputs = {"pooled": eager_pool(features, maps, num_groups=inputs.case.G)}
    if return_maps:
        outputs["maps"] = maps
    return outputs | gradients(outputs, inputs)


def gradients(outputs: dict[str, Tensor], inputs: OpInputs) -> dict[str, Tensor]:
    incoming = {"pooled": inputs.grad_pooled, "maps": inputs.grad_maps}
    leaves = {name: x for name, x in inputs.leaves.items() if x.requires_grad}
    if not leaves:
        return {}
    found = torch.autograd.grad(
        list(outputs.values()), list(leaves.values()), [incoming[name].to(x.dtype) for name, x in outputs.items()]
    )
    return {f"d_{name}": gradient for name, gradient in zip(leaves, found, strict=True)}


def beyond_contract(
    case: OpCase,
    backend: str,
    dtype: torch.dtype,
    device: torch.device,
    *,
    draws: int,
    return_maps: bool = False,
    temperature: float = SHARP,
) -> dict[str, float]:
    """The results that are typically further from the float64 truth than the contract allows, in parts of that.

    A few draws tell of most results that they are near enough. Where they do not, the verdict is that of five times as
    many, the first ones among them: how far a draw strays differs between processors and numbers of threads.
    """
    errors: dict[str, list[Errors]] = {}
    for seeds in (range(draws), range(draws, 5 * draws)):
        for seed in seeds:
            for name, x in _errors(
                make(case, dtype=dtype, device=device, seed=seed), backend, return_maps, temperature
            ):
                errors.setdefault(name, []).append(x)
        shares = {name: typical_share(x) for name, x in errors.items()}
        if all(share <= 1 for share in shares.values()):
            break
    return {name: share for name, share in shares.items() if not share <= 1}


def _errors(inputs: OpInputs, backend: str, return_maps: bool, temperature: float) -> Iterator[tuple[str, Errors]]:
    options: dict[str, Any] = {"return_maps": return_maps, "temperature": temperature}
    truth, eager = run_eager(inputs.to(torch.float64), **options), run_eager(inputs, **options)
    dtype = inputs.features.dtype
    for name, x in run_op(inputs, backend, **options).items():
        assert x.shape == truth[name].shape, name
        assert x.dtype == (accumulator(dtype) if name in ("d_scale", "d_shift") else dtype), name
        yield name, compare(x.detach(), eager[name].detach(), truth[name].detach(), widened=False)
