"""The benchmark core: right results are timed, wrong ones get no speed-up, rows are data with provenance."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import __main__, heap, machine, recording, timing
from benchmarks.op import cases, commands, footprint, providers, report
from benchmarks.op import measure as measure_module
from benchmarks.op.cases import DTYPES, SUITES, Case, Shape, input_sets, make_inputs
from benchmarks.op.cost import MODES, Cost, Rates, floor_seconds, least
from benchmarks.op.measure import BASES, measure, rows_of
from benchmarks.op.parity import compare
from benchmarks.op.rates import measure_rates
from lewel_kernels import dispatch

ROOT = Path(__file__).parents[1]
TINY = Shape("tiny", N=4, C=32, D=16, K=16, H=3, W=5)
RATES = Rates(copy=1e9, matmul=1e9)


def wrong(features: Tensor, pixels: Tensor, weight: Tensor) -> Tensor:
    """Right but for one part in twenty."""
    return providers.eager_align_aggregate(features, pixels, weight) * 1.05


def broken(features: Tensor, pixels: Tensor, weight: Tensor) -> Tensor:
    raise RuntimeError("no such machine")


@pytest.fixture(autouse=True)
def _providers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(providers.PROVIDERS, "wrong", lambda: wrong)
    monkeypatch.setitem(providers.PROVIDERS, "broken", lambda: broken)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_right_results_are_timed_and_wrong_ones_get_no_speed_up(
    layout: str, dtype: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = measure(Case(TINY, layout, dtype), ["eager", "reference", "wrong", "broken"], 0.01, RATES)
    assert [(row.mode, row.provider) for row in rows] == [
        (mode, name) for mode in MODES for name in ("eager", "reference", "wrong", "broken")
    ]
    for row in rows:
        fine = row.provider in ("eager", "reference")
        assert (row.problem is None) == fine
        assert set(row.speedups) == ({"eager"} if fine else set())
        assert (row.percent_of_floor is None) != fine
        assert (row.samples > 0) == (row.provider != "broken")
        assert row.p20 <= row.p50 <= row.p80
    report.print_case(rows)
    report.print_means(rows)
    printed = capsys.readouterr().out
    assert "broken: cannot run: RuntimeError: no such machine" in printed
    assert "wrong: pooled is too far from the float64 truth" in printed
    assert "none: 1 of 1 cases have no speed-up" in printed


def zero_without_gradients(features: Tensor, pixels: Tensor, weight: Tensor) -> Tensor:
    """Right where it is differentiated."""
    pooled = providers.eager_align_aggregate(features, pixels, weight)
    return pooled if torch.is_grad_enabled() else torch.zeros_like(pooled)


def right_once() -> providers.Op:
    """Right on the inputs that it sees first, wrong on all others."""
    known: list[Tensor] = []

    def op(features: Tensor, pixels: Tensor, weight: Tensor) -> Tensor:
        known.append(known[0] if known else features)
        pooled = providers.eager_align_aggregate(features, pixels, weight)
        return pooled if features is known[0] else pooled * 0

    return op


@pytest.mark.parametrize("make", [lambda: zero_without_gradients, right_once], ids=["no gradients", "other inputs"])
def test_every_path_that_is_timed_is_checked(make: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(providers.PROVIDERS, "sly", make)
    rows = measure(Case(TINY, "nchw", "fp32"), ["sly"], 0.01, RATES)
    assert all(row.problem and "pooled is too far" in row.problem and not row.speedups for row in rows)


def test_a_row_is_what_its_times_say() -> None:
    case = Case(TINY, "nchw", "fp32")
    times = {"eager": [0.004, 0.004], "compile": [0.003, 0.003], "cpu": [0.002, 0.002]}
    row = measure_module._row(case, "forward", "cpu", times, RATES, None)
    cost = least(case, "forward")
    assert (row.p20, row.p50, row.p80, row.samples) == (2.0, 2.0, 2.0, 2)
    assert row.speedups == {"eager": 2.0, "compile": 1.5}
    assert (row.least_bytes, row.least_flops, row.copy_rate, row.matmul_rate) == (cost.bytes, cost.flops, 1e9, 1e9)
    assert row.floor == pytest.approx(1e-6 * max(cost.bytes, cost.flops))
    assert row.percent_of_floor == pytest.approx(100 * row.floor / 2.0)


def test_a_sample_is_the_mean_of_its_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def call() -> None:
        now[0] += 0.5

    assert timing.sample(call, "cpu", repeats=4) == 0.5


def test_a_short_call_is_repeated_until_a_sample_is_long_enough() -> None:
    calls = 0

    def call() -> None:
        nonlocal calls
        calls += 1

    timing.interleave({"short": call}, "cpu", 0.0)
    assert calls > 1000


def test_speedups_are_against_each_base_in_the_same_rounds() -> None:
    times = {"eager": [4.0, 6.0, 50.0], "cpu": [2.0, 2.0, 10.0]}  # medians 6 and 2, yet 3 in the middle round only
    assert timing.ratio(times["eager"], times["cpu"]) == 3.0
    assert timing.ratio(times["eager"], times["eager"]) == 1.0


def test_quantiles() -> None:
    assert timing.quantiles([float(x) for x in range(101)]) == (20.0, 50.0, 80.0)


def test_samples_take_turns_and_inputs_too() -> None:
    seen: list[str] = []
    call = timing.taking_turns([lambda: seen.append("a1"), lambda: seen.append("a2")])
    times = timing.interleave({"a": call, "b": lambda: seen.append("b")}, "cpu", 0.0)
    assert {name: len(ts) for name, ts in times.items()} == {"a": timing.LEAST_ROUNDS, "b": timing.LEAST_ROUNDS}
    mine = [name for name in seen if name != "b"]
    assert mine == (["a1", "a2"] * len(mine))[: len(mine)]


def test_sets_of_inputs_are_larger_than_the_cache_and_differ() -> None:
    case = Case(TINY, "nchw", "fp32")
    sets = input_sets(case, cache_bytes=3 * make_inputs(case).nbytes)
    assert len(sets) == 6
    assert len(input_sets(case, cache_bytes=1)) == 2
    assert not torch.equal(sets[0].features, sets[1].features)


def test_the_least_cost_of_a_case() -> None:
    """Every number by hand: N=2 C=8 D=4 K=4 P=3, G=4 so L=1."""
    case = Case(Shape("by hand", N=2, C=8, D=4, K=4, H=1, W=3), "nchw", "bf16")
    features, pixels, weight, pooled = 2 * 8 * 3 * 2, 2 * 4 * 3 * 2, 4 * 4 * 4, 2 * 1 * 8 * 2
    projection, pooling = 2 * 2 * 3 * 4 * 4, 2 * 2 * 3 * 8 * 1
    assert least(case, "forward") == Cost(features + pixels + weight + pooled, projection + pooling)
    assert least(case, "forward+backward") == Cost(
        3 * features + 3 * pixels + 3 * weight + 2 * pooled, 3 * projection + 3 * pooling
    )


def test_the_floor_is_the_scarcer_of_bytes_and_flops() -> None:
    assert floor_seconds(Cost(bytes=100, flops=10), Rates(copy=10, matmul=10)) == 10
    assert floor_seconds(Cost(bytes=10, flops=100), Rates(copy=10, matmul=5)) == 20


def test_emulated_bf16_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    options = argparse.Namespace(suite="paper", device="cpu", dtype=None, layout=None, shape=["M32"])
    assert [case.dtype for case in commands.selected(options)] == ["bf16", "bf16", "fp16", "fp16"]
    monkeypatch.setattr(machine, "native_bf16", lambda _: False)
    assert [case.dtype for case in commands.selected(options)] == ["fp16", "fp16"]


def test_one_provider_that_fails_late_costs_its_case_only(
    recorded: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = commands.measure

    def failing(case: Case, *arguments: object) -> object:
        if case.shape.name == "m7":
            raise RuntimeError("an illegal memory access\nand much more")
        return own(case, *arguments)

    monkeypatch.setattr(commands, "measure", failing)
    run(*SMALL, "--shape", "m7", "small")
    printed = capsys.readouterr().out
    assert "left out: RuntimeError: an illegal memory access\n" in printed
    assert "small (N=32" in printed


@pytest.mark.parametrize(
    ("command", "told", "rest"),
    [
        (
            "run --provider compile --shape small --layout nchw --dtype fp32",
            "compile: cannot run: ",
            "eager       forward+backward",
        ),
        ("overhead", "compile is left out, for it cannot run: ", "forward+backward        eager"),
    ],
    ids=["run", "overhead"],
)
def test_without_a_compiler_the_rest_is_measured(command: str, told: str, rest: str, tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "benchmarks", *command.split(), "--seconds", "0.01", "--no-record"]
    environment = {**os.environ, "CXX": "/nonexistent/c++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    assert told in done.stdout
    assert rest in done.stdout


def test_rates_are_those_of_a_machine() -> None:
    rates = measure_rates("cpu", "fp32")
    assert 1e8 < rates.copy < 1e13
    assert 1e8 < rates.matmul < 1e15


def test_operators_are_counted_without_views_and_with_their_bytes_and_flops() -> None:
    x, w = torch.zeros(4, 8), torch.zeros(8, 16)
    with footprint.Operators() as seen:
        y = (x @ w).t().unsqueeze(0).expand(3, 16, 4)  # views after the product
        y.contiguous()
        x.add_(1)
    assert seen.operators == [
        ("aten::mm", Cost((4 * 8 + 8 * 16 + 4 * 16) * 4, 2 * 4 * 8 * 16)),
        ("aten::clone", Cost((16 * 4 + 3 * 16 * 4) * 4, 0)),  # what is expanded is read once
        ("aten::add_.Tensor", Cost(2 * 4 * 8 * 4, 0)),
    ]
    assert footprint.launches(lambda: (x @ w).t(), "cpu") == 1


def test_saved_bytes_are_those_beyond_the_inputs() -> None:
    x = torch.randn(100, requires_grad=True)
    assert footprint.saved_bytes(lambda: x.exp(), [x]) == 400  # its result
    assert footprint.saved_bytes(lambda: x.sin(), [x]) == 0  # its input
    assert footprint.saved_bytes(lambda: x.exp().sin().exp(), [x]) == 800  # the first result once, though twice saved


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
def test_peak_bytes() -> None:
    """In a process of its own: two blocks of 64 MiB at once, then one after another; the holes of the heap are none."""
    code = (
        "import torch\n"
        "from benchmarks.heap import peak_bytes\n"
        "from benchmarks.heap import keep_heap\n"
        "keep_heap()\n"
        "holes = [torch.ones(i << 20) for i in range(1, 20)]\n"
        "del holes[::2]\n"
        "block = lambda size=16: torch.ones(size << 20)\n"
        "print(peak_bytes(lambda: (block(), block()), 'cpu') / 2**20)\n"
        "print(peak_bytes(lambda: [block(i).sum() for i in (16, 2, 9, 16)], 'cpu') / 2**20)\n"
        "import resource\n"
        "pages = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "[block(20) for _ in range(3)]\n"
        "def faults(): start = pages(); block(20); return pages() - start\n"
        "print(min(faults() for _ in range(3)))\n"  # the first may find a place that nothing has touched yet
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    both, one, faults = map(float, run.stdout.split())
    # Expected: 128 and 64. The system counts the pages of each processor apart, and adds them up a MB late.
    assert 125 <= both <= 131
    assert 61 <= one <= 67
    assert faults < 100  # the heap is kept again


def test_inputs_have_the_layout_and_dtypes_of_the_case() -> None:
    for dtype in DTYPES:
        inputs = make_inputs(Case(TINY, "channels_last", dtype))
        assert inputs.features.dtype == inputs.pixels.dtype == inputs.grad.dtype == DTYPES[dtype]
        assert inputs.weight.dtype == torch.float32
        assert inputs.features.is_contiguous(memory_format=torch.channels_last)


def test_the_error_budget() -> None:
    truth = torch.randn(10_000, dtype=torch.float64)
    noise = torch.randn_like(truth) * 1e-5
    eager = (truth + noise).float()
    assert compare((truth - noise).float(), eager, truth).ok
    assert not compare((truth + 1.4 * noise).float(), eager, truth).ok  # rms
    spike = noise.clone()
    spike[noise.abs().argmax()] *= 3
    assert not compare((truth + spike).float(), eager, truth).ok  # max
    assert not compare(torch.full_like(eager, float("nan")), eager, truth).ok


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Results go to a folder of the test's own."""
    monkeypatch.setattr(recording, "ROOT", tmp_path)
    monkeypatch.setattr(heap, "keep_heap", lambda: True)  # not in the process of the other tests
    monkeypatch.setattr(commands, "measure_rates", lambda *_: RATES)
    return tmp_path


