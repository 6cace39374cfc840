from __future__ import annotations

import math

import pytest
import torch

from lewel.cost.live import LiveStorages
from lewel.evaluation import knn


def correct(bank, bank_labels, test, labels, num_classes, *, k=(200,), block=16384, shares=1, **options):
    """As many of test as the bank classifies rightly, which comes in blocks, and in shares as of several processes."""
    reach, found = min(max(k), len(bank)), []
    for part in range(shares):
        rows, truth = (x[part::shares] for x in (bank, bank_labels))
        batches = zip(rows.split(3), truth.split(3), strict=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(knn, "ROWS", block)
            found.append(knn.nearest(knn.blocks(batches, len(rows)), test.clone(), reach))
    merged = knn.merged(knn.Neighbours(*map(torch.cat, zip(*found, strict=True))), shares)
    return knn.correct(merged, labels, num_classes, k=k, **options)


@pytest.mark.parametrize("shares", [1, 2, 7])
@pytest.mark.parametrize("block", [1, 5, 64, 16384])
def test_blocks_and_shares_find_what_all_at_once_finds(block, shares):
    """By plain topk over all similarities, in float64, where no two are alike; a k beyond the bank too."""
    draw = torch.Generator().manual_seed(0)
    bank, test = (torch.randn(n, 8, dtype=torch.float64, generator=draw) for n in (100, 1100))
    bank_labels, labels = (torch.randint(5, (n,), generator=draw) for n in (100, 1100))
    similarity = torch.nn.functional.normalize(test) @ torch.nn.functional.normalize(bank).T
    k, expected = (1, 20, 999), []
    for reach in k:
        best, place = similarity.topk(min(reach, 100))
        sums = torch.zeros(1100, 5, dtype=torch.float64).scatter_add_(1, bank_labels[place], (best / 0.1).exp())
        expected.append(int((sums.argmax(1) == labels).sum()))
    assert correct(bank, bank_labels, test, labels, 5, k=k, block=block, shares=shares) == expected


@pytest.mark.parametrize("block", [1, 2, 100])
@pytest.mark.parametrize("shares", [1, 2])
def test_ties_count_as_often_as_there_are_neighbours(block, shares):
    """All of the bank is alike: whichever 4 of 6 vote, 2 at least are of class 0, which wins with 4 of them."""
    bank, labels = torch.ones(6, 3), torch.tensor([0, 0, 0, 0, 0, 0])
    found = correct(bank, labels, torch.ones(2, 3), torch.tensor([0, 1]), 2, k=(4, 6), block=block, shares=shares)
    assert found == [1, 1]


def test_the_memory_that_is_foretold_is_what_is_held(monkeypatch):
    monkeypatch.setattr(knn, "ROWS", 4000)
    tests, width, count, k = 3000, 64, 40_000, 200
    batches = ((torch.randn(500, width), torch.zeros(500, dtype=torch.int64)) for _ in range(80))
    with LiveStorages() as live:
        live.now = 0
        knn.nearest(knn.blocks(batches, count), torch.randn(tests, width), k)
    assert live.most == pytest.approx(knn.needed(tests, width, count, k), rel=0.15)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_votes_are_weighted_by_similarity(temperature):
    # Seen from (1, 0): one neighbour of class 0 at cosine 1, two of class 1 at cosine c; class 1 wins where
    # 2 exp(c / T) > exp(1 / T), that is c > 1 - T ln 2.
    limit = 1 - temperature * math.log(2)
    for cosine, winner in ((limit + 0.01, 1), (limit - 0.01, 0)):
        sine = math.sqrt(1 - cosine**2)
        bank = torch.tensor([[2.0, 0.0], [cosine, sine], [cosine, -sine], [-1.0, 0.0]])
        test, labels = torch.tensor([[5.0, 0.0]]), torch.tensor([0, 1, 1, 2])
        found = correct(bank, labels, test, torch.tensor([winner]), 3, k=(3,), temperature=temperature)
        assert found == [1]


def test_the_right_ones_of_the_test_set_are_counted():
    bank = torch.eye(3)
    test, labels = torch.eye(3)[[0, 1, 2, 0]], torch.tensor([0, 1, 2, 1])
    assert correct(bank, torch.arange(3), test, labels, 3) == [3]


def test_a_test_set_of_several_batches_is_counted_as_a_whole():
    labels = torch.arange(3000) % 3
    test = torch.eye(3)[labels]
    for wrong in (0, 7):
        given = (labels + (torch.arange(3000) < wrong)) % 3
        assert correct(torch.eye(3), torch.arange(3), test, given, 3, k=(3, 1)) == [3000 - wrong] * 2


def test_so_many_neighbours_vote_as_are_asked_for():
    """30 of class 0 are nearest, 170 of class 1 come next, and a thousand of class 2 are last."""
    counts, cosines = torch.tensor([30, 170, 1000]), torch.tensor([0.9, 0.89, 0.88])
    cosine, labels = cosines.repeat_interleave(counts), torch.arange(3).repeat_interleave(counts)
    bank = torch.stack([cosine, (1 - cosine**2).sqrt()], dim=1)
    winners = {20: 0, 30: 0, 200: 1, 1200: 2, 9999: 2}  # a k beyond the bank lets all of it vote
    for label in range(3):
        found = correct(bank, labels, torch.tensor([[1.0, 0.0]]), torch.tensor([label]), 3, k=tuple(winners))
        assert found == [winner == label for winner in winners.values()]


def test_features_are_normalised_in_place():
    """There may be no room for a second."""
    bank, test = 3 * torch.eye(3), torch.tensor([[0.0, 0.0, 5.0], [0.0, 0.0, 0.0]])
    knn.nearest([(bank, torch.arange(3))], test, 3)
    assert torch.equal(bank, torch.eye(3))
    assert torch.equal(test, torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]))


def test_batches_become_blocks_in_one_place(monkeypatch):
    monkeypatch.setattr(knn, "BLOCK", 4 * 2 * 4)  # four rows of two numbers
    batches = [(torch.full((n, 2), float(n)), torch.full((n,), n)) for n in (3, 9, 1)]
    places, labels, rows = set(), [], []
    for block, truth in knn.blocks(batches, 13):
        places.add(block.data_ptr())
        labels.append(truth.tolist())
        rows += block[:, 1].tolist()
    assert labels == [[3, 3, 3, 9], [9] * 4, [9] * 4, [1]]
    assert rows == [3.0] * 3 + [9.0] * 9 + [1.0]
    assert len(places) == 1


def test_two_hundred_neighbours_have_the_plain_name_in_the_log():
    assert [knn.key("knn_untrained", k) for k in (200, 20)] == ["knn_untrained", "knn_untrained_20"]
