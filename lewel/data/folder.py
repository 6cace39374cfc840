"""The images of one split by number, read from their files; one that cannot be read is replaced by another."""

from __future__ import annotations

import multiprocessing
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from lewel.errors import LewelError
from lewel.recipe.schema import Data


class Folder:
    """The images of one split, in the order of their paths.

    A file that cannot be read is replaced by the next one that can, with a warning that names it and counts; the same
    file is replaced by the same one in every epoch and in every worker.
    """

    def __init__(self, paths: Sequence[Path], labels: Sequence[int], split: Path, config: Data) -> None:
        """paths are read as config says; labels are -1 where an image has none; split names them all in sentences."""
        self.split, self.config = split, config
        # Arrays: a million objects would be copied into every worker as it counts its references to them.
        self.paths = np.array([os.fsencode(path) for path in paths])
        self.labels = np.array(labels, dtype=np.int64)
        # Of all workers together: one count, and a mark for every file that one of them has named.
        self._replaced = multiprocessing.Value("q", 0)
        self._named = multiprocessing.RawArray("b", len(paths))

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def replaced(self) -> int:
        """How often an unreadable file was replaced by another, in all workers."""
        return self._replaced.value

    def path(self, index: int) -> Path:
        return Path(os.fsdecode(self.paths[index]))

    def load(self, index: int) -> tuple[Image.Image, int]:
        """The RGB image at index and its label, or those of the next file that can be read.

        Raises LewelError if no file of the split can be read.
        """
        for step in range(len(self)):
            at = (index + step) % len(self)
            try:
                with Image.open(self.path(at)) as file:
                    image = file.convert("RGB")
            # Decoders raise whatever a broken file leads them to; none of it may end a run in its twentieth hour.
            except Exception as error:
                self._warn(at, error)
            else:
                return image, int(self.labels[at])
        raise LewelError(f"none of the {len(self)} images in {self.split} can be read")

    def _warn(self, index: int, error: Exception) -> None:
        with self._replaced.get_lock():
            self._replaced.value += 1
            count, named, self._named[index] = self._replaced.value, self._named[index], 1
        if not named:
            warnings.warn(
                f"cannot read {self.path(index)} ({error}); the next image takes its place "
                f"({count} replaced in {self.split} so far). Repair or remove the file.",
                stacklevel=3,
            )
