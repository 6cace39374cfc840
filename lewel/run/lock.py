"""The claim of a running process to its run folder: a file in it that says which process of which host writes there.

A process of the same host is asked for. One of another host, or of another container, is known by its heartbeat: it
touches the file every BEAT seconds, and a lock that was not touched for STALE seconds is nobody's.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import threading
import time
import uuid
from dataclasses import asdict
from pathlib import Path

from lewel import console
from lewel.errors import LewelError
from lewel.run.owners import Owner, is_here, myself, started

NAME = "lock.json"
BEAT, STALE = 15.0, 120.0  # seconds
ATTEMPTS = 20  # against other processes that come and go
_held: dict[Path, Owner] = {}  # the locks of this process


class Taken(LewelError):
    """A folder that another process writes to."""


class Lock:
    """The claim of this process to a folder: release it once the run has ended, however far take has come."""

    def __init__(self, folder: Path) -> None:
        self.path, self.owner = folder / NAME, myself()
        self._made: list[Path] = []  # folders, the innermost first
        self._creates, self._released = False, threading.Event()

    def take(self, *, wait: bool = False) -> None:
        """Claims the folder, which is made where it is missing.

        With wait, the heartbeat of another host is waited for before the folder counts as taken. Raises Taken where a
        process that lives holds it, and LewelError where the folder cannot be written to.
        """
        folder = self.path.parent
        for attempt in range(ATTEMPTS):
            try:
                self._create()
            except (OSError, ValueError) as error:
                # Another process may hold it, or may just have removed the folder or the file.
                if not isinstance(error, (FileExistsError, FileNotFoundError)) or attempt == ATTEMPTS - 1:
                    raise _cannot_write(folder, error) from None
            else:
                _held[self.path] = self.owner
                threading.Thread(target=self._beat, daemon=True, name="lewel lock").start()
                return
            if _is_there(self.path):
                found = _read(self.path)
                if lives(folder) and (not wait or (found and is_here(found)) or _beats(self.path, found)):
                    raise taken(folder)
                _remove(self.path, found)

    def release(self) -> None:
        """Removes the file, and the folders that were made for it where nothing else has come into them."""
        if self._released.is_set() or os.getpid() != self.owner.pid:  # a worker that was forked holds nothing
            return
        self._released.set()
        _held.pop(self.path, None)
        with contextlib.suppress(OSError, ValueError):
            found = _read(self.path)
            if found == self.owner or (found is None and self._creates):
                self.path.unlink()
        self._remove_made()

    def _create(self) -> None:
        """Writes the file where there is none, and the folders around it. What is made is noted before it is there."""
        try:
            for folder in (*reversed(self.path.parent.parents), self.path.parent):
                if not folder.exists():
                    self._made.insert(0, folder)
                    folder.mkdir(exist_ok=True)
            self._creates = True
            with open(self.path, "x") as file:
                json.dump(asdict(self.owner), file)
        except FileExistsError:
            self._creates = False
            raise
        except (OSError, ValueError):
            if self._creates and _read(self.path) is None:
                with contextlib.suppress(OSError, ValueError):
                    self.path.unlink()
            self._creates = False
            self._remove_made()
            raise

    def _remove_made(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            for folder in self._made:
                folder.rmdir()
        self._made = []

    def _beat(self) -> None:
        while not self._released.wait(BEAT):
            with contextlib.suppress(OSError):
                found = _read(self.path)
                if found not in (None, self.owner):  # what this process wrote from here on would be in the other's way
                    console.write_now(f"lewel: {_taken_over(self.path, found)}\n")
                    os._exit(1)
                os.utime(self.path)


def check_mine(folder: Path) -> None:
    """Raises LewelError where a folder that this process has claimed is no longer its own, or no longer there."""
    path = folder / NAME
    owner, found = _held.get(path), _read(path)
    if owner is not None and found not in (None, owner):
        raise LewelError(_taken_over(path, found))
    if owner is None or found is not None or not _is_gone(path):
        return
    try:
        with open(path, "x") as file:  # somebody has removed the file alone
            json.dump(asdict(owner), file)
    except FileExistsError:
        check_mine(folder)
    except FileNotFoundError:
        raise LewelError(
            f"{path} is gone, as where the run folder was deleted or renamed; the run ends, unsaved"
        ) from None
    except OSError as error:
        raise _cannot_write(folder, error) from None


def _taken_over(path: Path, owner: Owner | None) -> str:
    return (
        f"{path} is of {owner} now, which has taken the folder over, as a run may where no sign comes for {STALE:.0f} "
        "seconds (of one that was suspended, say); this process ends and saves nothing more"
    )


def _is_gone(path: Path) -> bool:
    try:
        path.lstat()
    except FileNotFoundError:
        return True
    return False


def _cannot_write(folder: Path, error: Exception) -> LewelError:
    reason = getattr(error, "strerror", None) or str(error)
    return LewelError(f"cannot write to the run folder {folder}: {reason}; choose another --out")


def _is_there(path: Path) -> bool:
    """Whether there is a lock. Raises LewelError for what is none, and would not give way to one."""
    try:
        mode = path.lstat().st_mode
    except OSError:
        return False
    if not stat.S_ISREG(mode):
        raise LewelError(f"{path} is no file, but the lock of a run goes there; remove it, or choose another --out")
    return True


def taken(folder: Path) -> Taken:
    """The error for a folder that another process writes to."""
    path = folder / NAME
    return Taken(
        f"{_read(path) or 'another process'} is writing to {folder}; wait for its end, or choose another --out "
        f"(if there is none, as in the copy of a folder, remove {path})"
    )


def lives(folder: Path) -> bool:
    """Whether a process has claimed a folder and still runs."""
    path = folder / NAME
    owner = _read(path)
    if owner is None and not path.exists():
        return False
    if owner is not None and is_here(owner):
        found = started(owner.pid)
        if found is None or (found and owner.started):
            return found == owner.started
    # Somewhere else, or hidden, or with a number that a later process may have: only its heartbeat tells.
    age = _age(path)
    return age is not None and abs(age) < STALE  # what is far in the future was not touched since the clock went back


def _beats(path: Path, owner: Owner | None) -> bool:
    """Waits until the lock of another host is touched, and then returns True, or is stale."""
    touched = _touched(path)
    said = f"{path} is of {owner or 'another process'}; waiting up to {STALE:.0f} seconds for a sign that it still runs"
    print(said, flush=True)
    until = time.monotonic() + STALE
    while time.monotonic() < until and (age := _age(path)) is not None and abs(age) < STALE:
        if _touched(path) != touched or _read(path) != owner:
            return True
        time.sleep(min(1.0, STALE / 10))
    return False


def _read(path: Path) -> Owner | None:
    """Who holds the lock; None where there is none, or where it says nothing that can be understood (yet)."""
    try:
        owner = Owner(**json.loads(path.read_text()))
        return owner if isinstance(owner.pid, int) and owner.pid > 0 else None
    except (OSError, ValueError, TypeError):
        return None


def _touched(path: Path) -> float | None:
    try:
        with open(path) as file:  # a network file system looks at the server when a file is opened
            return os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        return None
    except OSError:  # of another user, who lets nobody read it
        with contextlib.suppress(OSError):
            return path.stat().st_mtime
        return time.time()  # held, as far as can be told


def _age(path: Path) -> float | None:
    """Seconds since the lock was touched, by the clock of the file system, which all hosts share."""
    touched = _touched(path)
    if touched is None:
        return None
    probe = path.with_name(f".{NAME}.{uuid.uuid4().hex}")
    try:
        with open(probe, "x") as file:
            now = os.fstat(file.fileno()).st_mtime
        probe.unlink()
    except OSError:
        now = time.time()
    return now - touched


def _remove(path: Path, found: Owner | None) -> None:
    """Removes a stale lock, unless another process has meanwhile put its own in the place."""
    aside = path.with_name(f".{NAME}.{uuid.uuid4().hex}")
    try:
        os.rename(path, aside)  # of several processes one gets the file
    except FileNotFoundError:
        return
    except OSError as error:
        raise _cannot_write(path.parent, error) from None
    if _read(aside) != found:
        with contextlib.suppress(OSError):
            os.link(aside, path)
    with contextlib.suppress(OSError):
        aside.unlink()
