"""Data workers that have no room, make no batch, or die."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_runs import TINY

from lewel.data import loader, shared
from lewel.errors import LewelError

RUN = replace(TINY, knn_every=0, data=replace(TINY.data, workers=3))  # 16 images of 32 pixels


@pytest.mark.parametrize(
    ("run", "processes", "local", "needed"),
    [
        (RUN, 1, 1, 3 * 2 * 32 * 3 * 32 * 32 * 4),
        (replace(RUN, accumulate=2), 2, 2, 2 * 3 * 2 * 8 * 3 * 32 * 32 * 4),
        (replace(RUN, knn_every=1), 1, 1, 3 * 2 * 64 * 3 * 32 * 32 * 4),
    ],
    ids=["one", "of two processes", "evaluation"],
)
def test_room_for_what_workers_make_ahead(run, processes, local, needed, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(local))
    for free in (needed, None):
        monkeypatch.setattr(shared, "free_bytes", lambda free=free: free)
        shared.check(run, processes, 64)
    monkeypatch.setattr(shared, "free_bytes", lambda: needed - 1)
    with pytest.raises(LewelError, match=rf"{3 * local} data workers put .*--shm-size 1g.*--data.workers 2 fits"):
        shared.check(run, processes, 64)


class Images:
    """Images of which number 2 does what ends a worker."""

    def __init__(self, end):
        self.end = end

    def __len__(self) -> int:
        return 4

    def __getitem__(self, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        if 2 in indices:
            self.end()
        return torch.zeros(1, 3, 8, 8), torch.zeros(1, dtype=torch.int64)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """DataLoader waits for so many seconds for workers to end."""
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1)


def kill(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ("end", "sentence"),
    [
        (lambda: kill(signal.SIGKILL), "ended by signal Killed: memory has run out, as a rule"),
        (lambda: kill(signal.SIGBUS), "ended by signal Bus error: /dev/shm is full .*MiB of /dev/shm are free"),
        (lambda: time.sleep(2), "made no batch in 0.4 seconds: the disk of the images hangs"),
        (lambda: os._exit(3), "a data worker has ended though nobody asked"),
    ],
    ids=["killed", "bus", "hangs", "exits"],
)
def test_a_worker_that_ends_is_a_sentence(end, sentence, monkeypatch):
    monkeypatch.setattr(shared, "PATIENCE", 0.4)
    monkeypatch.setattr(shared, "LOOK", 0.2)
    monkeypatch.setattr(shared, "free_bytes", lambda: 2**30)
    with pytest.raises(LewelError, match=sentence):
        list(loader.eval_batches(Images(end), 1, 1))


def test_slow_batches_are_waited_for_look_by_look(monkeypatch):
    monkeypatch.setattr(shared, "LOOK", 0.2)
    assert len(list(loader.eval_batches(Images(lambda: time.sleep(0.7)), 1, 1))) == 4


def test_of_a_full_dev_shm_is_said_only_where_it_is_nearly_full(monkeypatch):
    for free, said in ((2**20, "/dev/shm is full (1 MiB"), (2**30, "the disk of the images hangs"), (None, "hangs")):
        monkeypatch.setattr(shared, "free_bytes", lambda free=free: free)
        assert said in shared._sentence("DataLoader timed out after 5 seconds")


def test_out_of_the_main_thread_a_death_is_found_at_the_next_look(monkeypatch):
    """No signal tells of it there; DataLoader's own handler, of an earlier test, would raise in the main thread."""
    monkeypatch.setattr(shared, "LOOK", 0.5)
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    said = []

    def use() -> None:
        try:
            list(loader.eval_batches(Images(end), 1, 1))
        except LewelError as error:
            said.append(str(error))

    def end() -> None:
        time.sleep(0.3)  # until the batches before are sent: half of one would be waited for without end
        kill(signal.SIGKILL)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join(10)
    signal.signal(signal.SIGCHLD, handler)
    assert "ended by signal Killed" in said[0]


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_in_place_of_a_batch_is_a_sentence(workers):
    class Empty(Images):
        def __getitem__(self, indices):
            return None

    with pytest.raises(LewelError, match="the data set returned None in place of a batch"):
        list(loader.eval_batches(Empty(None), 1, workers))


def test_the_deaths_of_other_children_are_handled_as_before_once_a_run_has_ended():
    list(loader.eval_batches(Images(lambda: None), 1, 1))
    assert signal.getsignal(signal.SIGCHLD) == shared._Deaths.note
    shared.give_back_deaths()
    assert signal.getsignal(signal.SIGCHLD) == shared._Deaths.tell


def test_an_error_of_the_images_stays_what_it_is():
    def end() -> None:
        raise ConnectionError("of a bucket")

    with pytest.raises(ConnectionError, match="of a bucket"):
        list(loader.eval_batches(Images(end), 1, 1))


def test_a_death_is_told_of_where_a_batch_is_waited_for_and_in_no_step():
    batches = loader.eval_batches(Images(lambda: kill(signal.SIGKILL)), 1, 1)
    next(batches)
    time.sleep(1)  # the step, in which the worker dies
    with pytest.raises(LewelError, match=re.escape("ended by signal Killed")):
        list(batches)
