"""The commands for GPUs, which a CPU rehearses: build, right, accuracy, tune, and the scripted sessions."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from functools import partial

import torch

from benchmarks import options, recording, timing
from benchmarks.gpu import session, tune, tune_compile, tune_space
from benchmarks.op.providers import KERNELS
from benchmarks.op.report import markdown
from lewel_kernels import BACKENDS

WRITE_BUDGET = "python -m benchmarks.compiled triton --update writes their budget"


def _build(command: argparse.ArgumentParser) -> None:
    options.measures(command, run_build)


def _right(command: argparse.ArgumentParser) -> None:
    command.add_argument("--backend", choices=KERNELS, required=True)
    options.minutes(command, "begin no check that would end later than this")
    options.measures(command, run_right)


def _accuracy(command: argparse.ArgumentParser) -> None:
    command.add_argument("--backend", choices=BACKENDS, default="cpu")
    command.add_argument("--draws", type=options.count, default=100, help="of the inputs of each call")
    command.set_defaults(call=run_accuracy)


def _tune(command: argparse.ArgumentParser) -> None:
    shapes = tune_space.SHAPES
    options.minutes(command, "then stop, keeping what was found")
    command.add_argument("--shape", choices=shapes, nargs="+", default=list(shapes), help="whose kernels are tuned")
    command.add_argument("--dtype", choices=("bf16", "fp16"), nargs="+", default=["bf16", "fp16"])
    options.measures(command, run_tune)


def _session(name: str, command: argparse.ArgumentParser) -> None:
    command.description = f"{command.description}, in at most {session.minutes_of(name)} minutes"
    command.add_argument("--device", default="cuda", type=options.device, help="cuda, cuda:1, or cpu to rehearse")
    command.set_defaults(call=run_session)


COMMANDS: dict[str, Callable[[argparse.ArgumentParser], None]] = {
    "build": _build,
    "right": _right,
    "accuracy": _accuracy,
    "tune": _tune,
    **{name: partial(_session, name) for name in session.SESSIONS},
}


def run_build(given: argparse.Namespace) -> int:
    from benchmarks.gpu import build  # here and below: imported when called, for some need triton

    recorder = recording.begin("build", given)
    failed = False
    for row in build.measure(given.device):
        build.print_row(row)
        recorder.append([row])
        failed |= row.problem is not None
    return int(failed)


def run_accuracy(given: argparse.Namespace) -> None:
    from benchmarks.gpu import accuracy

    print(markdown(accuracy.HEADER, accuracy.rows(given.backend, given.draws)))


def run_right(given: argparse.Namespace) -> int:
    start = time.monotonic()
    from benchmarks.gpu import right

    device, backend = given.device, given.backend
    recorder = recording.begin(f"right-{backend}", given)
    every, rows, refusals = right.requests(device, backend), [], set()
    for done, request in enumerate(timing.within(given.minutes, every, "calls", start), 1):
        if told := right.refusal(request, device, backend):
            refusals.add(told)
            continue
        row = right.check(request, device, backend)
        right.print_row(row)
        recorder.append([row])
        rows.append(row)
        if row.problem and (told := right.lost(device)):
            left = len(every) - done
            print(f"\nThe device takes no more work from this process, so {left} calls are left: {told}")
            break
    for told in sorted(refusals):
        print(f"\nLeft out: {told}")
    if not rows:
        sys.exit("Nothing was checked.")
    wrong = [row for row in rows if row.problem]
    print(f"\n{len(rows)} of {len(every)} calls of {backend} were checked, {len(wrong)} of them have a problem.")
    if backend == "triton" and torch.device(device).type == "cuda":
        print(right.proven(rows, device))
    return int(bool(wrong))


def run_tune(given: argparse.Namespace) -> None:
    start = time.monotonic()
    if told := tune.refusal(given.device):
        sys.exit(f"Nothing is tuned: {told}")
    about = recording.begin("tune", given).context
    rehearsed = torch.device(given.device).type == "cpu"
    major, minor = (9, 0) if rehearsed else torch.cuda.get_device_capability(given.device)
    state = f"commit {str(about['commit'])[:7]}{' with changes' if about['dirty'] else ''}"
    tuner = tune.Tuner(
        given.device, 10 * major + minor, None, f"{about['device']}, {str(about['date'])[:10]}, {state}",
        deadline=start + 60 * given.minutes,
    )  # fmt: skip
    shapes = tune_space.SHAPES
    if rehearsed:
        shapes, tuner.batches, tuner.most = tune_space.TINY, tune.TINY_BATCHES, tune.TINY_CHOICES
    elif not given.no_record:
        tuner.path = tune.table_of(tuner.arch)
    dtypes = list(dict.fromkeys(given.dtype))
    every = tune_space.problems({name: shapes[name] for name in given.shape}, dtypes, tuner.capability)
    # A core is left to this process, which launches.
    with tune_compile.Compiler(tuner.capability, max(1, (os.cpu_count() or 2) - 1)) as compiler:
        found = tuner.run(every, compiler)
    if not found:
        sys.exit("Nothing was timed.")
    better = sum(new.winner is not None for new in found)
    print(f"\n{len(found)} of {len(every)} keys were tried, {better} have a faster configuration.")
    if tuner.path is not None:
        print(f"Written to {tuner.path}; registers and shared memory changed: {WRITE_BUDGET}")


def run_session(given: argparse.Namespace) -> int:
    parts = session.SESSIONS[given.command](given.device)
    return session.run(parts, given.device, session.minutes_of(given.command))