def run(*arguments: str) -> None:
    with pytest.raises(SystemExit) as done:
        __main__.main(list(arguments))
    assert done.value.code in (None, 0)


SMALL = ("run", "--provider", "reference", "--layout", "nchw", "--dtype", "fp32", "--seconds", "0.01")


def test_rows_are_recorded_with_their_provenance(recorded: Path) -> None:
    for _ in range(2):  # appends
        run(*SMALL, "--shape", "small")
    (path,) = recorded.glob("*/quick.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == 2 * len(MODES) * 2
    for row in rows:
        assert row["case"]["shape"]["name"] == "small"
        assert row["versions"]["torch"].startswith(torch.__version__.split("+")[0])
        assert {
            "run", "device", "driver", "threads", "commit", "dirty", "date", "busy_cores", "heap_kept",
            "p20", "p50", "p80", "speedups", "problem", "least_bytes", "least_flops", "percent_of_floor", "copy_rate",
            "matmul_rate", "saved_bytes", "peak_bytes", "launches", "compile_seconds",
        } <= row.keys()  # fmt: skip
        assert row["launches"] > 0


def test_a_row_survives_the_file(recorded: Path) -> None:
    rows = measure(Case(TINY, "nchw", "bf16"), ["eager", "reference"], 0.01, RATES)
    recorder = recording.Recorder("quick", "cpu", machine.provenance("cpu", busy=0.0, heap_kept=True))
    recorder.append(rows)
    (device,) = recording.devices()
    assert rows_of(recording.latest(device, "quick")) == rows


def test_a_run_stops_in_time_and_names_what_it_left_out(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(*SMALL, "--minutes", "0.001")
    printed = capsys.readouterr().out
    assert printed.count(" matmul ") == 1  # the first case is begun, for nobody knows yet how long one takes
    assert "0.001 minutes are not enough for these 2 cases: small (" in printed
    assert "dense (N=8" in printed


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--device cuda:99", "argument --device: PyTorch sees"),
        ("--device gpu", "argument --device: must be cpu, cuda or cuda:N, got 'gpu'"),
        ("--device meta", "got 'meta'"),
        ("--device cpu:7", "got 'cpu:7'"),
        ("--threads 100000", "must be a whole number from 1 to 4096"),
        ("--threads 0", "argument --threads: must be a whole number from 1 to 4096, got '0'"),
        ("--seconds -1", "argument --seconds: must be a positive number, got '-1'"),
        ("--seconds nan", "must be a positive number, got 'nan'"),
        ("--seconds inf", "argument --seconds: must be finite, got 'inf'"),
        ("--minutes soon", "must be a positive number, got 'soon'"),
        ("--suite fast", "invalid choice: 'fast'"),
        ("--shape m8", "invalid choice: 'm8'"),
    ],
)
def test_options_that_cannot_work_are_a_sentence(
    options: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as done:
        __main__.main(["run", *options.split()])
    assert done.value.code == 2
    assert sentence in capsys.readouterr().err


def test_an_empty_choice_is_a_sentence() -> None:
    with pytest.raises(SystemExit, match="The suite quick has no case with these shapes"):
        __main__.main(["run", "--suite", "quick", "--shape", "D512"])


def test_every_backend_is_a_provider() -> None:
    """So that one that is added to the op is timed without a change here."""
    assert set(providers.BACKENDS) < set(providers.PROVIDERS)
    assert set(BASES) < set(providers.PROVIDERS)


@pytest.mark.parametrize("name", providers.BACKENDS)
def test_a_provider_asks_for_its_own_backend(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By name, which the op refuses rather than taking another."""
    asked: list[object] = []
    monkeypatch.setattr(providers, "fused_align_aggregate", lambda *_, **options: asked.append(options["backend"]))
    inputs = make_inputs(Case(TINY, "nchw", "fp32"))
    providers.PROVIDERS[name]()(*inputs.leaves)
    assert asked == [name]


def test_a_backend_that_refuses_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "explain", lambda *_, **__: _Refused())
    rows = measure(Case(TINY, "nchw", "fp32"), ["eager", "reference"], 0.01, RATES)
    assert [row.problem for row in rows if row.provider == "reference"] == ["cannot run: it is Sunday"] * len(MODES)


class _Refused:
    backend = None
    refusals = {"reference": "it is Sunday"}  # noqa: RUF012


def test_what_is_interpreted_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the tests the GPU backends take tensors of the CPU, far more slowly."""
    inputs = make_inputs(Case(TINY, "channels_last", "fp32"))
    for name in ("triton", "cuda"):
        backend = dispatch.load(name)
        monkeypatch.setattr(backend, "automatic", False)
        assert "interpreted or emulated" in str(providers.refusal(name, inputs))
        monkeypatch.setattr(backend, "automatic", True)
        monkeypatch.setattr(backend, "device_type", "cuda")
        assert "it runs on cuda tensors" in str(providers.refusal(name, inputs))


def test_suites_hold_what_they_promise() -> None:
    paper = {(case.shape.name, case.layout, case.dtype) for case in SUITES["paper"]}
    shapes = ("M32", "M64", "M128", "M256", "B64", "B128", "B256", "14x14", "56x56")
    assert paper == {(s, lay, d) for s in shapes for lay in cases.LAYOUTS for d in ("bf16", "fp16")}
    kinds = [("channels_last", "bf16"), ("channels_last", "fp16"), ("nchw", "bf16")]  # a clock may end it anywhere
    first = [(case.shape.name, case.layout, case.dtype) for case in SUITES["first"]]
    assert first == [(s, *kind) for kind in kinds for s in ("M64", "B64", "B256")]
    assert set(first) < paper
    assert {case.axis for case in SUITES["sweep"]} == {"N", "P", "K", "D"}
    for suite in SUITES.values():
        assert len(set(suite)) == len(suite)


def test_the_heap_keeps_what_is_freed() -> None:
    """After a few rounds a tensor of 64 MB costs no page faults (in a process of its own: the setting stays)."""
    code = (
        "import resource, torch\n"
        "from benchmarks.heap import keep_heap\n"
        "assert keep_heap()\n"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(16):\n"
        "    before = faults(); torch.ones(16 << 20); print(faults() - before)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    first, *_, last = map(int, run.stdout.split())
    assert first > 1000 > 100 > last


def test_pytest_benchmarks(tmp_path: Path) -> None:
    """`pytest benchmarks`: a benchmark for each provider and mode, grouped by shape."""
    stored = tmp_path / "run.json"
    command = [sys.executable, "-m", "pytest", "benchmarks", "-q", "-p", "no:cacheprovider"]
    command += ["-k", "small-fp32 and (eager or reference)", "--benchmark-json", str(stored)]
    command += ["--benchmark-max-time", "0.01", "--benchmark-min-rounds", "1"]
    # In a worker of pytest-xdist nothing is timed, and this variable says that it is one.
    alone = {name: x for name, x in os.environ.items() if name != "PYTEST_XDIST_WORKER"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=alone)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(stored.read_text())["benchmarks"]
    assert {(b["group"].rsplit(", ", 1)[1], b["params"]["mode"]) for b in found} == {(mode, mode) for mode in MODES}
    assert sorted(b["name"] for b in found) == sorted(
        f"test_quick[{name}-small-fp32-{mode}]" for name in ("eager", "reference") for mode in MODES
    )
    assert all(b["group"].startswith("small (N=32") and b["extra_info"]["least_bytes"] > 0 for b in found)
