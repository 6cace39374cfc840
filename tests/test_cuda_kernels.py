"""The cuda backend's own: each instantiation of its kernels, every way to move an operand, far offsets, bits, bounds.

What the op promises on every backend is tested by the files test_op_*; pieces of the kernels by test_cuda_tiling.py.
Without a GPU the kernels run emulated, for sm_70 and for sm_80; with --device cuda, on the GPU there is.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import itertools
import mmap
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lewel_kernels import BackendUnavailable, dispatch, fused_align_aggregate, native, reference
from lewel_kernels.native import cuda

DEVICE = torch.device(cuda.device_type)
ARCHS = ("sm_70", "sm_80") if cuda.emulated else ("gpu",)
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}
TOLERANCE = {torch.float16: 1e-2, torch.bfloat16: 6e-2, torch.float32: 2e-5, torch.float64: 1e-11}
ROOT = Path(__file__).parent.parent
CSRC = ROOT / "csrc" / "cuda"

pytestmark = pytest.mark.usefixtures("poisoned")
only_emulated = pytest.mark.skipif(not cuda.emulated, reason="it is about the emulated GPUs")


@pytest.fixture(params=ARCHS)
def arch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The GPU that is emulated during a test; skips, with the backend's own sentence, where it cannot run."""
    name: str = request.param
    if name != "gpu":
        monkeypatch.setattr(cuda, "emulated", name)
    if reason := dispatch.refusal("cuda", dispatch.Request(DEVICE, torch.float32)):
        pytest.skip(f"cuda: {reason}")
    return name


