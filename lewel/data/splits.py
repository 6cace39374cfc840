"""What one place holds: its training images by class folder, and the test images that go with them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lewel.data import beside, listing
from lewel.data.division import (
    TESTS,
    broken_links,
    folders,
    leads_nowhere,
    otherwise,
    spelt,
    splits_among,
    train_folder,
)
from lewel.data.walk import PassedOver, few, images_below


@dataclass
class Split:
    """Images in the order of their paths."""

    folder: str  # or the file that lists them
    paths: list[str]
    classes: list[str]  # of each image the class folder it lies in, "" for one beside these
    empty: set[str] = field(default_factory=set)  # class folders without images
    passed: PassedOver = field(default_factory=PassedOver)  # over in folder, and maybe elsewhere

    @property
    def names(self) -> set[str]:
        """The class folders that hold images."""
        return set(self.classes) - {""}

    @property
    def has_classes(self) -> bool:
        """Whether the folders may be classes, which kNN could tell apart."""
        return len(self.names - splits_among(self.names)) > 1

    def why_none(self, name: str) -> str:
        """Why the class folder name gives no image, where it, or a folder in it, was passed over; else ""."""
        return self.passed.why(os.path.join(self.folder, name))

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
    name = train_folder(root)
    if name is None:
        train = _split(root, passed)
        why = f"{root} holds no train/ with class folders and test/ or val/ beside it"
        found = [beside.class_called_train(root)] if "train" in train.names else []
        found += [said] if (said := beside.trained_on(root, train.paths)) else []
        return Source(root, train, why=why, beside="; ".join(found))
    train = _split(os.path.join(root, name), passed)
    test, why = _test(root, train, passed)
    used = [name] + ([os.path.basename(test.folder)] if test else [])
    return Source(root, train, test, why, beside.not_used(root, used))


def _test(root: str, train: Split, passed: PassedOver) -> tuple[Split | None, str]:
    """The test images that have the class folders of train, or why there are none."""
    if not train.names:
        return None, f"{train.folder} holds no class folders"
    tried: list[tuple[Split, PassedOver]] = []
    none = f"{root} {'holds no folder test or val' if os.access(root, os.R_OK) else 'cannot be listed'}"
    for name in broken_links(root, TESTS):
        passed.add("links that lead nowhere", os.path.join(root, name))
        none = leads_nowhere(os.path.join(root, name))
    for name in spelt(root, TESTS):
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
    why += otherwise({name for split, _ in tried for name in split.names}, train.names)
    reasons = [reason for split, found in tried if (reason := found.why(split.folder))]
    return None, f"{why}; {few(reasons)}" if reasons else why


def _split(folder: str, passed: PassedOver) -> Split:
    paths = images_below(folder, passed)
    start = len(os.path.join(folder, ""))
    classes = [path[start:].rpartition(os.sep)[0].partition(os.sep)[0] for path in paths]
    empty = folders(folder) - set(classes)
    for path in (os.path.join(folder, name) for name in empty):
        if path not in passed.folders:
            passed.add("folders without images", path)
    return Split(folder, paths, classes, empty, passed)
