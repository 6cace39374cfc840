"""The dry run: what a recipe comes to in images, steps, rates and memory, before anything is read or written."""

from __future__ import annotations

from dataclasses import replace

import torch

from lewel import data
from lewel.cost import memory
from lewel.recipe import presets, schema
from lewel.recipe.schema import Train
from lewel.results import report
from lewel.run.session import check_size, precision_on
from lewel.run.step import rates

MIB = 2**20


def text(run: Train, processes: int) -> str:
    """The resolved recipe in processes of this machine's kind, and the memory of each; a LewelError as a run's own."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run = replace(run, precision=precision_on(device) if run.precision == "auto" else run.precision)
    schema.check(run, processes=processes)
    images, whence = _images(run)
    check_size(run, images)
    needed = memory.expect(run, processes)
    return "\n".join(
        [
            report.plan(run, images, needed.trained, device),
            f"training images: {whence}",
            _schedule(run, images // run.data.batch_size),
            _table(run, processes, needed),
        ]
    )


def _images(run: Train) -> tuple[int, str]:
    """Number of training images, and who says so."""
    published = presets.published_images(run)
    if run.data.name == "embedded":
        return run.data.embedded_train, "as many as data.embedded_train says"
    if published is not None and not run.data.root:
        return published, f"the published number of the set of {run.preset}; --data.root has them counted"
    # From files none is decoded before it is asked for.
    images = len(data.build(replace(run.data, storage="files", download=False), run.seed).train)
    differs = f"; the set of {run.preset} has {published:,}" if published not in (None, images) else ""
    return images, f"counted in {run.data.root}{differs}"


def _schedule(run: Train, steps: int) -> str:
    warmup, last = round(run.optim.warmup_epochs * steps), run.epochs * steps - 1
    start, end = (rates(run, step, steps)[1] for step in (0, last))
    rise = f"from {start:g} at the first step to {end:g} at the last" if end > start else f"{start:g} throughout"
    return f"warm-up {warmup:,} steps; momentum {rise}"


def _table(run: Train, processes: int, needed: memory.Memory) -> str:
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
        ("total at the peak", needed.total),
    ]
    lines = [f"memory of {who}, in a step of {share} ({run.precision}), in MiB:"]
    lines += [f"  {name:<22}{bytes_ / MIB:>10,.1f}" for name, bytes_ in rows if bytes_]
    return "\n".join([*lines, "  (besides: workspaces of convolutions, what an allocator keeps, a GPU's own context)"])
