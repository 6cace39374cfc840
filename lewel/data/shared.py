"""Data workers as processes: what they need of /dev/shm, where they put their batches, and what ended one of them."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, TypeVar

from lewel import meeting
from lewel.errors import DataError, LewelError
from lewel.recipe.schema import Train

T = TypeVar("T")
SHARED = "/dev/shm"
AHEAD = 2  # batches that DataLoader has each worker make ahead
FILES = 10  # that a worker has this process open, measured: pipes, and the tensors of its batches
PATIENCE = 600  # seconds that a batch may take
LOOK = 5  # seconds after which DataLoader gives up waiting; it then looks whether a worker has died
SCARCE = 64 * 2**20  # bytes of /dev/shm with which it may have been full a moment ago
MIB = 2**20


def check(run: Train, processes: int, evaluated: int) -> None:
    """Raises LewelError where the data workers would have too few open files, or /dev/shm no room for their batches.

    processes are those of the run, evaluated is the number of images that kNN takes at a time.
    """
    _check_files(run.data.workers)
    free, here = free_bytes(), meeting.processes_here()
    images = 2 * run.data.batch_size // (processes * run.accumulate)
    batch = 3 * run.data.image_size**2 * 4 * max(images, evaluated if run.knn_every else 0)
    needed = here * run.data.workers * AHEAD * batch
    if free is None or free >= needed:
        return
    fitting = free // (here * AHEAD * batch)
    raise LewelError(
        f"{here * run.data.workers} data workers put up to {needed / MIB:,.0f} MiB of images into {SHARED}, which has "
        f"{free / MIB:,.0f} MiB free; give it more (docker run --shm-size {needed // 2**30 + 1}g), take fewer workers "
        f"(--data.workers {fitting} fits), or fewer images a pass (--data.batch-size, --accumulate)"
    )


def _check_files(workers: int) -> None:
    limit, opened, needed = resource.getrlimit(resource.RLIMIT_NOFILE)[0], _open_files(), FILES * workers
    if workers and limit != resource.RLIM_INFINITY and opened + needed > limit:
        raise LewelError(
            f"{workers} data workers need up to {needed} open files beside the {opened} that are open, but this "
            f"process may have {limit} (ulimit -n); raise that (ulimit -n 4096), or take fewer --data.workers "
            f"({max(0, limit - opened) // FILES} fit)"
        )


def _open_files() -> int:
    try:
        return len(os.listdir("/dev/fd"))
    except OSError:
        return 0


def free_bytes() -> int | None:
    """Room in /dev/shm; None where that cannot be told."""
    try:
        return shutil.disk_usage(SHARED).free
    except OSError:
        return None


def watched(batches: Iterator[T]) -> Iterator[T]:
    """The same batches; a worker that died, or makes none, raises a DataError where a batch is waited for."""
    end = object()
    while True:
        with sentences(batches):
            batch = _patiently(batches, end)
        if batch is end:
            return
        yield batch  # type: ignore[misc]


def _patiently(batches: Iterator[T], end: object) -> T | object:
    """The next batch, or end. Only time in which this process ran counts as waiting: it may have been suspended."""
    for _ in range(max(0, round(PATIENCE / LOOK) - 1)):
        try:
            return next(batches, end)
        except RuntimeError as error:
            if not str(error).startswith("DataLoader timed out"):
                raise
    return next(batches, end)


@contextlib.contextmanager
def sentences(batches: Iterator[Any] | None = None) -> Iterator[None]:
    """A context that waits for workers, those of batches: what DataLoader says of them becomes a DataError."""
    try:
        _Deaths.begin_to_wait()
        _Deaths.look()
        yield
    except (RuntimeError, OSError, EOFError) as error:  # the latter of a worker that died while it sent
        _Deaths.waits = False
        said = _sentence(str(error) if str(error).startswith(("DataLoader t", "Caught")) else _death(batches, error))
        if said:
            raise DataError(said) from None
        raise
    finally:
        _Deaths.waits = False


def give_back_deaths() -> None:
    """Has the deaths of children handled as before the first wait, once a run needs it no more."""
    _Deaths.give_back()


def _death(batches: Iterator[Any] | None, error: Exception) -> str:
    """What DataLoader says, or would, of the worker that has died; what error says where none has."""
    if "is killed by signal" in str(error):
        return str(error)
    for _ in range(10):  # until the system has told of it
        for worker in getattr(batches, "_workers", ()):
            if worker.exitcode:
                by = signal.strsignal(-worker.exitcode) if worker.exitcode < 0 else None
                said = f"DataLoader worker (pid {worker.pid}) "
                return said + (f"is killed by signal: {by}." if by else f"exited with status {worker.exitcode}")
        if isinstance(error, RuntimeError):
            break
        time.sleep(0.1)
    return str(error)


class _Deaths:
    """The deaths of children, which DataLoader's handler makes errors of wherever the process is.

    In the middle of a step such an error would leave half a step: it is kept until a batch is waited for, and handled
    as before once the run has ended.
    """

    waits = noted = False
    tell: Callable[[int, FrameType | None], Any] | None = None  # DataLoader's own handler

    @classmethod
    def begin_to_wait(cls) -> None:
        handler = signal.getsignal(signal.SIGCHLD)
        if threading.current_thread() is threading.main_thread() and callable(handler) and handler != cls.note:
            cls.tell = handler
            signal.signal(signal.SIGCHLD, cls.note)
        cls.waits = True

    @classmethod
    def give_back(cls) -> None:
        here = threading.current_thread() is threading.main_thread()
        if here and cls.tell is not None and signal.getsignal(signal.SIGCHLD) == cls.note:
            signal.signal(signal.SIGCHLD, cls.tell)

    @classmethod
    def note(cls, number: int, frame: FrameType | None) -> None:
        cls.noted = True
        if cls.waits:
            cls.look()

    @classmethod
    def look(cls) -> None:
        if cls.noted and cls.tell is not None:
            cls.noted = False
            cls.tell(signal.SIGCHLD, None)


def _sentence(text: str) -> str:
    """What DataLoader's error means and what helps; "" for an error of another kind."""
    free = free_bytes()
    room = "" if free is None else f" ({free / MIB:,.0f} MiB of {SHARED} are free)"
    smaller = "take fewer --data.workers, or fewer images a pass"
    if killed := re.match(r"DataLoader worker \(pid (\d+)\) is killed by signal: ([^.]*)", text):
        worker = f"data worker {killed[1]} was ended by signal {killed[2]}"
        if killed[2].startswith("Bus"):
            return f"{worker}: {SHARED} is full{room}; give it more (docker run --shm-size 8g), or {smaller}"
        if killed[2].startswith("Killed"):
            return f"{worker}: memory has run out, as a rule (dmesg tells); {smaller}"
        return f"{worker}: an image or a library broke it; --data.workers 0 shows where"
    if text.startswith("DataLoader worker (pid"):
        return f"a data worker has ended though nobody asked it to ({text}); --data.workers 0 shows why"
    if text.startswith("DataLoader timed out"):
        full = free is not None and free < SCARCE
        why = f"{SHARED} is full{room}; give it more (docker run --shm-size 8g), or {smaller}"
        hangs = "the disk of the images hangs, or what reads them; --data.workers 0 shows where"
        return f"the data workers made no batch in {PATIENCE} seconds: {why if full else hangs}"
    if "Too many open files" in text or "received 0 items of ancdata" in text:
        return f"the data workers have too many open files; raise the limit (ulimit -n 65536), or {smaller}"
    return ""
