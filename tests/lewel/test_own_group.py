"""A process group that the caller made, as torch.multiprocessing.spawn's users do, without torchrun's environment."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tiny_runs import TINY
from torch.testing._internal.distributed.fake_pg import FakeStore

import lewel
from lewel import distributed


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


def pretend() -> None:
    """This process is the second of three, and no other exists."""
    dist.init_process_group("fake", rank=1, world_size=3, store=FakeStore())


@pytest.fixture
def of_three():
    pretend()
    yield
    distributed.leave()


def test_the_processes_of_a_group_are_counted_without_an_environment(of_three):
    assert distributed.announced() == 3


def test_an_environment_is_not_asked_where_there_is_a_group(of_three, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "5")
    assert distributed.announced() == 3


def test_over_nccl_flags_go_through_a_group_of_hosts_which_each_group_gets_once(of_three, monkeypatch):
    made: list[str] = []
    sent: list[Any] = []
    monkeypatch.setattr(dist, "get_backend_config", lambda: "cuda:nccl")
    monkeypatch.setattr(dist, "new_group", lambda backend, timeout: made.append(backend) or f"hosts {len(made)}")
    monkeypatch.setattr(dist, "all_reduce", lambda x, op, group, async_op: sent.append(group))
    world = distributed.join()
    distributed.join()
    assert (world.rank, world.size, made) == (1, 3, ["gloo"])
    distributed.Anywhere().ask(True)
    assert sent == ["hosts 1"]
    dist.destroy_process_group()  # by its owner, who makes another one
    pretend()
    distributed.join()
    distributed.Anywhere().ask(True)
    assert sent == ["hosts 1", "hosts 2"]


def test_a_group_that_serves_the_cpu_is_taken_as_it_is(of_three, monkeypatch):
    monkeypatch.setattr(dist, "new_group", None)
    distributed.join()
    assert distributed._host_group is dist.group.WORLD


def test_the_gpu_is_the_current_one(of_three, monkeypatch):
    chosen: list[int] = []
    for name, value in (("is_available", True), ("device_count", 8), ("current_device", 5)):
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert (distributed.join().device, chosen) == (torch.device("cuda", 5), [5])


def train_in_a_group(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    run = lewel.train(config=replace(TINY, epochs=1), out=folder / "run")
    assert (run.session.world.size, run.finished) == (2, True)
    assert dist.is_initialized()  # it is its maker's
    (folder / f"done-{rank}").touch()
    dist.destroy_process_group()


def test_a_run_in_a_group_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(Path(lewel.__file__).parents[1]), str(Path(__file__).parent)])
    )
    torch.multiprocessing.spawn(train_in_a_group, (tmp_path,), nprocs=2)
    assert {path.name for path in tmp_path.glob("done-*")} == {"done-0", "done-1"}
