"""Sizes, layouts and GPUs of the cuda backend's own tests, and what runs and compares the kernels on them."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import emulation
import pytest
import torch
from torch import Tensor

from lewel_kernels import cuda, reference, signature

DEVICE = torch.device(cuda.device_type)
ARCHS = ("sm_70", "sm_80") if emulation.in_force() else ("gpu",)
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}
TOLERANCE = {torch.float16: 1e-2, torch.bfloat16: 6e-2, torch.float32: 2e-5, torch.float64: 1e-11}
ROOT = Path(__file__).parent.parent

only_emulated = pytest.mark.skipif(not emulation.in_force(), reason="it is about the emulated GPUs")


# sm_70 has no bfloat16.
on = functools.partial(pytest.mark.parametrize, ("arch", "dtype"), indirect=["arch"])
every_dtype = on(
    [
        pytest.param(arch, dtype, id=f"{arch}-{name}")
        for arch in ARCHS
        for name, dtype in DTYPES.items()
        if (arch, name) != ("sm_70", "bf16")
    ]
)


def few_dtypes(*names: str) -> Any:
    return on([pytest.param(arch, DTYPES[name], id=f"{arch}-{name}") for arch in ARCHS for name in names])


@dataclass(frozen=True)
class Sizes:
    name: str
    N: int
    C: int
    D: int
    K: int
    P: int
    G: int

    def __str__(self) -> str:
        return self.name


USUAL = Sizes("usual", N=3, C=32, D=24, K=16, P=49, G=4)
TILED = Sizes("tiled", N=2, C=24, D=24, K=12, P=72, G=3)
MANY_MAPS = Sizes("many_maps", N=2, C=16, D=24, K=136, P=24, G=2)  # more in a group than a block has
MANY_MAPS_TILED = Sizes("many_maps_tiled", N=2, C=16, D=16, K=136, P=72, G=2)
CASES = (
    USUAL,
    TILED,
    Sizes("all_ones", N=1, C=1, D=1, K=1, P=1, G=1),
    Sizes("one_position", N=5, C=32, D=24, K=8, P=1, G=4),
    Sizes("one_row", N=1, C=13, D=13, K=6, P=1, G=1),  # written in vectors, of which the last is not whole
    Sizes("one_map", N=2, C=13, D=13, K=1, P=9, G=1),  # the weight is read in such vectors
    Sizes("odd_widths", N=3, C=45, D=37, K=15, P=49, G=5),
    Sizes("most_positions_of_a_tile", N=2, C=24, D=16, K=64, P=64, G=4),
    Sizes("one_position_more", N=2, C=24, D=16, K=66, P=65, G=3),
    Sizes("128_maps", N=2, C=40, D=24, K=128, P=33, G=4),
    Sizes("256_maps", N=2, C=20, D=12, K=256, P=20, G=4),
    Sizes("300_maps", N=2, C=12, D=20, K=300, P=9, G=4),
    Sizes("33_maps_a_group", N=2, C=30, D=12, K=66, P=50, G=2),
    Sizes("64_maps_a_group", N=1, C=18, D=12, K=128, P=70, G=2),
    Sizes("65_maps_a_group", N=2, C=20, D=16, K=130, P=40, G=2),
    Sizes("140_maps_a_group", N=1, C=70, D=16, K=140, P=70, G=1),
    Sizes("wide_groups", N=2, C=300, D=8, K=8, P=20, G=2),
    Sizes("wide_groups_tiled", N=1, C=140, D=136, K=6, P=129, G=1),
    Sizes("many_rows", N=13, C=16, D=24, K=16, P=49, G=4),  # the sums over rows come in parts
)
ROUTES = ("projected", "pixels", "affine")


@dataclass(frozen=True)
class Inputs:
    """What a forward and a backward are given; images are (N, channels, P)."""

    groups: int
    features: Tensor
    pixels: Tensor | None
    weight: Tensor
    bias: Tensor | None
    scale: Tensor | None
    shift: Tensor | None
    grad_pooled: Tensor
    grad_maps: Tensor | None

    @property
    def given(self) -> signature.Inputs:
        return signature.Inputs(*(getattr(self, name) for name in NAMES))

    def map(self, change: Callable[[str, Tensor], Tensor]) -> Inputs:
        given = {each.name: getattr(self, each.name) for each in fields(self)}
        return replace(self, **{name: change(name, x) for name, x in given.items() if isinstance(x, Tensor)})

    def double(self) -> Inputs:
        return self.map(lambda name, x: x.double())


NAMES = signature.Inputs._fields


def draw(sizes: Sizes, route: str, dtype: torch.dtype, *, seed: int = 0) -> Inputs:
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int, scale: float = 1.0, dtype: torch.dtype = dtype) -> Tensor:
        return (torch.randn(size, generator=generator, dtype=torch.float64) * scale).to(DEVICE, dtype)

    n, c, k, p = sizes.N, sizes.C, sizes.K, sizes.P
    width = c if route == "projected" else sizes.D
    acc = reference.accumulator(dtype)
    return Inputs(
        sizes.G,
        features=normal(n, c, p),
        pixels=None if route == "projected" else normal(n, width, p),
        weight=normal(k, width, scale=width**-0.5),
        bias=normal(k, scale=0.3),
        scale=normal(width, dtype=acc) if route == "affine" else None,
        shift=normal(width, dtype=acc) if route == "affine" else None,
        grad_pooled=normal(n, k // sizes.G, c),
        grad_maps=normal(n, k, p),
    )


def run(
    x: Inputs,
    backend: Any = cuda,
    *,
    needs: signature.Needs = signature.EVERY,
    out_dtype: torch.dtype | None = None,
    return_maps: bool = True,
) -> dict[str, Tensor]:
    """All that a forward and a backward return, by name."""
    options = signature.Options(x.groups, 0.2, 1e-12, out_dtype or x.features.dtype, return_maps, needs)
    outputs = backend.forward(x.given, options)
    gradients = backend.backward((x.grad_pooled, x.grad_maps), x.given, outputs[2:], options)
    found = dict(zip(("pooled", "maps", "heat", "norm"), outputs, strict=True))
    found |= {f"d_{name}": gradient for name, gradient in zip(NAMES, gradients, strict=True)}
    return {name: y for name, y in found.items() if y is not None}


@functools.cache
def truth_of(sizes: Sizes, route: str, dtype: torch.dtype, change: Callable[[Inputs], Inputs]) -> dict[str, Tensor]:
    return run(change(draw(sizes, route, dtype)).double(), reference)


def close(found: dict[str, Tensor], truth: dict[str, Tensor], dtype: torch.dtype, said: object = "") -> None:
    """To the float64 truth, as far as the storage type can be: of what is large in a tensor, or came in with size 1."""
    assert found.keys() == truth.keys()
    for name, x in found.items():
        assert x.shape == truth[name].shape, (name, said)
        scale = max(truth[name].abs().max().item(), 1.0) if x.numel() else 1.0
        error = (x.double() - truth[name]).abs().max().item() if x.numel() else 0.0
        assert error <= TOLERANCE[dtype] * scale, f"{name} is wrong by {error} of {scale} {said}"  # NaN is no less


def same(found: dict[str, Tensor], expected: dict[str, Tensor], said: object = "") -> None:
    assert found.keys() == expected.keys()
    for name, x in found.items():
        assert torch.equal(x, expected[name]), (name, said)


def lay(x: Tensor, strides: tuple[int, ...], offset: int = 0) -> Tensor:
    """The same numbers with these strides; NaN is between them."""
    last = sum((size - 1) * stride for size, stride in zip(x.shape, strides, strict=True)) if x.numel() else 0
    storage = torch.full((offset + last + 1,), torch.nan, dtype=x.dtype, device=x.device)
    return storage.as_strided(x.shape, strides, offset).copy_(x)


def padded(width: int, x: Tensor) -> int:
    vector = 16 // x.element_size()
    return (width // vector + 1) * vector


# Of (A, B, C): planes have C as their fast axis, rows B.
Layout = Callable[[Tensor], Tensor]
LAYOUTS: dict[str, Layout] = {
    "planes": lambda x: lay(x, (x[0].numel(), x.shape[2], 1)),
    "rows": lambda x: lay(x, (x[0].numel(), 1, x.shape[1])),
    "padded_planes": lambda x: lay(x, (x.shape[1] * padded(x.shape[2], x), padded(x.shape[2], x), 1)),
    "padded_rows": lambda x: lay(x, (x.shape[2] * padded(x.shape[1], x), 1, padded(x.shape[1], x))),
    "odd_planes": lambda x: lay(x, (x.shape[1] * (x.shape[2] + 1), x.shape[2] + 1, 1)),
    "odd_rows": lambda x: lay(x, (x.shape[2] * (x.shape[1] + 1), 1, x.shape[1] + 1)),
    "planes_apart": lambda x: lay(x, (x[0].numel() + 1, x.shape[2], 1)),
    "rows_apart": lambda x: lay(x, (x[0].numel() + 1, 1, x.shape[1])),
    "planes_from_an_odd_address": lambda x: lay(x, (x[0].numel(), x.shape[2], 1), 1),
    "rows_from_an_odd_address": lambda x: lay(x, (x[0].numel(), 1, x.shape[1]), 1),
    "images_inmost": lambda x: lay(x, (1, x.shape[0] * x.shape[2], x.shape[0])),
    "every_other_plane": lambda x: lay(x, (2 * x[0].numel(), 2 * x.shape[2], 2)),
    "every_other_row": lambda x: lay(x, (2 * x[0].numel(), 2, 2 * x.shape[1])),
}
MATRICES: dict[str, Layout] = {
    "transposed": lambda x: lay(x, (1, x.shape[0])),
    "padded": lambda x: lay(x, (padded(x.shape[1], x), 1)),
    "odd": lambda x: lay(x, (x.shape[1] + 1, 1)),
    "from_an_odd_address": lambda x: lay(x, (x.shape[1], 1), 1),
    "every_other": lambda x: lay(x, (2 * x.shape[1], 2)),
    "every_other_transposed": lambda x: lay(x, (2, 2 * x.shape[0])),
}
VECTORS: dict[str, Layout] = {
    "every_other": lambda x: lay(x, (2,)),
    "from_an_odd_address": lambda x: lay(x, (1,), 1),
}


def start(module: str, call: str, **environment: str) -> subprocess.Popen[str]:
    """A process that prints the result of a call of a module of tests, with the CUDA kernels emulated."""
    code = f"{emulation.INSTALL}import {module} as tests; print(tests.{call})"
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": paths} | environment,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> str:
    said, errors = process.communicate(timeout=240)
    assert process.returncode == 0, f"exit status {process.returncode}; {said[-2000:]}{errors[-2000:]}"
    return said.strip()
