"""The cuda backend's own values: each instantiation of its kernels, every way to move an operand, the same bits again.

What the op promises on every backend is tested by the files test_op_*; pieces of the kernels by test_cuda_tiling.py.
Without a GPU the kernels run emulated, for sm_70 and for sm_80; with --device cuda, on the GPU there is.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from dataclasses import replace

import emulation
import pytest
import torch
from cuda_cases import (
    ARCHS,
    CASES,
    DTYPES,
    LAYOUTS,
    MANY_MAPS,
    MANY_MAPS_TILED,
    MATRICES,
    NAMES,
    ROUTES,
    TILED,
    USUAL,
    VECTORS,
    Inputs,
    Layout,
    Sizes,
    close,
    draw,
    every_dtype,
    few_dtypes,
    finish,
    only_emulated,
    run,
    same,
    start,
    truth_of,
)
from torch import Tensor

from lewel_kernels import BackendUnavailable, cuda, fused_align_aggregate, reference, signature

pytestmark = pytest.mark.usefixtures("poisoned", "one_thread")


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
    norm = reference.forward(x.given, signature.Options(x.groups, 0.2, 1e-12, dtype))[3]
    eps = norm.median().item()
    options = signature.Options(x.groups, 0.2, eps, dtype)
    gap = (norm - eps).abs()
    found: list[dict[str, Tensor]] = []
    for backend, y in ((cuda, x), (reference, x.double())):
        # A norm that is rounded to the other side of eps would decide, so the float64 one sees this type's heat maps.
        outputs = reference.forward(x.given, options)
        statistics = (outputs[2].to(y.features.dtype), outputs[3].to(reference.accumulator(y.features.dtype)))
        gradients = backend.backward((y.grad_pooled, y.grad_maps), y.given, statistics, options)
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
            monkeypatch.setattr(cuda, "gpus", emulation.GPUS[name])
            found.append(run(x))
        same(*found, route)


def digest() -> str:
    """Of the bits of some calls on both GPUs."""
    digest = hashlib.sha256()
    for arch, sizes, dtype in itertools.product(ARCHS, (USUAL, TILED, MANY_MAPS), (torch.float16, torch.float32)):
        emulation.install(arch)
        for x in run(draw(sizes, "affine", dtype)).values():
            digest.update(x.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@only_emulated
def test_any_number_of_threads_of_the_emulation() -> None:
    """Blocks run at once, in any order: none needs another's results, or adds to them."""
    processes = [start("test_cuda_kernels", "digest()", OMP_NUM_THREADS=str(count)) for count in (1, 3, 4)]
    assert len({finish(process) for process in processes}) == 1
