"""The numerics contract: no further from a float64 truth than eager PyTorch in the same dtype, on awkward shapes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from op_cases import BY_NAME, CASES, SHARP, SMALL, OpCase, beyond_contract, make, run_eager, run_op
from torch import Tensor
from torch.autograd import gradcheck

from benchmarks.op.parity import Errors, compare, typical_share
from lewel_kernels import dispatch, fused_align_aggregate
from lewel_kernels.signature import Inputs, Options, accumulator

pytestmark = pytest.mark.usefixtures("poisoned")

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Errors are those of several draws: the root mean square of a handful of numbers is itself a random number.
DRAWS = 12
# Where E1 or E5 are long sums of few numbers, where flat maps add up what their rounding has in common, where one map's
# U is 1 or -1 exactly, and where gradients nearly cancel; and the temperature that shows it.
SUMS = (
    (OpCase("flat", N=1, C=8, D=None, K=16, G=2, space=(14, 14)), 1.0),
    (OpCase("odd_depth", N=4, C=257, D=None, K=16, G=1, space=(4, 4)), 0.1),
    (OpCase("one_map", N=1, C=16, D=8, K=1, G=1, space=(7, 7)), 0.3),
    (OpCase("depth_256", N=1, C=16, D=256, K=128, G=4, space=(7, 7)), 0.1),
    (OpCase("two_maps", N=2, C=16, D=16, K=2, G=2, space=(7, 7)), 0.05),
    (OpCase("few_maps", N=2, C=16, D=32, K=8, G=4, space=(10, 10), bias=True), 1.0),
    (OpCase("wide_groups", N=2, C=48, D=8, K=12, G=3, space=(10, 10), bias=True), 0.5),
    (OpCase("dense_flat", N=1, C=8, D=4, K=8, G=1, space=(28, 28)), 1.0),
)
AFFINE = OpCase("affine", N=2, C=8, D=6, K=8, G=2, space=(3, 5), bias=True, affine=True)


@pytest.mark.parametrize("return_maps", [False, True], ids=["pooled", "pooled_and_maps"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_as_accurate_as_eager(
    case: OpCase, dtype: str, return_maps: bool, backend: str, device: torch.device, slow: bool
) -> None:
    draws = 2 if slow else DRAWS
    assert not beyond_contract(case, backend, DTYPES[dtype], device, draws=draws, return_maps=return_maps)


# On the CPU alone: on a GPU the yardstick is eager's sums there, which those of the emulated kernels say nothing about.
@pytest.mark.parametrize("backend", ["cpu", "reference"], indirect=True)
@pytest.mark.parametrize(("case", "temperature"), SUMS, ids=lambda x: str(x) if isinstance(x, OpCase) else f"tau{x}")
def test_sums_are_as_exact_as_those_of_eager(
    case: OpCase, temperature: float, backend: str, device: torch.device
) -> None:
    options: dict[str, Any] = {"return_maps": True, "temperature": temperature}
    assert not beyond_contract(case, backend, torch.float32, device, draws=2 * DRAWS, **options)


def simulated(count: int, numbers: int, ratio: float, *, widened: bool = False) -> list[Errors]:
    """Draws of independent normal errors: ours, and those of eager, which are smaller by the ratio."""
    generator = torch.Generator().manual_seed(0)
    ours, theirs = torch.randn(2, count, numbers, generator=generator) * 1e-5
    truth = torch.zeros(numbers, dtype=torch.float64)
    return [compare(ratio * x, y, truth, widened=widened) for x, y in zip(ours, theirs, strict=True)]


def test_the_contract_is_about_a_typical_draw() -> None:
    assert 0.75 < typical_share(simulated(60, 16, 1.0)) < 0.85  # without a widening, one in 1.25
    assert typical_share(simulated(60, 16, 1.4)) > 1
    equal = simulated(60, 16, 1.0)
    unlucky = Errors(max=1e-3, rms=1e-3, max_allowed=1e-5, rms_allowed=1e-5)
    assert typical_share([*equal, unlucky]) < 1
    assert typical_share([*equal, *[unlucky] * 6]) > 1
    exact = Errors(max=0.0, rms=0.0, max_allowed=1e-5, rms_allowed=1e-5)
    assert typical_share([exact, replace(exact, rms=5e-5)]) > 1  # a lucky draw pays for a fourth of another
    assert typical_share([*equal, replace(exact, rms=math.nan)]) == math.inf
    assert typical_share([*equal, replace(exact, rms=1e-9, rms_allowed=0.0)]) == math.inf
    assert typical_share([]) == 0


@pytest.mark.parametrize("numbers", [64, 1024])
def test_the_widening_for_one_draw_is_three_standard_deviations(numbers: int) -> None:
    """Of errors that are on the edge of the contract, half are beyond it in one draw."""
    plain, widened = (
        sum(x.rms > x.rms_allowed for x in simulated(1000, numbers, 1.25, widened=widened)) / 1000
        for widened in (False, True)
    )
    assert 0.45 < plain < 0.55
    assert widened < 0.015


@pytest.mark.parametrize("return_maps", [False, True], ids=["pooled", "pooled_and_maps"])
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_gradcheck(case: OpCase, return_maps: bool, backend: str, device: torch.device, slow: bool) -> None:
    inputs = make(case, device=device)
    names = list(inputs.leaves)

    def op(*leaves: Tensor) -> object:
        return fused_align_aggregate(
            **dict(zip(names, leaves, strict=True)),
            num_groups=case.G, temperature=0.3, return_maps=return_maps, backend=backend,
        )  # type: ignore[call-overload]  # fmt: skip

    assert gradcheck(op, tuple(inputs.leaves.values()), fast_mode=slow)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_exact_in_float64(case: OpCase, backend: str, device: torch.device) -> None:
    inputs = make(case, device=device)
    truth = run_eager(inputs, return_maps=True)
    for name, x in run_op(inputs, backend, return_maps=True).items():
        scale = truth[name].abs().max().item() if truth[name].numel() else 0.0
        torch.testing.assert_close(x, truth[name], rtol=1e-11, atol=1e-11 * max(scale, 1.0), msg=name)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("case", [BY_NAME["one_image"], AFFINE, SMALL[1]], ids=str)
def test_exact_at_every_temperature(case: OpCase, temperature: float, backend: str, device: torch.device) -> None:
    """The other tests are at low ones; above 1 a gradient is smaller than that of the unit maps."""
    inputs = make(case, device=device)
    truth = run_eager(inputs, temperature=temperature, return_maps=True)
    for name, x in run_op(inputs, backend, temperature=temperature, return_maps=True).items():
        scale = truth[name].abs().max().item()
        torch.testing.assert_close(x, truth[name], rtol=0, atol=1e-11 * scale, msg=name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "widths",
    [(1, 1, 1, 1), (2, 1, 3, 5), (3, 3, 9, 2), (16, 1, 64, 64), (65, 5, 70, 33), (68, 4, 260, 129)],
    ids=lambda widths: "K{}_G{}_C{}_D{}".format(*widths),
)
def test_sizes_beside_those_of_vectors_and_tiles(
    widths: tuple[int, int, int, int], dtype: str, backend: str, device: torch.device
) -> None:
    K, G, C, D = widths
    for P in (1, 2, 3, 15, 16, 17, 55, 56, 57, 63, 64, 65, 111, 112, 113):
        case = OpCase(f"P{P}", N=2, C=C, D=D, K=K, G=G, space=(P,), bias=True)
        inputs = make(case, dtype=DTYPES[dtype], device=device)
        truth = run_eager(inputs.to(torch.float64), temperature=0.3, return_maps=True)
        for name, x in run_op(inputs, backend, temperature=0.3, return_maps=True).items():
            error = (x.double() - truth[name]).abs().max()
            # With K = 1 or P = 1 some gradients vanish: rounding is then measured against what came in, of size 1.
            assert error <= {"fp32": 1e-4, "bf16": 6e-2, "fp16": 1e-2}[dtype] * truth[name].abs().max().clamp(min=1), (
                name
            )


@pytest.mark.parametrize("case", [BY_NAME["usual_7x7"], BY_NAME["odd_widths"]], ids=str)
@pytest.mark.parametrize("out_dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_out_dtype_rounds_once(out_dtype: torch.dtype, case: OpCase, backend: str, device: torch.device) -> None:
    """A wider output of 16-bit inputs carries the float32 sums, not 16-bit values in a wider type."""
    inputs = make(case, dtype=torch.bfloat16, device=device)
    truth = run_eager(inputs.to(torch.float64))
    wide = run_op(inputs, backend, out_dtype=torch.float64)
    narrow = run_op(inputs, backend, out_dtype=out_dtype)
    assert narrow["pooled"].dtype == out_dtype
    assert torch.equal(narrow["pooled"], wide["pooled"].to(out_dtype))
    assert narrow["d_features"].dtype == torch.bfloat16
    # The heat maps are stored in bfloat16; everything after them is float32.
    assert (wide["pooled"] - truth["pooled"]).abs().max() < 0.1
    assert not torch.equal(wide["pooled"], wide["pooled"].bfloat16().double())


@pytest.mark.parametrize("dtype", ["fp64", *DTYPES])
def test_what_is_kept_for_the_backward(dtype: str, backend: str, device: torch.device) -> None:
    """M, rounded once to its dtype, and the norms of what was stored, which the backward divides by: not rounded."""
    inputs = make(BY_NAME["one_image"], dtype=DTYPES.get(dtype, torch.float64), device=device)
    assert inputs.pixels is not None
    assert inputs.bias is not None
    tensors = [x.detach() for x in (inputs.features.flatten(2), inputs.pixels.flatten(2), inputs.weight, inputs.bias)]
    outputs = torch.ops.lewel_kernels.align_aggregate_fwd(
        *tensors, None, None, inputs.case.G, 0.3, 1e-12, torch.float32, True, backend
    )
    _, maps, heat, norm = outputs
    _, pixels, weight, bias = (x.double() for x in tensors)
    half_a_step = torch.finfo(heat.dtype).eps / 2
    sums = {"rtol": half_a_step, "atol": 1e-13 if dtype == "fp64" else 5e-6}
    torch.testing.assert_close(heat.double(), weight @ pixels + bias[:, None], **sums)
    torch.testing.assert_close(norm.double(), heat.double().norm(dim=1), rtol=1e-6, atol=0)
    torch.testing.assert_close(maps.sum(-1), torch.ones_like(maps[..., 0]), rtol=1e-5, atol=0)


# cuda is not among them: it sums the rounded dM, as docs/math.md says.
@pytest.mark.parametrize("backend", ["cpu", "triton", "reference"], indirect=True)
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_db_sums_dm_before_it_is_rounded(dtype: str, backend: str, device: torch.device) -> None:
    """The dM of its sum nearly cancel: what rounds them first is several times further from the truth."""
    case = OpCase("db", N=4, C=32, D=24, K=12, G=4, space=(7, 7), bias=True)
    inputs = make(case, dtype=DTYPES[dtype], device=device)
    tensors = [x.detach().flatten(2) if x.dim() > 2 else x.detach() for x in inputs.leaves.values()]
    needs = (False, False, False, True, False, False)
    options = Options(case.G, SHARP, 1e-12, inputs.grad_pooled.dtype, needs=needs)
    module = dispatch.load(backend)
    saved = module.forward(Inputs(*tensors), options)[2:]

    def d_bias(module: dispatch.Backend, dtype: torch.dtype) -> Tensor:
        grad, *given = (x.to(dtype) for x in (inputs.grad_pooled, *tensors))
        heat, norm = saved[0].to(dtype), saved[1].to(accumulator(dtype))
        found = module.backward((grad, None), Inputs(*given), (heat, norm), options)[3]
        assert found is not None
        return found.double()

    truth = d_bias(dispatch.load("reference"), torch.float64)
    one_place = torch.finfo(DTYPES[dtype]).eps * truth.abs()
    assert ((d_bias(module, DTYPES[dtype]) - truth).abs() <= one_place + 1e-4 * truth.abs().max()).all()


def test_memory_that_nobody_wrote_is_poison(device: torch.device) -> None:
    """What the op's tests rely on to see a kernel that reads or returns it."""
    assert torch.empty(3, 4, device=device).isnan().all()


def test_the_sharpened_regime_is_not_average_pooling() -> None:
    """What the contract compares must differ from a mean over positions, or a broken pooling would keep it."""
    inputs = make(CASES[0])
    mean = inputs.features.flatten(2).mean(-1).unsqueeze(1)
    pooled = run_eager(inputs, temperature=SHARP)["pooled"]
    assert (pooled - mean).square().mean() > 0.5 * pooled.square().mean()
