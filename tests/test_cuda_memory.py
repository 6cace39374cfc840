"""The cuda backend's own memory: offsets beyond 32 bits, nothing beside a tensor touched, and what its ops refuse."""

from __future__ import annotations

import ctypes
import itertools
import mmap
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import emulation
import pytest
import torch
from cuda_cases import (
    ARCHS,
    CASES,
    DEVICE,
    DTYPES,
    LAYOUTS,
    MANY_MAPS,
    NAMES,
    ROOT,
    ROUTES,
    TILED,
    USUAL,
    Sizes,
    draw,
    few_dtypes,
    finish,
    only_emulated,
    run,
    same,
    start,
)
from torch import Tensor

from lewel_kernels import BackendUnavailable, cuda, dispatch, explain, fused_align_aggregate, native, signature
from lewel_kernels.plan import Array, Call, cdiv, parts

CSRC = ROOT / "csrc" / "cuda"
pytestmark = pytest.mark.usefixtures("poisoned", "one_thread")


# ---- offsets beyond 32 bits


def far(x: Tensor, axis: int) -> Tensor:
    """The same numbers, so far apart along an axis that the last lies beyond 2^31; other memory is not touched.

    And so does the first channel of the last group, of eight.
    """
    shape, apart = x.shape, 5 * 2**29 // max(x.shape[axis] - 1, 1)
    apart -= apart % 8  # so that vectors may be moved
    others = [i for i in reversed(range(x.dim())) if i != axis]
    strides, stride = [0] * x.dim(), 1
    for i in others:
        strides[i], stride = stride, stride * shape[i]
    strides[axis] = apart
    if x.dim() == 3 and axis == 2:  # images of rows
        strides[:2] = shape[1], 1
    last = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    assert last > 2**31
    if x.device.type == "cpu":
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
        storage = torch.frombuffer(mmap.mmap(-1, (last + 1) * x.element_size(), flags=flags), dtype=x.dtype)
    else:
        storage = torch.zeros(last + 1, dtype=x.dtype, device=x.device)
    return storage.as_strided(shape, strides).copy_(x)


@few_dtypes("fp16", "fp32")
@pytest.mark.parametrize("sizes", [Sizes("tile", N=2, C=16, D=16, K=16, P=16, G=8), TILED], ids=str)
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
@pytest.mark.parametrize("sizes", [Sizes("tile", N=2, C=16, D=16, K=16, P=16, G=8), TILED], ids=str)
@pytest.mark.parametrize("axis", [0, 1, 2], ids=["images", "channels", "positions"])
def test_gradients_beyond_32_bits(axis: int, sizes: Sizes, dtype: torch.dtype, arch: str) -> None:
    """The gradients of images, written where the caller of the op wants them."""
    _, backward = cuda._ops(cuda.gpus.library)
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
        emulation.install(arch)
        expected.append(run(x))
    guarded = Guarded()
    library = guarded.install()
    runs = 0
    for (arch, sizes, route, dtype, x), wanted in zip(cases, expected, strict=True):
        emulation.install(arch)
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
    assert int(finish(start("test_cuda_memory", "run_between_guards()"))) > 200


# ---- what the op and the sources say


@only_emulated
def test_bfloat16_is_refused_on_sm_70(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "gpus", emulation.GPUS["sm_70"])
    x = draw(USUAL, "pixels", torch.bfloat16)
    with pytest.raises(BackendUnavailable, match=r"bfloat16 needs a GPU from sm_80.*sm_70.*use float16"):
        fused_align_aggregate(x.features, x.weight, pixels=x.pixels, backend="cuda")


