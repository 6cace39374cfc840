"""The weighted k-nearest-neighbour classifier (Wu et al. 2018) that says what frozen features are worth."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

USUAL = 200  # neighbours, whose accuracy has the plain name in a log
BLOCK = 2**27  # bytes of a bank that are held at a time
ROWS = 16384  # of a block at most; fewer cost more in the choice of 200 neighbours, more gain nothing
TESTS = 1024  # that are compared with a block at a time
NAMES = ("knn_untrained", "knn_pixels", "knn")  # of the accuracies in a log


def key(name: str, k: int) -> str:
    """What the accuracy with k neighbours is called in a log: knn, or knn_20."""
    return name if k == USUAL else f"{name}_{k}"


def name(k: int) -> str:
    """What a person reads for kNN with k neighbours: kNN, or kNN-20."""
    return "kNN" if k == USUAL else f"kNN-{k}"


def accuracies(record: Mapping[str, Any], name: str = "knn") -> dict[int, float]:
    """The accuracies called name in a record of a log, by their numbers of neighbours, in the record's order."""
    named = re.compile(rf"{name}(?:_([0-9]+))?")
    return {int(match[1] or USUAL): record[match[0]] for match in map(named.fullmatch, record) if match}


def neighbours(records: Iterable[Mapping[str, Any]]) -> list[int]:
    """The numbers of neighbours of all accuracies in the records of logs, each once, in the records' order."""
    return list(dict.fromkeys(k for r in records for name in NAMES for k in accuracies(r, name)))


class Neighbours(NamedTuple):
    """Of each of M tests the k most similar rows of a bank; where it had fewer, the last are at -inf."""

    similarity: Tensor
    """(M, k) cosines, the highest first"""
    classes: Tensor
    """(M, k) int32"""


@torch.no_grad()
def nearest(bank: Iterable[tuple[Tensor, Tensor]], test: Tensor, k: int) -> Neighbours:
    """The neighbours of test (M, C) in a bank that comes in blocks: rows (n, C) and their labels (n,).

    No block is longer than the first. Rows and test are normalised in place, for there may be no room for a second.
    """
    _normalise(test)
    similarity, classes = test.new_full((len(test), k), -math.inf), test.new_zeros(len(test), k, dtype=torch.int32)
    space = test.new_empty(0)
    for rows, labels in bank:
        _normalise(rows)
        space = space if len(space) else test.new_empty(min(len(test), TESTS), k + len(rows))
        for tests, best, known in zip(test.split(TESTS), similarity.split(TESTS), classes.split(TESTS), strict=True):
            found = space[: len(tests), : k + len(rows)]  # the best so far, and beside them the whole block
            found[:, :k] = best
            torch.mm(tests, rows.T, out=found[:, k:])
            best[:], place = found.topk(k)
            old, new = known.gather(1, place.clamp(max=k - 1)), labels.int()[(place - k).clamp(min=0)]
            known[:] = torch.where(place < k, old, new)
    return Neighbours(similarity, classes)


def merged(found: Neighbours, shares: int) -> Neighbours:
    """The neighbours (M, k) in all of a bank, from those in its shares, one share after the other (shares M, k)."""
    k = found.similarity.shape[1]
    similarity, classes = (x.unflatten(0, (shares, -1)).transpose(0, 1).flatten(1) for x in found)
    best, place = similarity.topk(k)
    return Neighbours(best, classes.gather(1, place))


@torch.no_grad()
def correct(
    found: Neighbours, labels: Tensor, num_classes: int, *, k: Sequence[int] = (USUAL,), temperature: float = 0.1
) -> list[int]:
    """How many of M tests their neighbours classify as labels (M,) say, for each number of neighbours in k.

    A neighbour of cosine s has exp(s / temperature) votes. A k beyond those found lets all of them vote.
    """
    right = [0] * len(k)
    for similarity, classes, truth in zip(*(x.split(TESTS) for x in (*found, labels)), strict=True):
        votes, voted = (similarity / temperature).exp(), classes.long()
        for place, nearby in enumerate(k):
            sums = votes.new_zeros(len(votes), num_classes)
            sums.scatter_add_(1, voted[:, :nearby], votes[:, :nearby])
            right[place] += int((sums.argmax(1) == truth).sum())
    return right


@torch.no_grad()
def blocks(batches: Iterable[tuple[Tensor, Tensor]], count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Features (n, C) and labels (n,) of batches, count rows in all, in blocks of block_rows; the last may be shorter.

    A block lies where the one before it lay.
    """
    rows = labels = torch.empty(0)
    filled = 0
    for features, truth in batches:
        if not len(rows):
            size = block_rows(features.shape[1], count)
            rows, labels = features.new_empty(size, features.shape[1]), truth.new_empty(size)
        while len(truth):
            taken = min(len(truth), len(rows) - filled)
            rows[filled : filled + taken], labels[filled : filled + taken] = features[:taken], truth[:taken]
            features, truth, filled = features[taken:], truth[taken:], filled + taken
            if filled == len(rows):
                yield rows, labels
                filled = 0
    if filled:
        yield rows[:filled], labels[:filled]


def block_rows(width: int, count: int) -> int:
    """How many of count rows of a bank, each of width numbers, make a block."""
    return min(count, ROWS, max(1, BLOCK // (4 * width)))


def needed(tests: int, width: int, count: int, k: int) -> int:
    """Bytes that nearest holds of so many tests and a bank of count rows: test features, neighbours, and of a block its
    rows, its similarities and the choice among them."""
    k, rows = min(k, count), block_rows(width, count)
    return 4 * (tests * (width + 2 * k) + rows * width + min(tests, TESTS) * (rows + 11 * k))


def _normalise(rows: Tensor) -> None:
    rows /= rows.norm(dim=1, keepdim=True).clamp_min(1e-12)
