"""Order of batches: fixed by seed and epoch alone, resumable within an epoch."""

import pytest
import torch

from lewel.config import Data
from lewel.data import Datasets, TrainLoader, build, eval_batches

SIZES = {"embedded_train": 100, "embedded_test": 20, "image_size": 32}


@pytest.fixture(scope="module")
def sets() -> Datasets:
    return build(Data(**SIZES), seed=0)


def order(loader: TrainLoader, epoch: int, first_step: int = 0) -> list[list[int]]:
    return [views.indices.tolist() for views in loader.epoch(epoch, first_step)]


def test_an_epoch_is_a_permutation_without_its_last_incomplete_batch(sets):
    loader = TrainLoader(sets.train, batch_size=32)
    batches = order(loader, 0)
    assert len(loader) == 3
    assert [len(batch) for batch in batches] == [32, 32, 32]
    seen = {i for batch in batches for i in batch}
    assert len(seen) == 96
    assert seen <= set(range(100))


def test_epochs_differ_and_repeat(sets):
    loader = TrainLoader(sets.train, batch_size=32)
    assert order(loader, 0) != order(loader, 1)
    assert order(loader, 0) == order(loader, 0)


def test_seeds_differ_in_order_but_not_in_images(sets):
    other = build(Data(**SIZES), seed=1)
    assert order(TrainLoader(other.train, 32), 0) != order(TrainLoader(sets.train, 32), 0)
    for ours, theirs in zip(eval_batches(other.test, 20), eval_batches(sets.test, 20), strict=True):
        assert torch.equal(ours[0], theirs[0])


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_within_an_epoch_gives_the_rest_of_it(sets, workers):
    loader = TrainLoader(sets.train, batch_size=20, workers=workers)
    whole, rest = list(loader.epoch(5)), list(loader.epoch(5, first_step=3))
    assert len(rest) == 2
    for views, expected in zip(rest, whole[3:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(views, expected, strict=True))


def test_the_two_views_differ(sets):
    views = next(iter(TrainLoader(sets.train, batch_size=32).epoch(0)))
    assert views.first.shape == views.second.shape == (32, 3, 32, 32)
    assert views.first.dtype == torch.float32
    assert ((views.first - views.second).abs().amax((1, 2, 3)) > 0.1).all()


def test_evaluation_is_in_order_and_complete(sets):
    batches = list(eval_batches(sets.bank, batch_size=64))
    assert [len(labels) for _, labels in batches] == [64, 36]
    again = torch.cat([images for images, _ in eval_batches(sets.bank, batch_size=7, workers=2)])
    assert torch.equal(again, torch.cat([images for images, _ in batches]))