@only_emulated
def test_sm_70_needs_no_instruction_of_sm_80(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its emulation ends a kernel that calls copy_async, load_matrices and so on (functions_of_80 of the emulation's
    tests): it is the library that all tests for sm_70 ran, and on sm_80 the kernels do call them."""
    for name in ARCHS:
        monkeypatch.setattr(cuda, "gpus", emulation.GPUS[name])
        assert cuda.refuse(dispatch.Request(DEVICE, torch.float16)) is None
        assert native.build_info(cuda.gpus.library)["archs"] == name
    guarded = re.compile(r"(?<!void )\b(copy_async|copy_async_commit|copy_async_wait|load_matrices)\b[<(]")
    sources = {path.name: path.read_text() for path in CSRC.glob("*.h") if path.name != "device.h"}
    assert {name for name, text in sources.items() if guarded.search(text)} == {"tile.h", "product.h"}


def test_no_atomics() -> None:
    """Sums are added in an order that is fixed."""
    for path in [*CSRC.glob("*.h"), *CSRC.glob("*.cu")]:
        assert "atomic" not in path.read_text().lower(), path.name


@pytest.mark.parametrize("arch", ARCHS, indirect=True)
def test_too_many_maps(arch: str) -> None:
    one = torch.ones(1, 1, 1, device=DEVICE)
    with pytest.raises(RuntimeError, match="fewer than 65536 maps"):
        fused_align_aggregate(one, torch.ones(65536, 1, device=DEVICE), num_groups=1, backend="cuda")


@pytest.mark.parametrize("arch", ARCHS, indirect=True)
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
        ("norm", lambda x: x.repeat_interleave(2, 1)[:, ::2], "norm must be contiguous"),
        ("features", lambda x: x[:, :0], "there must be images, channels, positions and maps"),
    ],
    ids=lambda x: x.replace(" ", "_") if isinstance(x, str) else "",
)
def test_a_call_of_the_op_itself_stays_within_bounds(
    name: str, change: Callable[[Tensor], Tensor], match: str, arch: str
) -> None:
    forward, _ = cuda._ops(cuda.gpus.library)
    x = draw(USUAL, "affine", torch.float32)
    given = {each: getattr(x, each) for each in NAMES}
    given |= {"pooled": torch.empty_like(x.grad_pooled), "maps": torch.empty_like(x.grad_maps)}
    given |= {"heat": signature.rows_like(x.features, USUAL.K), "norm": x.features.new_empty(USUAL.N, USUAL.P)}
    given |= {name: change(given[name])}
    with pytest.raises(RuntimeError, match=match):
        forward(
            *(given[each] for each in NAMES), x.groups, 0.2, 1e-12,
            *(given[each] for each in ("pooled", "maps", "heat", "norm")),
        )  # fmt: skip


@pytest.mark.parametrize("arch", ARCHS, indirect=True)
def test_explain_prints_each_launch(arch: str) -> None:
    x = draw(USUAL, "affine", torch.float16)
    said = str(
        explain(x.features, x.weight, pixels=x.pixels, pixels_affine=(x.scale, x.shift), num_groups=4, backend="cuda")
    )
    launched = re.findall(
        r"^    (\w+)<.*>: \d+ x \d+ x \d+ blocks of \d+ threads, \d+ bytes of shared memory$", said, re.M
    )
    assert launched == [
        "project_kernel", "pool_kernel",
        "pool_bwd_kernel", "maps_bwd_kernel", "pixels_bwd_kernel", "sum_kernel", "sum_kernel", "weight_bwd_kernel",
        "sum_kernel",
    ]  # fmt: skip
    if emulation.in_force():
        assert f"forward, kernels compiled for {arch} by nvcc none, emulated:" in said


def launched(call: Call) -> dict[str, tuple[list[str], list[int]]]:
    """Template arguments and grid of each kernel."""
    found = {}
    for line in itertools.chain(*cuda.launches(native.module(cuda.gpus.library), call)):
        match = re.match(r"(\w+)<(.*)>: (\d+) x (\d+) x (\d+) blocks", line)
        assert match, line
        found[match[1]] = match[2].split(", "), [int(size) for size in match.groups()[2:]]
    return found


@pytest.mark.parametrize("arch", ARCHS, indirect=True)
@pytest.mark.parametrize(
    ("size", "stride"),
    [((2, 8, 9), (72, 1, 8)), ((2, 8, 9), (72, 9, 1)), ((2, 8, 1), (8, 8, 1)), ((2, 1, 9), (9, 9, 1)),
     ((2, 8, 9), (72, 1, 1)), ((2, 8, 9), (0, 0, 0)), ((2, 8, 9), (8, 1, 16)), ((2, 8, 9), (200, 25, 2))],
    ids=str,
)  # fmt: skip
def test_python_and_cpp_tell_layouts_alike(size: tuple[int, ...], stride: tuple[int, ...], arch: str) -> None:
    """Array.layout chooses the kernels of the triton backend, in_planes of csrc/cuda/plan.h those of this one."""
    n, c, p = size
    call = Call.sized(N=n, C=c, D=c, K=4, P=p, G=1, dtype=torch.float16)
    x = Array("pixels", size, stride, torch.float16)
    planes, _ = launched(call._replace(pixels=x))["project_kernel"][0][2:]
    assert planes == ("true" if x.layout == "planes" else "false")


@pytest.mark.parametrize("arch", ARCHS, indirect=True)
@pytest.mark.parametrize(("n", "k", "d"), [(1, 4, 8), (64, 128, 2048), (256, 256, 4096), (300, 16, 16)])
def test_python_and_cpp_split_sums_over_rows_alike(n: int, k: int, d: int, arch: str) -> None:
    """By the rule of plan.parts and of Parts::of, each with the sizes of its own kernels."""
    x, y, z = launched(Call.sized(N=n, C=8, D=d, K=k, P=49, G=1, dtype=torch.float16))["weight_bwd_kernel"][1]
    assert z == parts(cdiv(n * 49, 32), x * y, programs=2 * 132, least=8)[1]
