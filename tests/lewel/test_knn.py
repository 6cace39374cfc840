from __future__ import annotations

import math

import torch

from lewel.evaluation import knn


def test_votes_are_weighted_by_similarity(monkeypatch):
    monkeypatch.setattr(knn, "NEIGHBOURS", 3)
    # Seen from (1, 0): one neighbour of class 0 at cosine 1, two of class 1 at cosine c; class 1 wins where
    # 2 exp(c / 0.1) > exp(1 / 0.1), that is c > 1 - 0.1 ln 2.
    limit = 1 - 0.1 * math.log(2)
    for cosine, winner in ((limit + 0.01, 1), (limit - 0.01, 0)):
        sine = math.sqrt(1 - cosine**2)
        bank = torch.tensor([[2.0, 0.0], [cosine, sine], [cosine, -sine], [-1.0, 0.0]])
        labels = torch.tensor([0, 1, 1, 2])
        assert knn.correct(bank, labels, torch.tensor([[5.0, 0.0]]), torch.tensor([winner]), 3) == 1


def test_the_right_ones_of_the_test_set_are_counted():
    bank = torch.eye(3)
    test, labels = torch.eye(3)[[0, 1, 2, 0]], torch.tensor([0, 1, 2, 1])
    assert knn.correct(bank, torch.arange(3), test, labels, 3) == 3


def test_a_test_set_of_several_batches_is_counted_as_a_whole():
    labels = torch.arange(3000) % 3
    test = torch.eye(3)[labels]
    assert knn.correct(torch.eye(3), torch.arange(3), test, labels, 3) == 3000
    assert knn.correct(torch.eye(3), torch.arange(3), test, (labels + (torch.arange(3000) < 7)) % 3, 3) == 2993


def test_two_hundred_neighbours_vote():
    """30 of class 0 are nearest, 170 of class 1 come next, and a thousand of class 2 are just too far."""
    counts, cosines = torch.tensor([30, 170, 1000]), torch.tensor([0.9, 0.89, 0.88])
    cosine, labels = cosines.repeat_interleave(counts), torch.arange(3).repeat_interleave(counts)
    bank = torch.stack([cosine, (1 - cosine**2).sqrt()], dim=1)
    assert knn.correct(bank, labels, torch.tensor([[1.0, 0.0]]), torch.tensor([1]), 3) == 1
