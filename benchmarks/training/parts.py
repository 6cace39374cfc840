"""Where the time of a training run goes: the ranges that the trainer names (lewel/ranges.py), from a profile."""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks import timing
from lewel import ranges
from lewel.recipe import objectives, presets, schema
from lewel.run.preemption import Preemption
from lewel.run.session import precision_on, prepare
from lewel.train import Loop
from lewel.watching.log import RunLog

REST = "benchmarks: rest"  # of a step, outside of all ranges
PARTS = {name: name.removeprefix("lewel: ") for name in ranges.STEP} | {REST: "rest"}
WORK = ("data", "forward", "encoder", "head", "loss", "backward")  # what a step is for
_SMALL = replace(presets.get("embedded/lewel_m").data, image_size=32, batch_size=128)
RUNS = {
    "embedded/lewel_m": presets.get("embedded/lewel_m"),
    "embedded/lewel_b": presets.get("embedded/lewel_b"),
    **{
        f"resnet18/{method}": replace(
            presets.get(f"embedded/{method}"), encoder=schema.EncoderSettings("resnet18", stem="small"), data=_SMALL
        )
        for method in ("lewel_m", "lewel_b")
    },
}  # the presets as they are, and a ResNet-18 at the size of CIFAR


@dataclass
class Row:
    """Means over the steps of an epoch. The shares are from a profile, which makes steps of many operators slower."""

    case: dict[str, object]
    samples: int  # steps
    p50: float  # ms of one, without a profiler
    shares: dict[str, float]  # of the values of PARTS, in percent; parts within a part are left out of it


def beside(shares: Mapping[str, float]) -> float:
    """Percent of a step that is spent on none of WORK."""
    return sum(share for part, share in shares.items() if part not in WORK)


def seconds_of(events: Iterable[Any]) -> dict[str, float]:
    """Seconds of each part from the events of a profile, in which a range REST is around everything.

    Where the events have kernels of a GPU, a part's seconds are those of the kernels launched while it is the innermost
    range, from any thread; the time that the GPU idles then belongs to REST. Else they are the host's.
    """
    every = [event for event in events if event.device_type == torch.autograd.DeviceType.CPU]
    named = sorted((e.time_range.start, -e.time_range.end, e.name) for e in every if e.name in PARTS)
    turns: list[tuple[float, str]] = []  # from when on which range is the innermost
    inside: list[tuple[float, str]] = []  # the end and name of each that is open
    for start, minus_end, name in [*named, (float("inf"), 0.0, "")]:
        while inside and inside[-1][0] <= start:
            end, _ = inside.pop()
            turns.append((end, inside[-1][1] if inside else ""))
        turns.append((start, name))
        inside.append((-minus_end, name))
    spans = [(name, (end - start) / 1e6) for (start, name), (end, _) in pairwise(turns) if name in PARTS]
    kernels = [(e.time_range.start, kernel.duration / 1e6) for e in every for kernel in e.kernels]
    if kernels:
        starts = [start for start, _ in turns]
        idle = sum(seconds for _, seconds in spans) - sum(seconds for _, seconds in kernels)
        spans = [(turns[bisect_right(starts, at) - 1][1] or REST, seconds) for at, seconds in kernels]
        spans.append((REST, max(0.0, idle)))
    found = dict.fromkeys(PARTS.values(), 0.0)
    for name, seconds in spans:
        found[PARTS[name]] += seconds
    return found


def run_epochs(run: schema.Train) -> tuple[float, dict[str, float]]:
    """Trains three epochs of run: seconds of the second, and, from a profile of the third, seconds of each part.

    Evaluation and saving are left out.
    """
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        session = prepare(replace(run, epochs=3), Path(folder))
        log = RunLog(Path(folder) / "log.jsonl", total_steps=session.total_steps, first_step=0)
        device, activities = str(session.device), [ProfilerActivity.CPU]
        if session.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        with contextlib.closing(log):
            loop = Loop(session, log, Preemption())
            loop.epoch(0)
            timing.synchronise(device)
            start = time.perf_counter()
            loop.epoch(1)
            timing.synchronise(device)
            whole = time.perf_counter() - start
            with profile(activities=activities) as profiled, record_function(REST):
                loop.epoch(2)
                timing.synchronise(device)
    return whole, seconds_of(profiled.events() or ())


def measure(name: str, run: schema.Train, steps: int) -> Row:
    """The Row of a run with epochs of so many steps, or of as many as fill the queue if those are more."""
    steps = max(steps, objectives.find(run.method.loss).least_steps(run))
    whole, seconds = run_epochs(replace(run, data=replace(run.data, embedded_train=steps * run.data.batch_size)))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # as a run chooses it
    case = {
        "run": name, "encoder": run.encoder.name, "image_size": run.data.image_size, "batch": run.data.batch_size,
        "precision": precision_on(device) if run.precision == "auto" else run.precision, "optimizer": run.optim.name,
    }  # fmt: skip
    every = sum(seconds.values())
    return Row(case, steps, 1e3 * whole / steps, {part: 100 * seconds[part] / every for part in PARTS.values()})


def print_row(row: Row) -> None:
    case = row.case
    about = f"{case['encoder']}, {case['image_size']}x{case['image_size']}, batch {case['batch']}, {case['precision']}"
    print(f"\n{case['run']}: {about}, {row.samples} steps of {row.p50:.1f} ms")
    for part, share in row.shares.items():
        print(f"  {part:<40}{share:7.2f} %")
    print(f"  {'beside ' + ', '.join(WORK):<40}{beside(row.shares):7.2f} %")
