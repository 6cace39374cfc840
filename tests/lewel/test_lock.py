"""The lock of a run folder: one process holds it, and what nobody holds is taken over."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_runs import TINY

from lewel.errors import LewelError
from lewel.run import folders, lock, owners
from lewel.run.lock import Lock

ROOT = Path(__file__).parents[2]


@pytest.fixture
def held(tmp_path):
    """A lock that this process holds."""
    mine = Lock(tmp_path / "runs" / "mine")
    mine.take()
    yield mine
    mine.release()


def write(folder: Path, **other: object) -> None:
    """The lock of this process, but for what is given otherwise."""
    folder.mkdir(exist_ok=True)
    (folder / lock.NAME).write_text(json.dumps(dataclasses.asdict(owners.myself()) | other))


def age(folder: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(folder / lock.NAME, (then, then))


def take(folder: Path, *, wait: bool = False) -> None:
    mine = Lock(folder)
    mine.take(wait=wait)
    assert lock._read(folder / lock.NAME) == mine.owner
    mine.release()


def test_a_lock_says_who_holds_it_and_leaves_nothing(held, tmp_path):
    assert lock.lives(held.path.parent)
    with pytest.raises(
        lock.Taken, match=rf"process {os.getpid()} on \S+ is writing to .*mine; .* choose another --out"
    ):
        Lock(held.path.parent).take()
    held.release()
    assert not list(tmp_path.iterdir())


def test_what_has_come_into_the_folder_stays(held):
    (held.path.parent / "config.yaml").touch()
    held.release()
    assert [path.name for path in held.path.parent.iterdir()] == ["config.yaml"]


def test_another_lock_in_its_place_stays(held):
    write(held.path.parent, claim="another")
    held.release()
    assert held.path.exists()


def test_a_lock_that_was_interrupted_while_it_was_made_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(lock.json, "dump", interrupt)
    mine = Lock(tmp_path / "runs" / "mine")
    with pytest.raises(KeyboardInterrupt):
        mine.take()
    mine.release()
    assert not list(tmp_path.iterdir())


def test_of_a_process_that_has_ended_it_is_taken_over(tmp_path):
    with subprocess.Popen(["sleep", "60"]) as process:
        write(tmp_path, pid=process.pid, started=owners.started(process.pid))
        assert lock.lives(tmp_path)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie runs no more
        assert not lock.lives(tmp_path)
        take(tmp_path)
    write(tmp_path, started="0")  # a later process has the number
    take(tmp_path)


@pytest.mark.parametrize(
    "elsewhere", [{"host": "other"}, {"kernel": "of another container"}], ids=["host", "container"]
)
def test_elsewhere_it_is_known_by_its_heartbeat(elsewhere, tmp_path):
    write(tmp_path, pid=1, **elsewhere)
    age(tmp_path, lock.STALE - 5)
    with pytest.raises(lock.Taken, match="process 1 on"):
        take(tmp_path)
    age(tmp_path, lock.STALE + 5)
    take(tmp_path)


def test_a_resumed_run_waits_for_the_heartbeat_or_its_end(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lock, "STALE", 0.5)
    write(tmp_path, host="other")
    take(tmp_path, wait=True)
    assert "is of process" in capsys.readouterr().out
    write(tmp_path, host="other")
    monkeypatch.setattr(time, "sleep", lambda seconds: age(tmp_path, 0.1))
    with pytest.raises(lock.Taken):
        take(tmp_path, wait=True)


@pytest.mark.parametrize("ahead", [60.0, 3600.0])
def test_a_clock_that_was_set_back_makes_no_one_wait_for_longer(ahead, tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "STALE", 0.5)
    write(tmp_path, host="other")
    age(tmp_path, -ahead)
    before = time.monotonic()
    take(tmp_path, wait=True)
    assert time.monotonic() - before < 3


def test_of_a_process_that_is_hidden_or_has_no_start_only_the_heartbeat_tells(tmp_path, monkeypatch):
    """As with hidepid, or where there is no /proc."""
    monkeypatch.setattr(lock, "started", lambda pid: "")
    write(tmp_path)
    with pytest.raises(lock.Taken):
        take(tmp_path)
    age(tmp_path, lock.STALE + 5)
    take(tmp_path)


def test_a_process_without_an_entry_in_proc_is_asked_for(monkeypatch):
    monkeypatch.setattr(owners.Path, "read_text", lambda path: (_ for _ in ()).throw(FileNotFoundError()))
    assert owners.started(os.getpid()) == ""
    monkeypatch.setattr(owners.os, "kill", lambda *call: (_ for _ in ()).throw(PermissionError()))
    assert owners.started(os.getpid()) == ""
    monkeypatch.setattr(owners.os, "kill", lambda *call: (_ for _ in ()).throw(ProcessLookupError()))
    assert owners.started(os.getpid()) is None


def test_a_lock_that_cannot_be_read_is_held_as_long_as_it_is_touched(tmp_path, monkeypatch):
    def refuse(path, mode="r"):
        if Path(path).name == lock.NAME and mode == "r":
            raise PermissionError(13, "Permission denied")
        return open(path, mode)

    write(tmp_path)
    monkeypatch.setattr(lock, "open", refuse, raising=False)
    monkeypatch.setattr(lock, "_read", lambda path: None)
    assert lock.lives(tmp_path)
    with pytest.raises(lock.Taken, match="another process is writing"):
        Lock(tmp_path).take()
    age(tmp_path, lock.STALE + 5)
    assert not lock.lives(tmp_path)


def test_a_stale_lock_in_a_folder_that_cannot_be_written_to_names_the_reason(tmp_path, monkeypatch):
    def refuse(*paths):
        raise PermissionError(13, "Permission denied")

    write(tmp_path, started="0")
    monkeypatch.setattr(lock.os, "rename", refuse)
    with pytest.raises(LewelError, match=r"cannot write to the run folder .*: Permission denied; choose another --out"):
        Lock(tmp_path).take()


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.symlink_to("nowhere")], ids=["folder", "link"])
def test_what_is_no_file_is_not_taken_for_a_lock(make, tmp_path):
    make(tmp_path / lock.NAME)
    with pytest.raises(LewelError, match=r"lock.json is no file, but the lock of a run goes there"):
        Lock(tmp_path).take()
    assert [path.name for path in tmp_path.iterdir()] == [lock.NAME]


def test_half_a_lock_is_somebodys_who_has_just_begun(tmp_path):
    (tmp_path / lock.NAME).touch()
    with pytest.raises(lock.Taken, match="another process is writing"):
        take(tmp_path)
    age(tmp_path, lock.STALE + 5)
    take(tmp_path)


def test_it_is_touched_while_it_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.01)
    mine = Lock(tmp_path)
    mine.take()
    age(tmp_path, 1000)
    for _ in range(500):
        if lock._age(mine.path) < 100:
            break
        time.sleep(0.01)
    assert lock._age(mine.path) < 100
    mine.release()


LOSES_ITS_LOCK = """
import json, signal, sys, time
from pathlib import Path
from lewel.run import lock
signal.signal(signal.SIGTERM, lambda *_: None)  # a run saves and ends well
lock.BEAT = 0.01
mine = lock.Lock(Path(sys.argv[1]))
mine.take()
mine.path.write_text(json.dumps(json.loads(mine.path.read_text()) | {"host": "other"}))
time.sleep(10)
"""


def test_a_process_whose_lock_was_taken_over_ends_at_once_and_not_well(tmp_path):
    command = [sys.executable, "-c", LOSES_ITS_LOCK, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert ended.returncode == 1
    assert "on other now, which has taken the folder over" in ended.stderr
    assert lock._read(tmp_path / lock.NAME).host == "other"


def test_nothing_is_saved_in_a_folder_that_was_taken_over(held):
    write(held.path.parent, host="other")
    with pytest.raises(LewelError, match="on other now, which has taken the folder over"):
        lock.check_mine(held.path.parent)


def test_nothing_is_saved_in_a_folder_that_is_gone(held):
    held.path.parent.rename(held.path.parent.with_name("renamed"))
    with pytest.raises(LewelError, match=r"lock.json is gone, as where the run folder was deleted or renamed"):
        lock.check_mine(held.path.parent)


def test_a_lock_that_somebody_has_removed_is_there_again(held):
    held.path.unlink()
    lock.check_mine(held.path.parent)
    assert lock.lives(held.path.parent)
    held.release()
    assert not held.path.exists()


def test_who_holds_a_folder_or_finds_nobody_there_may_save(held, tmp_path):
    lock.check_mine(held.path.parent)
    lock.check_mine(tmp_path)
    write(tmp_path, started="0")  # of a process that has ended
    lock.check_mine(tmp_path)


def test_a_folder_that_cannot_be_written_to_is_a_sentence(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "run", Path("/proc/none/run"), tmp_path / ("x" * 300)):
        with pytest.raises(LewelError, match=r"cannot write to the run folder .*; choose another --out"):
            take(folder)


def compete(barrier, answers, folder: Path | None) -> None:
    """Claims folder or, without one, whatever folder a new run gets; holds it until all have tried."""
    run = dataclasses.replace(TINY, preset="p", out=str(folder or ""))
    with contextlib.ExitStack() as claims:
        barrier.wait()
        try:
            answers.put(str(folders.claim(run, "auto" if folder else "", claims)[0]))
        except lock.Taken:
            answers.put("taken")
        barrier.wait()


@pytest.mark.parametrize("stale", [False, True], ids=["fresh", "stale"])
@pytest.mark.parametrize("named", [True, False], ids=["named", "numbered"])
def test_of_processes_that_start_at_the_same_moment_each_has_a_folder_of_its_own(named, stale, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "p"
    folder.parent.mkdir()
    if stale:
        write(folder, started="0")
    fork = multiprocessing.get_context("fork")
    barrier, answers = fork.Barrier(6), fork.SimpleQueue()
    processes = [fork.Process(target=compete, args=(barrier, answers, folder if named else None)) for _ in range(6)]
    for process in processes:
        process.start()
    found = sorted(answers.get() for _ in processes)
    for process in processes:
        process.join()
    if named:
        assert found == [str(folder), *["taken"] * 5]
    else:
        assert found == ["runs/p", *(f"runs/p-{number}" for number in range(2, 7))]
    assert not list((tmp_path / "runs").rglob(lock.NAME))
