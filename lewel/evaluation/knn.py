"""The weighted k-nearest-neighbour classifier (Wu et al. 2018) that says what frozen features are worth."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

USUAL = 200  # neighbours, whose accuracy has the plain name in a log
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


@torch.no_grad()
def correct(
    bank: Tensor,
    bank_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    num_classes: int,
    *,
    k: Sequence[int] = (USUAL,),
    temperature: float = 0.1,
) -> list[int]:
    """How many rows of test (M, C) the rows of bank (N, C) classify rightly, for each number of neighbours in k.

    A neighbour of cosine s has exp(s / temperature) votes. A k beyond N lets all of the bank vote. Both float tensors
    are normalised in place, since a bank of ImageNet fills 10 GB. Labels are (N,) and (M,) int64.
    """
    for rows in (bank, test):
        rows /= rows.norm(dim=1, keepdim=True).clamp_min(1e-12)
    right = [0] * len(k)
    for rows, labels in zip(test.split(1024), test_labels.split(1024), strict=True):
        similarity, neighbour = (rows @ bank.T).topk(min(max(k), len(bank)))  # the nearest first
        votes, classes = (similarity / temperature).exp(), bank_labels[neighbour]
        for place, nearest in enumerate(k):
            sums = rows.new_zeros(len(rows), num_classes)
            sums.scatter_add_(1, classes[:, :nearest], votes[:, :nearest])
            right[place] += int((sums.argmax(1) == labels).sum())
    return right


@torch.no_grad()
def describe(
    features: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]], count: int
) -> tuple[Tensor, Tensor]:
    """(features (count, C) float32, labels (count,)) of batches of (images, labels), count images in all."""
    rows = all_labels = torch.empty(0)
    done = 0
    for images, labels in batches:
        described = features(images)
        if not done:  # one place for all of them: to join them in the end would take twice the memory
            rows = described.new_empty(count, described.shape[1])
            all_labels = labels.new_empty(count)
        rows[done : done + len(labels)], all_labels[done : done + len(labels)] = described, labels
        done += len(labels)
    return rows, all_labels
