"""The triton backend's own: each design of its kernels, the bounded softmax, offsets, configurations, refusals.

What the op promises on every backend is tested by the files test_op_*. Without a GPU the kernels run in Triton's
interpreter.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

pytest.importorskip("triton")

import triton
import triton.language as tl
from op_cases import OpCase, OpInputs, make, run_eager, run_op

import lewel_kernels.triton as backend_module
from benchmarks.compiled import requests
from lewel_kernels import BackendUnavailable, dispatch, explain, fused_align_aggregate
from lewel_kernels.plan import Array, Call
from lewel_kernels.signature import EVERY, Inputs, Needs, Options, accumulator
from lewel_kernels.triton import (
    backward_kernels,
    backward_launches,
    blocks,
    configs,
    forward_kernels,
    forward_launches,
    launch,
    replay,
)

DEVICE = torch.device(backend_module.device_type)
needs_a_device = pytest.mark.skipif(
    DEVICE.type == "cuda" and not torch.cuda.is_available(), reason="triton is not interpreted, and there is no GPU"
)
# Many positions and few channels: the projection on chip. Many positions, or many maps, and many channels: in tiles.
DENSE = OpCase("dense", N=2, C=24, D=20, K=12, G=3, space=(19, 16), bias=True)
TILES = OpCase("tiles", N=2, C=195, D=20, K=12, G=3, space=(19, 16), bias=True)
ONE_TILE = OpCase("one_tile", N=3, C=24, D=20, K=12, G=3, space=(5, 4), bias=True)
DESIGNS = (DENSE, TILES, ONE_TILE)
LAYOUTS = {"rows": torch.channels_last, "planes": torch.contiguous_format}
TOLERANCE = {"fp64": 1e-11, "fp32": 1e-4, "fp16": 1e-2}


def in_layout(inputs: OpInputs, layout: str) -> OpInputs:
    for name in ("features", "pixels"):
        x = getattr(inputs, name)
        setattr(inputs, name, x.detach().contiguous(memory_format=LAYOUTS[layout]).requires_grad_())
    return inputs


def tensors_of(inputs: OpInputs) -> Inputs:
    pixels = None if inputs.pixels is None else inputs.pixels.detach().flatten(2)
    bias = None if inputs.bias is None else inputs.bias.detach()
    return Inputs(inputs.features.detach().flatten(2), pixels, inputs.weight.detach(), bias)


def call_of(
    inputs: OpInputs, *, temperature: float = 0.05, capability: tuple[int, int] = (9, 0),
    out_dtype: torch.dtype | None = None, return_maps: bool = False,
) -> Call:  # fmt: skip
    options = Options(inputs.case.G, temperature, 1e-12, out_dtype or inputs.features.dtype, return_maps)
    return Call.of(tensors_of(inputs), options, capability)


def names(launches: list[launch.Launch]) -> list[str]:
    return [each.config.key.split()[0] for each in launches]


def backward_of(call: Call, needs: Needs = EVERY) -> list[str]:
    return names(backward_launches.plan(call.backward(needs)).launches)


def test_each_design_launches_its_kernels() -> None:
    plans = {}
    for case in DESIGNS:
        call = call_of(make(case, dtype=torch.float32))
        plans[case.name] = names(forward_launches.plan(call).launches), backward_of(call)
    gradients = ["maps_bwd", "sum", "pixels_bwd", "weight_bwd", "sum"]  # of bias and weight
    assert plans == {
        "dense": (["dense", "dense_sum"], ["softmax", "pool_bwd", "sum", *gradients]),
        "tiles": (["project", "softmax", "pool"], ["softmax", "pool_bwd", "sum", *gradients]),
        "one_tile": (["project", "pool"], ["pool_bwd", *gradients]),
    }


def test_work_that_nobody_needs_is_not_launched() -> None:
    call = call_of(make(ONE_TILE, dtype=torch.float32))

    def needing(*wanted: str) -> list[str]:
        return backward_of(call, tuple(name in wanted for name in Inputs._fields))  # type: ignore[arg-type]

    assert needing("features") == ["pool_bwd"]
    assert needing("pixels") == ["pool_bwd", "maps_bwd", "pixels_bwd"]
    assert needing("weight") == ["pool_bwd", "maps_bwd", "weight_bwd", "sum"]
    assert needing("bias") == ["pool_bwd", "maps_bwd", "sum"]


@pytest.mark.parametrize("wanted", ["bias", "weight"])
def test_what_is_summed_is_multiplied_elsewhere(wanted: str) -> None:
    """Triton 3.6 to 3.9 gives a load that feeds both too few buffers on sm_90, and an interpreter sees no race."""
    call = call_of(make(ONE_TILE, dtype=torch.float16))
    needs = (False, False, wanted == "weight", wanted == "bias", False, False)
    _, launches = backward_launches.plan(call.backward(needs))
    (maps,) = (each for each in launches if each.kernel.__name__ == "maps_bwd_kernel")
    assert (maps.arguments["p_dm"] is None) == (wanted == "bias")
    assert (maps.arguments["p_db"] is None) == (wanted == "weight")
    products = [each for each in launches if each.kernel.__name__ == "weight_bwd_kernel"]
    assert len(products) == (wanted == "weight")
    assert all("p_db" not in each.arguments for each in products)


@needs_a_device
@pytest.mark.parametrize(
    ("dtype", "affine"), [("fp64", True), ("fp32", False), ("fp16", False)], ids=["fp64-affine", "fp32", "fp16"]
)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", DESIGNS, ids=str)
def test_design(case: OpCase, affine: bool, layout: str, dtype: str) -> None:
    inputs = in_layout(make(replace(case, affine=affine), dtype=requests.DTYPES[dtype], device=DEVICE), layout)
    truth = run_eager(inputs.to(torch.float64), temperature=0.2, return_maps=True)
    for name, x in run_op(inputs, "triton", temperature=0.2, return_maps=True).items():
        scale = truth[name].abs().max().item()
        torch.testing.assert_close(x.double(), truth[name], rtol=0, atol=TOLERANCE[dtype] * scale, msg=name)


@needs_a_device
@pytest.mark.parametrize("case", [DENSE, TILES], ids=str)
def test_gradcheck_of_many_positions(case: OpCase) -> None:
    inputs = make(replace(case, N=1, affine=True), device=DEVICE)
    leaves = inputs.leaves

    def op(*tensors: Tensor) -> object:
        given = dict(zip(leaves, tensors, strict=True))
        pair = (given.pop("scale"), given.pop("shift"))
        return fused_align_aggregate(
            **given, pixels_affine=pair, num_groups=case.G, temperature=0.3, return_maps=True, backend="triton"
        )  # type: ignore[call-overload]

    assert gradcheck(op, tuple(leaves.values()), fast_mode=True)


@needs_a_device
@pytest.mark.parametrize("temperature", [1e-4, forward_launches.LEAST_BOUNDED_TEMPERATURE, 1.0])
@pytest.mark.parametrize("bounded", [False, True], ids=["running_maximum", "bounded"])
def test_one_pass_softmax(bounded: bool, temperature: float) -> None:
    """Both ways in float64, whatever way its dtype would take: exp((U - 1) / tau) needs no maximum above a bound."""
    inputs = make(DENSE, device=DEVICE)
    plan, tensors = forward_launches.plan(call_of(inputs, temperature=temperature)), by_name(inputs)
    first, *rest = plan.on(tensors)
    for each in (replace(first, constexprs={**first.constexprs, "BOUNDED": bounded}), *rest):
        each.run()
    pooled = tensors["pooled"]
    expected = run_eager(inputs, temperature=temperature)["pooled"]
    if bounded and temperature < forward_launches.LEAST_BOUNDED_TEMPERATURE:
        assert not torch.allclose(pooled, expected)  # everything underflows: the bound is there for a reason
    else:
        torch.testing.assert_close(pooled, expected, rtol=1e-9, atol=1e-9)


def test_which_softmax_is_bounded() -> None:
    def bounded(dtype: torch.dtype, temperature: float) -> bool:
        call = call_of(make(DENSE, dtype=dtype), temperature=temperature)
        return bool(forward_launches.plan(call).launches[0].constants["BOUNDED"])

    assert bounded(torch.bfloat16, 0.05)
    assert not bounded(torch.bfloat16, 0.02)
    assert not bounded(torch.float16, 0.05)
    assert not bounded(torch.float32, 0.05)
    # The smallest weight there is at the bound is a normal float32.
    assert torch.tensor(-2 / forward_launches.LEAST_BOUNDED_TEMPERATURE).exp() > torch.finfo(torch.float32).tiny


@triton.jit
def product_kernel(
    p_a,  # (M, K)
    p_b,  # (N, K)
    p_c,  # (M, N), a b^T
    p_sum,  # (M,), over N
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    o_m, o_n, o_k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    b_a = tl.load(p_a + o_m[:, None] * K + o_k[None, :])  # [M, K]
    b_b = tl.load(p_b + o_n[:, None] * K + o_k[None, :])  # [N, K]
    b_c = blocks.dot(b_a, tl.trans(b_b), tl.zeros([M, N], ACC), "ieee")  # [M, N]
    tl.store(p_c + o_m[:, None] * N + o_n[None, :], b_c)
    tl.store(p_sum + o_m, blocks.total(blocks.weights(b_c, 1.0, 0.3), 1))


def product(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    (m, k), n = a.shape, b.shape[0]
    acc = accumulator(a.dtype)
    c, total = torch.empty(m, n, dtype=acc, device=DEVICE), torch.empty(m, dtype=acc, device=DEVICE)
    product_kernel[(1,)](a, b, c, total, m, n, k, tl.float64 if acc == torch.float64 else tl.float32)
    return c, total


@pytest.mark.skipif(not backend_module.INTERPRETED, reason="kernels are interpreted with --device cpu only")
@pytest.mark.parametrize("dtype", requests.DTYPES.values(), ids=requests.DTYPES)
def test_a_row_of_a_block_does_not_depend_on_the_others(dtype: torch.dtype) -> None:
    """Nor on its place or their number. The interpreter's own product is a BLAS's, which promises neither."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(64, 32, generator=generator).to(DEVICE, dtype) for _ in range(2))
    c, total = product(a, b)
    torch.testing.assert_close(c.double(), a.double() @ b.double().T, rtol=1e-6, atol=1e-6)
    for size in (16, 32, 64):
        for shift in (1, 7, 29):
            rows = torch.arange(shift, shift + size) % 64
            found = product(a[rows].contiguous(), b)
            assert torch.equal(found[0], c[rows]), f"{size} rows from {shift}"
            assert torch.equal(found[1], total[rows]), f"sums of {size} rows from {shift}"
            assert torch.equal(product(a, b[rows].contiguous())[0], c[:, rows]), f"{size} columns from {shift}"


