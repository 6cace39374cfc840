"""What each command of ``python -m benchmarks`` does, given its options."""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import replace
from itertools import product
from types import ModuleType

import torch

from benchmarks import heap, machine, timing
from benchmarks.documents.tables import markdown
from benchmarks.gpu import session, tune, tune_space
from benchmarks.op import overhead, prologue, report, results
from benchmarks.op.cases import DTYPES, LAYOUTS, SUITES, Case
from benchmarks.op.cost import Rates
from benchmarks.op.measure import Row, measure, sentence
from benchmarks.op.providers import PROVIDERS, prepare_compiler
from benchmarks.op.rates import measure_rates
from benchmarks.training import aligned_loss
from lewel.errors import LewelError

WRITE_BUDGET = "python -m benchmarks.compiled triton --update writes their budget"


def quiet_machine(device: str) -> dict[str, object]:
    """Makes the process ready to be timed, warns where the machine is not, and says what both found."""
    torch.backends.cudnn.allow_tf32 = False  # as products are by default: float32 means float32 for everybody
    busy = timing.busy_cores()
    if busy is not None and busy > 0.5:
        print(f"Other processes keep {busy:.1f} cores of this machine busy: wait for them, or the times mean little.")
    return machine.provenance(device, busy=busy, heap_kept=heap.keep_heap())


def selected(options: argparse.Namespace) -> list[Case]:
    """The cases of a suite that the options leave; in fp16 where the device only emulates bf16."""
    instead = {} if machine.native_bf16(options.device) else {"bf16": "fp16"}
    every = (
        replace(case, device=options.device, dtype=instead.get(case.dtype, case.dtype))
        for case in SUITES[options.suite]
    )
    return [
        case
        for case in dict.fromkeys(every)
        if case.dtype in (options.dtype or DTYPES)
        and case.layout in (options.layout or LAYOUTS)
        and case.shape.name in (options.shape or [case.shape.name])
    ]


def run_suite(options: argparse.Namespace) -> None:
    if not (cases := selected(options)):
        sys.exit(f"The suite {options.suite} has no case with these shapes, layouts and dtypes.")
    provenance = quiet_machine(options.device)
    recorder = results.Recorder(options.suite, options.device, provenance)
    providers = list(dict.fromkeys(["eager", *options.provider]))
    prepare_compiler(providers, options.device)
    rates: dict[str, Rates] = {}
    rows: list[Row] = []
    start = time.monotonic()
    longest = 0.0
    for done, case in enumerate(cases):
        began = time.monotonic()
        if began - start + longest > 60 * options.minutes:
            left = "; ".join(map(str, cases[done:]))
            print(f"\n{options.minutes:g} minutes are not enough for these {len(cases) - done} cases: {left}")
            break
        if case.dtype not in rates:
            rates[case.dtype] = measure_rates(case.device, case.dtype)
        try:
            new = measure(case, providers, options.seconds, rates[case.dtype])
        except Exception as error:  # out of memory, say: the other cases are worth having
            print(f"\n{case}\n  left out: {sentence(error)}")
            continue
        report.print_case(new)
        if not options.no_record:
            recorder.append(new)
        rows += new
        longest = max(longest, time.monotonic() - began)
    if not rows:
        sys.exit("Nothing was measured.")
    report.print_means(rows)
    if not options.no_record:
        print(f"\nAppended to {recorder.path}")


def run_overhead(options: argparse.Namespace) -> None:
    recorder = results.Recorder("overhead", options.device, quiet_machine(options.device))
    prepare_compiler(PROVIDERS, options.device)
    for case in overhead.CASES:
        rows = overhead.measure(replace(case, device=options.device), options.seconds)
        overhead.print_rows(rows)
        if not options.no_record:
            recorder.append(rows)


def run_loss(options: argparse.Namespace) -> None:
    recorder = results.Recorder("loss", options.device, quiet_machine(options.device))
    for n in aligned_loss.BATCHES:
        rows = aligned_loss.measure(n, options.device, options.seconds)
        for row in rows:
            aligned_loss.print_row(row)
        if not options.no_record:
            recorder.append(rows)


def run_prologue(options: argparse.Namespace) -> None:
    start = time.monotonic()
    recorder = results.Recorder("prologue", options.device, quiet_machine(options.device))
    prepare_compiler(PROVIDERS, options.device)
    cases = prologue.suite(options.device)
    measured = longest = 0.0
    for done, case in enumerate(cases):
        began = time.monotonic()
        if began - start + longest > 60 * options.minutes:
            print(f"\n{options.minutes:g} minutes are not enough for these: {'; '.join(map(str, cases[done:]))}")
            break
        try:
            rows = prologue.measure(case, options.seconds)
        except Exception as error:  # out of memory, say: the other cases are worth having
            print(f"\n{case}\n  left out: {sentence(error)}")
            continue
        measured += 1
        prologue.print_rows(rows)
        if not options.no_record:
            recorder.append(rows)
        longest = max(longest, time.monotonic() - began)
    if not measured:
        sys.exit("Nothing was measured.")
    if not options.no_record:
        print(f"\nAppended to {recorder.path}")


