"""What a call leaves behind and sets off: bytes saved for the backward, operators or kernels launched."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks import timing
from benchmarks.op.cost import Cost


def saved_bytes(call: Callable[[], object], own: Iterable[Tensor]) -> int:
    """Bytes of the storages that the result of ``call`` keeps for its backward, except those of ``own``."""
    storages: dict[int, torch.UntypedStorage] = {}  # held, so that no other takes the place of one that is freed

    def pack(x: Tensor) -> Tensor:
        storages[_identity(x)] = x.untyped_storage()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        call()
    inputs = set(map(_identity, own))
    return sum(storage.nbytes() for identity, storage in storages.items() if identity not in inputs)


def launches(call: Callable[[], object], device: str) -> int:
    """On a GPU the kernels, copies and fills that ``call`` launches; on the CPU the operators that are no views."""
    call()
    if torch.device(device).type != "cuda":
        with Operators() as seen:
            call()
        return len(seen.operators)
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        call()
        timing.synchronise(device)
    # A range that somebody named (the op does, for profiles) is repeated on the device's side, and launches nothing.
    on_gpu = (event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA)
    return sum(not event.is_user_annotation for event in on_gpu)


class Operators(TorchDispatchMode):
    """Records every operator that computes or moves data, with the bytes that it reads and writes and its flops.

    Flops are those of matrix products and convolutions, as PyTorch's own counter has them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[tuple[str, Cost]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        read, written = _tensors((args, kwargs)), _tensors(out)
        in_place = func._schema.is_mutable
        moves = written and (in_place or {*map(_identity, read)}.isdisjoint(map(_identity, written)))
        if moves and func.namespace != "prim":
            count = flop_registry.get(func.overloadpacket)
            flops = count(*args, **(kwargs or {}), out_val=out) if count else 0
            self.operators.append((func.name(), Cost(sum(map(_distinct_bytes, read + written)), flops)))
        return out


def _tensors(tree: Any) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]


def _identity(x: Tensor) -> int:
    """A number that is equal for tensors that share memory; not an address, for a tensor without contents has none."""
    return x.untyped_storage()._cdata


def _distinct_bytes(x: Tensor) -> int:
    """Bytes of the elements of x; elements that an expanded dimension repeats are counted once."""
    count = 1
    for size, stride in zip(x.shape, x.stride(), strict=True):
        count *= size if stride else min(size, 1)
    return count * x.element_size()
