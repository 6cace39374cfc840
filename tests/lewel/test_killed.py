"""A run that is killed twenty times, at any moment, ends with the bits of the run that nobody touched."""

from __future__ import annotations

import multiprocessing
import random
import signal
import time
from pathlib import Path

import killed_run
import pytest
from tiny_runs import assert_equal

from lewel import checkpoint, log


@pytest.fixture
def processes(monkeypatch):
    """Where processes come from that have imported all this, and computed nothing."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))  # the server of the processes starts from it
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["killed_run"])
    return context


def go_on(
    processes, folder: Path, die_at: tuple[int, int] | None = None, kill_after: tuple[int, float] | None = None
) -> int:
    """The exit code of the run, which is killed so many checkpoints and seconds after its start where given."""
    saved = processes.Semaphore(0)
    process = processes.Process(target=killed_run.go_on, args=(folder, saved, die_at))
    process.start()
    if kill_after is not None:
        for _ in range(kill_after[0]):
            saved.acquire()
        time.sleep(kill_after[1])
        process.kill()
    process.join()
    return process.exitcode


def losses(folder: Path) -> list[tuple[int, float]]:
    return [(r["step"], r["loss"]) for r in log.read(folder / "log.jsonl") if r["kind"] == "step"]


def test_killed_twenty_times(processes, tmp_path):
    """Ten times after a while, ten times at a byte of a checkpoint that is being written."""
    draw = random.Random(0)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert go_on(processes, whole) == 0
    newest = checkpoint.found(whole / "checkpoints")[-1]
    size, reached = newest.stat().st_size, []
    for _ in range(10):
        while_saving = (draw.randrange(3), draw.randrange(size))
        after_a_while = (draw.randrange(1, 3), draw.uniform(0, 0.1))
        for die_at, kill_after in ((while_saving, None), (None, after_a_while)):
            assert go_on(processes, killed, die_at, kill_after) == -signal.SIGKILL
            found = checkpoint.found(killed / "checkpoints")
            reached.append(checkpoint.read(found[-1])["step"] if found else 0)  # reading refuses half a file
    assert reached == sorted(reached)
    assert len(set(reached)) > 8  # it was killed all along the way
    assert go_on(processes, killed) == 0
    mine, theirs = (checkpoint.read(folder / "checkpoints" / newest.name) for folder in (killed, whole))
    assert_equal(mine["method"], theirs["method"])
    for ours, untouched in zip(*(end["optimizer"]["state"].values() for end in (mine, theirs)), strict=True):
        assert_equal(ours, untouched)
    assert losses(killed) == losses(whole)
