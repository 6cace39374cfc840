"""The images of one split by number, read from their files; one that cannot be read is replaced by another."""

from __future__ import annotations

import functools
import hashlib
import math
import multiprocessing
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from lewel.data import batched, fingerprint, pictures
from lewel.data.walk import shown
from lewel.errors import DataError
from lewel.recipe.schema import Data

NAMED = 10  # unreadable files whose names and reasons are told; a disk that is gone would fill the terminal
TRIES = 16  # files tried in place of an unreadable one, where too many are unreadable already


class Unreadable(DataError):
    """More files of a split than data.max_unreadable allows could not be read."""


class Replaced(UserWarning):
    """That a file cannot be read and another takes its place; printed as a line of its own, without Python's source."""


_usual = warnings.formatwarning


def _format(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    if issubclass(category, Replaced):
        return f"lewel: {message}\n"
    return _usual(message, category, filename, lineno, line)


warnings.formatwarning = _format  # in workers too; the filters of a user's program still come before


class Folder:
    """The images of one split, in the order of their paths.

    A file that cannot be read is replaced by one that can: the same in every epoch, worker and process, and another
    for each, so that files that are broken in a row do not become one picture. In place of one with a label comes one
    with a label while any can be read. Each process warns of its first ten by name.
    """

    def __init__(self, paths: Sequence[Path], labels: Sequence[int], split: Path, config: Data) -> None:
        """paths are read as config says; labels are -1 where an image has none; split names them all in sentences."""
        self.split, self.config = split, config
        # Arrays: a million objects would be copied into every worker as it counts its references to them.
        self.paths = np.array([os.fsencode(path) for path in paths])
        self.labels = np.array(labels, dtype=np.int64)
        # Of all workers together: a mark for every file that one of them could not read, and the number of marks.
        self._unreadable = multiprocessing.RawArray("b", len(paths))
        self._replaced = multiprocessing.Value("q", 0)

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def replaced(self) -> int:
        """How many different files could not be read so far, and were replaced by others, in all workers."""
        return self._replaced.value

    @property
    def unreadable(self) -> torch.Tensor:
        """(N,) uint8, 1 for each file that could not be read so far, in all workers; a copy."""
        return torch.frombuffer(bytearray(self._unreadable), dtype=torch.uint8)

    def join(self, unreadable: torch.Tensor) -> None:
        """Takes over what the workers of another process could not read: (N,) uint8, as unreadable gives it."""
        with self._replaced.get_lock():
            marks = np.frombuffer(self._unreadable, dtype=np.uint8)
            np.maximum(marks, unreadable.numpy(), out=marks)
            self._replaced.value = int(np.count_nonzero(marks))

    @functools.cached_property
    def _fingerprint(self) -> fingerprint.Fingerprint:
        """Of the paths, and of the files as they were when this was first asked for."""
        return fingerprint.take(self.paths.tolist(), [*map(Path, self.config.roots), self.split])

    def remembered(self) -> dict[str, Any]:
        """What a checkpoint keeps of the images, for difference; nothing of what files hold that could not be read."""
        names, files = self._fingerprint
        could_be_read = self.unreadable[fingerprint.looked_at(len(self))] == 0
        return {"names": names, "files": files * could_be_read[:, None]}

    def difference(self, remembered: dict[str, Any]) -> str:
        """How the images differ from what was remembered of as many, as a clause, or ""."""
        names = remembered["names"]
        if names != self._fingerprint.names and names != fingerprint.names_of(self.paths.tolist()):
            return f"the {len(self)} images in {self.split} have other names or another order than those before"
        changed = fingerprint.exchanged(remembered["files"], self._fingerprint.files).nonzero()
        if not len(changed):
            return ""
        first = shown(str(self.path(int(fingerprint.looked_at(len(self))[int(changed[0])]))))
        looked = f" of {len(self._fingerprint.files)} looked at" if len(self) > fingerprint.FILES else ""
        return f"{len(changed)}{looked} hold something else under the same name, the first {first}"

    def identity(self) -> str:
        """A hash of the images' names in order, of their labels, and of what the files hold that are looked at.

        It is the same wherever the images lie, and another for a file that was exchanged, or could not be opened.
        """
        names, files = self._fingerprint
        parts = (names.encode(), files.numpy().tobytes(), self.labels.tobytes())
        return hashlib.blake2b(b"".join(parts), digest_size=16).hexdigest()

    def path(self, index: int) -> Path:
        return Path(os.fsdecode(self.paths[index]))

    def load(self, index: int) -> tuple[Image.Image, int]:
        """The RGB image at index and its label, or those of the file that stands in for it.

        Raises Unreadable if no file of the split can be read, or too many cannot and none of TRIES files can.
        """
        for tried, at in enumerate(self._from(index)):
            try:
                image = pictures.read(self.path(at), self.config)
            except (pictures.UnreadableImage, MemoryError) as error:
                self._mark(at, error)
                if tried >= TRIES:
                    self.check()
            else:
                return image, int(self.labels[at])
        raise Unreadable(f"none of the {len(self)} images in {self.split} can be read; repair or restore them")

    def check(self, unreadable: int | None = None) -> None:
        """Raises Unreadable where more files than data.max_unreadable allows could not be read: as many as given."""
        count, share = self.replaced if unreadable is None else unreadable, self.config.max_unreadable
        if count > share * len(self):
            first = shown(str(self.path(int(self.unreadable.argmax()))))
            raise Unreadable(
                f"{count} of the {len(self)} images in {self.split} could not be read, among them {first}; "
                f"data.max_unreadable allows a share of {share:g}. Repair or restore them, or raise "
                "--data.max-unreadable and others take their place"
            )

    def _from(self, index: int) -> Iterator[int]:
        """The number of every image once, from index on in strides that are hashed from it.

        First come those that have a label, if it has one, and otherwise those that have none.
        """
        yield index
        alike = (self.labels >= 0) == (self.labels[index] >= 0)
        hashed = int(batched.hashed(0, 0, np.array([index]), 0, 1)[0, 0])
        for group in (np.flatnonzero(alike), np.flatnonzero(~alike)):
            count, start = len(group), int(np.searchsorted(group, index))
            stride = hashed % max(count, 1)
            while math.gcd(stride, count) > 1:  # only strides without a common divisor lead past every image
                stride += 1
            for step in range(count):
                if (other := int(group[(start + step * stride) % count])) != index:
                    yield other

    def _mark(self, index: int, error: Exception) -> None:
        with self._replaced.get_lock():
            if self._unreadable[index]:
                return
            self._unreadable[index] = 1
            self._replaced.value += 1
            count = self._replaced.value
        if count <= NAMED:
            said = (
                f"cannot read {self.path(index)}: {pictures.reason(error)}. Another image of {self.split} takes its "
                "place; repair or remove the file"
            )
        elif count == NAMED + 1:
            said = (
                f"more than {NAMED} images in {self.split} cannot be read; further ones are replaced without being "
                'named, and counted as "replaced" in the log'
            )
        else:
            return
        warnings.warn(shown(said), Replaced, stacklevel=3)
