"""Machines that have too little: memory, room on a disk, open files."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from fault import Ended, Fault
from faults_processes import LONG, MADE, holds, nothing, nothing_left, with_run

ON_CPU = "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
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

    return {"lewel.run.step.seed_of": seed}


def no_room_for(name: str) -> Mapping[str, object]:
    write = Path.write_text

    def write_text(path: Path, text: str) -> int:
        if path.name.endswith(name):
            path.touch()
            raise FULL
        return write(path, text)

    return {"pathlib.Path.write_text": write_text}


def lacks(name: str) -> Callable[[Ended], None]:
    def left(ended: Ended) -> None:
        assert not [path.name for path in (ended.folder / "run").iterdir() if name in path.name]

    return left


def of_a_notebook(run: Path) -> None:
    """matplotlib's settings in the run folder: text that LaTeX sets, which is not there."""
    (run / "matplotlibrc").write_text("text.usetex: True\n")


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
        "no-room-for-a-picture",
        nothing,
        f"{MADE} --out run",
        (
            "wrote run/maps.png, and cannot write the picture run/curves.png: No space left on device; training has "
            "finished and is saved, the commands below draw again",
        ),
        ("Traceback", "Errno"),
        patches=raising(FULL, "matplotlib.figure.Figure.savefig"),
        left=holds("run/report.txt", "run/maps.png"),
    ),
    Fault(
        "no-room-for-the-report",
        nothing,
        f"{MADE} --out run",
        (
            "training has finished and is saved, but the report could not be written: cannot write run/report.txt: No "
            "space left on device; once that is put right, --resume auto writes it",
        ),
        status=2,
        patches=no_room_for("report.txt"),
        left=lacks("report.txt"),
    ),
    Fault(
        "a-picture-that-matplotlib-cannot-draw",
        nothing,
        f"{MADE} --out run",
        ("wrote run/maps.png, and no run/curves.png: RuntimeError: latex was not able to process", "next: "),
        patches=raising(RuntimeError("latex was not able to process"), "matplotlib.figure.Figure.savefig"),
        left=holds("run/report.txt"),
    ),
    Fault(
        "a-backend-and-settings-of-a-notebook",
        with_run(of_a_notebook),
        "show run",
        ("wrote run/curves.png",),
        env={"MPLBACKEND": "module://matplotlib_inline.backend_inline", "MATPLOTLIBRC": "run"},
        alone=True,
        slow=True,
    ),
    Fault(
        "too-few-open-files-for-the-workers",
        nothing,
        f"{MADE} --out run --data.workers 3",
        ("3 data workers need up to 30 open files beside the 9 that are open", "may have 20 (ulimit -n)", "(1 fit)"),
        status=2,
        patches={
            "resource.getrlimit": lambda kind: (20, 20),
            "lewel.data.shared._open_files": lambda: 9,
        },
        left=nothing_left,
    ),
    Fault(
        "too-few-open-files-as-workers-start",
        nothing,
        f"{MADE} --out run --data.workers 1",
        ("the data workers have too many open files; raise the limit (ulimit -n 65536)",),
        status=2,
        patches=raising(OSError(errno.EMFILE, os.strerror(errno.EMFILE)), "torch.utils.data.DataLoader.__iter__"),
    ),
    Fault(
        "too-few-open-files-for-a-command",
        nothing,
        "presets",
        ("lewel: the system refuses a call: Too many open files; raise the limit (ulimit -n 4096)",),
        status=2,
        patches=raising(OSError(errno.EMFILE, os.strerror(errno.EMFILE)), "lewel.recipe.presets.table"),
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
