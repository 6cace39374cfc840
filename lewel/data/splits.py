"""What one place holds: its training images by class folder, and the test images that go with them."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lewel.data import listing
from lewel.data.walk import EXTENSIONS, PassedOver, ending, few, images_below, is_passed_over, shown

TRAINS = ("train", "training")  # folders with training images, in small letters
TESTS = ("test", "val", "valid", "validation", "testing")  # with test images; the first that fits train/ is used
SPLITS = (*TESTS, *TRAINS)  # names that are no classes


@dataclass
class Split:
    """Images in the order of their paths."""

    folder: str  # or the file that lists them
    paths: list[str]
    classes: list[str]  # of each image the class folder it lies in, "" for one beside these
    empty: set[str] = field(default_factory=set)  # class folders without images

    @property
    def names(self) -> set[str]:
        """The class folders that hold images."""
        return set(self.classes) - {""}

    @property
    def has_classes(self) -> bool:
        """Whether the folders may be classes, which kNN could tell apart."""
        return len([name for name in self.names if name.lower() not in SPLITS]) > 1

    def labelled(self) -> Iterator[tuple[str, str]]:
        """Path and class folder of each image that has one."""
        return ((path, name) for path, name in zip(self.paths, self.classes, strict=True) if name)


@dataclass
class Source:
    """A place that data.root or data.eval names."""

    root: str
    train: Split
    test: Split | None = None
    why: str = ""
    """why there are no labels, where test is None"""
    beside: str = ""
    """what else is there and is not used, as a sentence"""

    @property
    def places(self) -> tuple[str, ...]:
        """Where the paths of a list may start."""
        return (self.train.folder, self.root) if os.path.isdir(self.root) else (os.path.dirname(self.root),)


def read(place: Path, passed: PassedOver) -> Source:
    """What a folder holds, or a file lists: the images of train/ where there is one, else all."""
    root = str(place)
    if place.is_file():
        paths = listing.images(root, passed)
        classes = [os.path.basename(os.path.dirname(path)) for path in paths]
        why = f"{root} is a list of images, and labels come from train/ and test/ or val/ in a folder"
        return Source(root, Split(root, paths, classes), why=why)
    name = _train(root)
    if name is None:
        train = _split(root, passed)
        tests = [f"{name}/" for name in sorted(train.names) if name.lower() in SPLITS]
        beside = f"{root} holds no train/, so all images below it are trained on"
        beside += f", those of {few(tests)} too" if tests else ""
        why = f"{root} holds no train/ with class folders and test/ or val/ beside it"
        inner = next((name for name in sorted(train.names) if _is_divided(os.path.join(root, name))), None)
        if inner is not None:
            below = shlex.quote(os.path.join(root, inner))
            beside += f"; {inner}/ holds train/ and test/ or val/, to use these: --data.root {below}"
        return Source(root, train, why=why, beside=beside if tests or inner else "")
    train = _split(os.path.join(root, name), passed)
    test, why = _test(root, train, passed)
    return Source(root, train, test, why, _beside(root, name, test))


def _train(root: str) -> str | None:
    """The folder of root with its training images: train/, or another spelling where test images lie beside it."""
    if os.path.isdir(os.path.join(root, "train")):
        return "train"
    return next(iter(_spelt(root, TRAINS)), None) if _spelt(root, TESTS) else None


def _spelt(root: str, names: tuple[str, ...]) -> list[str]:
    """The folders of root that have one of names in small or large letters, in the order of names."""
    found = [name for name in _folders(root) if name.lower() in names]
    return sorted(found, key=lambda name: (names.index(name.lower()), name != name.lower(), name))


def _test(root: str, train: Split, passed: PassedOver) -> tuple[Split | None, str]:
    """The test images that have the class folders of train, or why there are none."""
    if not train.names:
        return None, f"{train.folder} holds no class folders"
    tried: list[tuple[Split, PassedOver]] = []
    none = f"{root} holds no folder test or val"
    for name in _spelt(root, TESTS):
        folder = os.path.join(root, name)
        if os.path.samefile(folder, train.folder):
            none = f"{name}/ in {root} is {os.path.basename(train.folder)}/ itself, by a link"
            continue
        found = PassedOver()
        tried.append((_split(folder, found), found))
        if tried[-1][0].names == train.names:
            break
    if not tried:
        return None, none
    # The first of those that have most of the classes, and fewest others.
    split, found = max(tried, key=lambda pair: (len(pair[0].names & train.names), -len(pair[0].names - train.names)))
    if split.names & train.names:
        passed.join(found)
        if loose := split.classes.count(""):
            first = split.paths[split.classes.index("")]
            passed.add("test images beside the class folders, which have no label", first, loose)
        return split, ""
    unfit = few([f"{os.path.basename(split.folder)}/" for split, _ in tried])
    why = f"{unfit} in {root} {'hold' if len(tried) > 1 else 'holds'} none of the class folders of "
    why += f"{os.path.basename(train.folder)}/"
    small = {name.lower() for name in train.names}
    return None, why + " (upper and lower case differ)" * any(n.lower() in small for s, _ in tried for n in s.names)


def _is_divided(folder: str) -> bool:
    """Whether folder holds train/ and test images."""
    return _train(folder) is not None and bool(_spelt(folder, TESTS))


def _split(folder: str, passed: PassedOver) -> Split:
    paths = images_below(folder, passed)
    start = len(os.path.join(folder, ""))
    classes = [path[start:].rpartition(os.sep)[0].partition(os.sep)[0] for path in paths]
    empty = _folders(folder) - set(classes)
    for name in empty:
        passed.add("folders without images", os.path.join(folder, name))
    return Split(folder, paths, classes, empty)


def _folders(folder: str) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_dir() and not is_passed_over(entry.name)}
    except OSError:  # of which images_below has told
        return set()


def _beside(root: str, train: str, test: Split | None) -> str:
    """What lies in root beside the folder train and the test images, and how it would be used."""
    used = [train] + ([os.path.basename(test.folder)] if test else [])
    others = sorted(_folders(root) - set(used), key=lambda name: (name.lower() in TESTS, name))
    try:
        with os.scandir(root) as entries:
            images = sum(ending(entry.name) in EXTENSIONS and entry.is_file() for entry in entries)
    except OSError as error:
        return f"{root} cannot be listed ({error.strerror}), so nothing is known of what is there beside {train}/"
    parts = [f"{shown(name)}/" for name in others] + ([f"{images:,} image{'s' * (images > 1)}"] if images else [])
    if not parts:
        return ""
    place = os.path.join(root, others[0]) if others else "FOLDER"
    return (
        f"not used, beside {' and '.join(f'{name}/' for name in used)} in {root}: {few(parts)}; "
        f"to train on more, name it too: --data.root {shlex.quote(root)} {shlex.quote(place)}"
    )
