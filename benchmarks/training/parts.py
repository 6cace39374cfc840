"""Where the time of a training run goes: the loop's own steps, every part of them on the clock."""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks import timing
from benchmarks.options import count
from lewel import train
from lewel.data import Views
from lewel.methods.key_queue import KeyQueue
from lewel.methods.method import Method
from lewel.recipe import presets, schema
from lewel.run.preemption import Preemption
from lewel.run.session import Session, prepare
from lewel.watching.log import Clock, RunLog

PARTS = ("data", "forward", "backward", "optimizer", "momentum network, queue", "logging", "rest")
WORK = PARTS[:3]  # what a step is for
_PLACES: list[tuple[Any, str, str]] = [
    (Session, "to_device", "data"),
    (Method, "forward", "forward"),
    (torch.Tensor, "backward", "backward"),
    (torch.amp.GradScaler, "step", "optimizer"),
    (torch.amp.GradScaler, "update", "optimizer"),
    (torch.optim.Optimizer, "zero_grad", "optimizer"),
    (Method, "_follow", "momentum network, queue"),
    (KeyQueue, "enqueue", "momentum network, queue"),
    (train._Loop, "_numbers", "logging"),
    (RunLog, "step", "logging"),
    (RunLog, "advance", "logging"),
    (Clock, "lap", "logging"),
]
_SMALL = replace(presets.get("embedded/lewel_m").data, image_size=32, batch_size=128)
RUNS = {
    "embedded/lewel_m": presets.get("embedded/lewel_m"),
    "embedded/lewel_b": presets.get("embedded/lewel_b"),
    **{
        f"resnet18/{method}": replace(
            presets.get(f"embedded/{method}"), encoder=schema.Encoder("resnet18", stem="small"), data=_SMALL
        )
        for method in ("lewel_m", "lewel_b")
    },
}  # the presets as they are, and a ResNet-18 at the size of CIFAR


@dataclass
class Row:
    """The mean over the steps of an epoch."""

    case: dict[str, object]
    samples: int  # steps
    p50: float  # ms of one
    shares: dict[str, float]  # of PARTS, in percent


def beside(shares: Mapping[str, float]) -> float:
    """Percent of a step that is none of its WORK."""
    return sum(share for part, share in shares.items() if part not in WORK)


class Stopwatch:
    """Seconds of each part, those of parts within it left out; on a GPU the device's, for which it waits."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._device, self._inside, self._since = str(device), ["rest"], 0.0

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._turn()
        self._inside.append(name)
        try:
            yield
        finally:
            self._turn()
            self._inside.pop()

    def _turn(self) -> None:
        timing.synchronise(self._device)
        now = time.perf_counter()
        self.seconds[self._inside[-1]] += now - self._since
        self._since = now

    def within(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """call, its time that of a part."""

        @functools.wraps(call)
        def timed(*args: Any, **options: Any) -> Any:
            with self.part(name):
                return call(*args, **options)

        return timed

    def waiting(self, batches: Iterator[Views]) -> Iterator[Views]:
        """The same batches, the time until each is there that of the data."""
        while True:
            with self.part("data"):
                views = next(batches, None)
            if views is None:
                return
            yield views


def measure(name: str, run: schema.Train, steps: int) -> Row:
    """The second of two epochs of so many steps, or of as many as fill the queue; evaluation and saving left out."""
    steps = max(steps, run.method.queue // run.data.batch_size if run.method.loss == "infonce" else 0)
    run = replace(run, epochs=2, data=replace(run.data, embedded_train=steps * run.data.batch_size))
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as patches:
        session = prepare(run, Path(folder))
        log = RunLog(Path(folder) / "log.jsonl", total_steps=session.total_steps, first_step=0)
        patches.callback(log.close)
        watch, epoch = Stopwatch(session.device), session.loader.epoch
        session.loader.epoch = lambda *where: watch.waiting(epoch(*where))  # type: ignore[method-assign]
        for owner, function, part in _PLACES:
            patches.enter_context(mock.patch.object(owner, function, watch.within(part, getattr(owner, function))))
        loop = train._Loop(session, log, Preemption())
        patches.enter_context(contextlib.redirect_stdout(io.StringIO()))
        loop._epoch(0)
        with watch.part("rest"):
            watch.seconds.clear()
            loop._epoch(1)
    whole = sum(watch.seconds.values())
    case = {
        "run": name, "encoder": run.encoder.name, "image_size": run.data.image_size, "batch": run.data.batch_size,
        "precision": session.run.precision, "optimizer": run.optim.name,
    }  # fmt: skip
    return Row(case, steps, 1e3 * whole / steps, {part: 100 * watch.seconds[part] / whole for part in PARTS})


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--run", choices=RUNS, nargs="+", default=list(RUNS), help="default: all")
    command.add_argument("--steps", type=count, default=16, help="steps that count, and as many before them")


def print_row(row: Row) -> None:
    case = row.case
    about = f"{case['encoder']}, {case['image_size']}x{case['image_size']}, batch {case['batch']}, {case['precision']}"
    print(f"\n{case['run']}: {about}, {row.samples} steps of {row.p50:.1f} ms")
    for part, share in row.shares.items():
        print(f"  {part:<26}{share:7.2f} %")
    print(f"  beside {', '.join(WORK):<19}{beside(row.shares):7.2f} %")
