"""The commands that measure the op: run, overhead, prologue."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace

from benchmarks import machine, options, recording, timing
from benchmarks.op import overhead, prologue, report
from benchmarks.op.cases import DTYPES, LAYOUTS, SUITES, Case
from benchmarks.op.cost import Rates
from benchmarks.op.measure import Row, measure, sentence
from benchmarks.op.providers import PROVIDERS, prepare_compiler
from benchmarks.op.rates import measure_rates


def _run(command: argparse.ArgumentParser) -> None:
    command.add_argument("--suite", choices=SUITES, default="quick")
    command.add_argument(
        "--provider", choices=PROVIDERS, nargs="+", default=list(PROVIDERS), help="eager is always there"
    )
    command.add_argument("--dtype", choices=DTYPES, nargs="+", help="only these dtypes of the suite")
    command.add_argument("--layout", choices=LAYOUTS, nargs="+", help="only these layouts of the suite")
    shapes = list(dict.fromkeys(case.shape.name for cases in SUITES.values() for case in cases))
    command.add_argument("--shape", choices=shapes, nargs="+", metavar="NAME", help=f"of {', '.join(shapes)}")
    options.seconds(command, 2.0, "each case and mode")
    options.minutes(command, "begin no case that would end later than this")
    options.measures(command, run_suite)


def _overhead(command: argparse.ArgumentParser) -> None:
    options.seconds(command, 4.0, "each shape")
    options.measures(command, run_overhead)


def _prologue(command: argparse.ArgumentParser) -> None:
    options.seconds(command, 1.0, "each case, mode and way to launch")
    options.minutes(command, "begin no case that would end later than this")
    options.measures(command, run_prologue)


COMMANDS = {"run": _run, "overhead": _overhead, "prologue": _prologue}


def selected(given: argparse.Namespace) -> list[Case]:
    """The cases of a suite that the options leave; in fp16 where the device only emulates bf16."""
    instead = {} if machine.native_bf16(given.device) else {"bf16": "fp16"}
    every = (
        replace(case, device=given.device, dtype=instead.get(case.dtype, case.dtype)) for case in SUITES[given.suite]
    )
    return [
        case
        for case in dict.fromkeys(every)
        if case.dtype in (given.dtype or DTYPES)
        and case.layout in (given.layout or LAYOUTS)
        and case.shape.name in (given.shape or [case.shape.name])
    ]


def run_suite(given: argparse.Namespace) -> None:
    if not (cases := selected(given)):
        sys.exit(f"The suite {given.suite} has no case with these shapes, layouts and dtypes.")
    recorder = recording.begin(given.suite, given)
    providers = list(dict.fromkeys(["eager", *given.provider]))
    prepare_compiler(providers, given.device)
    rates: dict[str, Rates] = {}
    rows: list[Row] = []
    for case in timing.within(given.minutes, cases):
        if case.dtype not in rates:
            rates[case.dtype] = measure_rates(case.device, case.dtype)
        try:
            new = measure(case, providers, given.seconds, rates[case.dtype])
        except Exception as error:  # out of memory, say: the other cases are worth having
            print(f"\n{case}\n  left out: {sentence(error)}")
            continue
        report.print_case(new)
        recorder.append(new)
        rows += new
    if rows:
        report.print_means(rows)
    recorder.finish()


def run_overhead(given: argparse.Namespace) -> None:
    recorder = recording.begin("overhead", given)
    prepare_compiler(PROVIDERS, given.device)
    for case in overhead.CASES:
        rows = overhead.measure(replace(case, device=given.device), given.seconds)
        overhead.print_rows(rows)
        recorder.append(rows)
    recorder.finish()


def run_prologue(given: argparse.Namespace) -> None:
    recorder = recording.begin("prologue", given)
    prepare_compiler(PROVIDERS, given.device)
    for case in timing.within(given.minutes, prologue.suite(given.device)):
        try:
            rows = prologue.measure(case, given.seconds)
        except Exception as error:  # out of memory, say: the other cases are worth having
            print(f"\n{case}\n  left out: {sentence(error)}")
            continue
        prologue.print_rows(rows)
        recorder.append(rows)
    recorder.finish()
