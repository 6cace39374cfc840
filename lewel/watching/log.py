"""What a run says: a bar on a terminal or plain lines, always one JSON object a line in log.jsonl, and its boards.

Every record has its kind and "step", the number of optimizer steps done. A number that is none (the loss of a step that
fp16 overflowed in) is null in the file, since JSON has neither NaN nor Infinity, and nan where the file is read.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch.profiler import record_function
from tqdm import tqdm

from lewel import ranges
from lewel.data import Views
from lewel.recipe.schema import Train
from lewel.watching.boards import Sink, boards
from lewel.watching.progress import SECONDS_BETWEEN_LINES, Progress

SHOWN = ("loss", "lr", "z_std", "images_per_s", "replaced")  # of a step, on a terminal


class RunLog:
    """Writes the records of a run to log.jsonl at path and to its boards, and shows a person the important part.

    first_step above 0 continues a log: records of later steps are dropped. A quiet log, for all processes but the
    first, does nothing.
    """

    def __init__(
        self, path: Path, *, total_steps: int, first_step: int, run: Train | None = None, quiet: bool = False
    ) -> None:
        self.quiet = quiet
        self.sinks: list[Sink] = []
        if not quiet:
            self.sinks = [Lines(path, first_step), *boards(path.parent, first_step=first_step, run=run)]
        no_bar = quiet or not sys.stderr.isatty()
        self.bar = tqdm(total=total_steps, initial=first_step, unit="step", disable=no_bar)
        self.spoke = time.monotonic()
        self.progress = Progress(self.say, bar=not no_bar)

    def step(self, record: dict[str, Any]) -> None:
        """A training step's record; plain lines appear at most every 15 seconds."""
        self._write("step", record)
        shown: dict[str, Any] = {key: record[key] for key in SHOWN if key in record}
        if not self.bar.disable:
            self.bar.set_postfix(shown)
        elif time.monotonic() - self.spoke > SECONDS_BETWEEN_LINES:
            self.say(f"step {record['step']}  " + "  ".join(f"{key} {value:.4g}" for key, value in shown.items()))

    def advance(self) -> None:
        self.bar.update()

    def record(self, kind: str, values: dict[str, Any], line: str) -> None:
        """A record of another kind, with the line that a person sees."""
        self._write(kind, values)
        self.say(line)

    def say(self, line: str) -> None:
        self.spoke = time.monotonic()
        if not self.quiet:
            tqdm.write(line) if not self.bar.disable else print(line, flush=True)

    def close(self) -> None:
        self.bar.close()
        for sink in self.sinks:
            sink.close()

    def _write(self, kind: str, values: dict[str, Any]) -> None:
        for sink in self.sinks:
            sink.write(kind, values)


class Lines:
    """Writes log.jsonl: one JSON object a line, flushed. To continue at first_step, it first drops later records."""

    def __init__(self, path: Path, first_step: int) -> None:
        if first_step:
            _drop_after(path, first_step)
        self.file = open(path, "a" if first_step else "w")  # noqa: SIM115

    def write(self, kind: str, values: dict[str, Any]) -> None:
        self.file.write(_line({"kind": kind, **values}))
        self.file.flush()

    def close(self) -> None:
        self.file.close()


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a log, nan for null; a last line that was cut off is left out."""
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append({key: math.nan if value is None else value for key, value in json.loads(line).items()})
        except json.JSONDecodeError:
            break
    return records


def _line(record: dict[str, Any]) -> str:
    """A record as a line of strict JSON."""
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
    return json.dumps(finite, allow_nan=False) + "\n"


def carry_over(old: Path, new: Path) -> None:
    """Begins the log new with the records of old, where there are any, for a run that continues in another folder."""
    if old.exists() and old.resolve() != new.resolve():
        shutil.copyfile(old, new)


def _drop_after(path: Path, step: int) -> None:
    """Removes what a killed run wrote after the checkpoint that it now continues from."""
    if not path.exists():
        return
    kept = [record for record in read(path) if record["step"] <= step]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(map(_line, kept)))
    os.replace(temporary, path)


class Clock:
    """Images per second and the share of time spent waiting for data, since the last lap."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self._restart()

    def waiting(self, batches: Iterator[Views]) -> Iterator[Views]:
        """The same batches; the time that each takes to arrive is counted as waiting."""
        while True:
            before = time.monotonic()
            with record_function(ranges.DATA):
                views = next(batches, None)
            if views is None:
                return
            self.waited += time.monotonic() - before
            self.batches += 1
            yield views

    def lap(self) -> dict[str, float]:
        elapsed = time.monotonic() - self.started
        values = {"images_per_s": self.batches * self.batch_size / elapsed, "data_wait": self.waited / elapsed}
        self._restart()
        return values

    def _restart(self) -> None:
        self.started, self.waited, self.batches = time.monotonic(), 0.0, 0
