from __future__ import annotations

import math

import pytest
import torch

from lewel.evaluation import knn


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_votes_are_weighted_by_similarity(temperature):
    # Seen from (1, 0): one neighbour of class 0 at cosine 1, two of class 1 at cosine c; class 1 wins where
    # 2 exp(c / T) > exp(1 / T), that is c > 1 - T ln 2.
    limit = 1 - temperature * math.log(2)
    for cosine, winner in ((limit + 0.01, 1), (limit - 0.01, 0)):
        sine = math.sqrt(1 - cosine**2)
        bank = torch.tensor([[2.0, 0.0], [cosine, sine], [cosine, -sine], [-1.0, 0.0]])
        test, labels = torch.tensor([[5.0, 0.0]]), torch.tensor([0, 1, 1, 2])
        found = knn.correct(bank, labels, test, torch.tensor([winner]), 3, k=(3,), temperature=temperature)
        assert found == [1]


def test_the_right_ones_of_the_test_set_are_counted():
    bank = torch.eye(3)
    test, labels = torch.eye(3)[[0, 1, 2, 0]], torch.tensor([0, 1, 2, 1])
    assert knn.correct(bank, torch.arange(3), test, labels, 3) == [3]


def test_a_test_set_of_several_batches_is_counted_as_a_whole():
    labels = torch.arange(3000) % 3
    test = torch.eye(3)[labels]
    for wrong in (0, 7):
        given = (labels + (torch.arange(3000) < wrong)) % 3
        assert knn.correct(torch.eye(3), torch.arange(3), test, given, 3, k=(3, 1)) == [3000 - wrong] * 2


def test_so_many_neighbours_vote_as_are_asked_for():
    """30 of class 0 are nearest, 170 of class 1 come next, and a thousand of class 2 are last."""
    counts, cosines = torch.tensor([30, 170, 1000]), torch.tensor([0.9, 0.89, 0.88])
    cosine, labels = cosines.repeat_interleave(counts), torch.arange(3).repeat_interleave(counts)
    bank = torch.stack([cosine, (1 - cosine**2).sqrt()], dim=1)
    winners = {20: 0, 30: 0, 200: 1, 1200: 2, 9999: 2}  # a k beyond the bank lets all of it vote
    for label in range(3):
        found = knn.correct(bank, labels, torch.tensor([[1.0, 0.0]]), torch.tensor([label]), 3, k=tuple(winners))
        assert found == [winner == label for winner in winners.values()]


def test_features_are_normalised_in_place():
    """A bank of ImageNet fills 10 GB: there is no room for a second."""
    bank, test = 3 * torch.eye(3), torch.tensor([[0.0, 0.0, 5.0], [0.0, 0.0, 0.0]])
    knn.correct(bank, torch.arange(3), test, torch.tensor([2, 0]), 3)
    assert torch.equal(bank, torch.eye(3))
    assert torch.equal(test, torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]))


def test_what_batches_describe_lies_in_one_place():
    batches = [(torch.full((n, 2), float(n)), torch.full((n,), n)) for n in (3, 3, 1)]
    rows, labels = knn.describe(lambda images: 2 * images, batches, 7)
    assert torch.equal(rows, torch.tensor([6.0] * 6 + [2.0])[:, None].expand(7, 2))
    assert labels.tolist() == [3] * 6 + [1]


def test_two_hundred_neighbours_have_the_plain_name_in_the_log():
    assert [knn.key("knn_untrained", k) for k in (200, 20)] == ["knn_untrained", "knn_untrained_20"]
