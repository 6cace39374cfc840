"""Which of the training images keep their labels: those of a list, SimCLR's among them, or a share of every class."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lewel import data, distributed
from lewel.data import files, folder, listing, one_view
from lewel.data.walk import PassedOver, few, shown
from lewel.errors import LewelError

SETTING = "--list"
# How sha256_of begins for imagenet_subsets/1percent.txt and 10percent.txt of google-research/simclr, by percent.
SIMCLR = {1: "c03b85c3942f663c", 10: "d9bc1445836f11cb"}
NAMED = 5  # classes that a sentence names


@dataclass(frozen=True)
class Share:
    """The training images whose labels are used."""

    chosen: np.ndarray
    """(M,) int64, their positions in the bank, the lowest first"""
    said: str
    """what they are, in words"""
    simclr: bool = False
    """whether they are those of SimCLR's list"""
    sha256: str = ""
    """of the names of the images of the list, where there is one"""


def sha256_of(names: Sequence[str]) -> str:
    """The hash of file names without their folders: sorted by their bytes, a newline after each.

    So it does not depend on the order of a list, on its line ends, nor on whether it has names or paths, or labels too.
    """
    bare = sorted(os.fsencode(os.path.basename(name)) for name in names)
    return hashlib.sha256(b"".join(name + b"\n" for name in bare)).hexdigest()


def listed(file: str, percent: int, sets: data.Datasets) -> Share:
    """The labelled training images that file names, one a line: a path or a bare name, as data.train_list takes them.

    The first process reads the list for all, which call it together. Raises LewelError for a list of SimCLR's for
    another percentage, for one that names images that are not there, and for images that are in no files.
    """
    return distributed.from_leader(lambda: _listed(file, percent, sets))


def balanced(labels: np.ndarray, percent: int, seed: int) -> Share:
    """percent of the images of every class, at least one of each, drawn by seed; labels (N,) int64.

    With the same seed those of 1 % are among those of 10 %.
    """
    chosen, counts = [], []
    for label in np.unique(labels).tolist():
        places = np.flatnonzero(labels == label)
        order = np.random.default_rng([seed, label]).permutation(places)
        counts.append(max(1, round(len(places) * percent / 100)))
        chosen.append(order[: counts[-1]])
    each = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    return Share(np.sort(np.concatenate(chosen)), f"{each} of every class, drawn by seed {seed}")


def labels_of(sets: data.Datasets) -> np.ndarray:
    """The labels (N,) int64 of the bank, also where its images are not read yet that are to lie in memory."""
    images = _files_of(sets)
    return one_view.labels_of(sets.bank) if images is None else images.labels[: len(sets.bank)]


def check_classes(share: Share, labels: np.ndarray, sets: data.Datasets) -> None:
    """Raises LewelError where a class of the training images has none among the chosen; labels (N,) are the bank's."""
    there = np.unique(labels)
    missing = np.setdiff1d(there, labels[share.chosen]).tolist()
    if missing:
        named = few([_class(label, labels, sets) for label in missing], NAMED)
        raise LewelError(
            f"{len(missing)} of {len(there)} classes have no image among the {len(share.chosen):,} labelled ones: "
            f"{named}; no classifier can learn what it has no example of, so choose images of every class"
        )


def _listed(file: str, percent: int, sets: data.Datasets) -> Share:
    images = _files_of(sets)
    if images is None:
        raise LewelError(
            f"{SETTING} {file} names files, and the training images are in none; leave it out, and {percent} % of "
            "every class are drawn"
        )
    paths = [os.fsdecode(path) for path in images.paths[: len(sets.bank)]]
    passed = PassedOver()
    names = listing.chosen(file, paths, [str(images.split), *images.config.roots], passed, SETTING)
    chosen = np.array([place for place, path in enumerate(paths) if path in names], dtype=np.int64)
    sha256 = sha256_of([paths[place] for place in chosen])
    found = next((share for share, known in SIMCLR.items() if sha256.startswith(known)), None)
    if found not in (None, percent):
        raise LewelError(
            f"{SETTING} {file} is SimCLR's list of {found} %, and --labels is {percent}; give --labels {found}, or "
            f"the list of {percent} %"
        )
    said = f"SimCLR's {percent} % list" if found else f"a list of {len(chosen):,} images"
    said += f" (passed over, {few(passed.lines(), 3)})" if passed.lines() else ""
    return Share(chosen, said, bool(found), sha256)


def _files_of(sets: data.Datasets) -> folder.Folder | None:
    """The files of the bank's images, which are the first of them; None where they are in no files."""
    split = getattr(sets.bank, "split", None)
    if isinstance(split, files.Labelled):
        split = split.split
    if split is None and sets.folders:  # they lie in memory: the bank is data.eval's, or part of the training images
        split = sets.folders[1] if len(sets.folders) == 3 else sets.folders[0]
    return split if isinstance(split, folder.Folder) else None


def _class(label: int, labels: np.ndarray, sets: data.Datasets) -> str:
    """A class in words: its number, and an image of it where there is a file of one."""
    images, places = _files_of(sets), np.flatnonzero(labels == label)
    example = f" (such as {shown(str(images.path(int(places[0]))))})" if images is not None else ""
    return f"class {label}{example}"
