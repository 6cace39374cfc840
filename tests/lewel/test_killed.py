"""A run that is killed twenty times, at any moment, ends with the bits of the run that nobody touched."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import random
import select
import signal
import struct
import termios
import time
from pathlib import Path

import killed_run
import pytest
from tiny_runs import assert_equal

from lewel.run import checkpoint
from lewel.watching import log


@pytest.fixture(scope="module")
def processes():
    """Where processes come from that have imported all this, and computed nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["killed_run"])
    with pytest.MonkeyPatch.context() as patch:
        here = Path(__file__).parent
        patch.setenv("PYTHONPATH", f"{here.parents[1]}{os.pathsep}{here}")  # the server of the processes starts with it
        yield context


def go_on(
    processes,
    folder: Path,
    die_at: tuple[int, int] | None = None,
    kill_after: tuple[int, float] | None = None,
    by: int = signal.SIGKILL,
    workers: int = 0,
) -> int:
    """The exit code of the run, which is killed so many checkpoints and seconds after its start where given."""
    saved = processes.Semaphore(0)
    process = processes.Process(target=killed_run.go_on, args=(folder, saved, die_at, workers))
    process.start()
    if kill_after is not None:
        for _ in range(kill_after[0]):
            saved.acquire()
        time.sleep(kill_after[1])
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for number in [*map(int, children), process.pid]:  # as a scheduler does, workers too
            os.kill(number, by)
    process.join()
    return process.exitcode


@pytest.fixture(scope="module")
def whole(processes, tmp_path_factory) -> Path:
    """The folder of the run that nobody touched."""
    folder = tmp_path_factory.mktemp("untouched")
    assert go_on(processes, folder) == 0
    return folder


def assert_ended_alike(folder: Path, whole: Path) -> None:
    """Bitwise, for all that a checkpoint holds; and by the losses in the log, each step once."""
    (mine, theirs) = (checkpoint.read(checkpoint.found(path / "checkpoints")[-1]) for path in (folder, whole))
    assert mine["step"] == theirs["step"] == 3 * killed_run.RUN.epochs
    assert_equal(mine["method"], theirs["method"])
    for ours, untouched in zip(*(end["optimizer"]["state"].values() for end in (mine, theirs)), strict=True):
        assert_equal(ours, untouched)
    ours, untouched = (log.read(path / "log.jsonl") for path in (folder, whole))
    assert [r["loss"] for r in ours if r["kind"] == "step"] == [r["loss"] for r in untouched if r["kind"] == "step"]


def test_killed_twenty_times(processes, whole, tmp_path):
    """Ten times after a while, ten times at a byte of a checkpoint that is being written."""
    draw, reached = random.Random(0), []
    size = checkpoint.found(whole / "checkpoints")[-1].stat().st_size
    for _ in range(10):
        while_saving = (draw.randrange(3), draw.randrange(size))
        after_a_while = (draw.randrange(1, 3), draw.uniform(0, 0.1))
        for die_at, kill_after in ((while_saving, None), (None, after_a_while)):
            assert go_on(processes, tmp_path, die_at, kill_after) == -signal.SIGKILL
            found = checkpoint.found(tmp_path / "checkpoints")
            reached.append(checkpoint.read(found[-1])["step"] if found else 0)  # reading refuses half a file
    assert reached == sorted(reached)
    assert len(set(reached)) > 8  # it was killed all along the way
    assert go_on(processes, tmp_path) == 0
    assert_ended_alike(tmp_path, whole)


@pytest.mark.parametrize(
    ("by", "workers", "code"),
    [
        pytest.param(signal.SIGTERM, 0, 0, id="SIGTERM"),
        pytest.param(signal.SIGTERM, 2, 0, id="SIGTERM-workers"),
        pytest.param(signal.SIGUSR1, 2, 0, id="SIGUSR1-workers"),
        pytest.param(signal.SIGHUP, 2, 0, id="SIGHUP-workers"),
        pytest.param(signal.SIGINT, 2, 130, id="SIGINT-workers"),
    ],
)
def test_a_notice_saves_the_step_it_comes_in(by, workers, code, processes, whole, tmp_path):
    assert go_on(processes, tmp_path, kill_after=(2, 0.02), by=by, workers=workers) == code
    assert_saved_and_goes_on(processes, tmp_path, whole)


def assert_saved_and_goes_on(processes, folder: Path, whole: Path) -> None:
    (*_, newest) = checkpoint.found(folder / "checkpoints")
    step = checkpoint.read(newest)["step"]
    assert 2 <= step < 3 * killed_run.RUN.epochs
    assert log.read(folder / "log.jsonl")[-1]["step"] == step
    assert go_on(processes, folder) == 0
    assert_ended_alike(folder, whole)


def test_a_terminal_that_is_closed_saves_though_nobody_can_be_told(processes, whole, tmp_path):
    """Its SIGHUP is the kernel's, and every later line or bar would be an error."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))  # room for a bar
    saved = processes.Semaphore(0)
    process = processes.Process(target=killed_run.go_on, args=(tmp_path, saved, None, 0, os.ttyname(theirs)))
    process.start()
    shown = b""
    while b"step" not in shown or not saved.acquire(timeout=0.01):  # until the bar is there
        if select.select([ours], [], [], 0.01)[0]:
            shown += os.read(ours, 10_000)
    os.close(theirs)
    os.close(ours)
    process.join(60)
    assert process.exitcode == 0
    assert_saved_and_goes_on(processes, tmp_path, whole)


def test_an_error_ends_the_process_though_its_workers_outlive_sigterm(processes, tmp_path):
    process = processes.Process(target=killed_run.fail, args=(tmp_path,))
    process.start()
    process.join(60)
    assert process.exitcode == 1
