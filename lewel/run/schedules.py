"""Learning rate and momentum as pure functions of the optimizer step, counted from 0."""

from __future__ import annotations

import math


def learning_rate(step: int, *, peak: float, warmup_steps: int, total_steps: int, schedule: str = "cosine") -> float:
    """Linear from peak / warmup_steps to peak, then peak ("constant"), or half a cosine to 0 at total_steps."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if schedule == "constant":
        return peak
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))


def target_momentum(step: int, *, start: float, schedule: str, total_steps: int) -> float:
    """m of the momentum network: start throughout ("constant"), or rising to 1 at total_steps ("cosine")."""
    if schedule == "constant":
        return start
    return 1 - (1 - start) * 0.5 * (1 + math.cos(math.pi * step / total_steps))
