"""A whole training step: what the aligned branch costs a method, and what the fused op saves of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

import lewel_kernels
from benchmarks import heap, timing
from benchmarks.heap import MIB
from benchmarks.op import parity
from benchmarks.op.measure import TENSORS
from benchmarks.training.candidates import BASELINES, METHODS, NO_BRANCH, OPS, Candidate, StepCase, make_views, steps_of

PAPER = """
The paper's own cost of the aligned branch, ResNet-50 at 224 on 8 V100 (seconds of an epoch):
  LEWEL_M 0.7 % over MoCo v2 (1222 s, 1213 s), LEWEL_B 4.4 % over BYOL (1191 s, 1141 s)"""
LEAST_BATCH = 8


@dataclass
class Row:
    """One method with one aligned op. Milliseconds, bytes, percent; None is what does not apply or was not found out.

    With a problem there is neither speed-up nor overhead.
    """

    case: StepCase
    method: str
    variant: str  # a key of OPS, or NO_BRANCH
    backend: str | None  # of lewel_kernels, where the variant runs one
    p20: float
    p50: float
    p80: float
    samples: int
    images_per_second: float
    peak_bytes: int | None  # that a step needs at once, beside what is held
    held_bytes: int | None = None  # that outlive a step: networks, queue, gradients, the optimizer's state
    overhead: float | None = None  # of the aligned branch over the baseline without it
    speedup: float | None = None  # of the whole step, against the variant eager
    problem: str | None = None


def find_problem(candidate: Candidate, first: Tensor, second: Tensor) -> str | None:
    """Checks the op on what a step of the method gives it: a sentence if it leaves the error budget, else None.

    Loss and gradients of the weights are not compared: behind batch norm a loss hardly sees a wrong pooling (plain
    averages change it by 1e-4), and one ReLU that flips on a rounding error moves a gradient by 1e-3.
    """
    op, call = candidate.op, candidate.first_call(first, second)
    if op is None or call is None:
        return None
    features, weight, options = call
    inputs = tuple(x.clone().requires_grad_() for x in (features, options["pixels"], weight))
    grad = torch.randn(len(features), len(weight) // options["num_groups"], features.shape[1]).to(features.device)

    def run(op: Callable[..., Tensor], tensors: tuple[Tensor, ...], **other: object) -> list[Tensor]:
        def with_options(features: Tensor, pixels: Tensor, weight: Tensor) -> Tensor:
            return op(features, weight, **(options | other | {"pixels": pixels}))

        return parity.with_gradients(with_options, tensors, grad)

    double = tuple(x.detach().double().requires_grad_() for x in inputs)
    truth = run(OPS["eager"], double, out_dtype=torch.float64)
    with candidate.method.autocast():
        eager, ours = run(OPS["eager"], inputs), run(op, inputs)
    return parity.check(TENSORS, ours, eager, truth)


def backend_of(candidate: Candidate, first: Tensor, second: Tensor) -> str | None:
    """The backend that a step of the method runs on; None for eager and without the branch."""
    if candidate.op is not OPS["fused"] or (call := candidate.first_call(first, second)) is None:
        return None
    features, weight, options = call
    with candidate.method.autocast():
        return lewel_kernels.explain(features, weight, **options).backend


def measure(case: StepCase, methods: Sequence[str], seconds: float) -> list[Row]:
    """A row for each method, two where it has the aligned branch; all of them interleaved for ``seconds``."""
    views = make_views(case)
    candidates = {
        (method, variant): Candidate(case, method, variant)
        for method in methods
        for variant in (OPS if METHODS[method].aligned else (NO_BRANCH,))
    }
    problems = {
        (method, "fused"): find_problem(candidates[method, "fused"], *views[0])
        for method in methods
        if METHODS[method].aligned
    }
    calls = steps_of(candidates, views)
    times = timing.interleave(calls, case.device, seconds)
    rows = []
    for (method, variant), candidate in candidates.items():
        own, problem = times[method, variant], problems.get((method, variant))
        p20, p50, p80 = (1e3 * q for q in timing.quantiles(own))
        row = Row(
            case, method, variant, backend_of(candidate, *views[0]), p20, p50, p80, len(own), 1e3 * case.batch / p50,
            heap.peak_bytes(calls[method, variant], case.device), candidate.held_bytes(), problem=problem,
        )  # fmt: skip
        base = times.get((BASELINES.get(method, ""), NO_BRANCH))
        if base and problem is None:
            row.overhead = 100 * (timing.ratio(own, base) - 1)
        if variant == "fused" and problem is None:
            row.speedup = timing.ratio(times[method, "eager"], own)
        rows.append(row)
    return rows


def together(methods: Sequence[str]) -> list[list[str]]:
    """The methods in groups that are compared with each other: one with the aligned branch, and its baseline."""
    groups: dict[str, list[str]] = {}
    for method in dict.fromkeys(methods):
        groups.setdefault(BASELINES.get(method, method), []).append(method)
    return list(groups.values())


def measure_what_fits(case: StepCase, methods: Sequence[str], seconds: float) -> list[Row]:
    """`measure`, the images halved as often as the device has too little memory, which is printed.

    Raises:
        torch.OutOfMemoryError: it does not even hold a step of LEAST_BATCH images.
    """
    while True:
        try:
            return measure(case, methods, seconds)
        except torch.OutOfMemoryError:
            if case.batch < 2 * LEAST_BATCH:
                raise
        torch.cuda.empty_cache()  # out here, where nothing holds the frames that ran out of it
        half = replace(case, batch=case.batch // 2)
        print(f"\n{', '.join(methods)}: the device has too little memory for batch {case.batch}; trying {half.batch}")
        case = half


def print_case(rows: list[Row]) -> None:
    """The case and a line for each row."""
    print(
        f"\n{rows[0].case}, {rows[0].samples} rounds\n"
        f"  {'method':<9}{'aligned op':<12}{'backend':<11}{'ms p50':>9} [{'p20':>8} {'p80':>8}]  images/s"
        "  held MiB  peak MiB  aligned branch costs  step x eager"
    )
    for row in rows:
        held, peak = ("" if x is None else f"{x / MIB:.0f}" for x in (row.held_bytes, row.peak_bytes))
        cost = "" if row.overhead is None else f"{row.overhead:+.1f} % of {BASELINES[row.method]}"
        speedup = "no speed-up" if row.problem else "" if row.speedup is None else f"{row.speedup:.3f}"
        print(
            f"  {row.method:<9}{row.variant:<12}{row.backend or '':<11}{row.p50:9.2f} [{row.p20:8.2f} {row.p80:8.2f}]"
            f"{row.images_per_second:>10.1f}{held:>10}{peak:>10}{cost:>22}{speedup:>14}".rstrip()
        )
    for row in rows:
        if row.problem:
            print(f"  {row.method}, {row.variant}: {row.problem}")
