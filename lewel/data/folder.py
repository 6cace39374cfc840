"""Images in folders: ROOT/train/CLASS/... and ROOT/test/CLASS/... (or val/)."""

from __future__ import annotations

import difflib
import multiprocessing
import os
import warnings
from pathlib import Path

from PIL import Image

from lewel.errors import LewelError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".tif", ".tiff", ".webp")
LAYOUT = "a folder with train/ and test/ (or val/), each with one folder of images per class"


class Folder:
    """The images of one split, in the order of their paths.

    A file that cannot be read is replaced by the next one that can, with a warning that names it and counts; the same
    file is replaced by the same one in every epoch and in every worker.
    """

    def __init__(self, split: Path, class_names: tuple[str, ...]) -> None:
        self.split = split
        self.paths: list[Path] = []
        self.labels: list[int] = []
        for label, name in enumerate(class_names):
            found = _images(split / name)
            if not found:
                raise LewelError(
                    f"the class folder {split / name} holds no images (files ending in {', '.join(EXTENSIONS)}); "
                    "put some in, or remove the folder"
                )
            self.paths += found
            self.labels += [label] * len(found)
        self._warned: set[int] = set()
        self._replaced = multiprocessing.Value("q", 0)  # one count for all workers

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def replaced(self) -> int:
        """How often an unreadable file was replaced by another, in all workers."""
        return self._replaced.value

    def load(self, index: int) -> tuple[Image.Image, int]:
        """The RGB image at index and its label, or those that take its place."""
        for step in range(len(self)):
            at = (index + step) % len(self)
            try:
                with Image.open(self.paths[at]) as file:
                    image = file.convert("RGB")
            # Decoders raise whatever a broken file leads them to; none of it may end a run in its twentieth hour.
            except Exception as error:
                self._warn(at, error)
            else:
                return image, self.labels[at]
        raise LewelError(f"none of the {len(self)} images in {self.split} can be read")

    def _warn(self, index: int, error: Exception) -> None:
        with self._replaced.get_lock():
            self._replaced.value += 1
            count = self._replaced.value
        if index not in self._warned:
            self._warned.add(index)
            warnings.warn(
                f"cannot read {self.paths[index]} ({error}); the next image takes its place "
                f"({count} replaced in {self.split} so far). Repair or remove the file.",
                stacklevel=3,
            )


def find(root: str) -> tuple[Folder, Folder, tuple[str, ...]]:
    """(training split, test split, class names) under root; a LewelError says what is missing."""
    if not root:
        raise LewelError(f"data.root is empty; --data.root must name {LAYOUT}")
    folder = Path(root).expanduser()
    if folder.is_file():
        raise LewelError(f"data.root {folder} is a file; unpack it and name the folder. Expected {LAYOUT}")
    if not folder.is_dir():
        raise LewelError(f"data.root {folder} is not a folder; {_nearby(folder)}. Expected {LAYOUT}")
    train = folder / "train"
    test = next((folder / name for name in ("test", "val") if (folder / name).is_dir()), folder / "test")
    for split in (train, test):
        if not split.is_dir():
            wanted = "train" if split is train else "test or val"
            raise LewelError(f"data.root {folder} holds no folder {wanted}; {_contents(folder)}. Expected {LAYOUT}")
    names, test_names = _classes(train), _classes(test)
    if names != test_names:
        odd = sorted(set(names) ^ set(test_names))
        where = train if odd[0] in names else test
        raise LewelError(
            f"{train} and {test} must hold the same class folders, but {len(odd)} are in one of them only, "
            f"among them {odd[0]!r} in {where}"
        )
    return Folder(train, names), Folder(test, names), names


def _classes(split: Path) -> tuple[str, ...]:
    names = tuple(sorted(entry.name for entry in split.iterdir() if entry.is_dir() and not entry.name.startswith(".")))
    if not names:
        raise LewelError(f"{split} holds no class folders; {_contents(split)}. Expected {LAYOUT}")
    return names


def _images(folder: Path) -> list[Path]:
    """Every image below folder, hidden files left out, in an order that does not depend on the file system."""
    found = (Path(where) / name for where, _, names in os.walk(folder, followlinks=True) for name in names)
    return sorted(path for path in found if path.suffix.lower() in EXTENSIONS and not path.name.startswith("."))


def _contents(folder: Path) -> str:
    names = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir())
    if not names:
        return "it is empty"
    return f"it holds {', '.join(names[:6])}" + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _nearby(folder: Path) -> str:
    """What there is where a mistyped path leaves the file system."""
    parent = folder.absolute()
    while not parent.is_dir():
        missing, parent = parent.name, parent.parent
    close = difflib.get_close_matches(missing, [entry.name for entry in parent.iterdir()], n=1)
    return f"there is no {missing} in {parent}" + (f", did you mean {close[0]}?" if close else "")
