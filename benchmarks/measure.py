"""Timing: every provider of a case takes turns in one run, so that drift of the machine falls on all of them alike."""

from __future__ import annotations

import contextlib
import ctypes
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from . import parity
from .cases import DTYPES, Case, Inputs, make_inputs
from .providers import PROVIDERS, Op, eager_align_aggregate

MODES = ("forward", "forward+backward")
SAMPLE_SECONDS = 0.005
TENSORS = ("pooled", "d_features", "d_pixels", "d_weight")


@dataclass
class Row:
    """Milliseconds of one provider in one mode; with a problem no speed-up, and no time if it could not run."""

    case: Case
    mode: str
    provider: str
    p20: float = 0.0
    p50: float = 0.0
    p80: float = 0.0
    samples: int = 0
    vs_eager: float | None = None
    vs_compile: float | None = None
    problem: str | None = None


def autocast(case: Case) -> contextlib.AbstractContextManager[None]:
    """Autocast to the case's dtype, or nothing where that is the dtype of the parameters."""
    sixteen_bit = DTYPES[case.dtype].itemsize == 2
    return torch.autocast(case.device, DTYPES[case.dtype]) if sixteen_bit else contextlib.nullcontext()


def busy_cores(seconds: float = 0.5) -> float | None:
    """How many cores other processes keep busy while this one sleeps, or None where the system does not tell."""

    def ticks() -> int:
        # user nice system idle iowait irq softirq ...; guest time, further right, is already part of user time.
        fields = [int(x) for x in stat.read_text().split("\n", 1)[0].split()[1:8]]
        return sum(fields) - fields[3] - fields[4]

    if not (stat := Path("/proc/stat")).exists():
        return None
    start = ticks()
    time.sleep(seconds)
    return (ticks() - start) / os.sysconf("SC_CLK_TCK") / seconds


def keep_heap() -> bool:
    """Have the C library keep what calls free, as the heap of a long training run does; whether it could be told.

    Otherwise the history of the process decides which provider pays for fresh pages: up to half of a large backward.
    """
    mmap_threshold, trim_threshold = -3, -1  # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of glibc's malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    return bool(mallopt(mmap_threshold, 1 << 30) and mallopt(trim_threshold, (1 << 31) - 1))


def _synchronise(case: Case) -> None:
    if case.device != "cpu":
        torch.accelerator.synchronize()


def _call(case: Case, op: Op, inputs: Inputs, mode: str) -> Callable[[], object]:
    def forward() -> object:
        with torch.no_grad(), autocast(case):
            return op(*inputs.leaves[:2], inputs.weight)

    def forward_backward() -> object:
        with autocast(case):
            pooled = op(*inputs.leaves[:2], inputs.weight)
        return torch.autograd.grad(pooled, inputs.leaves, inputs.grad)

    return forward if mode == "forward" else forward_backward


class CannotRun(Exception):
    """A provider raised; the message says what."""


def find_problem(case: Case, op: Op, inputs: Inputs) -> str | None:
    """A sentence when ``op`` leaves the error budget of parity.py on this case, else None.

    Raises CannotRun when it does not run at all.
    """
    double = tuple(x.detach().double().requires_grad_() for x in inputs.leaves)
    truth = parity.with_gradients(eager_align_aggregate, double, inputs.grad.double())
    with autocast(case):
        eager = parity.with_gradients(eager_align_aggregate, inputs.leaves, inputs.grad)
        try:
            ours = parity.with_gradients(op, inputs.leaves, inputs.grad)
        except Exception as error:
            raise CannotRun(f"cannot run: {type(error).__name__}: {error}") from error
    return parity.check(TENSORS, ours, eager, truth)


def measure(case: Case, providers: list[str], seconds: float) -> list[Row]:
    """Time ``providers`` on ``case``, ``seconds`` for each mode; one that breaks its error budget gets no speed-up."""
    inputs = make_inputs(case)
    ops: dict[str, Op] = {}
    problems: dict[str, str | None] = {}
    for name in providers:
        op = PROVIDERS[name]()
        try:
            problems[name] = find_problem(case, op, inputs)
            ops[name] = op
        except CannotRun as error:
            problems[name] = str(error)
    rows = []
    for mode in MODES:
        calls = {name: _call(case, op, inputs, mode) for name, op in ops.items()}
        times = _interleave(case, calls, seconds)
        for name in providers:
            row = Row(case, mode, name, problem=problems[name])
            if name in times:
                row.samples = len(times[name])
                row.p20, row.p50, row.p80 = (1e3 * q for q in _quantiles(times[name]))
            if name in times and row.problem is None:
                row.vs_eager = _ratio(times, "eager", name)
                row.vs_compile = _ratio(times, "compile", name)
            rows.append(row)
    return rows


def _interleave(case: Case, calls: dict[str, Callable[[], object]], seconds: float) -> dict[str, list[float]]:
    """Seconds of one call, a sample of each provider in every round; a sample is at least SAMPLE_SECONDS long."""

    def sample(call: Callable[[], object], repeats: int) -> float:
        _synchronise(case)
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        _synchronise(case)
        return (time.perf_counter() - start) / repeats

    repeats = {}
    for name, call in calls.items():
        sample(call, 3)
        repeats[name] = max(1, round(SAMPLE_SECONDS / sample(call, 3)))
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    while calls and (time.perf_counter() < end or len(next(iter(times.values()))) < 5):
        for name, call in calls.items():
            times[name].append(sample(call, repeats[name]))
    return times


def _quantiles(values: list[float]) -> tuple[float, float, float]:
    fifths = statistics.quantiles(values, n=5, method="inclusive")
    return fifths[0], statistics.median(values), fifths[3]


def _ratio(times: dict[str, list[float]], base: str, name: str) -> float | None:
    """How many times faster ``name`` is than ``base``: the median over rounds, each against its own neighbour."""
    if base not in times:
        return None
    return statistics.median(b / t for b, t in zip(times[base], times[name], strict=True))
