"""Launches a call like an earlier one by the plan of that one.

A plan takes a tenth of a millisecond of the host, and Triton's look at the arguments of a kernel 30 microseconds for
each launch, longer than a GPU works on a small batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from lewel_kernels.plan import TENSORS, Array
from lewel_kernels.triton.launch import Launch, Plan

_replays: dict[Hashable, Replay] = {}
_MOST = 256  # kept; a program with more kinds of calls has other worries


def run(call: Hashable, inputs: Sequence[Tensor | None], plan: Callable[[], Plan]) -> tuple[Tensor | None, ...]:
    """Launches what ``plan()`` plans for a call, or planned for an equal one on that device, and returns the outputs.

    Args:
        call: Everything that the plan depends on. It holds how round the addresses are: Triton compiles for that.
        inputs: The tensors of the call, in the order of `lewel_kernels.plan.TENSORS`.
        plan: Called where no equal call was planned before.
    """
    device = inputs[0].device  # type: ignore[union-attr]
    replay = _replays.get((call, device))
    if replay is None:
        planned = plan()
        if not planned.launches:  # an empty batch: sums over nothing
            return tuple(x if x is None else x.empty(device).zero_() for x in planned.outputs)
        if len(_replays) >= _MOST:
            _replays.clear()
        replay = _replays[call, device] = Replay(planned, device, len(inputs))
    return replay(inputs)


class Replay:
    """The launches of a plan on a device, its arrays replaced by slots: first the inputs, then what is made."""

    def __init__(self, plan: Plan, device: torch.device, inputs: int) -> None:
        made = plan.made
        slots = {name: slot for slot, name in enumerate([*TENSORS[:inputs], *(x.name for x in made)])}
        self._outputs = [x if x is None else slots[x.name] for x in plan.outputs]
        self._steps = [_Step(launch, slots) for launch in plan.launches]
        self._made = [(x.shape, x.stride, x.dtype) for x in made]
        self._device = device

    def __call__(self, inputs: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
        device = self._device
        made = [torch.empty_strided(size, stride, dtype=dtype, device=device) for size, stride, dtype in self._made]
        tensors = [*inputs, *made]
        # Triton launches on the current device, which need not be that of the tensors.
        elsewhere = device.type == "cuda" and device.index != torch.cuda.current_device()
        with torch.cuda.device(device) if elsewhere else contextlib.nullcontext():
            for step in self._steps:
                step(tensors)
        return tuple(slot if slot is None else tensors[slot] for slot in self._outputs)


class _Step:
    """One launch: its kernel, and its arguments in order with slots for tensors."""

    def __init__(self, launch: Launch, slots: dict[str, int]) -> None:
        self._kernel, self._grid, self._options = launch.kernel, launch.grid, launch.options
        named = {**launch.arguments, **launch.constants}
        values = [named[name] for name in launch.kernel.arg_names]
        self._slots = [(i, slots[x.name]) for i, x in enumerate(values) if isinstance(x, Array)]
        self._values = [None if isinstance(x, Array) else x for x in values]
        self._compiled: Callable[..., object] | None = None

    def __call__(self, tensors: list[Tensor | None]) -> None:
        values = self._values.copy()
        for i, slot in self._slots:
            values[i] = tensors[slot]
        if self._compiled is not None:
            self._compiled(*values)
            return
        compiled = self._kernel[self._grid](*values, **self._options)
        if compiled is not None:  # the interpreter compiles nothing
            self._compiled = compiled[self._grid]
