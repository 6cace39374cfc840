"""The files of cached features: each holds a part of a split, and has its name once it is whole."""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lewel import distributed
from lewel.errors import LewelError
from lewel.evaluation.key import Key
from lewel.whole import written

PART = 2048  # images
FULL = (errno.ENOSPC, errno.EDQUOT)
REMOVE = "remove the folder, and they are computed anew"
WHAT = (
    "features (the mean of an encoder's map over its positions, 16 bits) of the labelled training images and of the "
    "test images, in parts of 2048; what follows says of which encoder and images"
)
DAY = 86400  # seconds
_TEMPORARY = re.compile(r"\.(.*)\.([0-9]+)\.(key|train-|test-)")  # as lewel.whole names them


@dataclass(frozen=True)
class Part:
    """Images start to start + count of a split: their features, scale and labels, in three files.

    A feature is its row in 16 bits times the scale. Label -1 marks an image that could not be read.
    """

    folder: Path
    split: str
    number: int
    start: int
    count: int

    @property
    def path(self) -> Path:
        return self.folder / f"{self.split}-{self.number:04d}.npy"

    @property
    def labels_path(self) -> Path:
        return self.folder / f"{self.split}-{self.number:04d}-labels.npy"

    @property
    def scale_path(self) -> Path:
        return self.folder / f"{self.split}-{self.number:04d}-scale.npy"

    @property
    def is_there(self) -> bool:
        """Whether files of these names are there."""
        return all(path.exists() for path in (self.path, self.labels_path, self.scale_path))

    def of(self, world: distributed.World) -> bool:
        """Whether this process computes it."""
        return self.number % world.size == world.rank

    def state(self, num_classes: int) -> str | None:
        """None for a part that is whole, "" for one that is not there, and else a clause about what is wrong."""
        if not self.is_there:
            return ""
        try:
            rows, labels, _ = self.read()
        except LewelError as error:
            return str(error)
        if not np.isfinite(rows).all():
            return f"{self.path} has values that are not finite"
        if not ((labels >= -1) & (labels < num_classes)).all():
            return f"{self.labels_path} has labels that are none of the {num_classes} classes"
        return None

    def write(self, rows: np.ndarray, labels: np.ndarray, scale: float) -> None:
        """Writes the files, the features last. Raises LewelError, also for a disk that is full."""
        scales = np.array([scale], dtype=np.float64)
        try:
            for path, values in ((self.labels_path, labels), (self.scale_path, scales), (self.path, rows)):
                with written(path) as temporary, open(temporary, "wb") as file:
                    np.save(file, values)
        except OSError as error:
            raise LewelError(
                f"features could not be written to {self.path}: {error.strerror or error}; the parts before it are "
                f"kept. {'Make room, or choose' if error.errno in FULL else 'Choose'} another --out"
            ) from None

    def read(self) -> tuple[np.ndarray, np.ndarray, float]:
        """Rows (n, C) float16, labels (n,) int64 and scale. Raises LewelError where they cannot be read."""
        loaded = []
        for path, shape, kind, count in (
            (self.path, 2, np.float16, self.count),
            (self.labels_path, 1, np.int64, self.count),
            (self.scale_path, 1, np.float64, 1),
        ):
            try:
                values = np.load(path, allow_pickle=False)
            except (OSError, ValueError, EOFError, SyntaxError) as error:
                why = getattr(error, "strerror", None) or "it is cut off or no file of numpy"
                raise LewelError(f"{path} cannot be read: {why}") from None
            if values.dtype != kind or values.ndim != shape or len(values) != count:
                raise LewelError(
                    f"{path} has {values.dtype} of shape {tuple(values.shape)}, not {np.dtype(kind)} for {self.count} "
                    "images"
                )
            loaded.append(values)
        return loaded[0], loaded[1], float(loaded[2][0])


def of(folder: Path, split: str, images: int) -> list[Part]:
    """The parts of a split of so many images, in order."""
    starts = range(0, images, PART)
    return [Part(folder, split, i, start, min(PART, images - start)) for i, start in enumerate(starts)]


def prepare(folder: Path, key: Key) -> None:
    """Makes the folder of features, with key.json, or finds it; removes what killed processes have left there.

    The first process calls it. Raises LewelError for a folder with parts that are of other features, and where nothing
    can be written.
    """
    path = folder / "key.json"
    make(folder)
    if path.exists():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise LewelError(
                f"{path}, which says what the features beside it are of, cannot be read; {REMOVE}"
            ) from None
        known = found if isinstance(found, dict) else {}
        if differs := [name for name, value in key.of.items() if known.get(name) != value]:
            raise LewelError(f"{folder} has other features, as its key.json says ({', '.join(differs)}); {REMOVE}")
    elif any(folder.glob("t*.npy")):
        raise LewelError(f"{folder} has features, but no key.json that says what they are of; {REMOVE}")
    try:
        for temporary in folder.iterdir():
            if (match := _TEMPORARY.match(temporary.name)) and _left(temporary, match[1], int(match[2])):
                temporary.unlink(missing_ok=True)
        if not path.exists():
            with written(path) as temporary:
                temporary.write_text(json.dumps({"what": WHAT, **key.of}, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise _cannot(folder, error) from None


def make(folder: Path) -> None:
    """Makes the folder. Raises LewelError where that is not possible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot(folder, error) from None


def _cannot(folder: Path, error: OSError) -> LewelError:
    return LewelError(
        f"features cannot be written to {folder}: {error.strerror or error}; choose another place for them and the "
        "results: --out FOLDER"
    )


def _left(temporary: Path, host: str, process: int) -> bool:
    """Whether nobody writes this file any more: its process was of this machine and is gone, or it is a day old."""
    try:
        old = time.time() - temporary.stat().st_mtime > DAY
    except OSError:  # it has just got its name
        return False
    return old or (host == socket.gethostname() and not _lives(process))


def _lives(process: int) -> bool:
    """Whether there is such a process on this machine, other than this one, which writes nothing yet."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
