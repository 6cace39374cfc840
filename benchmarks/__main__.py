"""``python -m benchmarks COMMAND --help`` explains each command."""

from __future__ import annotations

import argparse
import sys

import torch

from benchmarks import commands
from benchmarks.documents.tables import KERNELS
from benchmarks.gpu import session
from benchmarks.gpu.tune_space import SHAPES
from benchmarks.op.cases import DTYPES, LAYOUTS, SUITES
from benchmarks.op.providers import PROVIDERS
from benchmarks.options import command, count, device, duration, limit
from lewel_kernels import BACKENDS


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    chosen = parser.add_subparsers(dest="command", required=True)
    run = command(
        chosen, "run", commands.run_suite, "time a suite, print it and append it to benchmarks/results/<device>/"
    )
    run.add_argument("--suite", choices=SUITES, default="quick")
    run.add_argument("--provider", choices=PROVIDERS, nargs="+", default=list(PROVIDERS), help="eager is always there")
    run.add_argument("--dtype", choices=DTYPES, nargs="+", help="only these dtypes of the suite")
    run.add_argument("--layout", choices=LAYOUTS, nargs="+", help="only these layouts of the suite")
    shapes = list(dict.fromkeys(case.shape.name for cases in SUITES.values() for case in cases))
    run.add_argument("--shape", choices=shapes, nargs="+", metavar="NAME", help=f"of {', '.join(shapes)}")
    run.add_argument("--seconds", type=duration, default=2.0, help="time spent on each case and mode")
    run.add_argument("--minutes", type=limit, default=float("inf"), help="begin no case that would end later than this")
    calls = command(
        chosen, "overhead", commands.run_overhead, "microseconds of a call on tiny tensors, eager's ops beside"
    )
    calls.add_argument("--seconds", type=duration, default=4.0, help="time spent on each shape")
    loss = command(chosen, "loss", commands.run_loss, "the aligned InfoNCE as the batch grows, plain and blocked")
    loss.add_argument("--seconds", type=duration, default=1.0, help="time spent on each batch size")
    before = command(chosen, "prologue", commands.run_prologue, "batch norm and ReLU before the op, and inside it")
    before.add_argument("--seconds", type=duration, default=1.0, help="time spent on each case, mode and way to launch")
    before.add_argument("--minutes", type=limit, default=float("inf"), help="begin no case that would end later")
    tune = command(chosen, "tune", commands.run_tune, "choose block sizes, warps and stages of the triton kernels")
    tune.add_argument("--minutes", type=limit, default=float("inf"), help="then stop, keeping what was found")
    tune.add_argument("--shape", choices=SHAPES, nargs="+", default=list(SHAPES), help="whose kernels are tuned")
    tune.add_argument("--dtype", choices=("bf16", "fp16"), nargs="+", default=["bf16", "fp16"])
    command(
        chosen, "build", commands.run_build, "compile the kernels of both GPU backends, and say what became of them"
    )
    right = command(chosen, "right", commands.run_right, "a backend's shipped configurations against float64, repeated")
    right.add_argument("--backend", choices=KERNELS, required=True)
    right.add_argument("--minutes", type=limit, default=float("inf"), help="begin no check that would end later")
    exact = chosen.add_parser("accuracy", help="errors of small calls in float32 on the CPU, eager's beside")
    exact.add_argument("--backend", choices=BACKENDS, default="cpu")
    exact.add_argument("--draws", type=count, default=100, help="of the inputs of each call")
    exact.set_defaults(call=commands.run_accuracy)
    for name, about in (
        ("first", "the most valuable of the three below"),
        ("check", "the op's tests and speed on a device"),
        ("tune-session", "the triton kernels tuned, and their speed"),
        ("report", "overhead, the prologue, growth, whole steps"),
    ):
        scripted = chosen.add_parser(name, help=f"{about}, in at most {session.minutes_of(name)} minutes")
        scripted.add_argument("--device", default="cuda", type=device, help="cuda, cuda:1, or cpu to rehearse")
        scripted.set_defaults(call=commands.run_session)
    plots = chosen.add_parser("plot", help="draw docs/benchmarks/*.png and write the tables of the documents")
    plots.add_argument("--check", action="store_true", help="write nothing; fail where a document disagrees with data")
    plots.set_defaults(call=commands.run_plot)
    trainers = [
        command(chosen, "step", commands.run_steps, "whole training steps: the op, eager lines, no branch"),
        command(chosen, "parts", commands.run_parts, "where the time of a training run goes, in percent of a step"),
    ]
    try:
        from benchmarks.training import parts, step
    except ModuleNotFoundError as missing:  # of the trainer; everything else is worth having without it
        sentence = f"this times the trainer, which needs {missing.name}: pip install '.[train]'"
        for one in trainers:
            one.set_defaults(call=lambda _: sys.exit(sentence))
    else:
        step.add_options(trainers[0])
        parts.add_options(trainers[1])
    options = parser.parse_args(arguments)
    if "threads" in options:  # of a command that measures; the others must not touch the GPU that their parts will use
        if options.threads:
            torch.set_num_threads(options.threads)
        if torch.device(options.device).type == "cuda":
            torch.cuda.set_device(options.device)
    sys.exit(options.call(options))


if __name__ == "__main__":
    main()
