"""Images in folders: ROOT/train/CLASS/... and ROOT/test/CLASS/... (or val/)."""

from __future__ import annotations

import difflib
import multiprocessing
import os
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from lewel.data import listing
from lewel.errors import LewelError

LAYOUT = "a folder with train/ and test/ (or val/), each with one folder of images per class"


class Folder:
    """The images of one split, in the order of their paths.

    A file that cannot be read is replaced by the next one that can, with a warning that names it and counts; the same
    file is replaced by the same one in every epoch and in every worker.
    """

    def __init__(self, split: Path, class_names: tuple[str, ...], train_list: str = "") -> None:
        self.split = split
        paths: list[bytes] = []
        labels: list[int] = []
        listed = listing.images(train_list, split) if train_list else None
        for label, name in enumerate(class_names):
            found = listing.images_below(split / name)
            if not found:
                raise LewelError(
                    f"the class folder {split / name} holds no images "
                    f"(files ending in {', '.join(listing.EXTENSIONS)}); put some in, or remove the folder"
                )
            if listed is not None:
                found = [path for path in found if path in listed]
            paths += map(os.fsencode, found)
            labels += [label] * len(found)
        if not paths:
            raise LewelError(
                f"data.train_list {train_list} lists no image of the classes in use ({class_names[0]}, ...)"
            )
        # Arrays: a million objects would be copied into every worker as it counts its references to them.
        self.paths, self.labels = np.array(paths), np.array(labels)
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


def find(root: str, classes: str = "", train_list: str = "") -> tuple[Folder, Folder, tuple[str, ...]]:
    """(training split, test split, class names) under root; a LewelError says what is missing.

    classes names a file with the only classes that are used, train_list one with the only training images.
    """
    folder = existing(root, LAYOUT)
    train = folder / "train"
    test = next((folder / name for name in ("test", "val") if (folder / name).is_dir()), folder / "test")
    for split in (train, test):
        if not split.is_dir():
            wanted = "train" if split is train else "test or val"
            raise LewelError(f"data.root {folder} holds no folder {wanted}; {contents(folder)}. Expected {LAYOUT}")
    names, test_names = _classes(train), _classes(test)
    if classes:
        used = listing.classes(classes, names, train)
        names, test_names = (tuple(name for name in found if name in used) for found in (names, test_names))
    if names != test_names:
        odd = sorted(set(names) ^ set(test_names))
        where = train if odd[0] in names else test
        raise LewelError(
            f"{train} and {test} must hold the same class folders, but {len(odd)} are in one of them only, "
            f"among them {odd[0]!r} in {where}"
        )
    return Folder(train, names, train_list), Folder(test, names), names


def existing(root: str, expected: str) -> Path:
    """The folder that data.root names; a LewelError says what was expected there."""
    if not root:
        raise LewelError(f"data.root is empty; --data.root must name {expected}")
    folder = Path(root).expanduser()
    if folder.is_file():
        raise LewelError(f"data.root {folder} is a file; unpack it and name the folder. Expected {expected}")
    if not folder.is_dir():
        raise LewelError(f"data.root {folder} is not a folder; {_nearby(folder)} Expected {expected}")
    return folder


def _classes(split: Path) -> tuple[str, ...]:
    names = tuple(sorted(entry.name for entry in split.iterdir() if entry.is_dir() and not entry.name.startswith(".")))
    if not names:
        raise LewelError(f"{split} holds no class folders; {contents(split)}. Expected {LAYOUT}")
    return names


def contents(folder: Path) -> str:
    """What folder holds, as a clause for an error message that says what is missing from it."""
    names = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir())
    if not names:
        return "it is empty"
    return f"it holds {', '.join(names[:6])}" + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _nearby(folder: Path) -> str:
    """Why a path is no folder, as a clause for an error message: its first missing part, and a similar name there."""
    parent = folder.absolute()
    while not parent.is_dir():
        missing, parent = parent.name, parent.parent
    close = difflib.get_close_matches(missing, [entry.name for entry in parent.iterdir()], n=1)
    return f"there is no {missing} in {parent}" + (f", did you mean {close[0]}?" if close else ".")
