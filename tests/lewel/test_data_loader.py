"""Order of batches: fixed by seed and epoch alone, resumable within an epoch, shared by processes."""

import multiprocessing
import os
import signal
from dataclasses import dataclass
from multiprocessing.synchronize import Semaphore

import numpy as np
import pytest
import torch

from lewel.data import Datasets, TrainLoader, Views, build, eval_batches, spaced
from lewel.data.loader import CPU, BatchKey
from lewel.errors import LewelError
from lewel.recipe.schema import Data

SIZES = {"embedded_train": 100, "embedded_test": 20, "image_size": 32}


@pytest.fixture(scope="module")
def sets() -> Datasets:
    return build(Data(**SIZES), seed=0)


def order(loader: TrainLoader, epoch: int) -> list[list[int]]:
    return [views.indices.tolist() for views in loader.epoch(epoch)]


def assert_same(ours: list[Views], theirs: list[Views]) -> None:
    for some, others in zip(ours, theirs, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


def test_an_epoch_is_a_permutation_without_its_last_incomplete_batch(sets):
    loader = TrainLoader(sets.train, batch_size=32)
    batches = order(loader, 0)
    assert len(loader) == 3
    assert [len(batch) for batch in batches] == [32, 32, 32]
    seen = {i for batch in batches for i in batch}
    assert len(seen) == 96
    assert seen <= set(range(100))


@pytest.mark.parametrize(
    ("images", "world", "batch", "shares"),
    [(100, 1, 32, [32, 32, 32, 4]), (100, 2, 32, [16, 16, 16, 2]), (99, 2, 32, [16, 16, 16, 2]), (96, 2, 32, [16] * 3)],
    ids=["one-process", "two", "two-that-one-image-is-repeated-for", "complete"],
)
def test_an_incomplete_batch_is_shared_equally_where_it_is_wanted(sets, images, world, batch, shares):
    class Some:
        seed, device = 0, CPU
        __len__ = staticmethod(lambda: images)
        __getitem__ = sets.train.__getitem__

    loaders = [TrainLoader(Some(), batch, rank=rank, world=world, drop_last=False) for rank in range(world)]
    parts = [order(loader, 3) for loader in loaders]
    assert all(list(map(len, part)) == shares and len(loader) == len(shares)
               for part, loader in zip(parts, loaders, strict=True))  # fmt: skip
    seen = [i for together in zip(*parts, strict=True) for part in together for i in part]
    assert set(seen) == set(range(images))
    assert seen[images:] == seen[: len(seen) - images]
    whole = [order(TrainLoader(Some(), batch, rank=rank, world=world), 3) for rank in range(world)]
    assert [part[: len(whole[0])] for part in parts] == whole


def test_epochs_differ_and_repeat(sets):
    loader = TrainLoader(sets.train, batch_size=32)
    assert order(loader, 0) != order(loader, 1)
    assert order(loader, 0) == order(loader, 0)


def test_seeds_differ_in_order_but_not_in_images(sets):
    other = build(Data(**SIZES), seed=1)
    assert order(TrainLoader(other.train, 32), 0) != order(TrainLoader(sets.train, 32), 0)
    for ours, theirs in zip(eval_batches(other.test, 20), eval_batches(sets.test, 20), strict=True):
        assert torch.equal(ours[0], theirs[0])


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_within_an_epoch_gives_the_rest_of_it(sets, workers, accumulate):
    loader = TrainLoader(sets.train, batch_size=20, workers=workers, accumulate=accumulate)
    whole, rest = list(loader.epoch(5)), list(loader.epoch(5, first_step=3))
    assert len(rest) == 2 * accumulate
    assert_same(rest, whole[3 * accumulate :])


class TestShares:
    """Of one global batch: 4 processes, each with 3 micro-batches a step of 24 images."""

    @pytest.mark.parametrize("workers", [0, 4])
    def test_a_step_of_all_processes_is_the_step_of_one(self, sets, workers):
        """In the order of the one process: first the first micro-batch of all, then the second of all."""
        alone = list(TrainLoader(sets.train, 24).epoch(1))
        loaders = [TrainLoader(sets.train, 24, workers, rank=rank, world=4, accumulate=3) for rank in range(4)]
        assert [len(loader) for loader in loaders] == [4] * 4
        shares = [list(loader.epoch(1)) for loader in loaders]
        assert [len(share) for share in shares] == [4 * 3] * 4
        assert {len(views.indices) for share in shares for views in share} == {2}
        for step, whole in enumerate(alone):
            parts = [share[3 * step + micro_batch] for micro_batch in range(3) for share in shares]
            assert_same([Views(*map(torch.cat, zip(*parts, strict=True)))], [whole])

    @pytest.mark.parametrize(("world", "accumulate", "better"), [(3, 1, 24), (1, 3, 24), (5, 2, 20), (32, 1, 32)])
    def test_a_batch_that_cannot_be_shared_is_refused(self, sets, world, accumulate, better):
        with pytest.raises(LewelError, match=f"got 25 images for {world} times {accumulate}; try {better}"):
            TrainLoader(sets.train, 25, world=world, accumulate=accumulate)

    def test_processes_evaluate_every_image_once(self, sets):
        whole = torch.cat([images for images, _ in eval_batches(sets.test, 20)])
        for rank in range(3):
            shares = list(eval_batches(sets.test, 4, workers=2, indices=np.arange(20)[rank::3]))
            assert torch.equal(torch.cat([images for images, _ in shares]), whole[rank::3])
            assert torch.equal(torch.cat([labels for _, labels in shares]), sets.test.labels[rank::3])


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


def test_workers_live_as_long_as_the_run(sets):
    """An epoch of a large set would else begin with the start of all of them."""
    before, loader = set(multiprocessing.active_children()), TrainLoader(sets.train, 20, workers=1)
    workers = []
    for epoch in range(2):
        list(loader.epoch(epoch))
        workers.append(set(multiprocessing.active_children()) - before)
    assert len(workers[0]) == 1
    assert workers[0] == workers[1]


@dataclass
class HeldBack:
    """A set of 16 images whose batches wait, all but the first, until they may go on."""

    go_on: Semaphore
    seed: int = 0
    device: torch.device = CPU
    made: int = 0

    def __len__(self) -> int:
        return 16

    def __getitem__(self, key: BatchKey | np.ndarray) -> Views:
        whole = key.indices if isinstance(key, BatchKey) else key
        if self.made:
            assert self.go_on.acquire(timeout=60)
        self.made += 1
        return Views(torch.zeros(1), torch.zeros(1), torch.from_numpy(whole))


@pytest.mark.parametrize("of", ["training", "evaluation"])
def test_workers_that_owe_batches_at_sigterm_deliver_them(of):
    """A scheduler sends the signal to all processes of a job, and the training goes on until it has saved."""
    go_on, before = multiprocessing.get_context("fork").Semaphore(0), set(multiprocessing.active_children())
    held_back = HeldBack(go_on)
    batches = TrainLoader(held_back, 2, 1).epoch(0) if of == "training" else eval_batches(held_back, 2, 1)
    seen = [next(batches)]
    (worker,) = set(multiprocessing.active_children()) - before
    os.kill(worker.pid, signal.SIGTERM)
    for _ in range(7):
        go_on.release()
    seen += batches
    assert sorted(i for views in seen for i in views.indices.tolist()) == list(range(16))


def test_spaced_indices_reach_the_end_of_a_set_that_the_count_does_not_divide(sets):
    assert spaced(sets.test, 15).tolist() == [20 * i // 15 for i in range(15)]
    assert spaced(sets.test, 99).tolist() == list(range(20))
