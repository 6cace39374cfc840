"""The claim of a running process to its run folder: a file in it that says which process of which host writes there.

A process of the same host is asked for. One of another host, or of another container, is known by its heartbeat: it
touches the file every BEAT seconds, and a lock that was not touched for STALE seconds is nobody's.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

from lewel import console
from lewel.errors import LewelError

NAME = "lock.json"
BEAT, STALE = 15.0, 120.0  # seconds
ATTEMPTS = 20  # against other processes that come and go


@dataclass(frozen=True)
class Owner:
    """A process that has claimed a folder."""

    host: str
    kernel: str  # boot and process namespace: with the host, where pid means something
    pid: int
    started: str  # by the kernel's clock; a later process may have the same pid
    claim: str  # of several claims of one process

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class Taken(LewelError):
    """A folder that another process writes to."""


class Lock:
    """The claim of this process to a folder: release it once the run has ended, however far take has come."""

    def __init__(self, folder: Path) -> None:
        self.path, self.owner = folder / NAME, _myself()
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
                    reason = getattr(error, "strerror", None) or str(error)
                    raise LewelError(
                        f"cannot write to the run folder {folder}: {reason}; choose another --out"
                    ) from None
            else:
                threading.Thread(target=self._beat, daemon=True, name="lewel lock").start()
                return
            if self.path.exists():
                found = _read(self.path)
                if lives(folder) and (not wait or (found and _is_here(found)) or _beats(self.path, found)):
                    raise taken(folder)
                _remove(self.path, found)

    def release(self) -> None:
        """Removes the file, and the folders that were made for it where nothing else has come into them."""
        if self._released.is_set() or os.getpid() != self.owner.pid:  # a worker that was forked holds nothing
            return
        self._released.set()
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
                if found not in (None, self.owner):  # this machine slept, and another run took over
                    _end(self.path, found)
                os.utime(self.path)


def check_mine(folder: Path) -> None:
    """Ends this process where another one has meanwhile taken the folder over. Without a lock it is as good as ours."""
    found = _read(folder / NAME)
    if found is not None and not (_is_here(found) and found.pid == os.getpid()) and lives(folder):
        _end(folder / NAME, found)


def _end(path: Path, owner: Owner) -> None:
    """Ends this process at once, from whatever thread: what it wrote from here on would be in the other's way."""
    console.write_now(
        f"lewel: {path} is of {owner} now, which has taken the folder over, as a run may where no sign comes for "
        f"{STALE:.0f} seconds (of one that was suspended, say); this process ends and saves nothing more\n"
    )
    os._exit(1)


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
    if owner is not None and _is_here(owner):
        return _started(owner.pid) == owner.started
    age = _age(path)
    return age is not None and age < STALE


def _beats(path: Path, owner: Owner | None) -> bool:
    """Waits until the lock of another host is touched, and then returns True, or is stale."""
    touched = _touched(path)
    said = f"{path} is of {owner or 'another process'}; waiting up to {STALE:.0f} seconds for a sign that it still runs"
    print(said, flush=True)
    while (age := _age(path)) is not None and age < STALE:
        if _touched(path) != touched or _read(path) != owner:
            return True
        time.sleep(min(1.0, STALE / 10))
    return False


def _myself() -> Owner:
    return Owner(socket.gethostname(), _kernel(), os.getpid(), _started(os.getpid()) or "", uuid.uuid4().hex)


def _is_here(owner: Owner) -> bool:
    return (owner.host, owner.kernel) == (socket.gethostname(), _kernel())


def _kernel() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """When a process of this host started, "" where only its being there is known; None for one that has ended."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state in "ZX" else fields[18]
    except (OSError, ValueError, IndexError):
        if Path("/proc/self/stat").exists():
            return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass
    return ""


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
    except OSError:
        return None


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
    except OSError:
        return
    if _read(aside) != found:
        with contextlib.suppress(OSError):
            os.link(aside, path)
    with contextlib.suppress(OSError):
        aside.unlink()
