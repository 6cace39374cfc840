"""``python -m benchmarks COMMAND --help`` explains each command."""

from __future__ import annotations

import argparse
import importlib
import sys

import torch

# By folder. A command's options are in commands.py of its folder, imported only when it is called: the op is measured
# where no trainer, matplotlib or triton is installed.
COMMANDS = {
    "op": {
        "run": "time a suite, print it and append it to benchmarks/results/<device>/",
        "overhead": "microseconds of a call on tiny tensors, eager's ops beside",
        "prologue": "batch norm and ReLU before the op, and inside it",
    },
    "training": {
        "step": "what a training step of each method costs: without the aligned branch, with eager lines, with the op",
        "parts": "where the time of a training run goes, in percent of a step",
        "loss": "the aligned InfoNCE as the batch grows, plain and blocked",
        "head-affine": "what pixels_affine would save and cost in the trainer's head",
        "projector": "errors and time of the semantic projector in 16 bits",
    },
    "gpu": {
        "build": "compile the kernels of both GPU backends, and say what became of them",
        "right": "a backend's shipped configurations against float64, repeated",
        "accuracy": "errors of small calls in float32 on the CPU, eager's beside",
        "tune": "choose block sizes, warps and stages of the triton kernels",
        "first": "the most valuable of the three below",
        "check": "the op's tests and speed on a device",
        "tune-session": "the triton kernels tuned, and their speed",
        "report": "overhead, the prologue, growth, whole steps",
    },
    "documents": {"plot": "draw docs/benchmarks/*.png and write the tables of the documents"},
}


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    chosen = parser.add_subparsers(dest="command", required=True)
    try:
        for folder, commands in COMMANDS.items():
            for name, about in commands.items():
                command = chosen.add_parser(name, help=about, description=about)
                if name in arguments[:1]:
                    importlib.import_module(f"benchmarks.{folder}.commands").COMMANDS[name](command)
        options = parser.parse_args(arguments)
        if "threads" in options:  # of a command that measures; the others leave a GPU's memory to those that they start
            if options.threads:
                torch.set_num_threads(options.threads)
            if torch.device(options.device).type == "cuda":
                torch.cuda.set_device(options.device)
        sys.exit(options.call(options))
    except ModuleNotFoundError as missing:
        if not missing.name or missing.name.split(".")[0] in ("benchmarks", "lewel", "lewel_kernels"):
            raise
        has_it = "triton" if missing.name == "triton" else "'.[train]'"
        sys.exit(f"python -m benchmarks {arguments[0]} needs {missing.name}: pip install {has_it}")


if __name__ == "__main__":
    main()
