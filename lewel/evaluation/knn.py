"""The weighted k-nearest-neighbour classifier (Wu et al. 2018) that says what frozen features are worth."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

NEIGHBOURS, TEMPERATURE = 200, 0.1


@torch.no_grad()
def correct(bank: Tensor, bank_labels: Tensor, test: Tensor, test_labels: Tensor, num_classes: int) -> int:
    """How many of test (M, C) bank (N, C) classifies rightly; a neighbour of cosine s has exp(s / 0.1) votes."""
    bank, test = F.normalize(bank, dim=1), F.normalize(test, dim=1)
    right = 0
    for rows, labels in zip(test.split(1024), test_labels.split(1024), strict=True):
        similarity, neighbour = (rows @ bank.T).topk(min(NEIGHBOURS, len(bank)))
        votes = rows.new_zeros(len(rows), num_classes)
        votes.scatter_add_(1, bank_labels[neighbour], (similarity / TEMPERATURE).exp())
        right += int((votes.argmax(1) == labels).sum())
    return right


@torch.no_grad()
def describe(features: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """(features (N, C) float32, labels (N,)) of batches of (images, labels)."""
    pairs = [(features(images), labels) for images, labels in batches]
    rows, labels = zip(*pairs, strict=True)
    return torch.cat(rows), torch.cat(labels)
