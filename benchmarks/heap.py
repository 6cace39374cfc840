"""The most memory that a call needs at once; settings of the C library's heap under which calls are timed."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch

from benchmarks.timing import synchronise

MIB = 1 << 20
_CLEAR_REFS, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # of glibc's malloc.h
_mapped_from = 128 << 10  # bytes from which on a block has a mapping of its own; glibc's default


def peak_bytes(call: Callable[[], object], device: str) -> int | None:
    """The most memory that ``call`` needs at once beyond what was there before, its results included.

    On the CPU it comes from the kernel's page counts. Meanwhile the C library gives every larger block a mapping of
    its own, so that only what is alive counts, as on a GPU; in an ordinary heap pages in holes between tensors count
    too, and the same call takes a half more one time and a fifth more another. None where the system does not tell.
    """
    if torch.device(device).type == "cuda":
        call()  # workspaces that stay
        synchronise(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        synchronise(device)
        return torch.cuda.max_memory_allocated(device) - before
    if not _CLEAR_REFS.exists():
        return None
    with blocks_apart() as apart, ThreadPoolExecutor(1) as fresh:
        return fresh.submit(_peak_of, call).result() if apart else None


def _peak_of(call: Callable[[], object]) -> int | None:
    """`peak_bytes` on the CPU. Called in a new thread, whose heap has no holes that would hide or keep a block.

    Unless threads that have ended left things behind: it takes over the heap of one. Then measure in a new process.
    """
    call()  # what stays
    if not trim_heap():
        return None
    before = _reset_peak()
    call()
    return max(0, _peak() - before)


def _mallopt(*settings: tuple[int, int]) -> bool:
    """Sets options of the C library's heap. Returns whether it has them."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    return all(mallopt(name, value) for name, value in settings)


def keep_heap() -> bool:
    """Tells the C library to keep what is freed, as in a long training run. Returns whether that was possible.

    Otherwise the history of the process decides which call pays for fresh pages: up to half of a large backward.
    """
    global _mapped_from
    _mapped_from = 1 << 30
    return _mallopt((_MMAP_THRESHOLD, _mapped_from), (_TRIM_THRESHOLD, (1 << 31) - 1))


@contextmanager
def blocks_apart() -> Iterator[bool]:
    """Within, every larger block has a mapping of its own, gone when it is freed. Yields whether that was possible."""
    try:
        yield _mallopt((_MMAP_THRESHOLD, 64 << 10))
    finally:
        _mallopt((_MMAP_THRESHOLD, _mapped_from))


def trim_heap() -> bool:
    """Returns every free page to the system, so that using one again is counted. Returns whether that was possible."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except AttributeError:
        return False
    trim(0)
    return True


def _peak() -> int:
    return int(_STATUS.read_text().split("VmHWM:")[1].split()[0]) << 10


def _reset_peak() -> int:
    _CLEAR_REFS.write_text("5")
    return _peak()
