"""Finds the images that a run trains on and, where there are labels, those that kNN compares."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lewel.data import labels, listing, places
from lewel.data.folder import Folder
from lewel.data.found import LOOKED_AT, Found
from lewel.data.labels import Compared, Item
from lewel.data.splits import Source, Split, read
from lewel.data.walk import EXTENSIONS, Identities, PassedOver, ending, few, shown
from lewel.errors import LewelError
from lewel.recipe.schema import Data

EXPECTED = (
    "a folder of images, with or without train/ and test/ (or val/) that hold a folder for each class; several of "
    "these; or a file that lists images, one a line"
)
_WAYS_OUT = "; --data.eval ROOT names other labelled images for kNN, and --data.root {} alone trains without labels"


@dataclass(frozen=True)
class Layout:
    """Where the images of a run are."""

    train: Folder
    labelled: int  # so many of train come first and have labels, the others have -1
    bank: Folder | None  # the labelled images of data.eval, in place of those of train
    test: Folder | None  # None where nothing has labels
    num_classes: int
    found: Found


def find(config: Data, roots: Sequence[str]) -> Layout:
    """The images below roots, as config chooses from them. Raises LewelError where there are none, or lists do not fit.

    Those with labels come first; after them those of a root without labels and those beside the class folders.
    """
    if not roots:
        raise LewelError(f"data.root is empty; --data.root must name {EXPECTED}")
    passed = PassedOver()
    sources = [read(places.named(root, EXPECTED), passed) for root in roots]
    if empty := next((source for source in sources if not source.train.paths), None):
        raise LewelError(_nothing(empty, several=len(sources) > 1))
    used = _used(config, sources)
    paired = [source for source in sources if source.test]
    names = labels.classes(paired, used)
    for source in () if config.eval else paired:  # else nothing is made of these labels
        labels.check_same(source, used, _WAYS_OUT.format(shlex.quote(source.train.folder)))
    items = _once(list(_items(sources, names)), sources, passed)
    items = _chosen(config, sources, items, used, passed)
    if not items:
        raise LewelError(f"the class folders that data.classes {config.classes} lists hold no images")
    found = Found(
        where=_places(source.train for source in sources),
        kinds=Counter(ending(item.path) for item in items),
        folders=_folders(sources, items),
        sample=[items[i].path for i in _spaced(len(items))],
        labelled=all(item.label >= 0 for item in items if item.folder),
        turned=config.exif_rotate,
        beside=[source.beside for source in sources if source.beside],
        passed=passed,
    )
    bank = [item for item in items if item.label >= 0]
    compared = labels.of_eval(config.eval, found.in_eval) if config.eval else _compared(sources, names, bank)
    unlabelled = len(items) - len(bank)
    found.labels, found.why_none = compared.said, compared.why_none
    found.one_class = len({item.label for item in compared.bank}) == 1
    if bank and unlabelled and not config.eval:
        found.labels += f"; {unlabelled:,} training images have no label"
    return Layout(
        _folder(items, found.where, config),
        len(bank),
        _folder(compared.bank, config.eval, config) if config.eval else None,
        _folder(compared.test, compared.tested, config) if compared.names else None,
        len(compared.names),
        found,
    )


def _places(splits: Iterable[Split]) -> str:
    """Where splits are, each place once."""
    return few(list(dict.fromkeys(split.folder for split in splits)))


def _spaced(count: int) -> Iterator[int]:
    """LOOKED_AT numbers below count at equal distances, or all."""
    most = min(count, LOOKED_AT)
    return (i * count // most for i in range(most))


def _folders(sources: Sequence[Source], items: Sequence[Item]) -> Counter[str]:
    """How many items are in each class folder; where all are in one, and have no label, in the folders further down."""
    counts = Counter(item.folder for item in items if item.folder)
    place = sources[0].train.folder
    if (
        len(sources) > 1
        or os.path.isfile(place)
        or len(counts) != 1
        or counts.total() < len(items)
        or items[0].label >= 0
    ):
        return counts
    below = Counter(os.path.dirname(item.path) for item in items)
    depth = os.path.relpath(os.path.commonpath(below), place).count(os.sep) + 2
    counts.clear()
    for folder, count in below.items():
        counts[os.sep.join(os.path.relpath(folder, place).split(os.sep)[:depth])] += count
    return counts


def _folder(items: Sequence[Item], where: str, config: Data) -> Folder:
    return Folder([Path(item.path) for item in items], [item.label for item in items], Path(where), config)


def _items(sources: Sequence[Source], names: Sequence[str]) -> Iterator[Item]:
    """Every training image, those with a label first."""
    known = set(names)
    for source in sources:
        if source.test:
            yield from labels.labelled(source.train, names)
    for source in sources:
        for path, name in zip(source.train.paths, source.train.classes, strict=True):
            if not source.test or name not in known:
                yield Item(path, -1, name)


def _once(items: list[Item], sources: Sequence[Source], passed: PassedOver) -> list[Item]:
    """items without those that lie below two of the sources; within one a folder is read once already."""
    if len(sources) == 1:
        return items
    identities = Identities()
    kept: dict[str, Item] = {}
    for item in items:
        if kept.setdefault(identities.of(item.path), item) is not item:
            passed.add("images that data.root names twice", item.path)
    return list(kept.values())


def _used(config: Data, sources: Sequence[Source]) -> set[str] | None:
    """The class folders that data.classes lists, or None for all."""
    if not config.classes:
        return None
    names = sorted(set().union(*(source.train.names | source.train.empty for source in sources)))
    return listing.classes(config.classes, names, _places(source.train for source in sources))


def _chosen(
    config: Data, sources: Sequence[Source], items: list[Item], used: set[str] | None, passed: PassedOver
) -> list[Item]:
    """Those of items that data.classes and data.train_list choose."""
    listed = None
    if config.train_list:
        starts = [place for source in sources for place in source.places]
        listed = listing.chosen(config.train_list, [item.path for item in items], starts, passed)
        items = [item for item in items if item.path in listed]
    if used is None:
        return items
    left_out = [item.path for item in items if item.folder not in used]
    if left_out:
        which = "images that data.train_list lists and" if config.train_list else "images that"
        passed.add(f"{which} are not in a class of data.classes", left_out[0], len(left_out))
    kept = [item for item in items if item.folder in used]
    if listed is not None and not kept:
        raise LewelError(f"data.train_list {config.train_list} lists no image of the classes in use ({min(used)}, ...)")
    return kept


def _nothing(source: Source, several: bool) -> str:
    """The sentence about a place without a single image, which is one of several or the only one."""
    read(Path(source.root), passed := PassedOver())  # again, for what was passed over there alone
    lines = passed.lines()
    return (
        f"there are no images in data.root {shown(source.train.folder)}: {places.contents(Path(source.train.folder))}"
        + (f"; passed over, {few(lines, 3)}" if lines else "")
        + f". Images are files ending in {', '.join(EXTENSIONS)}"
        + "; put some there, or leave the place out of data.root" * several
    )


def _compared(sources: Sequence[Source], names: tuple[str, ...], bank: list[Item]) -> Compared:
    """What kNN compares where data.root has labels; else nothing, and the sentence about it."""
    splits = [source.test for source in sources if source.test]
    test = _once([item for split in splits for item in labels.labelled(split, names)], sources, PassedOver())
    if bank and test:
        where = _places(source.train for source in sources if source.test)
        return labels.compared(names, bank, test, where, _places(splits))
    why = sources[0].why or "no training image that is used has a label"
    folders = (source for source in sources if not source.test and os.path.isdir(source.root))
    own = next((source for source in folders if source.train.has_classes), None)
    remedy = "--data.eval ROOT names labelled images for it, in a folder for each class"
    if own is not None:
        remedy += f"; if the folders of {own.root} are classes: --data.eval {shlex.quote(own.root)}"
    return Compared((), [], [], f"training needs no labels; kNN is off: {why}. {remedy}", why_none=why)