@needs_a_device
@pytest.mark.parametrize("axis", ["images", "channels", "positions"])
@pytest.mark.parametrize("case", [ONE_TILE, DENSE, TILES], ids=str)
def test_offsets_beyond_32_bits(case: OpCase, axis: str) -> None:
    """Neighbours along an axis lie so far apart that the last is beyond 2^31; few pages of that memory are touched."""

    def far(x: Tensor) -> Tensor:
        n, c, p = x.detach().flatten(2).shape
        sizes = {"images": n, "channels": c, "positions": p}
        apart = (2**31 + 2**12) // (sizes[axis] - 1) + 1
        strides = {"images": (apart, p, 1), "channels": (p, apart, 1), "positions": (c, 1, apart)}[axis]
        last = sum((size - 1) * stride for size, stride in zip((n, c, p), strides, strict=True))
        y = torch.empty(last + 1, dtype=x.dtype, device=DEVICE)
        return y.as_strided((n, c, p), strides).copy_(x.detach().flatten(2)).requires_grad_()

    inputs = make(replace(case, N=2), dtype=torch.float16, device=DEVICE)
    expected = run_op(inputs, "triton")
    assert inputs.pixels is not None
    inputs.features, inputs.pixels = far(inputs.features), far(inputs.pixels)
    for name, x in run_op(inputs, "triton").items():
        torch.testing.assert_close(x.flatten(), expected[name].flatten(), rtol=2e-2, atol=2e-2, msg=name)


