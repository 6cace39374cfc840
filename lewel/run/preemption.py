"""The signals that announce a run's end: a scheduler's SIGTERM or SIGUSR1, Ctrl-C, and SIGHUP of a closed terminal."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

from lewel import console, distributed
from lewel.data.loader import NOTICES


class Stopped(KeyboardInterrupt):
    """A signal has come where a run has nothing to save; str() says what it was in the middle of, and what goes on."""

    def __init__(self, by: str, said: str = "") -> None:
        super().__init__(said)
        self.by = by  # the name of the signal


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """A context in which a signal raises Stopped, but for one that was ignored before; of the main thread only."""

    def stop(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            _leave_terminals()
        raise Stopped(signal.Signals(number).name)

    before = _handle(stop)
    try:
        yield
    finally:
        _put_back(before)


class Preemption:
    """A context in which a signal only sets ``by`` to its name; the loop reads it between steps, saves and stops.

    ``by`` is "" before, and keeps the first name. A second Ctrl-C raises KeyboardInterrupt at once, whatever came
    before. A signal that was ignored before, as SIGHUP is under nohup, stays ignored.
    """

    def __init__(self) -> None:
        self.by = ""
        self.evaluates = False  # the loop says so, and whoever interrupts it is told
        self._interrupted = False  # by Ctrl-C, which may follow another notice

    def __enter__(self) -> Preemption:
        self._before = _handle(self._request)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        _put_back(self._before)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.by = self.by or signal.Signals(number).name
        if number == signal.SIGINT:
            if self._interrupted:
                raise KeyboardInterrupt
            self._interrupted = True
            if distributed.rank() == 0:
                now = "after this evaluation; all is saved" if self.evaluates else "after this step, and saving"
                console.write_now(f"\nstopping {now}; Ctrl-C again ends at once\n")
        if number == signal.SIGHUP:
            _leave_terminals()


def _handle(take: Callable[[int, FrameType | None], None]) -> dict[signal.Signals, Any]:
    """Gives the signals to take; the handlers that they had, without those that stay."""
    here = threading.current_thread() is threading.main_thread()  # no other may take signals
    handlers = {notice: signal.getsignal(notice) for notice in NOTICES if here}
    # None: of somebody's C code, which could not be put back.
    before = {n: handler for n, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}
    for notice in before:
        signal.signal(notice, take)
    return before


def _put_back(before: dict[signal.Signals, Any]) -> None:
    for notice, handler in before.items():
        signal.signal(notice, handler)


def _leave_terminals() -> None:
    """Has nothing written to a terminal that was closed: C libraries would take the error for one of their own."""
    with contextlib.suppress(OSError), open(os.devnull, "wb") as nothing:
        for output in (1, 2):
            if _is_terminal(output):
                os.dup2(nothing.fileno(), output)


def _is_terminal(output: int) -> bool:
    """Whether the output is one, open or already closed (isatty then says no)."""
    try:
        return stat.S_ISCHR(os.fstat(output).st_mode)
    except OSError:
        return False
