"""What the numbers of a row stand for, by clocks and calls that are made up: rates, compilation, turns, replays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import machine, timing
from benchmarks.op import graphs, measure, providers, rates
from benchmarks.op.cases import Case, Inputs, Shape, make_inputs
from benchmarks.op.cost import MODES, Rates

CASE = Case(Shape("tiny", N=4, C=32, D=16, K=16, H=3, W=5), "nchw", "fp32")
RATES = Rates(copy=1e9, matmul=1e9)


class Clock:
    """Seconds that pass only when somebody says so."""

    now = 0.0

    def samples_last(self, seconds: Callable[[object], float]) -> Callable[..., float]:
        """In place of timing.sample: every sample takes what ``seconds`` says of the call's result."""

        def sample(call: Callable[[], object], device: str, repeats: int) -> float:
            lasts = seconds(call())
            self.now += lasts
            return lasts

        return sample


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: made.now)
    return made


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Rates of copies of 64 MiB and products of eight by eight."""
    monkeypatch.setattr(machine, "cache_bytes", lambda _: 1)
    monkeypatch.setattr(rates, "SIDES", {"cpu": 8})
    rates.copy_rate.cache_clear()
    yield
    rates.copy_rate.cache_clear()


@pytest.mark.usefixtures("_small")
def test_a_copy_reads_and_writes_and_its_best_sample_after_the_warm_up_counts(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seconds(_: object) -> float:
        if clock.now < rates.WARM_SECONDS:
            return 0.01  # quick, and yet it does not count
        return 0.05 if 0.5 < clock.now < 0.7 else 0.1

    monkeypatch.setattr(timing, "sample", clock.samples_last(seconds))
    assert rates.copy_rate("cpu") == pytest.approx(2 * (64 << 20) / 0.05)
    assert clock.now == pytest.approx(rates.WARM_SECONDS + rates.COPY_SECONDS, abs=0.15)


@pytest.mark.usefixtures("_small")
def test_the_copy_is_measured_once_and_the_product_for_each_dtype(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    multiplied: list[torch.dtype] = []

    def seconds(result: object) -> float:
        assert isinstance(result, Tensor)
        if result.dtype != torch.uint8:
            multiplied.append(result.dtype)
        return 0.05 if clock.now < 2 else 0.1  # another copy would be slower

    monkeypatch.setattr(timing, "sample", clock.samples_last(seconds))
    first, second = (rates.measure_rates("cpu", dtype) for dtype in ("fp32", "bf16"))
    assert first.copy == second.copy == pytest.approx(2 * (64 << 20) / 0.05)
    assert set(multiplied) == {torch.float32, torch.bfloat16}


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize(
    ("conv", "product", "flops"), [(0.01, 0.5, 2 * 64 * 49 * 8 * 8 / 0.01), (50.0, 0.02, 2 * 8**3 / 0.02)]
)
def test_the_matmul_rate_is_that_of_the_fastest_way(
    conv: float, product: float, flops: float, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seconds(result: object) -> float:
        assert isinstance(result, Tensor)
        return conv if result.ndim == 4 else product

    monkeypatch.setattr(timing, "sample", clock.samples_last(seconds))
    assert rates.matmul_rate("cpu", "fp32") == pytest.approx(flops)


def test_compile_seconds_are_those_of_the_first_call_beyond_a_usual_one(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven seconds in the mode without gradients, five in the other, one for every call that follows."""
    compiled: set[bool] = set()

    def op(features: Tensor, pixels: Tensor, weight: Tensor) -> Tensor:
        grad = torch.is_grad_enabled()
        clock.now += 1 if grad in compiled else 6 if grad else 8
        compiled.add(grad)
        return providers.eager_align_aggregate(features, pixels, weight)

    monkeypatch.setattr(machine, "cache_bytes", lambda _: 1)
    for name in ("compile", "reference"):
        compiled.clear()
        monkeypatch.setitem(providers.PROVIDERS, name, lambda: op)
        rows = measure.measure(CASE, [name], 0.01, RATES)
        wanted = {"forward": 7, "forward+backward": 5} if name == "compile" else dict.fromkeys(MODES)
        assert {row.mode: row.compile_seconds for row in rows} == wanted


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What torch.compile is asked for; nothing is compiled."""
    asked: list[dict[str, Any]] = []

    def fake(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        asked.append({"function": function, **options})
        return function

    monkeypatch.setattr(torch, "compile", fake)
    return asked


@pytest.mark.parametrize(
    ("name", "first"), [("eager", False), ("reference", False), *((name, True) for name in providers.COMPILED)]
)
def test_each_compilation_is_a_first_one(name: str, first: bool, compilations: list[dict[str, Any]]) -> None:
    with torch.compiler.config.patch(force_disable_caches=False):
        providers.prepare_compiler(["eager", name], "cpu")
        assert torch.compiler.config.force_disable_caches == first
    assert len(compilations) == first  # and the compiler is loaded


def test_the_compiled_providers_are_the_eager_lines_in_two_modes(compilations: list[dict[str, Any]]) -> None:
    same = {"function": providers.eager_align_aggregate, "dynamic": False}
    for name, mode in (("compile", None), ("compile-max", "max-autotune-no-cudagraphs")):
        compilations.clear()
        providers.PROVIDERS[name]()
        assert compilations == [{**same, "mode": mode}]


def test_neighbours_begin_with_other_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int]] = []

    def noting(name: str) -> Callable[[], providers.Op]:
        def op(features: Tensor, pixels: Tensor, weight: Tensor) -> Tensor:
            seen.append((name, features.data_ptr()))
            return providers.eager_align_aggregate(features, pixels, weight)

        return lambda: op

    def once(calls: dict[str, Callable[[], object]], *_: object) -> dict[str, list[float]]:
        seen.clear()
        for call in calls.values():
            call()
        began.append([address for _, address in seen])
        return {name: [1.0] * 5 for name in calls}

    sets = [make_inputs(CASE, seed) for seed in range(3)]
    began: list[list[int]] = []
    for name in ("a", "b", "c"):
        monkeypatch.setitem(providers.PROVIDERS, name, noting(name))
    monkeypatch.setattr(measure, "input_sets", lambda *_: sets)
    monkeypatch.setattr(timing, "interleave", once)
    measure.measure(CASE, ["a", "b", "c"], 0.01, RATES)
    assert began == [[inputs.features.data_ptr() for inputs in sets]] * len(MODES)


def candidate(sets: list[Inputs], op: providers.Op = providers.eager_align_aggregate) -> measure._Candidate:
    calls = {mode: [measure.call_of(CASE, op, inputs, mode) for inputs in sets] for mode in MODES}
    return measure._Candidate(calls, dict.fromkeys(MODES, 0.0), None)


def not_captured(features: Tensor, pixels: Tensor, weight: Tensor) -> Tensor:
    raise RuntimeError("operation not permitted when stream is capturing\nand more")


@pytest.mark.parametrize("mode", MODES)
def test_replays_are_checked_and_divided_among_their_calls(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = [make_inputs(CASE, seed) for seed in range(3)]
    other = [make_inputs(CASE, seed) for seed in (2, 1, 0)]
    candidates = {
        "right": candidate(sets),
        "other inputs": candidate(other),
        "wrong when replayed": candidate(sets),
        "refused": candidate(sets, not_captured),
        "wrong before": candidate(sets),
    }
    candidates["wrong before"].problem = "it was wrong"

    def capture(calls: list[Callable[[], object]]) -> tuple[Callable[[], object], object]:
        first, *_ = [call() for call in calls]
        results = [first] if isinstance(first, Tensor) else list(first)  # type: ignore[call-overload]
        spoils = calls is candidates["wrong when replayed"].calls[mode]
        return lambda: [x.zero_() for x in results if spoils], first

    monkeypatch.setattr(graphs, "capture", capture)
    monkeypatch.setattr(timing, "interleave", lambda calls, *_: {name: [0.6] * 5 for name in calls})
    rows = {
        row.provider: row
        for row in measure._replayed(CASE, mode, candidates, 0.01, RATES, measure.expect(CASE, sets[0]))
    }
    assert all((row.mode, row.launch) == (mode, "graph") for row in rows.values())
    assert rows["right"].problem is None
    name = "pooled" if mode == "forward" else "d_features"
    for wrong in ("other inputs", "wrong when replayed"):
        assert str(rows[wrong].problem).startswith(f"{name} is too far from the float64 truth")
    assert rows["wrong before"].problem == "it was wrong"
    refused = rows["refused"]
    assert refused.problem == "cannot be captured: RuntimeError: operation not permitted when stream is capturing"
    assert refused.samples == 0
    assert [row.p50 for row in rows.values() if row.samples] == pytest.approx([200] * 4)
