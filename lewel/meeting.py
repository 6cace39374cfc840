"""Before the processes of a run have met: what torchrun's environment says of them, and which of them speaks."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
from collections.abc import Iterator

from lewel.errors import LewelError, OwnError, ToldError

# The variables of a launcher's tasks: their number, and which this is. Not SLURM_NTASKS, which a batch script has too.
LAUNCHERS = (
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "srun"),
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "mpirun"),
    ("PMI_SIZE", "PMI_RANK", "mpirun"),
)
SECONDS_UNTIL_SAID = 15  # that others are waited for


def announced() -> int:
    """Number of processes. Raises LewelError for an environment that makes no sense."""
    count = number("WORLD_SIZE", 1, "of processes")
    if count == 0:
        raise OwnError("WORLD_SIZE is 0, but a run has one process at least; unset it for a run of one")
    if "RANK" not in os.environ and count > 1:
        raise OwnError(
            f"WORLD_SIZE is {count} but RANK is not set; start the processes by torchrun, which sets both (with srun: "
            "RANK=$SLURM_PROCID), or unset WORLD_SIZE for a run of one process"
        )
    own = number("RANK", 0, "of a process, from 0")
    if own >= count:
        raise OwnError(
            f"RANK is {own} but WORLD_SIZE is {os.environ.get('WORLD_SIZE', 'not set')}: ranks count from 0 up to the "
            "number of processes; torchrun sets both, and a run of one process needs neither"
        )
    return count


def apart() -> str:
    """A sentence about tasks of srun or mpirun that nothing has told of each other, from the first one; else ""."""
    if "WORLD_SIZE" in os.environ:
        return ""
    for count, own, by in LAUNCHERS:
        tasks = os.environ.get(count, "")
        if tasks.isascii() and tasks.isdigit() and int(tasks) > 1 and os.environ.get(own, "0") == "0":
            return (
                f"this is one of {tasks} tasks of {by}, but RANK and WORLD_SIZE are not set: each trains a run of its "
                f"own; for one run start them by torchrun, or export RANK=${own} WORLD_SIZE=${count} in each, with "
                "LOCAL_RANK, MASTER_ADDR and MASTER_PORT"
            )
    return ""


def speaks(error: BaseException | None = None) -> bool:
    """Whether this process, of several before they have met, is the one to say what all or what it alone has met."""
    if isinstance(error, (OwnError, ToldError)):
        return isinstance(error, OwnError)
    return os.environ.get("RANK", "0") in ("0", "") or os.environ.get("WORLD_SIZE", "1") in ("1", "")


def processes_here() -> int:
    """Number of processes of this machine, as far as the environment tells."""
    return max(1, number("LOCAL_WORLD_SIZE", 1, "of processes on a machine"))


def number(name: str, default: int, what: str) -> int:
    """The environment variable of that name, a number that is not negative."""
    text = os.environ.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.strip().isdigit():
        raise OwnError(
            f"{name} is {text!r}, which is no number {what}; torchrun sets it, and a run of one process needs none"
        )
    return int(text)


def check_gpus(local_rank: int, gpus: int) -> None:
    """Raises LewelError in every process of a machine with more processes than GPUs; one of them says it."""
    here = number("LOCAL_WORLD_SIZE", 0, "of processes on a machine")
    if max(here, local_rank + 1) > gpus:
        found = f"{here} processes on this machine" if here else f"process {local_rank} of this machine"
        first = local_rank == (0 if here else gpus)  # without the number the processes that have a GPU meet no error
        raise (OwnError if first else ToldError)(
            f"{found} found {gpus} GPUs; start at most as many processes (torchrun --nproc-per-node) as there are"
        )


@contextlib.contextmanager
def place() -> Iterator[None]:
    """The context in which the processes meet: what torch says of a failure becomes a sentence."""
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    own, count = os.environ["RANK"], os.environ["WORLD_SIZE"]
    if missing:
        raise LewelError(
            f"{' and '.join(missing)} must say where the {count} processes meet: the machine of process 0, and a free "
            "port of it (MASTER_ADDR=127.0.0.1 MASTER_PORT=29500 on one machine); torchrun sets both"
        )
    address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise LewelError(f"MASTER_PORT is {port!r}, no port; name a free one of process 0's machine, such as 29500")
    try:
        socket.getaddrinfo(address, int(port))
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OwnError(f"MASTER_ADDR is {address!r}, which names no machine that is known here ({reason})") from None
    said = f"process {own} of {count} waits for the others at {address}:{port} (MASTER_ADDR, MASTER_PORT)"
    timer = threading.Timer(SECONDS_UNTIL_SAID, lambda: print(f"lewel: {said}", file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        taken = "address already in use" in str(error).lower() or "EADDRINUSE" in str(error)
        advice = (
            "that port is taken, by another run perhaps; choose another MASTER_PORT (torchrun --standalone finds one)"
            if taken
            else "is process 0 running on that machine, and are all of them started?"
        )
        raise OwnError(
            f"process {own} of {count} could not meet the others at {address}:{port}: {advice} ({reason})"
        ) from None
    finally:
        timer.cancel()
