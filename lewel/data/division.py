"""Which folders of a place hold training images and which hold test images, by their names."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Sequence
from functools import partial
from itertools import islice
from typing import NamedTuple

from lewel.data.walk import EXTENSIONS, ending, is_passed_over, shown
from lewel.errors import LewelError

TRAINS = ("train", "training")  # folders with training images, in small letters
TESTS = ("test", "val", "valid", "validation", "testing")  # with test images; the first that fits train/ is used
_LIKE = re.compile(rf"({'|'.join((*TRAINS, *TESTS))})([-_.\d]|$)")  # train2017, val.X, test_set


class Divided(NamedTuple):
    """A folder below a place, "" for the place itself, and those in it with training and with test images, by names."""

    folder: str
    trains: list[str]
    tests: list[str]


def train_folder(root: str) -> str | None:
    """The folder of root with its training images: train/, or another spelling where test images lie beside it.

    None where there is none, or train/ is a class. Raises LewelError where it is a link that leads nowhere.
    """
    if os.path.isdir(os.path.join(root, "train")):
        return None if _is_class(root, "train") else "train"
    if broken := broken_links(root, TRAINS):
        raise LewelError(
            f"{shown(leads_nowhere(os.path.join(root, broken[0])))}; expected a folder of training images. Restore "
            "what it leads to, or remove the link"
        )
    return next(iter(spelt(root, TRAINS)), None) if spelt(root, TESTS) else None


def _is_class(root: str, name: str) -> bool:
    """Whether folder name of root, itself a split by its name, holds images alone, as several others there do."""
    if not _is_exact(os.path.basename(os.path.abspath(root))):
        return False
    others = sorted(folders(root) - {name})
    if len(others) < 2 or any(_LIKE.match(other.lower()) for other in others) or folders(os.path.join(root, name)):
        return False
    return _holds_images(root, name) and len(list(islice((o for o in others if _holds_images(root, o)), 2))) == 2


def _holds_images(root: str, name: str) -> bool:
    try:
        with os.scandir(os.path.join(root, name)) as entries:
            return any(ending(entry.name) in EXTENSIONS for entry in entries)
    except OSError:
        return False


def spelt(root: str, names: tuple[str, ...]) -> list[str]:
    """The folders of root that have one of names in small or large letters, in the order of names."""
    found = [name for name in folders(root) if name.lower() in names]
    return sorted(found, key=lambda name: (names.index(name.lower()), name != name.lower(), name))


def folders(folder: str) -> set[str]:
    """The names of the folders in folder, none where it cannot be listed; of that the walk tells."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_dir() and not is_passed_over(entry.name)}
    except OSError:
        return set()


def broken_links(root: str, names: tuple[str, ...]) -> list[str]:
    """Of the links in root that lead nowhere those that have one of names, in small or large letters."""
    try:
        found = [name for name in os.listdir(root) if name.lower() in names]
    except OSError:
        return []
    return sorted(n for n in found if os.path.islink(path := os.path.join(root, n)) and not os.path.exists(path))


def leads_nowhere(link: str) -> str:
    """A sentence about a link that leads nowhere."""
    return f"{link} is a link to {os.readlink(link)}, which is not there or may not be read"


def otherwise(names: Collection[str], others: Collection[str]) -> str:
    """How some of names are written otherwise in others, which holds none of them as they are, in brackets; or ""."""
    for form, how in (
        (str.lower, "upper and lower case differ"),
        (partial(unicodedata.normalize, "NFC"), "the same letters in another Unicode form"),
    ):
        if not {form(name) for name in names}.isdisjoint(form(name) for name in others):
            return f" ({how})"
    return ""


def splits_among(names: Collection[str]) -> set[str]:
    """Those of the folders names that are no classes; train2017 and val_set are some where both lie there."""
    like = {name for name in names if _LIKE.match(name.lower())}
    both = {is_test(name) for name in like} == {False, True}
    return {name for name in like if both or _is_exact(name)}


def is_test(name: str) -> bool:
    """Whether a split, by its name, holds test images."""
    return name.lower().startswith(("test", "val"))


def is_used(found: Divided) -> bool:
    """Whether its folders have the names by which they are used where the folder they lie in is named."""
    return all(any(map(_is_exact, names)) for names in (found.trains, found.tests))


def _is_exact(name: str) -> bool:
    return name.lower() in (*TRAINS, *TESTS)


def divided(root: str, paths: Sequence[str]) -> list[Divided]:
    """Where test images are among paths, the images below root, by the names of their folders."""
    start = len(os.path.join(root, ""))
    inside: defaultdict[str, set[str]] = defaultdict(set)  # of each folder the names of those in it that hold images
    for folder in {path.rpartition(os.sep)[0] for path in paths}:
        below = folder[start:]
        while below:
            below, _, name = below.rpartition(os.sep)
            if name in inside[below]:
                break
            inside[below].add(name)
    found, left = [], [""]
    while left:
        folder = left.pop()
        splits = splits_among(inside[folder])
        trains, tests = ([name for name in sorted(splits) if is_test(name) == test] for test in (False, True))
        if tests:
            found.append(Divided(folder, trains, tests))
        left += [os.path.join(folder, name) for name in inside[folder] - splits]
    return sorted(found)