@needs_a_device
def test_a_call_like_an_earlier_one_is_not_planned_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """And computes with its own tensors: results of the first call keep their values."""
    monkeypatch.setattr(replay, "_replays", {})
    plans: list[str] = []
    for module in (forward_launches, backward_launches):
        original = module.plan

        def noting(*args: Any, _plan: Any = original, _name: str = module.__name__, **options: Any) -> Any:
            plans.append(_name.rpartition(".")[2])
            return _plan(*args, **options)

        monkeypatch.setattr(module, "plan", noting)

    def run(seed: int, **changed: object) -> None:
        inputs = make(replace(ONE_TILE, affine=True, **changed), device=DEVICE, seed=seed)  # type: ignore[arg-type]
        truth = run_eager(inputs, temperature=0.2)
        runs.append((run_op(inputs, "triton", temperature=0.2), truth))

    runs: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
    run(0)
    run(1)
    assert plans == ["forward_launches", "backward_launches"]
    run(0, N=4)
    assert len(plans) == 4
    for found, truth in runs:
        for name, x in found.items():
            torch.testing.assert_close(x, truth[name], rtol=1e-9, atol=1e-9, msg=name)


def test_a_compiled_kernel_is_launched_again_with_the_same_arguments() -> None:
    """The interpreter has no compiled kernels: this takes a process without it, and a pretended driver."""
    environment = {name: x for name, x in os.environ.items() if name != "TRITON_INTERPRET"}
    root = Path(__file__).parents[1]
    environment["PYTHONPATH"] = str(root)
    script = [sys.executable, str(root / "tests" / "replayed_launches.py")]
    done = subprocess.run(script, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("launched project_kernel pool_kernel")


def test_what_makes_a_call_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that a plan or Triton's compilation depends on: shapes, strides, dtypes, alignment, options."""
    monkeypatch.setattr(replay, "_replays", {})
    made = Array.new("made", (1,), torch.float32)

    class Kernel:
        arg_names: ClassVar = ["x"]

        def __getitem__(self, grid: object) -> Any:
            return lambda *values, **options: None

    launches = [launch.Launch("", (1, 1, 1), {"x": made}, 0, configs.find("sum", "sm90", torch.float32), Kernel(), {})]

    def run(x: Tensor, pixels: Tensor | None, temperature: float = 1.0) -> None:
        inputs = Inputs(x[None], None if pixels is None else pixels[None], weight, None)
        call = Call.of(inputs, Options(1, temperature, 1e-12, torch.float32))
        replay.run(call, inputs, lambda: launch.Plan((made,), launches))

    x, weight = torch.zeros(64, 4), torch.zeros(8, 64)
    for given in (
        (x, x),
        (x, None),
        (x[1:], None),
        (x.t(), None),
        (x.half(), None),
        (x.flatten()[1:-3].view(63, 4), None),  # of the shape and strides of x[1:], at another alignment
        (x, x, 0.5),
    ):
        before = len(replay._replays)
        run(*given)
        run(*given)
        assert len(replay._replays) == before + 1
    monkeypatch.setattr(replay, "_MOST", 7)
    run(x, x, 0.25)
    assert len(replay._replays) == 1


@pytest.mark.parametrize("capability", [(8, 0), (9, 0), (8, 9)], ids=["sm80", "sm90", "other"])
@pytest.mark.parametrize("case", DESIGNS, ids=str)
def test_nothing_but_the_grid_depends_on_the_batch(case: OpCase, capability: tuple[int, int]) -> None:
    """Otherwise an image would not give the same bits alone and in a batch; sums over the batch may be split."""

    def plan(n: int) -> list[tuple[str, configs.Config, dict[str, object]]]:
        call = call_of(make(replace(case, N=n), dtype=torch.bfloat16), capability=capability, return_maps=True)
        launches = forward_launches.plan(call).launches + backward_launches.plan(call.backward()).launches
        return [(e.config.key, e.config, e.constants) for e in launches]

    assert plan(1) == plan(7)


@pytest.mark.parametrize("case", DESIGNS, ids=str)
def test_norms_are_of_the_stored_maps(case: OpCase) -> None:
    """The backward divides what is stored by them."""
    if DEVICE.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("triton is not interpreted, and there is no GPU")
    inputs = make(case, dtype=torch.float16, device=DEVICE)
    call, tensors = call_of(inputs, out_dtype=torch.float32, return_maps=True), by_name(inputs)
    launches = forward_launches.plan(call).on(tensors)
    for each in launches:
        each.run()
    maps, heat, norm = (tensors[name] for name in ("maps", "heat", "norm"))
    torch.testing.assert_close(norm, heat.float().norm(dim=1), rtol=1e-6, atol=0)
    assert maps.dtype == torch.float32
    torch.testing.assert_close(maps.sum(-1), torch.ones_like(maps[..., 0]), rtol=1e-5, atol=0)  # not rounded to 16 bits
    fewer = call_of(make(replace(case, N=1), dtype=torch.float16), return_maps=True)
    one, every = (
        [each.arguments["S"] for each in x if "S" in each.arguments]
        for x in (forward_launches.plan(fewer).launches, launches)
    )
    assert one == every


def by_name(inputs: OpInputs) -> dict[str, Tensor]:
    return {name: x for name, x in tensors_of(inputs)._asdict().items() if x is not None}


@needs_a_device
def test_zero_pixels_in_float16() -> None:
    """The maps are those of float64, which is more than plain PyTorch manages: eps is zero in float16 there.

    The gradient of a heat map that is zero, dU / eps, is beyond float16: what it reaches is not finite, and a gradient
    scaler skips the step.
    """
    inputs = make(ONE_TILE, dtype=torch.float16, device=DEVICE)
    assert inputs.bias is not None
    assert inputs.pixels is not None
    inputs.bias.detach().zero_()
    inputs.pixels.detach()[1, :, 2, 1] = 0
    truth = run_eager(inputs.to(torch.float64), temperature=0.2, return_maps=True)
    found = run_op(inputs, "triton", temperature=0.2, return_maps=True)
    for name in ("pooled", "maps", "d_features"):
        torch.testing.assert_close(
            found[name].double(), truth[name], rtol=0, atol=1e-2 * truth[name].abs().max().item()
        )
    assert not found["d_weight"].isfinite().all()
    others = [0, 2]
    torch.testing.assert_close(
        found["d_pixels"][others].double(), truth["d_pixels"][others], rtol=0,
        atol=1e-2 * truth["d_pixels"][others].abs().max().item(),
    )  # fmt: skip


@pytest.mark.parametrize("dtype", requests.DTYPES.values(), ids=requests.DTYPES)
@pytest.mark.parametrize("positions", [49, 3136, backend_module._MOST_POSITIONS])
def test_grids_fit(positions: int, dtype: torch.dtype) -> None:
    """A grid has 2^31 - 1 programs along its first axis, 2^16 - 1 along the others."""
    call = Call.sized(N=2, C=8, K=128, P=positions, G=4, dtype=dtype, return_maps=True, capability=(8, 9))
    for each in forward_launches.plan(call).launches + backward_launches.plan(call.backward()).launches:
        assert each.grid[0] < 2**31, each
        assert max(each.grid[1:]) < 2**16, each


def test_kernels_hold_no_atomics() -> None:
    for module in (blocks, forward_kernels, backward_kernels):
        assert "atomic" not in inspect.getsource(module)


@pytest.mark.parametrize("switch", ["allow_tf32", "fp32_precision", "fp32_precision everywhere"])
def test_tf32_only_where_pytorch_allows_it(switch: str) -> None:
    """By either of its switches; having used the newer, PyTorch raises where the older is read."""
    code = (
        "import torch\n"
        "from lewel_kernels.triton.launch import allows_tf32\n"
        "assert not allows_tf32(torch.float32)\n"
        f"{'torch.backends.' if 'everywhere' in switch else 'torch.backends.cuda.matmul.'}"
        f"{switch.split()[0]} = {True if switch == 'allow_tf32' else 'tf32'!r}\n"
        "assert allows_tf32(torch.float32) and not allows_tf32(torch.float16)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    call = call_of(make(ONE_TILE, dtype=torch.float32))
    for tf32, precision in ((False, "ieee"), (True, "tf32")):
        first, *_ = forward_launches.plan(call._replace(tf32=tf32)).launches
        assert first.constants["PRECISION"] == precision


def test_the_fusion_of_products_and_sums_is_pinned() -> None:
    call = call_of(make(ONE_TILE, dtype=torch.float32))
    _, launches = forward_launches.plan(call)
    assert all(each.options["enable_fp_fusion"] is True for each in launches)


@dataclass
class Pretended:
    capability: tuple[int, int]


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pretended]:
    """A GPU whose capability a test chooses."""
    gpu = Pretended((9, 0))
    monkeypatch.setattr(backend_module, "INTERPRETED", False)
    monkeypatch.setattr(backend_module, "_capability", lambda device: gpu.capability)
    backend_module._cannot_launch.cache_clear()
    yield gpu
    backend_module._cannot_launch.cache_clear()


def test_what_it_refuses(pretended: Pretended, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusal(dtype: torch.dtype = torch.bfloat16, num_maps: int = 512) -> str | None:
        return backend_module.refuse(dispatch.Request(torch.device("cuda:0"), dtype, num_maps=num_maps))

    for capability in ((8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)):
        pretended.capability = capability
        assert refusal() is None
    pretended.capability = (7, 0)
    assert "needs a GPU from sm_80 on (A100), and cuda:0 is sm_70" in (refusal() or "")
    pretended.capability = (9, 0)
    assert "at most 512 maps in torch.bfloat16; weight has 513 rows" in (refusal(num_maps=513) or "")
    assert "at most 256 maps in torch.float64; weight has 512 rows" in (refusal(torch.float64, 512) or "")
    assert "float8" in (refusal(torch.float8_e4m3fn) or "")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install triton" in (refusal() or "")


class Driver:
    """Triton's, which compiles its launcher when it is first asked for."""

    def __init__(self, error: Exception | None) -> None:
        self.error, self.asked = error, 0

    @property
    def active(self) -> Driver:
        self.asked += 1
        if self.error:
            raise self.error
        return self

    def get_current_target(self) -> None:
        pass


@pytest.mark.parametrize(
    ("lacks", "said"),
    [
        ("compiler", r"neither gcc nor clang is on the PATH; install gcc \(Debian and Ubuntu: apt install gcc\)$"),
        ("CC", "the variable CC names 'gcc-of-next-year', which is not a program; correct or unset it$"),
        ("headers", r"Python's headers are not in .*; install them \(.*apt install python3-dev\)$"),
        (
            "else",
            r"does not start \(AssertionError: libcuda.so cannot found! .* ldconfig\); set .* TRITON_LIBCUDA_PATH",
        ),
        ("nothing", None),
    ],
)
def test_what_its_driver_lacks_is_asked_once(
    lacks: str, said: str | None, pretended: Pretended, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = {"nothing": None, "else": AssertionError("libcuda.so cannot found!\nPlease run ldconfig")}
    driver = Driver(errors.get(lacks, RuntimeError("Failed to find C compiler.")))
    monkeypatch.setattr(triton.runtime, "driver", driver)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None if lacks == "compiler" or "next" in name else f"/bin/{name}")
    if lacks == "CC":
        monkeypatch.setenv("CC", "gcc-of-next-year")
    (tmp_path / "Python.h").write_text("")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path / "no" if lacks == "headers" else tmp_path))
    told = {backend_module.refuse(dispatch.Request(torch.device("cuda:0"), torch.float32)) for _ in range(3)}
    assert driver.asked == 1
    assert [*told] == [None] if said is None else re.search(said, str(*told)), told


