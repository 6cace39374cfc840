"""Which images have labels that kNN can use."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Container, Sequence
from pathlib import Path
from typing import NamedTuple

from lewel.data import places
from lewel.data.division import TESTS, is_test, otherwise, splits_among
from lewel.data.splits import Source, Split, read
from lewel.data.walk import EXTENSIONS, PassedOver, few, shown
from lewel.errors import LewelError

LABELLED = "a folder with a folder of images for each class, or with train/ and test/ (or val/) that hold these"
TEST_EVERY = 5  # where there are no test images, every fifth image of a class is one


class Item(NamedTuple):
    """An image: its path, the number of its class or -1, and the class folder it lies in or ""."""

    path: str
    label: int
    folder: str


def classes(sources: Sequence[Source], used: Container[str] | None) -> tuple[str, ...]:
    """The class folders, among those used, of the training images of all sources, sorted: one name is one class."""
    return tuple(sorted({name for source in sources for name in source.train.names if used is None or name in used}))


def check_same(source: Source, used: Container[str] | None, ways_out: str) -> None:
    """Raises LewelError where training and test images of source are not of the same classes, among those used.

    ways_out is how the sentence ends.
    """
    train, test = source.train, source.test
    assert test is not None
    here, there = ({name for name in split.names if used is None or name in used} for split in (train, test))
    if odd := sorted(here ^ there):
        raise LewelError(_differ(train, test, odd, odd[0] in here) + ways_out)
    empty = next((name for name in sorted(train.empty) if used is not None and name in used), None)
    if empty:
        raise LewelError(_holds_none(train, empty) + ways_out)


def _differ(first: Split, other: Split, odd: Sequence[str], in_first: bool) -> str:
    having, lacking = (first, other) if in_first else (other, first)
    if odd[0] in lacking.empty or lacking.why_none(odd[0]):
        return _holds_none(lacking, odd[0])
    return (
        f"{shown(first.folder)} and {shown(other.folder)} must hold the same class folders, but {len(odd)} are in one "
        f"of them only, among them {odd[0]!r} in {shown(having.folder)}" + otherwise(odd[:1], lacking.names)
    )


def _holds_none(split: Split, name: str) -> str:
    folder = shown(os.path.join(split.folder, name))
    if why := split.why_none(name):
        return f"no images come from the class folder {folder}: {why}; change that, or remove the folder"
    return (
        f"the class folder {folder} holds no images "
        f"(files ending in {', '.join(EXTENSIONS)}); put some in, or remove the folder"
    )


def labelled(split: Split, names: Sequence[str]) -> list[Item]:
    """The images of split in the class folders names, each with the number of its own."""
    number = {name: label for label, name in enumerate(names)}
    return [Item(path, number[name], name) for path, name in split.labelled() if name in number]


class Compared(NamedTuple):
    """The images that kNN compares, all of them with labels, and a sentence about them."""

    names: tuple[str, ...]  # of the classes; none where kNN is off
    bank: list[Item]
    test: list[Item]
    said: str
    tested: str = ""  # where the test images are
    why_none: str = ""  # why kNN is off


def compared(
    names: tuple[str, ...], bank: list[Item], test: list[Item], where: str, tested: str, how: str = ""
) -> Compared:
    """What kNN compares, told: the images of bank are in where, those of test in tested."""
    count = len({item.label for item in bank})
    what = f"{count:,} classes" if count > 1 else "one class"
    said = f"kNN: {len(bank):,} images of {what} in the bank ({where}), {len(test):,} test images ({how or tested})"
    known = {item.label for item in bank}
    if lost := [item for item in test if item.label not in known]:
        classes = few(sorted({shown(item.folder) for item in lost}))
        said += f"; {len(lost):,} of these are of classes that the bank lacks ({classes}), and cannot be right"
    if not how and (shared := _folders(bank).keys() & _folders(test).keys()):
        both = [shown(path) for folder, path in sorted(_folders(test).items()) if folder in shared]
        said += f"; images of the bank are test images too, and compared with themselves: those in {few(both)}"
    return Compared(names, bank, test, said, tested)


def _folders(items: Sequence[Item]) -> dict[str, str]:
    """The folders that items lie in, by their real paths."""
    return {os.path.realpath(folder): folder for folder in {os.path.dirname(item.path) for item in items}}


def of_eval(root: str, passed: PassedOver) -> Compared:
    """The labelled images of data.eval. Raises LewelError where it has none."""
    source = read(places.existing(root, LABELLED, "data.eval"), passed)
    train, test = source.train, source.test
    if test is not None:
        every = (
            f"; --data.eval {shlex.quote(train.folder)} alone takes every {TEST_EVERY}th image there for a test image"
        )
        check_same(source, None, every)
        names = classes([source], None)
        return compared(names, labelled(train, names), labelled(test, names), train.folder, test.folder)
    unsure = set() if train.has_classes else splits_among(train.names)
    inside = [name for name in sorted(train.names) if name in TESTS or (name in unsure and is_test(name))]
    if inside and train.folder == source.root:
        raise LewelError(
            f"data.eval {root} holds {inside[0]}/ but no train/, so its folders are no classes; name the folder that "
            f"holds the class folders: --data.eval {os.path.join(source.root, inside[0])}"
        )
    if not train.names:
        reason = train.passed.why(train.folder)
        raise LewelError(
            f"data.eval {root} has no labels: there are no class folders with images in {shown(train.folder)}, "
            f"{places.contents(Path(train.folder))}{f'; {reason}' * bool(reason)}. Expected {LABELLED}"
        )
    names = tuple(sorted(train.names))
    bank, held = _without_every_fifth(labelled(train, names))
    if not held:
        raise LewelError(
            f"data.eval {root} has no test/ or val/ of its own, and no class has {TEST_EVERY} images, of which one "
            f"would be a test image. Expected {LABELLED}"
        )
    found = compared(names, bank, held, train.folder, train.folder, f"every {TEST_EVERY}th of a class there")
    small = set(names) - {item.folder for item in held}
    said = found.said + f"; {source.why}" * (train.folder != source.root)
    without = f"; classes of fewer than {TEST_EVERY} images, which have no test image: {len(small):,}"
    return found._replace(said=said + without * bool(small))


def _without_every_fifth(items: Sequence[Item]) -> tuple[list[Item], list[Item]]:
    """items in two parts, without and with every fifth image of a class."""
    seen: Counter[int] = Counter()
    parts: tuple[list[Item], list[Item]] = [], []
    for item in items:
        seen[item.label] += 1
        parts[seen[item.label] % TEST_EVERY == 0].append(item)
    return parts
