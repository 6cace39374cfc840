"""Where lines go: a terminal, pipe or disk that takes none of them any more ends neither a command nor a run."""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, TextIO

_entering = threading.Lock()
_inside, _before = 0, (sys.stdout, sys.stderr)  # contexts of lossy, and what was before them


class _Lossy(io.FileIO):
    """An output that takes everything: what the terminal, pipe or disk behind it refuses is lost; the error is kept."""

    lost: OSError | None = None

    def write(self, content: Any) -> int:
        try:
            return super().write(content) or len(content)
        except OSError as error:
            self.lost = self.lost or error
            return len(content)


@contextlib.contextmanager
def lossy() -> Iterator[None]:
    """A context in which nothing that is printed raises an error, and what cannot be encoded is printed as an escape.

    Outputs that are no files, as in a notebook, stay what they are.
    """
    global _before, _inside
    with _entering:
        if not _inside:
            _before = sys.stdout, sys.stderr
            sys.stdout, sys.stderr = _without_errors(sys.stdout), _without_errors(sys.stderr)
        _inside += 1
    try:
        yield
    finally:
        for output in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                output.flush()
        with _entering:
            _inside -= 1
            if not _inside:  # of several runs in threads, the last to leave
                sys.stdout, sys.stderr = _before


@contextlib.contextmanager
def interrupted_quietly(command: bool = True) -> Iterator[None]:
    """A context of imports in which Ctrl-C ends a command at once; half imported, numpy makes other errors of it."""

    def end(number: int, frame: FrameType | None) -> None:
        write_now("lewel: interrupted\n")
        _die_of_ctrl_c()
        os._exit(130)

    here = threading.current_thread() is threading.main_thread()
    if not command or not here or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def end_interrupted() -> None:
    """Ends this process by SIGINT itself, after all that is done at its exit.

    Only then does a shell end the loop or script that the command is in. Returns where the signal ends no process, as
    in the first one of a container.
    """
    atexit._run_exitfuncs()
    for output in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            output.flush()
    _die_of_ctrl_c()


def _die_of_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGINT)


def lost() -> OSError | None:
    """Why something that was printed on stdout within lossy was lost, once it has been flushed; None if nothing was."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    return getattr(getattr(getattr(sys.stdout, "buffer", None), "raw", None), "lost", None)


def open_closed() -> None:
    """Opens the null device in place of each standard stream that is closed, whose number the next file would get."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free


def write_now(line: str) -> None:
    """Writes a line to stderr from a signal handler: print may be what was interrupted."""
    with contextlib.suppress(OSError):
        os.write(2, line.encode())


def _without_errors(output: TextIO | None) -> TextIO:
    if output is None:  # closed before Python started
        return open(os.devnull, "w")
    if type(output) is not io.TextIOWrapper or isinstance(getattr(output.buffer, "raw", None), _Lossy):
        return output
    with contextlib.suppress(OSError, ValueError):
        output.flush()
    try:
        raw = _Lossy(output.fileno(), "w", closefd=False)
    except (OSError, ValueError):
        return open(os.devnull, "w")
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=output.encoding, errors="backslashreplace", line_buffering=True
    )