def test_a_gpu_without_a_c_compiler_gets_the_reference(tmp_path: Path) -> None:
    """Of Triton all is real here, and of the GPU only what is asked before anything is launched."""
    code = (
        "import warnings, torch\n"
        "torch.cuda.is_available = lambda: True\n"
        "torch.cuda.get_device_capability = lambda device=None: (9, 0)\n"
        "from lewel_kernels import dispatch\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    print(dispatch.choose(torch.device('cuda', 0), torch.float32, 4, None))\n"
        "print(*(warning.message for warning in caught), sep='\\n')\n"
    )
    empty = {name: str(tmp_path) for name in ("PATH", "TRITON_CACHE_DIR", "TRITON_LIBCUDA_PATH", "LEWEL_CACHE_DIR")}
    demanded = ("TRITON_INTERPRET", "LEWEL_BACKEND", "CC", "CUDA_HOME", "CUDA_PATH")
    environment = {name: value for name, value in os.environ.items() if name not in demanded} | empty
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    chosen, *warned = done.stdout.splitlines()
    assert chosen == "reference"
    assert "the triton backend cannot: Triton compiles what launches its kernels with a C compiler, and" in warned[0]
    assert "apt install gcc" in warned[0]


def test_too_many_maps_are_refused_at_the_door() -> None:
    x, weight = torch.zeros(1, 4, 3, device=DEVICE), torch.zeros(516, 4, device=DEVICE)
    with pytest.raises(BackendUnavailable, match="at most 512 maps"):
        fused_align_aggregate(x, weight, backend="triton")


