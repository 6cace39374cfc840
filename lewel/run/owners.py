"""Who holds a run folder: a process, and whether it is still there."""

from __future__ import annotations

import os
import socket
import uuid
from dataclasses import dataclass
from pathlib import Path


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


def myself() -> Owner:
    """This process, with a claim of its own each time."""
    return Owner(socket.gethostname(), _kernel(), os.getpid(), started(os.getpid()) or "", uuid.uuid4().hex)


def is_here(owner: Owner) -> bool:
    """Whether an owner is of this host and container, where it can be asked for."""
    return (owner.host, owner.kernel) == (socket.gethostname(), _kernel())


def _kernel() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def started(pid: int) -> str | None:
    """When a process of this host started, "" where only its being there is known; None for one that has ended."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state in "ZX" else fields[18]
    except (OSError, ValueError, IndexError):
        pass  # there is no /proc, or it hides the processes of other users
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass
    return ""
