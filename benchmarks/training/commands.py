"""The commands that measure the trainer: step, parts, loss, head-affine, projector."""

from __future__ import annotations

import argparse
import sys
from itertools import product

import torch

from benchmarks import options, recording
from benchmarks.op.measure import sentence
from benchmarks.options import count
from benchmarks.training import aligned_loss, candidates, head_affine, parts, projector, step
from benchmarks.training.candidates import BATCH, ENCODERS, METHODS, PRECISIONS, StepCase
from lewel.errors import LewelError


def _step(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--encoder", choices=("auto", *ENCODERS), default="auto", help="default: resnet50 on a GPU, tiny on the CPU")
    add("--image-size", type=count, default=0, help="default: 224, tiny 32; from 128 on with the 7x7 stem")
    add("--batch", type=count, default=BATCH, help=f"images of a step; default: {BATCH}")
    add("--precision", choices=PRECISIONS, nargs="+", default=["auto"], help="default: what the trainer calls auto")
    add("--method", "--methods", choices=METHODS, nargs="+", default=list(METHODS), help="default: all")
    options.seconds(command, 60.0, "each precision, all methods together")
    options.measures(command, run_step)


def _parts(command: argparse.ArgumentParser) -> None:
    command.add_argument("--run", choices=parts.RUNS, nargs="+", default=list(parts.RUNS), help="default: all")
    command.add_argument("--steps", type=count, default=16, help="steps that count, and as many before them")
    options.measures(command, run_parts)


def _loss(command: argparse.ArgumentParser) -> None:
    options.seconds(command, 1.0, "each batch size")
    options.measures(command, run_loss)


def _head_affine(command: argparse.ArgumentParser) -> None:
    command.add_argument("--images", type=count, default=4, help="of a batch that the head is timed on; default: 4")
    options.seconds(command, 10.0, "each precision")
    options.measures(command, run_head_affine)


def _projector(command: argparse.ArgumentParser) -> None:
    command.add_argument("--images", type=count, default=16, help="default: 16")
    command.add_argument("--fp16", action="store_true", help="also in float16; on a CPU of two images, without a time")
    options.seconds(command, 20.0, "all ways together")
    options.measures(command, run_projector)


COMMANDS = {"step": _step, "parts": _parts, "loss": _loss, "head-affine": _head_affine, "projector": _projector}


def cases(given: argparse.Namespace) -> list[StepCase]:
    """The cases that the options ask for, one for each precision."""
    make = candidates.case_on
    every = [make(given.device, given.encoder, given.image_size, given.batch, name) for name in given.precision]
    return list(dict.fromkeys(every))


def run_step(given: argparse.Namespace) -> None:
    recorder = recording.begin("step", given)
    print(f"{recording.circumstances([recorder.context])}.")
    for case, methods in product(cases(given), step.together(given.method)):
        try:
            rows = step.measure_what_fits(case, methods, given.seconds * len(methods) / len(given.method))
        except (torch.OutOfMemoryError, LewelError) as error:
            print(f"\n{case}, {', '.join(methods)}\n  left out: {sentence(error)}")
            continue
        step.print_case(rows)
        recorder.append(rows)
    if recorder.measured:
        print(step.PAPER)
    recorder.finish()


def run_parts(given: argparse.Namespace) -> None:
    if torch.cuda.is_available() and torch.device(given.device).type == "cpu":
        sys.exit("A run trains on the GPU where there is one: add --device cuda.")
    recorder = recording.begin("parts", given)
    for name in dict.fromkeys(given.run):
        row = parts.measure(name, parts.RUNS[name], given.steps)
        parts.print_row(row)
        recorder.append([row])
    recorder.finish()


def run_loss(given: argparse.Namespace) -> None:
    recorder = recording.begin("loss", given)
    for n in aligned_loss.BATCHES:
        rows = aligned_loss.measure(n, given.device, given.seconds)
        for row in rows:
            aligned_loss.print_row(row)
        recorder.append(rows)
    recorder.finish()


def run_head_affine(given: argparse.Namespace) -> None:
    recorder = recording.begin("head-affine", given)
    for preset in head_affine.PRESETS:
        recorder.append(head_affine.count_memory(preset))
    for precision in ("fp32", "bf16"):
        recorder.append(head_affine.measure(given.images, precision, given.device, given.seconds))
    recorder.finish()


def run_projector(given: argparse.Namespace) -> None:
    recorder = recording.begin("projector", given)
    rows = projector.measure(given.images, ("float32", "bfloat16"), given.device, given.seconds)
    if given.fp16:
        emulated = torch.device(given.device).type == "cpu"
        images, seconds = (projector.EMULATED_IMAGES, 0.0) if emulated else (given.images, given.seconds)
        rows += projector.measure(images, ("float16",), given.device, seconds)
    for row in rows:
        projector.print_row(row)
    recorder.append(rows)
    recorder.finish()
