"""The processes of a run, as torchrun starts them: their ranks, and the few values that they exchange."""

from __future__ import annotations

import os
import re
import sys
import traceback
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from lewel import meeting
from lewel.errors import LewelError, ToldError

T = TypeVar("T")
PATIENCE = timedelta(minutes=30)  # with a process that reads a slow folder or compiles kernels


@dataclass(frozen=True)
class World:
    """This process among those of the run."""

    rank: int
    size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this is the one process that writes and speaks."""
        return self.rank == 0


# For what is known to the host alone: over NCCL it would wait for the device. With the group that it was made beside.
_host_group: Any = None
_beside: Any = None


def join() -> World:
    """Joins the process group that torchrun's environment announces, over NCCL with GPUs and gloo without.

    Returns this process's place in it; a run of one process joins nothing. A group that the caller has initialised is
    taken as it is; without LOCAL_RANK the process's GPU is then the current one (torch.cuda.set_device). Raises
    LewelError where there are more processes than GPUs, and where the processes cannot meet.
    """
    global _host_group, _beside
    on_gpu = torch.cuda.is_available()
    current = torch.cuda.current_device() if on_gpu and dist.is_initialized() else 0
    local_rank = meeting.number("LOCAL_RANK", current, "of a process on its machine, from 0")
    if on_gpu:
        meeting.check_gpus(local_rank, torch.cuda.device_count())
        torch.cuda.set_device(local_rank)
    device = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    if announced() > 1 and not dist.is_initialized():
        with meeting.place():
            dist.init_process_group(
                "nccl" if on_gpu else "gloo", device_id=device if on_gpu else None, timeout=PATIENCE
            )
    if dist.is_initialized() and _beside is not dist.group.WORLD:
        on_hosts = "cpu:" in dist.get_backend_config()  # nccl alone has "cuda:nccl"
        _host_group = dist.group.WORLD if on_hosts else dist.new_group(backend="gloo", timeout=PATIENCE)
        _beside = dist.group.WORLD
    return World(rank(), size(), device)


def announced() -> int:
    """Number of processes: of the group where there is one, else by torchrun's environment, before they have joined."""
    return size() if dist.is_initialized() else meeting.announced()


def leave() -> None:
    """Destroys the process group that join made; every process calls it at the end of the run."""
    global _host_group, _beside
    if dist.is_initialized():
        dist.destroy_process_group()
        _host_group = _beside = None


def abandon(error: Exception) -> NoReturn:
    """Reports error on stderr and ends this process at once, with status 2 for a LewelError and 1 for others.

    For one process of several: to wait for the others, which may wait for it, would hide the error.
    """
    if isinstance(error, (LewelError, OSError)):
        said = f"lewel: {error}"
        if not isinstance(error, ToldError) and _is_first_to_say(said):
            print(said, file=sys.stderr)
    elif _is_of_another(error):
        reason = " ".join(str(error).split())[:200]
        print(
            f"lewel: process {rank()} ends because another one did, which says why unless it was killed ({reason})",
            file=sys.stderr,
        )
    else:
        traceback.print_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(2 if isinstance(error, LewelError) else 1)


def _is_of_another(error: Exception) -> bool:
    """Whether NCCL, gloo or the store has lost another process: an error of torch's own kind, or of a connection."""
    return isinstance(error, dist.DistError) or re.search(r"gloo/transport|by peer|Broken pipe", str(error)) is not None


def _is_first_to_say(sentence: str) -> bool:
    """Whether no other process has said the same; all may meet an error, as of data that are not there."""
    try:
        store = dist.distributed_c10d._get_default_store()
        return store.add(f"lewel said {zlib.crc32(sentence.encode(errors='replace'))}", 1) == 1
    except Exception:  # the store goes with process 0
        return True


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def gather(x: Tensor) -> Tensor:
    """x (N, ...) of every process in the order of ranks, (size N, ...), without gradient; x itself in one process."""
    if size() == 1:
        return x.detach()
    x = x.detach().contiguous()
    whole = x.new_empty(size() * x.shape[0], *x.shape[1:])
    dist.all_gather_into_tensor(whole, x)
    return whole


def gather_objects(x: T) -> list[T]:
    """x of every process in the order of ranks; none goes on before all have called it."""
    if size() == 1:
        return [x]
    found: list[Any] = [None] * size()
    dist.all_gather_object(found, x, group=_host_group)
    return found


def exchange(x: Tensor, sent: list[int], received: list[int]) -> Tensor:
    """Rows from every process in the order of ranks, without gradient; x itself in one process.

    x holds the rows for every process in the same order: sent[r] of them for process r, received[r] come from there.
    """
    if size() == 1:
        return x.detach()
    rows = x.new_empty(sum(received), *x.shape[1:])
    dist.all_to_all_single(rows, x.detach().contiguous(), received, sent)
    return rows


def average(x: Tensor) -> Tensor:
    """The mean of x over the processes, without gradient."""
    if size() == 1:
        return x.detach()
    total = x.detach().clone()
    dist.all_reduce(total)
    return total / size()


def add_up(x: Tensor) -> None:
    """Overwrites contiguous x by its sum over the processes."""
    if size() > 1:
        dist.all_reduce(x)


def everywhere(flag: bool) -> bool:
    """Whether a flag is set in all processes, which call this together and wait for each other."""
    return all(gather_objects(flag))


class Anywhere:
    """Tells whether a flag is set in any process, without waiting for the others.

    All processes call ask equally often. Each call returns the answer to the call before it, the same in all processes,
    and False at first. In a run of one process a call returns its own flag.
    """

    def __init__(self) -> None:
        self._asked: tuple[Any, Tensor] | None = None

    def ask(self, flag: bool) -> bool:
        if size() == 1:
            return flag
        before, found = self._asked, torch.tensor([int(flag)])
        self._asked = dist.all_reduce(found, dist.ReduceOp.MAX, group=_host_group, async_op=True), found
        if before is None:
            return False
        before[0].wait()
        return bool(before[1])


@torch.no_grad()
def share(tensors: Iterable[Tensor]) -> None:
    """Overwrites tensors in every process with their values in process 0."""
    if size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def from_leader(find: Callable[[], T]) -> T:
    """Calls find in process 0 alone; every process returns its result, or a LewelError if it raised one."""
    if size() == 1:
        return find()
    answer: list[Any] = [None]
    if rank() == 0:
        try:
            answer = [find()]
        except LewelError as error:
            answer = [error]
    dist.broadcast_object_list(answer, group=_host_group)
    if isinstance(answer[0], LewelError):
        raise answer[0] if rank() == 0 else ToldError(str(answer[0]))
    return answer[0]
