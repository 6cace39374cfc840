"""Names of the parts of a training run in a profile: each is a torch.profiler.record_function in the trainer.

They cost some microseconds each where no profiler listens. DATA to LOG make up a step; FORWARD has ENCODER, HEAD, LOSS,
and for infonce MOMENTUM, inside it; PROBE is there where images have labels. docs/training.md shows how to see them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from torch.profiler import record_function

P = ParamSpec("P")
T = TypeVar("T")

DATA = "lewel: data"  # the wait for views (with workers=0 their making too), and their way to the device
FORWARD = "lewel: forward"  # of one pass; the predictors have no range of their own
ENCODER = "lewel: encoder"  # of either network
HEAD = "lewel: head"  # projectors, maps and aligned pooling
LOSS = "lewel: loss"
BACKWARD = "lewel: backward"
PROBE = "lewel: probe"  # a step of the linear classifier that is trained beside the method
OPTIMIZER = "lewel: optimizer"  # with its gradient scaler
MOMENTUM = "lewel: momentum"  # the target network follows, keys enter the queue
LOG = "lewel: log"
STEP = (DATA, FORWARD, ENCODER, HEAD, LOSS, BACKWARD, PROBE, OPTIMIZER, MOMENTUM, LOG)
SAVE = "lewel: save"  # a checkpoint
EVALUATE = "lewel: evaluate"  # kNN, RankMe, the probe and the statistics of the maps; encoders of these have no range


def ranged(name: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorator: every call of the function is a range of this name."""

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def call(*args: P.args, **options: P.kwargs) -> T:
            with record_function(name):
                return function(*args, **options)

        return call

    return decorate
