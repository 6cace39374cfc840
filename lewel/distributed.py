"""The processes of a run, as torchrun starts them: who they are, and the little that they tell each other."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from lewel.errors import LewelError

T = TypeVar("T")


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


_host_group: Any = None  # for what is known to the host alone: over NCCL it would wait for the device


def join() -> World:
    """Joins the processes that torchrun's environment announces, NCCL with GPUs and gloo without; one process else."""
    global _host_group
    on_gpu, local_rank = torch.cuda.is_available(), int(os.environ.get("LOCAL_RANK", 0))
    if on_gpu:
        if local_rank >= torch.cuda.device_count():
            raise LewelError(
                f"process {local_rank} of this machine found {torch.cuda.device_count()} GPUs; "
                "start at most as many processes (torchrun --nproc-per-node) as there are"
            )
        torch.cuda.set_device(local_rank)
    device = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    if announced() > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if on_gpu else "gloo", device_id=device if on_gpu else None)
        _host_group = dist.new_group(backend="gloo") if on_gpu else dist.group.WORLD
    return World(rank(), size(), device)


def announced() -> int:
    """Number of processes by torchrun's environment, before they have joined."""
    return int(os.environ.get("WORLD_SIZE", 1))


def leave() -> None:
    """Ends what join began."""
    if dist.is_initialized():
        dist.destroy_process_group()


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


def average(x: Tensor) -> Tensor:
    """The mean of x over the processes, without gradient."""
    if size() == 1:
        return x.detach()
    total = x.detach().clone()
    dist.all_reduce(total)
    return total / size()


def anywhere(flag: bool) -> bool:
    """Whether flag is set in any process; waits for the others, but not for the device."""
    if size() == 1:
        return flag
    found = torch.tensor([int(flag)])
    dist.all_reduce(found, dist.ReduceOp.MAX, group=_host_group)
    return bool(found)


def from_leader(find: Callable[[], T]) -> T:
    """What find gives in the first process, the only one that calls it, or the LewelError that it raises there."""
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
        raise answer[0]
    return answer[0]
