"""One optimizer step, from the views of its passes to the momentum network that follows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.profiler import record_function

from lewel import distributed, ranges
from lewel.methods.method import Method, Pass
from lewel.methods.probe import Probe
from lewel.recipe.schema import Train
from lewel.run import schedules


class Outcome(NamedTuple):
    """What Stepper.take returns; its tensors stay on the device, so that nothing waits for them."""

    loss: Tensor
    parts: dict[str, Tensor]
    z: Tensor  # online global embeddings of the first view, of the last pass


class Stepper:
    """Takes optimizer steps; call is the method itself, or the DDP module around it. A probe learns beside it.

    probe becomes None in the first pass where, in some process, the objective does not show the first view to the
    online network, whose features it would learn from.
    """

    def __init__(
        self,
        method: Method,
        call: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        probe: Probe | None = None,
    ) -> None:
        self.method, self.call, self.optimizer, self.scaler, self.probe = method, call, optimizer, scaler, probe
        self._asked = {} if probe is None else {"features": True}
        self._is_shown = False  # found out in the first pass

    def take(
        self,
        passes: Iterable[tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]],
        count: int,
        *,
        step: int,
        lr: float,
        momentum: float,
        undecayed_lr: float | None = None,
    ) -> Outcome:
        """One step over count passes, each two views (N, 3, H, W) of the same images; step is counted from 0.

        With a probe the labels (N,) int64 of the images are the third of a pass, on the device, -1 for none.
        undecayed_lr is the rate of the parameters whose rate does not fall (Objective.undecayed), lr where left out.
        Gradients are averaged over the passes. Every random number of a pass is a function of the seed, the number of
        the pass and the process, so that a run that is continued draws what it would have drawn.
        """
        with record_function(ranges.OPTIMIZER):
            self.optimizer.zero_grad()
        done: list[Pass] = []
        for number, (first, second, *labels) in enumerate(passes):
            draw = step * count + number
            torch.manual_seed(seed_of(self.method.seed, draw, distributed.rank()))
            last = number == count - 1
            with contextlib.nullcontext() if last else self._without_exchange():
                with record_function(ranges.FORWARD):
                    outcome = self.call(first, second, momentum if number == 0 else None, draw, **self._asked)
                with record_function(ranges.BACKWARD):
                    self.scaler.scale(outcome.loss / count).backward()
            if self.probe is not None:  # now, for what the backward needed is free
                self._teach(self.probe, outcome, labels[0])
            done.append(outcome._replace(features=None, shown=None))
        for group in self.optimizer.param_groups:
            group["lr"] = lr if group.get("decays", True) or undecayed_lr is None else undecayed_lr
        with record_function(ranges.OPTIMIZER):
            self.scaler.step(self.optimizer)
            self.scaler.update()
        keys = [outcome.keys for outcome in done if outcome.keys is not None]
        with record_function(ranges.MOMENTUM):
            self.method.finish(torch.cat(keys) if keys else None, momentum)
        parts = {name: _mean(outcome.parts[name] for outcome in done) for name in done[0].parts}
        return Outcome(_mean(outcome.loss for outcome in done), parts, done[-1].z)

    def _teach(self, probe: Probe, outcome: Pass, labels: Tensor) -> None:
        """A pass of the probe, which all processes take together, also those whose objective showed nothing in it."""
        features = outcome.features
        if not self._is_shown:
            self._is_shown = distributed.everywhere(features is not None)
        if not self._is_shown:
            self.probe, self._asked = None, {}
        elif features is None:
            probe.learn(probe.mean.new_empty(0, probe.channels), labels[:0])
        else:
            probe.learn(features, labels if outcome.shown is None else labels.masked_fill(~outcome.shown, -1))

    def _without_exchange(self) -> contextlib.AbstractContextManager[None]:
        """The context of all passes but the last, in which the processes do not exchange gradients."""
        return self.call.no_sync() if distributed.size() > 1 else contextlib.nullcontext()  # type: ignore[operator]


class Rates(NamedTuple):
    """Learning rates and momentum of one optimizer step, as the schedules give them."""

    lr: float
    momentum: float  # of the target network
    undecayed_lr: float  # of the parameters whose rate does not fall


def rates(run: Train, step: int, steps_per_epoch: int) -> Rates:
    """Learning rates and momentum of the target network at an optimizer step, counted from 0."""
    total_steps = run.epochs * steps_per_epoch
    lr, undecayed_lr = (
        schedules.learning_rate(
            step,
            peak=run.optim.lr * run.data.batch_size / 256,
            warmup_steps=round(run.optim.warmup_epochs * steps_per_epoch),
            total_steps=total_steps,
            schedule=schedule,
        )
        for schedule in (run.optim.schedule, "constant")
    )
    momentum = schedules.target_momentum(
        step, start=run.method.momentum, schedule=run.method.momentum_schedule, total_steps=total_steps
    )
    return Rates(lr, momentum, undecayed_lr)


def seed_of(*parts: int) -> int:
    """A seed for torch that depends on all parts, which are 0 or more."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def _mean(losses: Iterable[Tensor]) -> Tensor:
    return torch.stack([loss.detach() for loss in losses]).mean()
