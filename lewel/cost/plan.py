"""What a recipe comes to in images, steps, rates and memory: the dry run, and the first lines of a run."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch

import lewel_kernels
from lewel import data
from lewel.cost import memory
from lewel.data import room
from lewel.data.datasets import storage_for
from lewel.errors import LewelError
from lewel.methods.objectives import OBJECTIVES
from lewel.recipe import checks, plain, presets
from lewel.recipe.schema import Train
from lewel.run.session import Session, check_size, precision_on, with_labels
from lewel.run.step import rates

MIB = 2**20
TESTS = 10_000  # test images to plan for where they are not at hand


def text(run: Train, processes: int) -> str:
    """What --dry-run prints: the resolved recipe, its images and schedule, and the memory of each of `processes`.

    All processes are on devices of this machine's kind. Raises the LewelError that the run itself would raise.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run = replace(run, precision=precision_on(device) if run.precision == "auto" else run.precision)
    checks.check(run, processes=processes)
    counted = _count(run)
    images, sets = counted.train, counted.sets
    run = run if sets is None else with_labels(run, sets)
    check_size(run, images, sets)
    needed = memory.expect(run, processes)
    return "\n".join(
        [
            resolved(run, images, needed.trained, device),
            *_found(run, sets),
            f"training images: {counted.whence}",
            _schedule(run, images // run.data.batch_size),
            *([_knn(run, counted, processes)] if run.knn_every else []),
            _table(run, processes, needed, _images(run, counted, device)),
        ]
    )


class Counted(NamedTuple):
    """How many images a recipe has."""

    train: int
    bank: int
    tests: int | None  # None where nothing tells
    whence: str  # in words
    sets: data.Datasets | None = None  # where they were looked for


def _count(run: Train) -> Counted:
    published = presets.published_images(run)
    if run.data.name == "embedded":
        images, tests = run.data.embedded_train, run.data.embedded_test
        return Counted(images, images, tests, "as many as data.embedded_train says")
    if published is not None and not run.data.roots:
        whence = f"the published number of the set of {run.preset}; --data.root has them counted"
        return Counted(published, published, None, whence)
    # From files none is decoded before it is asked for.
    sets = data.build(replace(run.data, storage="files", download=False), run.seed)
    images = len(sets.train)
    differs = f"; the set of {run.preset} has {published:,}" if published not in (None, images) else ""
    whence = f"counted in {', '.join(run.data.roots)}{differs}"
    return Counted(images, len(sets.bank), len(sets.test), whence, sets)


def _found(run: Train, sets: data.Datasets | None) -> list[str]:
    """What was found where the images are, and what of kNN that means, in lines."""
    if sets is None:
        return []
    lines = sets.found.lines(knn=bool(run.knn_every) or not sets.num_classes) if sets.found is not None else []
    if run.knn_every and 0 < run.knn_bank < len(sets.bank):
        lines.append(f"  knn_bank takes {run.knn_bank:,} of the images in the bank, at equal distances")
    if sets.num_classes == 0 and sets.found is None:
        lines.append("kNN is off: the data sets that were given have no classes")
    elif sets.one_class and run.knn_every:
        lines.append(
            "  kNN means nothing here: with one class in the bank every answer is that class, 100 % right where the "
            "test images are of it; --data.eval names images of several classes, --knn-every 0 leaves it out"
        )
    elif sets.num_classes and not run.knn_every and sets.found is not None:
        lines.append("  kNN is off: the recipe has knn_every 0")
    return lines


def _knn(run: Train, counted: Counted, processes: int) -> str:
    bank = min(run.knn_bank or counted.bank, counted.bank)
    tests = TESTS if counted.tests is None else counted.tests
    sizes = memory.expect_knn(run, bank, tests, processes)
    told = ", ".join(f"{size / MIB:,.0f} MiB for {what}" for what, size in sizes.items())
    unknown = "; --data.root has the test images counted" if counted.tests is None else ""
    return (
        f"online kNN of {tests:,} test images, a bank of {bank:,} in blocks, needs beside the weights {told}{unknown}"
    )


class Images(NamedTuple):
    """Decoded images of a run, which each process holds."""

    bytes: int  # 0 where they stay in their files
    apart: bool  # whether they lie in the memory of the host, and the step in that of a GPU


def _images(run: Train, counted: Counted, device: torch.device) -> Images:
    storage, sets = storage_for(run.data, device), counted.sets
    tests = TESTS if counted.tests is None else counted.tests
    split = [len(split) for split in sets.folders] if sets is not None and sets.folders else [counted.train, tests]
    size = 0 if storage == "files" else room.needed(sum(split), run.data.image_size)
    return Images(size, apart=storage == "memory" and device.type != "cpu")


def _schedule(run: Train, steps: int) -> str:
    warmup, last = round(run.optim.warmup_epochs * steps), run.epochs * steps - 1
    start, end = (rates(run, step, steps)[1] for step in (0, last))
    rise = f"from {start:g} at the first step to {end:g} at the last" if end > start else f"{start:g} throughout"
    has_target = OBJECTIVES[run.method.loss].has_target
    return f"warm-up {warmup:,} steps; " + (f"momentum {rise}" if has_target else "no momentum network")


def _table(run: Train, processes: int, needed: memory.Memory, held: Images) -> str:
    images, passes = run.data.batch_size // processes, run.accumulate
    share = f"{images:,} images" + (f" in {passes} passes of {images // passes:,}" if passes > 1 else "")
    who = "the one process" if processes == 1 else f"each of {processes} processes"
    rows = [
        ("weights", needed.weights),
        ("momentum network", needed.momentum_network),
        ("queue", needed.queue),
        ("optimizer", needed.optimizer),
        ("gradients", needed.gradients),
        ("activations and views", needed.activations),
        ("images in memory", 0 if held.apart else held.bytes),
        ("total at the peak", needed.total + (0 if held.apart else held.bytes)),
        ("images, in the host's", held.bytes if held.apart else 0),
    ]
    lines = [f"memory of {who}, in a step of {share} ({run.precision}), in MiB:"]
    lines += [f"  {name:<22}{bytes_ / MIB:>10,.1f}" for name, bytes_ in rows if bytes_]
    return "\n".join([*lines, "  (besides: workspaces of convolutions, what an allocator keeps, a GPU's own context)"])


def recipe_of(session: Session) -> str:
    """What lewel train prints before the first step: the whole recipe, and what follows from it and from the data."""
    trained = sum(p.numel() for p in session.method.parameters() if p.requires_grad)
    return "\n".join(
        [resolved(session.run, len(session.sets.train), trained, session.device), *_found(session.run, session.sets)]
    )


def resolved(run: Train, images: int, trained: int, device: torch.device) -> str:
    """The recipe run as YAML, and the steps, learning rates and backend that follow from the other arguments.

    images is the number of training images, trained that of trained parameters.
    """
    steps, peak = images // run.data.batch_size, run.optim.lr * run.data.batch_size / 256
    lines = [
        plain.to_yaml(run),
        f"{run.method.name} on {device}: {images:,} training images, {steps:,} steps an epoch, "
        f"{run.epochs * steps:,} steps; {trained:,} parameters are trained",
        f"learning rate {run.optim.lr:g} per 256 images is {peak:g} at {run.data.batch_size}, "
        f"{rates(run, 0, steps)[0]:.3g} at the first step",
    ]
    if run.method.aligned:
        lines.append(f"aligned pooling: {_backend(run, device)}")
    return "\n".join(lines)


def _backend(run: Train, device: torch.device) -> str:
    heads = run.heads
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(run.precision, torch.float32)
    features = torch.zeros(1, heads.num_groups, 1, 1, dtype=dtype, device=device)
    weight = features.new_zeros(heads.num_maps, heads.num_groups)
    try:
        why = lewel_kernels.explain(features, weight, num_groups=heads.num_groups, backend=run.backend)
    except ValueError as error:
        raise LewelError(str(error)) from None
    if why.backend is None:
        raise LewelError(str(why))
    return str(why)