def run_tune(options: argparse.Namespace) -> None:
    start = time.monotonic()
    if told := tune.refusal(options.device):
        sys.exit(f"Nothing is tuned: {told}")
    about = quiet_machine(options.device)
    rehearsed = torch.device(options.device).type == "cpu"
    major, minor = (9, 0) if rehearsed else torch.cuda.get_device_capability(options.device)
    state = f"commit {str(about['commit'])[:7]}{' with changes' if about['dirty'] else ''}"
    tuner = tune.Tuner(
        options.device, 10 * major + minor, None, f"{about['device']}, {str(about['date'])[:10]}, {state}",
        deadline=start + 60 * options.minutes,
    )  # fmt: skip
    shapes = tune_space.SHAPES
    if rehearsed:
        shapes, tuner.batches, tuner.most = tune_space.TINY, tune.TINY_BATCHES, tune.TINY_CHOICES
    elif not options.no_record:
        tuner.path = tune.table_of(tuner.arch)
    dtypes = list(dict.fromkeys(options.dtype))
    every = tune_space.problems({name: shapes[name] for name in options.shape}, dtypes, tuner.capability)
    # A core is left to this process, which launches.
    with tune.Compiler(tuner.capability, max(1, (os.cpu_count() or 2) - 1)) as compiler:
        found = tuner.run(every, compiler)
    if not found:
        sys.exit("Nothing was timed.")
    better = sum(new.winner is not None for new in found)
    print(f"\n{len(found)} of {len(every)} keys were tried, {better} have a faster configuration.")
    if tuner.path is not None:
        print(f"Written to {tuner.path}; registers and shared memory changed: {WRITE_BUDGET}")


def run_plot(options: argparse.Namespace) -> int:
    from benchmarks.documents import (
        plot,
        quotes,  # only here are matplotlib and the trainer needed
    )

    try:
        return _plot(quotes, plot, check=options.check)
    except ValueError as error:  # results that a document quotes are missing
        sys.exit(str(error))


def _plot(documents: ModuleType, plot: ModuleType, *, check: bool) -> int:
    if check:
        stale = documents.stale() + [path for device in results.devices() for path in plot.stale(device)]
        for path in stale:
            print(f"{path} disagrees with benchmarks/results; run `make docs`", file=sys.stderr)
        return 1 if stale else 0
    for device in results.devices():
        for path in plot.write(device):
            print(path)
    documents.write()
    return 0


def run_build(options: argparse.Namespace) -> int:
    from benchmarks.gpu import build  # only here and below is triton needed

    recorder = results.Recorder("build", options.device, quiet_machine(options.device))
    failed = False
    for row in build.measure(options.device):
        build.print_row(row)
        if not options.no_record:
            recorder.append([row])
        failed |= row.problem is not None
    return int(failed)


def run_accuracy(options: argparse.Namespace) -> None:
    from benchmarks.op import accuracy

    print(markdown(accuracy.HEADER, accuracy.rows(options.backend, options.draws)))


def run_right(options: argparse.Namespace) -> int:
    start = time.monotonic()
    from benchmarks.gpu import right

    device, backend = options.device, options.backend
    recorder = results.Recorder(f"right-{backend}", device, quiet_machine(device))
    every, rows, refusals = right.requests(device, backend), [], set()
    longest = 0.0
    for done, request in enumerate(every):
        began = time.monotonic()
        if began - start + longest > 60 * options.minutes:
            left = "; ".join(map(str, every[done:]))
            print(f"\n{options.minutes:g} minutes are not enough for these {len(every) - done} calls: {left}")
            break
        if told := right.refusal(request, device, backend):
            refusals.add(told)
            continue
        row = right.check(request, device, backend)
        right.print_row(row)
        if not options.no_record:
            recorder.append([row])
        rows.append(row)
        if row.problem and (told := right.lost(device)):
            print(
                f"\nThe device takes no more work from this process, so {len(every) - done - 1} calls are left: {told}"
            )
            break
        longest = max(longest, time.monotonic() - began)
    for told in sorted(refusals):
        print(f"\nLeft out: {told}")
    if not rows:
        sys.exit("Nothing was checked.")
    wrong = [row for row in rows if row.problem]
    print(f"\n{len(rows)} of {len(every)} calls of {backend} were checked, {len(wrong)} of them have a problem.")
    if backend == "triton" and torch.device(device).type == "cuda":
        print(right.proven(rows, device))
    return int(bool(wrong))


def run_session(options: argparse.Namespace) -> int:
    parts = session.SESSIONS[options.command](options.device)
    return session.run(parts, options.device, session.minutes_of(options.command))


def run_steps(options: argparse.Namespace) -> None:
    from benchmarks.training import (
        bench,  # the trainer wants more packages than the rest
        step,
    )

    recorder = results.Recorder("step", options.device, quiet_machine(options.device))
    measured = False
    for case, methods in product(step.cases(options), step.together(options.method)):
        try:
            rows = step.measure_what_fits(case, methods, options.seconds * len(methods) / len(options.method))
        except (torch.OutOfMemoryError, LewelError) as error:
            print(f"\n{case}, {', '.join(methods)}\n  left out: {sentence(error)}")
            continue
        measured = True
        step.print_case(rows)
        if not options.no_record:
            recorder.append(rows)
    if not measured:
        sys.exit("Nothing was measured.")
    print(bench.PAPER)
    if not options.no_record:
        print(f"\nAppended to {recorder.path}")


def run_parts(options: argparse.Namespace) -> None:
    from benchmarks.training import parts

    if torch.cuda.is_available() and torch.device(options.device).type == "cpu":
        sys.exit("A run trains on the GPU where there is one: add --device cuda.")
    recorder = results.Recorder("parts", options.device, quiet_machine(options.device))
    for name in dict.fromkeys(options.run):
        row = parts.measure(name, parts.RUNS[name], options.steps)
        parts.print_row(row)
        if not options.no_record:
            recorder.append([row])
