"""The signals that announce a run's end: a scheduler's SIGTERM or SIGUSR1, Ctrl-C, and SIGHUP of a closed terminal."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType

from lewel import distributed
from lewel.data.loader import NOTICES


class Preemption:
    """A context in which a signal only sets ``by`` to its name; the loop reads it between steps, saves and stops.

    ``by`` is "" before, and keeps the first name. A second Ctrl-C raises KeyboardInterrupt at once, whatever came
    before. A signal that was ignored before, as SIGHUP is under nohup, stays ignored.
    """

    def __init__(self) -> None:
        self.by = ""
        self._interrupted = False  # by Ctrl-C, which may follow another notice

    def __enter__(self) -> Preemption:
        here = threading.current_thread() is threading.main_thread()  # no other may take signals
        handlers = {notice: signal.getsignal(notice) for notice in NOTICES if here}
        # None: of somebody's C code, which could not be put back.
        self._before = {n: handler for n, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}
        self._terminals = [number for number in (1, 2) if os.isatty(number)]  # once it is closed nobody can tell
        for notice in self._before:
            signal.signal(notice, self._request)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for notice, handler in self._before.items():
            signal.signal(notice, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.by = self.by or signal.Signals(number).name
        if number == signal.SIGINT:
            if self._interrupted:
                raise KeyboardInterrupt
            self._interrupted = True
            if distributed.rank() == 0:  # print may be what was interrupted
                os.write(2, b"\nstopping after this step, and saving; Ctrl-C again ends at once\n")
        if number == signal.SIGHUP:  # to write to a terminal that is gone would be an error
            for output in self._terminals:
                os.dup2(os.open(os.devnull, os.O_WRONLY), output)
