"""One case: every provider checked against float64, then timed in turns, with what it saves, needs and launches."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks import heap, machine, timing
from benchmarks.op import footprint, graphs, parity
from benchmarks.op.cases import DTYPES, Case, Inputs, Shape, input_sets
from benchmarks.op.cost import MODES, Rates, floor_of, least
from benchmarks.op.providers import COMPILED, PROVIDERS, Op, eager_align_aggregate, quiet, refusal

TENSORS: tuple[str, ...] = ("pooled", "d_features", "d_pixels", "d_weight")
FORWARD, GRADIENTS = slice(0, 1), slice(1, None)
BASES = ("eager", "compile", "compile-max")


@dataclass
class Row:
    """One provider in one mode of a case. Milliseconds, bytes, flops, seconds; None is what could not be found out.

    With a problem there is no speed-up, and where it could not run there are no samples and times are 0. ``launch`` is
    "graph" for replays of a CUDA graph.
    """

    case: Case
    mode: str
    provider: str
    launch: str = "plain"
    p20: float = 0.0
    p50: float = 0.0
    p80: float = 0.0
    samples: int = 0
    speedups: dict[str, float] = field(default_factory=dict)  # against each of BASES in the same run
    problem: str | None = None
    least_bytes: float = 0.0
    least_flops: float = 0.0
    floor: float = 0.0  # milliseconds
    percent_of_floor: float | None = None
    copy_rate: float = 0.0  # bytes/s
    matmul_rate: float = 0.0  # flop/s
    saved_bytes: int | None = None
    peak_bytes: int | None = None
    launches: int | None = None
    compile_seconds: float | None = None


def rows_of(records: Iterable[Mapping[str, Any]]) -> list[Row]:
    """The `Row`s that `measure` made, read from their records."""
    found = []
    for record in records:
        values = {name: record[name] for name in Row.__dataclass_fields__ if name in record}
        values["case"] = Case(**{**record["case"], "shape": Shape(**record["case"]["shape"])})
        found.append(Row(**values))
    return found


def autocast(case: Case) -> contextlib.AbstractContextManager[None]:
    """Autocast to the case's dtype, or nothing where that is the dtype of the parameters."""
    sixteen_bit = DTYPES[case.dtype].itemsize == 2
    return torch.autocast(case.device_type, DTYPES[case.dtype]) if sixteen_bit else contextlib.nullcontext()


def call_of(case: Case, op: Op, inputs: Inputs, mode: str) -> Callable[[], object]:
    """The function that is timed: ``op`` on inputs, without gradients in the mode "forward".

    In the other mode the gradient of pooled exists before; those of the leaves are new tensors, as in training.
    """

    def forward() -> object:
        with torch.no_grad(), autocast(case):
            return op(*inputs.leaves)

    def forward_backward() -> object:
        with autocast(case):
            pooled = op(*inputs.leaves)
        return torch.autograd.grad(pooled, inputs.leaves, inputs.grad)

    return forward if mode == "forward" else forward_backward


class CannotRun(Exception):
    """A provider raised; the message says what."""


@dataclass
class Expected:
    """What a call on one set of inputs should give: in float64, and by eager PyTorch in the dtype of the case."""

    truth: list[torch.Tensor]
    eager: list[torch.Tensor]
    names: tuple[str, ...]

    def problem(self, results: list[torch.Tensor], which: slice = slice(None)) -> str | None:
        """A sentence when ``results``, those of names[which], leave the error budget of parity.py, else None."""
        return parity.check(self.names[which], results, self.eager[which], self.truth[which])


def expect(
    case: Case, inputs: Inputs, eager: Op = eager_align_aggregate,
    names: tuple[str, ...] = TENSORS,
) -> Expected:  # fmt: skip
    """What ``eager`` and its gradients are on these inputs; names are those of both."""
    double = tuple(x.detach().double().requires_grad_() for x in inputs.leaves)
    truth = parity.with_gradients(eager, double, inputs.grad.double())
    with autocast(case):
        return Expected(truth, parity.with_gradients(eager, inputs.leaves, inputs.grad), names)


def find_problem(case: Case, op: Op, inputs: Inputs, expected: Expected) -> str | None:
    """A sentence when ``op`` leaves the error budget on these inputs, with a gradient or without one, else None.

    Without one is a path of its own: other kernels, another compiled graph.
    """
    with autocast(case):
        ours = parity.with_gradients(op, inputs.leaves, inputs.grad)
        with torch.no_grad():
            alone = op(*inputs.leaves)
    return expected.problem(ours) or expected.problem([alone], FORWARD)


@dataclass
class _Candidate:
    """A provider that ran: its calls by mode, one for each set of inputs, and how long the first of each took."""

    calls: dict[str, list[Callable[[], object]]]
    first_seconds: dict[str, float]
    problem: str | None


