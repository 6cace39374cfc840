"""``python -m benchmarks COMMAND --help`` explains each command."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace

import torch

from . import aligned_loss, machine, overhead, report, results, session, step
from .cases import DTYPES, LAYOUTS, SUITES, Case
from .cost import Rates
from .measure import Row, measure
from .providers import PROVIDERS, prepare_compiler


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = _command(commands, "run", run_suite, "time a suite, print it and append it to benchmarks/results/<device>/")
    run.add_argument("--suite", choices=SUITES, default="quick")
    run.add_argument("--provider", choices=PROVIDERS, nargs="+", default=list(PROVIDERS), help="eager is always there")
    run.add_argument("--dtype", choices=DTYPES, nargs="+", help="only these dtypes of the suite")
    run.add_argument("--layout", choices=LAYOUTS, nargs="+", help="only these layouts of the suite")
    shapes = list(dict.fromkeys(case.shape.name for cases in SUITES.values() for case in cases))
    run.add_argument("--shape", choices=shapes, nargs="+", metavar="NAME", help=f"of {', '.join(shapes)}")
    run.add_argument("--seconds", type=float, default=2.0, help="time spent on each case and mode")
    run.add_argument("--minutes", type=float, default=float("inf"), help="begin no case that would end later than this")
    calls = _command(commands, "overhead", run_overhead, "microseconds of a call on tiny tensors, eager's ops beside")
    calls.add_argument("--seconds", type=float, default=4.0, help="time spent on each shape")
    loss = _command(commands, "loss", run_loss, "the aligned InfoNCE as the batch grows: time and memory")
    loss.add_argument("--seconds", type=float, default=1.0, help="time spent on each batch size")
    for name, about in (("check", "the op's tests and speed on a device"), ("report", "overhead, growth, whole steps")):
        parts = commands.add_parser(name, help=f"{about}, in at most {session.MINUTES} minutes")
        parts.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu to rehearse")
        parts.set_defaults(call=run_session)
    plots = commands.add_parser("plot", help="draw docs/benchmarks/*.png and write the tables of the documents")
    plots.add_argument("--check", action="store_true", help="write nothing; fail where a document disagrees with data")
    plots.set_defaults(call=run_plot)
    step.add_options(_command(commands, "step", run_steps, "whole training steps: the op, eager lines, no branch"))
    options = parser.parse_args(arguments)
    if "device" in options:
        _check_device(parser, options.device)
    if "threads" in options and options.threads:
        torch.set_num_threads(options.threads)
    sys.exit(options.call(options))


def _command(commands: argparse._SubParsersAction, name: str, call: object, about: str) -> argparse.ArgumentParser:
    """A command with the options that all have."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=about, description=about)
    parser.set_defaults(call=call)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:1")
    parser.add_argument("--threads", type=int, help="threads of PyTorch and of the cpu backend")
    parser.add_argument("--no-record", action="store_true", help="print only")
    return parser


def _check_device(parser: argparse.ArgumentParser, device: str) -> None:
    try:
        kind = torch.device(device)
    except RuntimeError:
        parser.error(f"--device must be cpu, cuda or cuda:N, got {device!r}")
    if kind.type not in ("cpu", "cuda"):
        parser.error(f"--device must be cpu, cuda or cuda:N, got {device!r}")
    if kind.type == "cuda":
        if (kind.index or 0) >= torch.cuda.device_count():
            parser.error(f"--device {device}: PyTorch sees {torch.cuda.device_count()} GPUs here")
        torch.cuda.set_device(kind)


def quiet_machine(device: str) -> dict[str, object]:
    """Makes the process ready to be timed, warns where the machine is not, and says what both found."""
    busy = machine.busy_cores()
    if busy is not None and busy > 0.5:
        print(f"Other processes keep {busy:.1f} cores of this machine busy: wait for them, or the times mean little.")
    return machine.provenance(device, busy=busy, heap_kept=machine.keep_heap())


def selected(options: argparse.Namespace) -> list[Case]:
    """The cases of a suite that the options leave."""
    return [
        replace(case, device=options.device)
        for case in SUITES[options.suite]
        if case.dtype in (options.dtype or DTYPES)
        and case.layout in (options.layout or LAYOUTS)
        and case.shape.name in (options.shape or [case.shape.name])
    ]


def run_suite(options: argparse.Namespace) -> None:
    provenance = quiet_machine(options.device)
    recorder = results.Recorder(options.suite, options.device, provenance)
    providers = list(dict.fromkeys(["eager", *options.provider]))
    prepare_compiler(providers)
    cases, rates = selected(options), dict[str, Rates]()
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
            rates[case.dtype] = machine.measure_rates(case.device, case.dtype)
        try:
            new = measure(case, providers, options.seconds, rates[case.dtype])
        except torch.OutOfMemoryError as error:
            print(f"\n{case}\n  left out: {str(error).split('.', 1)[0]}")
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
    prepare_compiler(PROVIDERS)
    for case in overhead.CASES:
        rows = overhead.measure(replace(case, device=options.device), options.seconds)
        overhead.print_rows(rows)
        if not options.no_record:
            recorder.append(rows)


def run_loss(options: argparse.Namespace) -> None:
    recorder = results.Recorder("loss", options.device, quiet_machine(options.device))
    for n in aligned_loss.BATCHES:
        row = aligned_loss.measure(n, options.device, options.seconds)
        aligned_loss.print_row(row)
        if not options.no_record:
            recorder.append([row])


def run_plot(options: argparse.Namespace) -> int:
    from . import documents, plot  # only here are matplotlib and the trainer needed

    if options.check:
        stale = documents.stale() + [path for device in results.devices() for path in plot.stale(device)]
        for path in stale:
            print(f"{path} disagrees with benchmarks/results; run `make docs`", file=sys.stderr)
        return 1 if stale else 0
    for device in results.devices():
        for path in plot.write(device):
            print(path)
    documents.write()
    return 0


def run_session(options: argparse.Namespace) -> int:
    parts = {"check": session.check, "report": session.report}[options.command](options.device)
    return session.run(parts, options.device)


def run_steps(options: argparse.Namespace) -> None:
    recorder = results.Recorder("step", options.device, quiet_machine(options.device))
    for case in step.cases(options):
        try:
            rows = step.measure(case, options.method, options.seconds)
        except torch.OutOfMemoryError as error:
            print(f"\n{case}\n  left out: {str(error).split('.', 1)[0]}")
            continue
        step.print_case(rows)
        if not options.no_record:
            recorder.append(rows)
    print(step.PAPER)
    if not options.no_record:
        print(f"\nAppended to {recorder.path}")


if __name__ == "__main__":
    main()
