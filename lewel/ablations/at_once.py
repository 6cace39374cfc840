"""Jobs of several commands each, some of them at once, in processes of their own, until all are done or stopped.

The processes are a session each, so that Ctrl-C of a terminal reaches this one alone: it passes on what it is told,
once, for a second Ctrl-C would end a run before it has saved.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import torch

from lewel.errors import LewelError
from lewel.run.preemption import Preemption, Stopped

EVERY = 0.1  # seconds between two looks at the processes


@dataclass(frozen=True)
class Phase:
    """A command of a job."""

    what: str
    """a word for it, by which times are compared"""
    command: Sequence[str]
    done: Callable[[], bool]
    """whether it has done what it is for; a signal may end it with status 0"""
    whole: bool = True
    """whether it starts from the beginning, so that its time says how long others take"""


@dataclass(frozen=True)
class Job:
    """Commands one after the other, of which each needs the one before."""

    name: str
    phases: Sequence[Phase]
    log: Path
    """what they print is added to it"""
    result: Callable[[], str] = str
    """a clause about what has come out, once all are done"""


@dataclass
class _Running:
    job: Job
    slot: int
    phase: int
    process: subprocess.Popen[bytes]
    log: BinaryIO
    began: float
    since: float = field(default_factory=time.monotonic)


class Times:
    """What each kind of phase has taken so far, and what is expected from that."""

    def __init__(self) -> None:
        self.taken: dict[str, list[float]] = {}

    def add(self, phase: Phase, seconds: float) -> None:
        if phase.whole:
            self.taken.setdefault(phase.what, []).append(seconds)

    def expected(self, phases: Sequence[Phase], at_once: int) -> float | None:
        """Seconds that phases will take, so many at once; None where one of a kind has not been seen yet."""
        if any(phase.what not in self.taken for phase in phases):
            return None
        means = {what: sum(seconds) / len(seconds) for what, seconds in self.taken.items()}
        return sum(means[phase.what] for phase in phases) / at_once


def work(jobs: Sequence[Job], at_once: int, tell: Callable[[str], None]) -> dict[str, str]:
    """Runs all jobs, at_once of them at a time; the jobs that failed, each with the last line of its log.

    A job that fails keeps none of the others from running. Raises Stopped after SIGINT, SIGTERM, SIGUSR1 or SIGHUP,
    once the processes have ended, which got the same signal.
    """
    pool = _Pool(jobs, at_once, tell)
    with Preemption() as notice:
        try:
            while pool.goes_on() and not notice.by:
                time.sleep(EVERY)
            if not notice.by:
                return pool.failed
            pool.end(signal.Signals[notice.by])
        except KeyboardInterrupt:  # the second one
            pool.end(signal.SIGINT)
            raise Stopped("SIGINT", pool.said()) from None
        finally:
            pool.close()
    raise Stopped(notice.by, pool.said())


class _Pool:
    def __init__(self, jobs: Sequence[Job], at_once: int, tell: Callable[[str], None]) -> None:
        self.waiting, self.total, self.at_once, self.tell = list(jobs), len(jobs), at_once, tell
        self.running: list[_Running] = []
        self.failed: dict[str, str] = {}
        self.done = 0
        self.times = Times()

    def goes_on(self) -> bool:
        """Looks at the processes, starts what can start, and says whether anything runs."""
        for each in list(self.running):
            if each.process.poll() is not None:
                self._ended(each)
        while self.waiting and len(self.running) < self.at_once:
            slot = min(set(range(self.at_once)) - {each.slot for each in self.running})
            job = self.waiting.pop(0)
            number = self.total - len(self.waiting)
            self.tell(f"{job.name}: {job.phases[0].what} ({number} of {self.total})")
            self._start(job, slot, 0, time.monotonic())
        return bool(self.running)

    def _start(self, job: Job, slot: int, phase: int, began: float) -> None:
        command = job.phases[phase].command
        try:
            job.log.parent.mkdir(parents=True, exist_ok=True)
            log = open(job.log, "ab")  # noqa: SIM115
            log.write(f"$ {shlex.join(command)}\n".encode())
            log.flush()
        except OSError as error:
            raise LewelError(f"cannot write {job.log}: {error.strerror}; choose another --out") from None
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            env=environment(slot, self.at_once),
        )  # fmt: skip
        self.running.append(_Running(job, slot, phase, process, log, began))

    def _ended(self, each: _Running) -> None:
        self.running.remove(each)
        each.log.close()
        job, phase = each.job, each.job.phases[each.phase]
        if each.process.returncode or not phase.done():
            code = each.process.returncode
            line = last_line(job.log) + (f" (ended by {_signal(-code)})" if code < 0 else "")
            self.failed[job.name] = line
            self.tell(f"{job.name}: failed, {phase.what}: {line}{self._left()}")
            return
        self.times.add(phase, time.monotonic() - each.since)
        further = (n for n in range(each.phase + 1, len(job.phases)) if not job.phases[n].done())
        if (number := next(further, None)) is not None:
            self._start(job, each.slot, number, each.began)
            return
        self.done += 1
        result = job.result()
        took = duration(time.monotonic() - each.began)
        self.tell(f"{job.name}: done{', ' if result else ''}{result}, in {took}{self._left()}")

    def _left(self) -> str:
        """A clause about what is left and how long it takes."""
        left = len(self.waiting) + len(self.running)
        phases = [phase for job in self.waiting for phase in job.phases]
        phases += [phase for each in self.running for phase in each.job.phases[each.phase :]]
        seconds = self.times.expected(phases, self.at_once)
        if seconds is not None:
            seconds -= sum(time.monotonic() - each.since for each in self.running) / self.at_once
        return f"; {left} left" + (f", about {duration(max(seconds, 1))}" if seconds is not None and left else "")

    def end(self, number: signal.Signals) -> None:
        """Passes a signal on to what runs, and waits until it has ended; what had just finished counts."""
        for each in self.running:
            if each.process.poll() is None:
                each.process.send_signal(number)
        if self.running:
            names = ", ".join(each.job.name for each in self.running)
            self.tell(f"waiting for {names} to save and end")
        for each in list(self.running):
            each.process.wait()
            if each.phase + 1 == len(each.job.phases) and each.job.phases[each.phase].done():
                self.done += 1

    def said(self) -> str:
        return f"{self.done} of {self.total} rows are done, what the others have is saved; the same command goes on"

    def close(self) -> None:
        for each in self.running:
            if each.process.poll() is None:  # an error has come between: nobody would look after it
                each.process.terminate()
            each.log.close()


def environment(slot: int, at_once: int) -> dict[str, str]:
    """The environment of a process: its share of the threads and, where there are several, a GPU of its own."""
    env = dict(os.environ)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    env.setdefault("OMP_NUM_THREADS", str(max(1, cores // at_once)))
    if at_once > 1 and (count := torch.cuda.device_count()) > 1:
        seen = [name for name in env.get("CUDA_VISIBLE_DEVICES", "").split(",") if name] or list(map(str, range(count)))
        env["CUDA_VISIBLE_DEVICES"] = seen[slot % len(seen)]
    return env


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time one
        return f"signal {number}"


def last_line(path: Path) -> str:
    """The last line of a log that says something."""
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it has said nothing"


def duration(seconds: float) -> str:
    """Seconds as people say them: "40 s", "3 min", "2 h 5 min"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