# sm_70 has no bfloat16, which a test below is about.
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


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """For PyTorch, to which all of this is too small to be shared out; the emulation has threads of its own."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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

    def map(self, change: Callable[[str, Tensor], Tensor]) -> Inputs:
        given = {each.name: getattr(self, each.name) for each in fields(self)}
        return replace(self, **{name: change(name, x) for name, x in given.items() if isinstance(x, Tensor)})

    def double(self) -> Inputs:
        return self.map(lambda name, x: x.double())


NAMES = ("features", "pixels", "weight", "bias", "scale", "shift")


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
    needs: tuple[bool, ...] = (True,) * 6,
    out_dtype: torch.dtype | None = None,
    return_maps: bool = True,
) -> dict[str, Tensor]:
    """All that a forward and a backward return, by name."""
    inputs = tuple(getattr(x, name) for name in NAMES)
    constants = {"num_groups": x.groups, "temperature": 0.2, "eps": 1e-12}
    outputs = backend.forward(*inputs, out_dtype=out_dtype or x.features.dtype, return_maps=return_maps, **constants)
    gradients = backend.backward(x.grad_pooled, x.grad_maps, *inputs, *outputs[2:], needs=needs, **constants)
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


# ---- strides


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


def images(of_features: str, of_pixels: str) -> Callable[[Inputs], Inputs]:
    names = {"features": of_features, "pixels": of_pixels}
    return lambda x: x.map(lambda name, y: LAYOUTS[names[name]](y) if name in names and y.numel() else y)


def expand(dim: int) -> Callable[[Inputs], Inputs]:
    return lambda x: x.map(
        lambda name, y: y.narrow(dim, 0, 1).expand_as(y) if name in ("features", "pixels") and y.numel() else y
    )


def unchanged(x: Inputs) -> Inputs:
    return x


# How features and pixels lie, what the reference is told, and which calls are made.
CHANGES: dict[str, tuple[Callable[[Inputs], Inputs], Callable[[Inputs], Inputs], tuple[str, ...]]] = {
    "contiguous": (unchanged, unchanged, ROUTES),
    "channels_last": (images("rows", "rows"), unchanged, ROUTES),
    "odd_offset": (images("planes_from_an_odd_address", "rows_from_an_odd_address"), unchanged, ("affine",)),
    "transposed": (images("images_inmost", "every_other_plane"), unchanged, ("projected",)),
    "narrowed": (images("padded_rows", "odd_planes"), unchanged, ("pixels",)),
    "expanded_images": (expand(0), expand(0), ("affine",)),
    "expanded_channels": (expand(1), expand(1), ("projected",)),
    "expanded_positions": (expand(2), expand(2), ("pixels",)),
}


@every_dtype
@pytest.mark.parametrize("layout", CHANGES)
@pytest.mark.parametrize("sizes", CASES, ids=str)
def test_against_the_reference(sizes: Sizes, layout: str, dtype: torch.dtype, arch: str) -> None:
    change, told, routes = CHANGES[layout]
    for route in routes:
        found = run(change(draw(sizes, route, dtype)))
        close(found, truth_of(sizes, route, dtype, told), dtype, route)


@every_dtype
@pytest.mark.parametrize("D", [240, 241, 255, 256, 257, 600])
@pytest.mark.parametrize("K", [8, 72])
def test_depths_from_which_on_sums_are_set_aside(K: int, D: int, dtype: torch.dtype, arch: str) -> None:
    """In float32; see Product of csrc/cuda/product.h."""
    sizes = Sizes("deep", N=2, C=8, D=D, K=K, P=9, G=4)
    for layout, route in (("contiguous", "affine"), ("channels_last", "pixels")):
        found = run(CHANGES[layout][0](draw(sizes, route, dtype)))
        close(found, truth_of(sizes, route, dtype, unchanged), dtype, route)


@every_dtype
def test_blocks_that_go_through_several_chunks(dtype: torch.dtype, arch: str) -> None:
    """Of channels, with maps that were weighed once: two, and then the last. See pool_chunks of csrc/cuda/tiling.h."""
    sizes = Sizes("many_blocks", N=50, C=8 * (150 if dtype.itemsize == 2 else 70), D=8, K=8, P=3, G=8)
    x = draw(sizes, "pixels", dtype)
    options = {"return_maps": False, "needs": (False,) * 6}
    found = run(x, **options)
    close(found, run(x.double(), reference, **options), dtype)


# In whose calls an operand is read by different code.
OPERANDS = {
    "features": ("projected",),
    "pixels": ("pixels", "affine"),
    "weight": ("pixels",),
    "bias": ("pixels",),
    "grad_pooled": ("pixels",),
    "grad_maps": ("pixels",),
}


@few_dtypes("fp16", "fp32", "fp64")
@pytest.mark.parametrize("sizes", [Sizes("tile", N=2, C=16, D=24, K=8, P=24, G=2), TILED], ids=str)
@pytest.mark.parametrize("operand", OPERANDS)
def test_every_way_to_move_an_operand(operand: str, sizes: Sizes, dtype: torch.dtype, arch: str) -> None:
    """Contiguous operands of these sizes are moved 16 bytes at a time: any other strides give the same bits."""
    layouts = {"weight": MATRICES, "bias": VECTORS}.get(operand, LAYOUTS)
    for route in OPERANDS[operand]:
        x = draw(sizes, route, dtype)
        expected = run(x)
        for name, layout in layouts.items():
            laid = layout(getattr(x, operand))
            found = run(replace(x, **{operand: laid}))
            same(found, expected, (route, name))
            if f"d_{operand}" in found:
                assert found[f"d_{operand}"].stride() == torch.empty_like(laid).stride(), (route, name)


@few_dtypes("fp16", "fp64")
@pytest.mark.parametrize("layout", VECTORS)
def test_strides_of_scale_and_shift(layout: str, dtype: torch.dtype, arch: str) -> None:
    x = draw(USUAL, "affine", dtype)
    laid = x.map(lambda name, y: VECTORS[layout](y) if name in ("scale", "shift") else y)
    same(run(laid), run(x))


def expanded(*dims: int) -> Layout:
    def expand(x: Tensor) -> Tensor:
        few = x
        for dim in dims:
            few = few.narrow(dim, 0, 1)
        return few.expand_as(x)

    return expand


@every_dtype
@pytest.mark.parametrize("sizes", [USUAL, TILED, MANY_MAPS], ids=str)
def test_expanded_gradients(sizes: Sizes, dtype: torch.dtype, arch: str) -> None:
    """As autograd passes them for sums: with strides of 0."""
    x = draw(sizes, "pixels", dtype)
    for dims in ((0,), (1,), (2,), (0, 1), (0, 1, 2)):
        laid = x.map(lambda name, y, dims=dims: expanded(*dims)(y) if name.startswith("grad") else y)
        same(run(laid), run(laid.map(lambda name, y: y.contiguous())), dims)


@every_dtype
@pytest.mark.parametrize("of", ["grad_pooled", "grad_maps"])
@pytest.mark.parametrize("sizes", [USUAL, TILED], ids=str)
def test_gradients_of_other_types(sizes: Sizes, of: str, dtype: torch.dtype, arch: str) -> None:
    """The results may be of any type, and then their gradients are, in strides of their own."""
    x = draw(sizes, "pixels", dtype)
    for other in DTYPES.values():
        gradient = getattr(x, of).to(other)
        given = replace(x, **{of: gradient})
        truth = run(given.double(), reference)
        found = run(given)
        close(found, truth, dtype, other)
        same(run(replace(x, **{of: LAYOUTS["odd_rows"](gradient)})), found, other)


@every_dtype
@pytest.mark.parametrize("sizes", [USUAL, TILED, MANY_MAPS, MANY_MAPS_TILED], ids=str)
def test_without_bias_maps_and_their_gradient(sizes: Sizes, dtype: torch.dtype, arch: str) -> None:
    for route in ("projected", "affine"):
        alone = replace(draw(sizes, route, dtype), grad_maps=None, bias=None)
        truth = run(alone.double(), reference)
        close(run(alone), truth, dtype, route)
        truth["maps"] = truth["maps"].new_empty(0)
        close(run(alone, return_maps=False), truth, dtype, route)


@few_dtypes("fp16", "fp32")
@pytest.mark.parametrize(
    ("sizes", "route"),
    [
        (Sizes("small", N=3, C=16, D=12, K=8, P=9, G=2), "affine"),
        *((sizes, route) for sizes in (TILED, MANY_MAPS, MANY_MAPS_TILED) for route in ("projected", "pixels")),
    ],
    ids=str,
)
def test_every_subset_of_needs(sizes: Sizes, route: str, dtype: torch.dtype, arch: str) -> None:
    """A gradient has the bits that it has among all others; but fewer may cut the rows of a sum into other parts."""
    x = draw(sizes, route, dtype)
    everything = run(x)
    given = [getattr(x, name) is not None for name in NAMES]
    for needs in itertools.product(*((False, True) if one else (False,) for one in given)):
        found = run(x, needs=needs)
        assert found.keys() == {"pooled", "maps", "heat", "norm"} | {
            f"d_{name}" for name, need in zip(NAMES, needs, strict=True) if need
        }
        for name, y in found.items():
            if name == "d_bias":
                close({name: y}, {name: everything[name].double()}, dtype, needs)
            else:
                assert torch.equal(y, everything[name]), (name, needs)


@every_dtype
@pytest.mark.parametrize("sizes", [USUAL, TILED], ids=str)
def test_results_are_rounded_once_to_their_type(sizes: Sizes, dtype: torch.dtype, arch: str) -> None:
    """Also to bfloat16 on GPUs that cannot compute with it, unless it is refused in a sentence."""
    x = draw(sizes, "pixels", dtype)
    wide = run(x, out_dtype=torch.float64)
    for out_dtype in DTYPES.values():
        try:
            pooled, maps = fused_align_aggregate(
                x.features, x.weight, x.bias, pixels=x.pixels, num_groups=x.groups, temperature=0.2,
                out_dtype=out_dtype, return_maps=True, backend="cuda",
            )  # fmt: skip
        except BackendUnavailable as refusal:
            if arch == "sm_70" and "bfloat16" in str(refusal):
                continue
            raise
        rounded = wide["pooled"].to(out_dtype), wide["maps"].to(out_dtype)
        assert torch.equal(pooled, rounded[0]), out_dtype
        assert torch.equal(maps, rounded[1]), out_dtype


@every_dtype
@pytest.mark.parametrize("sizes", [USUAL, TILED, MANY_MAPS], ids=str)
def test_no_images(sizes: Sizes, dtype: torch.dtype, arch: str) -> None:
    for route in ROUTES:
        x = draw(replace(sizes, N=0), route, dtype)
        same(run(x), {name: y.to(cuda_dtype(name, dtype)) for name, y in run(x.double(), reference).items()}, route)


def cuda_dtype(name: str, dtype: torch.dtype) -> torch.dtype:
    return reference.accumulator(dtype) if name in ("norm", "d_scale", "d_shift") else dtype


@few_dtypes("fp16", "fp32", "fp64")
@pytest.mark.parametrize("sizes", [USUAL, MANY_MAPS], ids=str)
def test_small_norms_are_replaced(sizes: Sizes, dtype: torch.dtype, arch: str) -> None:
    """Half of the norms are below this eps: there no part of the gradient drops out."""
    x = draw(sizes, "pixels", dtype)
    constants = {"num_groups": x.groups, "temperature": 0.2}
    inputs = tuple(getattr(x, name) for name in NAMES)
    norm = reference.forward(*inputs, eps=1e-12, out_dtype=dtype, return_maps=False, **constants)[3]
    eps = norm.median().item()
    gap = (norm - eps).abs()
    found: list[dict[str, Tensor]] = []
    for backend, y in ((cuda, x), (reference, x.double())):
        given = tuple(getattr(y, name) for name in NAMES)
        # A norm that is rounded to the other side of eps would decide, so the float64 one sees this type's heat maps.
        outputs = reference.forward(*inputs, eps=eps, out_dtype=dtype, return_maps=False, **constants)
        statistics = (outputs[2].to(y.features.dtype), outputs[3].to(reference.accumulator(y.features.dtype)))
        gradients = backend.backward(
            y.grad_pooled, y.grad_maps, *given, *statistics, eps=eps, needs=(True,) * 6, **constants
        )
        found.append({name: g for name, g in zip(NAMES, gradients, strict=True) if g is not None})
    assert (gap[norm <= eps].numel(), gap[norm > eps].numel()) > (1, 1)
    close(*found, dtype)


# ---- bits


@every_dtype
@pytest.mark.parametrize("sizes", [USUAL, TILED, MANY_MAPS, MANY_MAPS_TILED], ids=str)
def test_run_to_run(sizes: Sizes, dtype: torch.dtype, arch: str) -> None:
    x = draw(sizes, "affine", dtype)
    first = run(x)
    for _ in range(3):
        same(run(x), first)


@every_dtype
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("sizes", [USUAL, TILED, MANY_MAPS, replace(USUAL, P=7, N=20)], ids=str)
def test_an_image_alone(sizes: Sizes, layout: str, dtype: torch.dtype, arch: str) -> None:
    """The same bits as in a batch: also where tiles of rows hold parts of several images."""
    change = CHANGES[layout][0]
    per_image = ("features", "pixels", "grad_pooled", "grad_maps")
    for route in ("projected", "affine"):
        x = change(draw(sizes, route, dtype))
        together = run(x)
        for i in {1, sizes.N - 1}:
            alone = run(x.map(lambda name, y, i=i: y[i : i + 1] if name in per_image else y))
            for name in ("pooled", "maps", "heat", "norm", "d_features", "d_pixels"):
                if name in together:
                    assert torch.equal(alone[name][0], together[name][i]), (name, route, i)


@only_emulated
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("sizes", [USUAL, TILED, MANY_MAPS, MANY_MAPS_TILED], ids=str)
def test_sm_70_and_sm_80_compute_the_same(sizes: Sizes, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without tensor cores they differ only in how numbers are moved."""
    for route in ROUTES:
        x = draw(sizes, route, dtype)
        found = []
        for name in ARCHS:
            monkeypatch.setattr(cuda, "emulated", name)
            found.append(run(x))
        same(*found, route)


