"""Machines that have too little: memory, room on a disk, open files."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from fault import Fault
from faults_processes import LONG, MADE, nothing, nothing_left

ON_CPU = "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"
ON_GPU = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB"


def raising(error: Exception, at: str) -> Mapping[str, object]:
    """What fails in the place of a function."""

    def fail(*arguments: object, **named: object) -> object:
        raise error

    return {at: fail}


def in_step(number: int, error: Exception) -> Mapping[str, object]:
    def seed(own: int, draw: int, rank: int) -> int:
        if draw == number - 1:
            raise error
        return draw

    return {"lewel.run.step._seed": seed}


ROWS: tuple[Fault, ...] = (
    Fault(
        "memory-runs-out-in-the-first-step",
        nothing,
        f"{MADE} --out run",
        (
            "the memory of cpu ran out at step 1 with 8 images of 32 pixels a pass; --accumulate 2 halves them (or a "
            "smaller --data.batch-size); no step is saved yet",
        ),
        status=2,
        patches=in_step(1, MemoryError("Unable to allocate 4.00 TiB for an array")),
    ),
    Fault(
        "memory-runs-out-in-a-later-step",
        nothing,
        f"{LONG} --out run --save-every 2",
        (
            "the memory of cpu ran out at step 8 with 8 images of 32 pixels a pass; in a new run --accumulate 2 halves",
            "step-00000006.pt is saved: --resume auto goes on from there",
        ),
        status=2,
        patches=in_step(8, RuntimeError(ON_CPU)),
    ),
    Fault(
        "memory-of-a-gpu-runs-out",
        nothing,
        f"{MADE} --out run --data.batch-size 2 --accumulate 1 --method.split-bn 1 --method.queue 2",
        ("with 2 images of 32 pixels a pass; a smaller --data.batch-size takes less; no step",),
        status=2,
        patches=in_step(1, torch.OutOfMemoryError(ON_GPU)),
    ),
    Fault(
        "memory-runs-out-before-the-first-step",
        nothing,
        f"{MADE} --out run",
        ("the memory of cpu ran out before the first step; a --dry-run tells what the recipe needs",),
        status=2,
        patches=raising(MemoryError(), "lewel.run.session.Method"),
        left=nothing_left,
    ),
    Fault(
        "memory-runs-out-while-the-report-is-written",
        nothing,
        f"{MADE} --out run",
        ("training has finished and is saved, but the report could not be written: memory ran out",),
        status=2,
        patches=raising(RuntimeError(ON_CPU), "lewel.results.report.write"),
    ),
    Fault(
        "memory-runs-out-in-a-command",
        nothing,
        "presets",
        ("lewel: the memory of this machine or of its GPU ran out",),
        status=2,
        patches=raising(MemoryError(), "lewel.recipe.presets.table"),
    ),
)