def test_more_positions_than_indices_are_refused() -> None:
    weight = torch.zeros(4, 1, device=DEVICE)
    for shape in ((1, 1, 2**23 + 1), (2**8, 1, 2**23)):
        with pytest.raises(BackendUnavailable, match=f"at most 8388608 positions in an image.*got {shape[2]} and"):
            fused_align_aggregate(torch.zeros((), device=DEVICE).expand(shape), weight, num_groups=1, backend="triton")


def test_a_cpu_tensor_without_the_interpreter_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend_module, "device_type", "cuda")
    found = explain(torch.zeros(1, 4, 3), torch.zeros(4, 4), backend="triton")
    assert found.backend is None
    assert "it runs on cuda tensors; the features are on cpu" in str(found)


@pytest.mark.parametrize(
    ("capability", "name"),
    [((8, 0), "sm80"), ((8, 6), "other"), ((8, 9), "other"), ((9, 0), "sm90"), ((10, 0), "sm90"), ((12, 0), "other")],
)
def test_table_of_a_device(capability: tuple[int, int], name: str) -> None:
    """A table may use the shared memory of its data-centre GPU; consumer GPUs have less and take the rule."""
    assert configs.architecture(capability) == name


def test_the_table_wins_over_the_rule_and_says_so() -> None:
    key = {"layout": "rows", "K": 128}
    ruled = configs.find("project", "other", torch.bfloat16, **key)
    tabled = configs.find("project", "sm90", torch.bfloat16, **key)
    entry = configs.table("sm90")["project bf16 rows K128"]
    assert ruled.source == configs.RULE
    assert tabled.blocks == entry["blocks"]
    assert tabled.num_stages == entry["num_stages"] != ruled.num_stages
    assert tabled.source == f"configs/sm90.json ({entry['provenance']})"