def _try(case: Case, name: str, sets: list[Inputs], expected: dict[int, Expected]) -> _Candidate:
    if refused := refusal(name, sets[0]):
        raise CannotRun(f"cannot run: {refused}")
    try:
        op, first = PROVIDERS[name](), {}
        calls = {mode: [call_of(case, op, inputs, mode) for inputs in sets] for mode in MODES}
        for mode in MODES:
            start = time.perf_counter()
            with quiet(name):
                calls[mode][0]()
            timing.synchronise(case.device)
            first[mode] = time.perf_counter() - start
        problems = [find_problem(case, op, sets[i], wanted) for i, wanted in expected.items()]
        return _Candidate(calls, first, next(filter(None, problems), None))
    except Exception as error:
        raise CannotRun(f"cannot run: {sentence(error)}") from error


def sentence(error: Exception) -> str:
    """The first line of what an error says."""
    return f"{type(error).__name__}: {error}".split("\n", 1)[0]


def measure(case: Case, providers: list[str], seconds: float, rates: Rates) -> list[Row]:
    """Time ``providers`` on ``case``, ``seconds`` for each mode and way to launch."""
    # Shapes of earlier cases would count towards the recompile limit, after which "compiled" means eager.
    torch.compiler.reset()
    sets: list[Inputs] = input_sets(case, machine.cache_bytes(case.device))
    expected = {i: expect(case, sets[i]) for i in (0, len(sets) - 1)}
    candidates: dict[str, _Candidate] = {}
    problems: dict[str, str] = {}
    for name in providers:
        try:
            candidates[name] = _try(case, name, sets, expected)
        except CannotRun as error:
            problems[name] = str(error)
    rows = []
    for mode in MODES:
        # Each begins with another set: on the one that its neighbour has just left it would find a warm cache.
        plain = {name: timing.taking_turns(c.calls[mode], i) for i, (name, c) in enumerate(candidates.items())}
        times = timing.interleave(plain, case.device, seconds)
        for name in providers:
            problem = problems.get(name) or candidates[name].problem
            row = _row(case, mode, name, times, rates, problem)
            if name in candidates:
                _add_footprint(row, candidates[name], sets[0])
            rows.append(row)
        if case.device_type == "cuda":
            rows += _replayed(case, mode, candidates, seconds, rates, expected[0])
    return rows


def _replayed(
    case: Case, mode: str, candidates: dict[str, _Candidate], seconds: float, rates: Rates, expected: Expected
) -> list[Row]:
    """The same calls as replays of a CUDA graph: what is left when the host costs nothing. Replays are checked too."""
    replays: dict[str, Callable[[], object]] = {}
    problems = {}
    for name, candidate in candidates.items():
        try:
            replays[name], first = graphs.capture(candidate.calls[mode])
            replays[name]()
            timing.synchronise(case.device)
            found = [first] if isinstance(first, torch.Tensor) else list(first)  # type: ignore[call-overload]
            problem = expected.problem(found, FORWARD if mode == "forward" else GRADIENTS)
            problems[name] = candidate.problem or problem
        except Exception as error:
            replays.pop(name, None)
            problems[name] = f"cannot be captured: {sentence(error)}"
    times = {
        name: [t / len(candidates[name].calls[mode]) for t in ts]
        for name, ts in timing.interleave(replays, case.device, seconds).items()
    }
    rows = [_row(case, mode, name, times, rates, problem) for name, problem in problems.items()]
    for row in rows:
        row.launch = "graph"
    return rows


def _row(case: Case, mode: str, name: str, times: dict[str, list[float]], rates: Rates, problem: str | None) -> Row:
    cost = least(case, mode)
    row = Row(
        case, mode, name, problem=problem,
        least_bytes=cost.bytes, least_flops=cost.flops, floor=1e3 * floor_of(case, mode, rates),
        copy_rate=rates.copy, matmul_rate=rates.matmul,
    )  # fmt: skip
    if name in times:
        row.samples = len(times[name])
        row.p20, row.p50, row.p80 = (1e3 * q for q in timing.quantiles(times[name]))
        if problem is None:
            row.percent_of_floor = 100 * row.floor / row.p50
            row.speedups = {base: timing.ratio(times[base], times[name]) for base in BASES if base in times}
    return row


def _add_footprint(row: Row, candidate: _Candidate, inputs: Inputs) -> None:
    case, call = row.case, candidate.calls[row.mode][0]
    compiled = row.provider in COMPILED
    if compiled:
        row.compile_seconds = max(0.0, candidate.first_seconds[row.mode] - row.p50 / 1e3)
    if not compiled or case.device_type == "cuda":  # on the CPU nothing sees into compiled code
        row.launches = footprint.launches(call, case.device)
    row.peak_bytes = heap.peak_bytes(call, case.device)
    if row.mode == "forward+backward":
        row.saved_bytes = footprint.saved_bytes(call, inputs.leaves)