def digest() -> str:
    """Of the bits of some calls on both GPUs."""
    digest = hashlib.sha256()
    for arch, sizes, dtype in itertools.product(ARCHS, (USUAL, TILED, MANY_MAPS), (torch.float16, torch.float32)):
        cuda.emulated = arch
        for x in run(draw(sizes, "affine", dtype)).values():
            digest.update(x.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def start(call: str, **environment: str) -> subprocess.Popen[str]:
    """A process that prints the result of a call of this module."""
    code = f"import test_cuda_kernels as tests; print(tests.{call})"
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": paths, "LEWEL_CUDA_EMULATE": "sm_80"} | environment,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> str:
    said, errors = process.communicate(timeout=240)
    assert process.returncode == 0, f"exit status {process.returncode}; {said[-2000:]}{errors[-2000:]}"
    return said.strip()


@only_emulated
def test_any_number_of_threads_of_the_emulation() -> None:
    """Blocks run at once, in any order: none needs another's results, or adds to them."""
    processes = [start("digest()", OMP_NUM_THREADS=str(count)) for count in (1, 3, 4)]
    assert len({finish(process) for process in processes}) == 1


# ---- offsets beyond 32 bits


def far(x: Tensor, axis: int) -> Tensor:
    """The same numbers, so far apart along an axis that the last lies beyond 2^31; other memory is not touched."""
    shape, apart = x.shape, 2**31 // max(x.shape[axis] - 1, 1) + 8192
    apart -= apart % 8
    others = [i for i in reversed(range(x.dim())) if i != axis]
    strides, stride = [0] * x.dim(), 1
    for i in others:
        strides[i], stride = stride, stride * shape[i]
    strides[axis] = apart
    if x.dim() == 3 and axis == 2:  # images of rows
        strides[:2] = shape[1], 1
    last = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if shape[axis] > 1:
        assert last > 2**31
    if x.device.type == "cpu":
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
        storage = torch.frombuffer(mmap.mmap(-1, (last + 1) * x.element_size(), flags=flags), dtype=x.dtype)
    else:
        storage = torch.zeros(last + 1, dtype=x.dtype, device=x.device)
    return storage.as_strided(shape, strides).copy_(x)


@few_dtypes("fp16", "fp32")
@pytest.mark.parametrize("sizes", [Sizes("tile", N=2, C=16, D=12, K=8, P=9, G=2), replace(TILED, P=70)], ids=str)
@pytest.mark.parametrize("axis", [0, 1, 2], ids=["images", "channels", "positions"])
def test_offsets_beyond_32_bits(axis: int, sizes: Sizes, dtype: torch.dtype, arch: str) -> None:
    for route in ROUTES:
        x = draw(sizes, route, dtype)
        expected = run(x)
        moved = x.map(lambda name, y: far(y, axis) if y.dim() == 3 else y)
        same(run(moved), expected, route)


@few_dtypes("fp16", "fp32")
@pytest.mark.parametrize("axis", [0, 1], ids=["maps", "channels"])
def test_parameters_beyond_32_bits(axis: int, dtype: torch.dtype, arch: str) -> None:
    for sizes, route in itertools.product((USUAL, MANY_MAPS), ROUTES):
        x = draw(sizes, route, dtype)
        assert x.bias is not None
        moved = replace(x, weight=far(x.weight, axis), bias=far(x.bias, 0))
        same(run(moved), run(x), (sizes, route))


@few_dtypes("fp16", "fp32")
@pytest.mark.parametrize("sizes", [Sizes("tile", N=2, C=16, D=12, K=8, P=9, G=2), replace(TILED, P=70)], ids=str)
@pytest.mark.parametrize("axis", [0, 1, 2], ids=["images", "channels", "positions"])
def test_gradients_beyond_32_bits(axis: int, sizes: Sizes, dtype: torch.dtype, arch: str) -> None:
    """The gradients of images, written where the caller of the op wants them."""
    _, backward = cuda._ops(cuda.target())
    for route in ROUTES:
        x = draw(sizes, route, dtype)
        expected = run(x)
        inputs = (x.features, x.pixels, x.weight, x.scale, x.shift)
        d_features, d_pixels = (
            None if y is None else far(torch.full_like(y, torch.nan), axis) for y in (x.features, x.pixels)
        )
        backward(
            x.grad_pooled, x.grad_maps, *inputs, expected["heat"], expected["norm"], x.groups, 0.2, 1e-12,
            d_features, d_pixels, None, None, None, None,
        )  # fmt: skip
        assert torch.equal(d_features, expected["d_features"]), route
        assert d_pixels is None or torch.equal(d_pixels, expected["d_pixels"]), route


# ---- bounds


class Guarded:
    """Memory with pages before and behind it that nobody may touch; what is left of its own pages must not change."""

    def __init__(self) -> None:
        self.placed: list[tuple[int, int, int, int]] = []
        self.at_end = False
        self._c = ctypes.CDLL(None, use_errno=True)
        self._c.mmap.restype = ctypes.c_void_p
        self._c.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        self._c.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

    def empty(self, size: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype, align: int = 16) -> Tensor:
        """Full of NaN, at the first or last address of its pages that is a multiple of ``align``."""
        numbers = 1 + sum((s - 1) * t for s, t in zip(size, strides, strict=True))
        count, page = max(numbers, 1) * dtype.itemsize, mmap.PAGESIZE
        pages = -(-count // page) * page
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        base = self._c.mmap(None, pages + 2 * page, 0, flags, -1, 0) + page
        assert self._c.mprotect(base, pages, mmap.PROT_READ | mmap.PROT_WRITE) == 0
        at = base + (pages - count) // align * align if self.at_end else base
        ctypes.memset(base, 0xFF, pages)
        self.placed.append((base, pages, at, count))
        return torch.frombuffer((ctypes.c_char * count).from_address(at), dtype=dtype).as_strided(size, strides)

    def expect_untouched(self) -> None:
        for base, pages, at, count in self.placed:
            beside = ctypes.string_at(base, at - base) + ctypes.string_at(at + count, base + pages - at - count)
            assert beside == b"\xff" * len(beside), "something was written beside a tensor"

    def install(self) -> torch.library.Library:
        """What the op allocates, results and workspace, is guarded from here on."""
        library = torch.library.Library("aten", "IMPL")  # the tests' own process: nothing else is in it

        def new_empty(x: Tensor, size: Any, *, dtype: torch.dtype | None = None, **_: object) -> Tensor:
            strides = torch.empty(size, device="meta").stride()
            return self.empty(tuple(size), strides, dtype or x.dtype)

        def new_empty_strided(x: Tensor, size: Any, stride: Any, **options: Any) -> Tensor:
            return self.empty(tuple(size), tuple(stride), options.get("dtype") or x.dtype)

        def empty_like(x: Tensor, **_: object) -> Tensor:
            like = torch.empty_like(torch.empty_strided(x.shape, x.stride(), device="meta"))
            return self.empty(tuple(x.shape), like.stride(), x.dtype, align=x.element_size())

        for function in (new_empty, new_empty_strided, empty_like):
            library.impl(function.__name__, function, "CPU")
        return library


def run_between_guards() -> int:
    """Calls on tensors that end, or begin, where memory does: a wrong address ends this process. Returns how many."""
    names = ("usual", "tiled", "one_row", "one_map", "odd_widths", "one_position_more", "65_maps_a_group")
    cases = [
        (arch, sizes, route, DTYPES[dtype], draw(sizes, route, DTYPES[dtype]))
        for arch, dtype in itertools.product(ARCHS, ("fp16", "fp32"))
        for sizes, route in itertools.product((each for each in CASES if each.name in names), ("projected", "affine"))
    ]
    expected = []
    for arch, _, _, _, x in cases:
        cuda.emulated = arch
        expected.append(run(x))
    guarded = Guarded()
    library = guarded.install()
    runs = 0
    for (arch, sizes, route, dtype, x), wanted in zip(cases, expected, strict=True):
        cuda.emulated = arch
        for layout, at_end, align in (
            ("planes", True, 1),
            ("rows", True, 16),
            ("odd_rows", True, 1),
            ("rows", False, 16),
        ):
            guarded.at_end, guarded.placed = at_end, []

            def place(name: str, y: Tensor, layout: str = layout, align: int = align) -> Tensor:
                strides = LAYOUTS[layout](y).stride() if y.dim() == 3 else y.stride()
                return guarded.empty(tuple(y.shape), strides, y.dtype, max(align, y.element_size())).copy_(y)

            print(arch, sizes, route, dtype, layout, at_end, file=sys.stderr, flush=True)  # the last one is to blame
            found = run(x.map(place))
            same(found, wanted)
            guarded.expect_untouched()
            runs += 1
    del library
    return runs


@only_emulated
@pytest.mark.skipif(sys.platform != "linux", reason="the pages are guarded as on Linux")
def test_nothing_beside_a_tensor_is_touched() -> None:
    assert int(finish(start("run_between_guards()"))) > 200


# ---- what the op and the sources say


@only_emulated
def test_bfloat16_is_refused_on_sm_70(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "emulated", "sm_70")
    x = draw(USUAL, "pixels", torch.bfloat16)
    with pytest.raises(BackendUnavailable, match=r"bfloat16 needs a GPU from sm_80.*sm_70.*use float16"):
        fused_align_aggregate(x.features, x.weight, pixels=x.pixels, backend="cuda")


@only_emulated
def test_sm_70_needs_no_instruction_of_sm_80(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its emulation ends a kernel that calls copy_async, load_matrices and so on (functions_of_80 of the emulation's
    tests): it is the library that all tests for sm_70 ran, and on sm_80 the kernels do call them."""
    for name in ARCHS:
        monkeypatch.setattr(cuda, "emulated", name)
        assert cuda.refuse(dispatch.Request(DEVICE, torch.float16)) is None
        assert native.build_info(cuda.target())["archs"] == name
    guarded = re.compile(r"(?<!void )\b(copy_async|copy_async_commit|copy_async_wait|load_matrices)\b[<(]")
    sources = {path.name: path.read_text() for path in CSRC.glob("*.h") if path.name != "device.h"}
    assert {name for name, text in sources.items() if guarded.search(text)} == {"tile.h", "product.h"}


def test_no_atomics() -> None:
    """Sums are added in an order that is fixed."""
    for path in [*CSRC.glob("*.h"), *CSRC.glob("*.cu")]:
        assert "atomic" not in path.read_text().lower(), path.name


def test_too_many_maps(arch: str) -> None:
    one = torch.ones(1, 1, 1, device=DEVICE)
    with pytest.raises(RuntimeError, match="fewer than 65536 maps"):
        fused_align_aggregate(one, torch.ones(65536, 1, device=DEVICE), num_groups=1, backend="cuda")


@pytest.mark.parametrize(
    ("name", "change", "match"),
    [
        ("pixels", lambda x: x[:, 1:], "pixels must have the size"),
        ("pixels", lambda x: x[:, :, 1:], "pixels must have the size"),
        ("weight", lambda x: x[1:], "num_groups must divide"),
        ("weight", lambda x: x[:, 1:], "must have the size"),
        ("bias", lambda x: x[1:], "bias must have the size"),
        ("scale", lambda x: x[1:], "scale must have the size"),
        ("shift", lambda x: None, "scale and shift are given together"),
        ("bias", lambda x: x.double(), "bias and heat must have the type"),
        ("weight", lambda x: x.half(), "weight, bias and heat must have the type"),
        ("scale", lambda x: x.double(), "scale, shift and norm must have the type"),
        ("pooled", lambda x: x[:, :, 1:], "pooled must have the size"),
        ("maps", lambda x: x[:, 1:], "maps must have the size"),
        ("heat", lambda x: x.contiguous(), "heat must lie in memory as"),
        ("norm", lambda x: x[:, 1:], "norm must have the size"),
    ],
    ids=lambda x: x.replace(" ", "_") if isinstance(x, str) else "",
)
def test_a_call_of_the_op_itself_stays_within_bounds(
    name: str, change: Callable[[Tensor], Tensor], match: str, arch: str
) -> None:
    forward, _ = cuda._ops(cuda.target())
    x = draw(USUAL, "affine", torch.float32)
    given = {each: getattr(x, each) for each in NAMES}
    given |= {"pooled": torch.empty_like(x.grad_pooled), "maps": torch.empty_like(x.grad_maps)}
    given |= {"heat": cuda._rows_like(x.features, USUAL.K), "norm": x.features.new_empty(USUAL.N, USUAL.P)}
    given |= {name: change(given[name])}
    with pytest.raises(RuntimeError, match=match):
        forward(
            *(given[each] for each in NAMES), x.groups, 0.2, 1e-12,
            *(given[each] for each in ("pooled", "maps", "heat", "norm")),
        )  # fmt: skip