@pytest.mark.parametrize("arch", ["sm80", "sm90"])
def test_every_entry_of_a_table_has_its_origin(arch: str) -> None:
    file = json.loads((configs.FOLDER / f"{arch}.json").read_text())
    assert file["architecture"] == arch
    for key, entry in file["entries"].items():
        assert set(entry) == {"blocks", "num_warps", "num_stages", "provenance"}, key
        assert entry["provenance"], key


def test_explain_names_the_design_and_where_each_configuration_comes_from() -> None:
    features = torch.zeros(2, 2048, 7, 7, dtype=torch.bfloat16, device=DEVICE).contiguous(
        memory_format=torch.channels_last
    )
    dense = torch.zeros(1, 256, 28, 28, dtype=torch.bfloat16, device=DEVICE)
    weight = torch.zeros(128, 2048, dtype=torch.bfloat16, device=DEVICE)
    told = str(explain(features, weight, backend="triton"))
    assert "forward (projection, then pooling):" in told
    assert "pool_bwd bf16 rows P64 L32: P64 C64, 4 warps, 3 stages; from configs/sm90.json (" in told
    assert "sum bf16: S1 1024, 4 warps, 2 stages; from the rule in lewel_kernels/triton/configs.py" in told
    # Pixels and M in 16 bits, the norms in 32: N P (2 D + 2 K + 4) + 2 D K bytes.
    assert re.search(r"project bf16 rows K128: .*; 2 x 1 x 1 programs, 1.0 MB, 0.1 GFLOP", told)
    assert re.search(r"workspace: 0.0 MB and \d.\d MB beside inputs and results", told)
    assert "forward (projection kept on chip):" in str(explain(dense, weight[:, :256], backend="triton"))
