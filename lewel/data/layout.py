"""Finds the images below data.root: ROOT/train/CLASS/... and ROOT/test/CLASS/... (or val/)."""

from __future__ import annotations

import difflib
from pathlib import Path

from lewel.data import listing
from lewel.data.folder import Folder
from lewel.errors import LewelError
from lewel.recipe.schema import Data

LAYOUT = "a folder with train/ and test/ (or val/), each with one folder of images per class"


def find(config: Data, root: str) -> tuple[Folder, Folder, tuple[str, ...]]:
    """(training split, test split, class names) under root; a LewelError says what is missing."""
    folder = existing(root, LAYOUT)
    train = folder / "train"
    test = next((folder / name for name in ("test", "val") if (folder / name).is_dir()), folder / "test")
    for split in (train, test):
        if not split.is_dir():
            wanted = "train" if split is train else "test or val"
            raise LewelError(f"data.root {folder} holds no folder {wanted}; {contents(folder)}. Expected {LAYOUT}")
    names, test_names = _classes(train), _classes(test)
    if config.classes:
        used = listing.classes(config.classes, names, train)
        names, test_names = (tuple(name for name in found if name in used) for found in (names, test_names))
    if names != test_names:
        odd = sorted(set(names) ^ set(test_names))
        where = train if odd[0] in names else test
        raise LewelError(
            f"{train} and {test} must hold the same class folders, but {len(odd)} are in one of them only, "
            f"among them {odd[0]!r} in {where}"
        )
    return _split(train, names, config, config.train_list), _split(test, names, config), names


def _split(split: Path, class_names: tuple[str, ...], config: Data, train_list: str = "") -> Folder:
    paths: list[Path] = []
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
        paths += found
        labels += [label] * len(found)
    if not paths:
        raise LewelError(f"data.train_list {train_list} lists no image of the classes in use ({class_names[0]}, ...)")
    return Folder(paths, labels, split, config)


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
