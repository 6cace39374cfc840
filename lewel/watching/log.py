"""What a run says: a bar on a terminal or plain lines, always one JSON object a line in log.jsonl, and its boards.

Every record has its kind and "step", the number of optimizer steps done. A number that is none (the loss of a step that
fp16 overflowed in) is null in the file, since JSON has neither NaN nor Infinity, and nan where the file is read.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lewel.errors import LewelError
from lewel.recipe.schema import Train
from lewel.watching.boards import Sink, boards
from lewel.watching.progress import SECONDS_BETWEEN_LINES, Progress
from lewel.whole import written

OF_NUMBERS = ("baselines", "step", "epoch")  # kinds of records that hold nothing else
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
        self.lines, self.boards = None if quiet else Lines(path, first_step, self.say), list[Sink]()
        if not quiet:
            self.boards = boards(path.parent, first_step=first_step, run=run)
        no_bar = quiet or sys.stderr is None or not sys.stderr.isatty()
        self.bar = tqdm(total=total_steps, initial=first_step, unit="step", disable=no_bar)
        self.spoke = time.monotonic()
        self.progress = Progress(self.say, bar=not no_bar)
        if self.lines is not None and self.lines.left_out:
            self.say(f"left {self.lines.left_out} lines out of {path} that are no records")

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
        for board in self.boards:
            self._try(board, board.close)
        if self.lines is not None:
            self.lines.close()

    def _write(self, kind: str, values: dict[str, Any]) -> None:
        if self.lines is not None:
            self.lines.write(kind, values)
        for board in list(self.boards):
            self._try(board, functools.partial(board.write, kind, values))

    def _try(self, board: Sink, use: Callable[[], None]) -> None:
        """Uses a board; one that fails is left alone from then on, for the log has everything."""
        try:
            use()
        except Exception as error:
            self.boards = [other for other in self.boards if other is not board]
            self.say(f"{type(board).__name__} fails ({error}); the run goes on without it")


class Lines:
    """Writes log.jsonl: one JSON object a line, flushed. To continue at first_step, it first drops later records.

    From the start it renames a log that has steps. left_out counts the lines that were dropped because they were no
    records; say is told of what happens to the file later. Raises LewelError if it cannot write.
    """

    def __init__(self, path: Path, first_step: int, say: Callable[[str], None]) -> None:
        self.path, self.say = path, say
        if path.is_fifo():
            raise LewelError(f"{path} is a pipe, and the log goes there; remove it")
        if not first_step:
            put_aside(path)
        self.left_out = _drop_after(path, first_step) if first_step else 0
        with _sentence(path):
            self.folder = _identity(path.parent.stat())
            self.file = open(path, "a" if first_step else "w")  # noqa: SIM115

    def write(self, kind: str, values: dict[str, Any]) -> None:
        with _sentence(self.path):
            self._follow()
            self.file.write(_line({"kind": kind, **values}))
            self.file.flush()

    def _follow(self) -> None:
        """Goes on in the file of that name where somebody has replaced or removed it.

        The open one would take lines unseen. Raises LewelError where the folder has gone too.
        """
        try:
            if _identity(self.path.stat()) == _identity(os.fstat(self.file.fileno())):
                return
        except FileNotFoundError:
            if not self._has_folder():
                raise LewelError(
                    f"{self.path} is gone, as where the run folder was deleted or renamed; the run ends, and what it "
                    "saved is where that folder is now"
                ) from None
            self.say(f"{self.path} was removed; the run goes on, and begins it anew")
        self.file.close()
        self.file = open(self.path, "a")  # noqa: SIM115

    def _has_folder(self) -> bool:
        try:
            return _identity(self.path.parent.stat()) == self.folder
        except FileNotFoundError:
            return False

    def close(self) -> None:
        with contextlib.suppress(OSError):  # of what could not be written, which was said
            self.file.close()


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a log, nan for null; lines that are none are left out."""
    return read_counted(path)[0]


def read_counted(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The records of a log, and how many lines are left out for being none: half written, say, when a disk was full.

    A last line that was cut off is not counted: that is how a log ends which is being written, or whose run was killed.
    """
    with _sentence(path, "read"):
        lines = path.read_bytes().split(b"\n")
    cut_off = lines.pop()
    found = [_record(line) for line in lines if line.strip()]
    last = _record(cut_off)
    records = [record for record in (*found, last) if record is not None]
    return records, found.count(None)


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # not UTF-8, or not JSON
        return None
    if not isinstance(record, dict) or not isinstance(record.get("kind"), str):
        return None
    record = {key: math.nan if value is None else value for key, value in record.items()}
    numbers = [key for key in record if key != "kind"] if record["kind"] in OF_NUMBERS else ["step"]
    return record if all(isinstance(record.get(key), (int, float)) for key in {"step", *numbers}) else None


def write_text(path: Path, text: str) -> None:
    """Writes a small file, which has its name only when it is whole. Raises LewelError if it cannot."""
    with _sentence(path), written(path) as temporary:
        temporary.write_text(text)


@contextlib.contextmanager
def _sentence(path: Path, verb: str = "write") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LewelError(f"cannot {verb} {path}: {error.strerror or error}") from None


def _line(record: dict[str, Any]) -> str:
    """A record as a line of strict JSON."""
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
    return json.dumps(finite, allow_nan=False) + "\n"


def put_aside(path: Path) -> None:
    """Renames a log that has steps where another is about to take its place, and says so."""
    if not path.is_file() or all(record["kind"] != "step" for record in read(path)):
        return
    names = (f"{path.name}.before" + f"-{number}" * (number > 1) for number in itertools.count(1))
    aside = next(other for name in names if not (other := path.with_name(name)).exists())
    with _sentence(path):
        path.rename(aside)
    print(f"{path} has the steps of an earlier start, and is named {aside.name} now", flush=True)


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def carry_over(old: Path, new: Path) -> None:
    """Begins the log new with the records of old, where there are any, for a run that continues in another folder."""
    if old.exists() and old.resolve() != new.resolve():
        put_aside(new)
        with _sentence(new):
            shutil.copyfile(old, new)


def _drop_after(path: Path, step: int) -> int:
    """Removes what a killed run wrote after the checkpoint that it now continues from, and lines that are no records.

    Returns the number of the latter.
    """
    if not path.exists():
        return 0
    records, left_out = read_counted(path)
    write_text(path, "".join(_line(record) for record in records if record["step"] <= step))
    return left_out
