"""What is particular to the compiled kernels: tiles, vectors, storage types, large outputs, and portable builds.

The contract of the op, layouts, determinism and row-alone equality are tested for every backend in tests/test_op_*.py.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lewel_kernels import cpu, native, reference
from lewel_kernels.signature import Inputs, Options

_reason = native.unavailable()
pytestmark = pytest.mark.skipif(_reason is not None, reason=f"cpu backend: {_reason}")

# Values of -march for older processors than this one, and the width of their vectors in bytes.
PORTABLE = {"x86-64-v2": 16, "x86-64-v3": 32} if platform.machine() in ("x86_64", "AMD64") else {"armv8-a": 16}
if torch.backends.cpu.get_cpu_capability() == "AVX512":
    PORTABLE["x86-64-v4"] = 64  # without dot products of bf16
LAYOUTS = ("nchw", "channels_last", "after_a_token", "every_second")


def in_layout(x: Tensor, layout: str) -> Tensor:
    """(N, X, P) with the same values and other strides."""
    n, width, p = x.shape
    if layout == "nchw":
        return x.contiguous()
    if layout == "channels_last":
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "after_a_token":
        rows = torch.full((n, 1 + p, width), torch.nan, dtype=x.dtype)
        rows[:, 1:] = x.transpose(1, 2)
        return rows[:, 1:].transpose(1, 2)
    spread = torch.full((n, width, 2 * p), torch.nan, dtype=x.dtype)
    spread[:, :, ::2] = x
    return spread[:, :, ::2]


def run(
    features: Tensor, pixels: Tensor | None, weight: Tensor, bias: Tensor | None, grad_pooled: Tensor, *,
    num_groups: int, backend: object = cpu, temperature: float = 0.1,
) -> dict[str, Tensor]:  # fmt: skip
    """Everything the backend computes, by name."""
    needs = (True, pixels is not None, True, bias is not None, False, False)
    options, given = (
        Options(num_groups, temperature, 1e-12, features.dtype, True, needs),
        Inputs(features, pixels, weight, bias),
    )
    pooled, maps, *statistics = backend.forward(given, options)  # type: ignore[attr-defined]
    gradients = backend.backward((grad_pooled, maps), given, statistics, options)  # type: ignore[attr-defined]
    named = dict(zip(("d_features", "d_pixels", "d_weight", "d_bias"), gradients[:4], strict=True))
    return {"pooled": pooled, "maps": maps} | {name: x for name, x in named.items() if x is not None}


def inputs(n: int, c: int, d: int, k: int, p: int, g: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(n * c + d * k + p)
    shapes = ((n, c, p), (n, d, p), (k, d), (k,), (n, k // g, c))
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)


def test_an_empty_batch_holds_nothing_of_the_one_before() -> None:
    for n in (3, 0):
        found = run(*inputs(n, 8, 8, 4, 5, 2), num_groups=2)
    assert not found["d_weight"].any()


@pytest.mark.parametrize(
    ("n", "c", "d", "k", "p", "g"),
    [
        pytest.param(1, 1, 1, 1, 1, 1, id="all_ones"),
        *(pytest.param(2, 6, 5, 4, p, 2, id=f"{p}_positions") for p in (6, 7, 8, 13, 14, 15, 63, 64, 65, 80, 129)),
        *(pytest.param(2, 6, 5, k, 9, 1, id=f"{k}_maps") for k in (15, 16, 17, 31, 33, 64, 65, 130)),
        *(pytest.param(2, c, 5, 4, 9, 1, id=f"{c}_channels") for c in (8, 16, 63, 64, 65, 255, 257)),
        *(pytest.param(2, 4, d, 4, 9, 2, id=f"{d}_wide_pixels") for d in (8, 32, 64, 65, 255, 256, 257, 600)),
        pytest.param(3, 132, 40, 36, 100, 12, id="groups_that_end_within_vectors"),
        pytest.param(9, 16, 48, 16, 100, 4, id="rows_in_splits_across_images"),
    ],
)
def test_every_remainder(n: int, c: int, d: int, k: int, p: int, g: int) -> None:
    """Sizes beside the tile (7 or 6 rows), the vector (2 to 16 elements), the panel (up to 64) and the depth (256)."""
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 2e-4)):
        tensors = inputs(n, c, d, k, p, g, dtype)
        found, truth = run(*tensors, num_groups=g), run(
            *(x.double() for x in tensors), num_groups=g, backend=reference
        )  # fmt: skip
        for name, x in truth.items():
            torch.testing.assert_close(found[name].double(), x, rtol=tolerance, atol=tolerance, msg=f"{name}, {dtype}")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("pixel_layout", LAYOUTS)
@pytest.mark.parametrize("feature_layout", LAYOUTS)
def test_layouts_give_the_same_bits(feature_layout: str, pixel_layout: str, dtype: torch.dtype) -> None:
    features, pixels, weight, bias, grad = inputs(3, 72, 40, 20, 49, 2, dtype)
    plain = run(features, pixels, weight, bias, grad, num_groups=2)
    x, y = in_layout(features, feature_layout), in_layout(pixels, pixel_layout)
    for name, result in run(x, y, weight.T.contiguous().T, bias, grad, num_groups=2).items():
        assert torch.equal(result, plain[name]), name
        if name in ("d_features", "d_pixels"):
            assert result.stride() == torch.empty_like(x if name == "d_features" else y).stride(), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shared", [False, True], ids=["pixels", "shared"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("n", "width", "k", "p"), [(48, 1024, 48, 49), (6, 512, 16, 784), (23, 1000, 100, 99)], ids=str
)
def test_large_outputs_are_those_of_small_ones(
    n: int, width: int, k: int, p: int, layout: str, shared: bool, dtype: torch.dtype
) -> None:
    """Outputs above 8 MiB are written past the caches; an image alone is not."""
    n *= 4 // dtype.itemsize
    features, pixels, weight, _, grad = inputs(n, width, width, k, p, 2, dtype)
    assert features.nbytes > 8 << 20
    x, y = in_layout(features, layout), None if shared else in_layout(pixels, layout)
    together = run(x, y, weight, None, grad, num_groups=2)
    for i in (0, n - 1):
        row = slice(i, i + 1)
        alone = run(x[row], None if y is None else y[row], weight, None, grad[row], num_groups=2)
        for name in ("pooled", "maps", "d_features", *(() if shared else ("d_pixels",))):
            assert torch.equal(together[name][row], alone[name]), name


@pytest.fixture
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize(("n", "width", "p"), [(40, 96, 49), (3, 520, 400), (1, 2048, 49)], ids=str)
def test_sums_do_not_depend_on_threads(n: int, width: int, p: int) -> None:
    """dW is summed in splits of the N*P rows; the shapes have many splits, several and one."""
    tensors = inputs(n, width, width, 32, p, 4, torch.float32)
    torch.set_num_threads(1)
    first = run(*tensors, num_groups=4)
    for count in (2, 3, 4, 7):
        torch.set_num_threads(count)
        for name, x in run(*tensors, num_groups=4).items():
            assert torch.equal(x, first[name]), f"{name} with {count} threads"


def through(x: Tensor, out_dtype: torch.dtype, channels: str) -> Tensor:
    """Features x (C,) of one image of one position, where every map is 1: read, widened, rounded and written.

    In whole vectors, or in groups of three channels, which the code for what is left over by vectors takes.
    """
    groups = 1 if channels == "vectors" else x.numel() // 3
    one, weight = torch.ones(1, 1, 1, dtype=x.dtype), torch.ones(groups, 1, dtype=x.dtype)
    inputs = Inputs(x.view(1, -1, 1), one, weight, None)
    return cpu.forward(inputs, Options(groups, 1.0, 1e-12, out_dtype))[0].flatten()


both_paths = pytest.mark.parametrize("channels", ["vectors", "leftovers"])


@both_paths
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_16_bit_number_survives(dtype: torch.dtype, channels: str) -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    for x in (every[1:], every[:65520]):  # 65535 and 65520 are multiples of three, and the latter of 16
        found = through(x, dtype, channels)
        same = (found == x) | (found.isnan() & x.isnan())
        assert same.all(), x[~same][:5]


@both_paths
@pytest.mark.parametrize("source", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_rounding_is_that_of_pytorch(dtype: torch.dtype, source: torch.dtype, channels: str) -> None:
    """To nearest, ties to even, overflow to inf, denormals."""
    bits = torch.randint(-(2**31), 2**31, (1 << 16,), dtype=torch.int64, generator=torch.Generator().manual_seed(0))
    ties = torch.arange(1 << 16, dtype=torch.int64) << 15  # halfway between two bf16 numbers, every other one
    half = (torch.arange(1 << 17, dtype=torch.int64) << 12) + 0x33000000  # the same of fp16, denormals and overflow
    values = torch.cat([bits, ties, half]).to(torch.int32).view(torch.float32)
    values = values[values.isfinite() & ((values == 0) | (values.abs() > 1e-37))]
    x = torch.cat([values, -values])
    x = x[: x.numel() // 3 * 3].to(source)
    found, expected = through(x, dtype, channels), x.to(dtype)
    assert torch.equal(found, expected), x[found != expected][:5]


def test_the_exponential_is_that_of_pytorch() -> None:
    """One map of two positions, U = 1 and -1: the ratio of its weights is e^(-2 / tau), here tau from 1 on."""
    x = torch.tensor([[[1.0, -1.0]]])
    for temperature in torch.linspace(1, 8, 200, dtype=torch.float64).float().tolist():
        options = Options(1, temperature, 1e-12, torch.float64, return_maps=True)
        maps = cpu.forward(Inputs(x, None, torch.ones(1, 1), None), options)[1].flatten()
        expected = torch.tensor(-2 / temperature, dtype=torch.float64).exp()
        torch.testing.assert_close(maps[1] / maps[0], expected, rtol=5e-7, atol=0)


@pytest.mark.parametrize("isa", PORTABLE)
def test_portable_build_keeps_the_contract(isa: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The same sources for older processors, held to the same error budget in a process of their own."""
    code = (
        "import sys, pytest; from lewel_kernels import native\n"
        "assert native.unavailable() is None, native.unavailable()\n"
        f"assert native.build_info()['isa'] == {isa!r}\n"
        f"assert native.build_info()['vector_bytes'] == {PORTABLE[isa]}\n"
        "sys.exit(pytest.main(sys.argv[1:]))\n"
    )
    shapes = "usual_7x7 or odd_widths or shared_3d or full_width"
    arguments = [
        "-q", "-p", "no:cacheprovider", "tests/test_op_contract.py", "tests/test_native_kernels.py",
        "-k", f"(as_accurate and cpu and ({shapes})) or remainder or 16_bit or rounding or exponential or large_out",
    ]  # fmt: skip
    variables = {"LEWEL_CPU_ISA": isa, "LEWEL_CACHE_DIR": str(tmp_path_factory.getbasetemp() / isa)}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=os.environ | variables, cwd=Path(__file__).parent.parent,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
