"""SGD and LARS, with biases and BN parameters left out of decay where the recipe says so."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from lewel import config


def build(settings: config.Optim, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of settings, its learning rate still to be set by the schedule."""
    trained = [p for p in parameters if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": settings.weight_decay, "adapt": True},
        {
            "params": [p for p in trained if p.ndim <= 1],
            "weight_decay": settings.weight_decay if settings.decay_all else 0.0,
            "adapt": False,
        },
    ]
    if settings.name == "lars":
        return LARS(groups, momentum=settings.momentum)
    return torch.optim.SGD(groups, lr=0.0, momentum=settings.momentum)


class LARS(torch.optim.Optimizer):
    """SGD with a learning rate per tensor (You et al. 2017); groups with adapt=False take the plain one.

    local = eta |w| / (|g| + wd |w|);  d = (g + wd w) * local * lr;  v = momentum v + d;  w = w - v
    A tensor of zeros, or without a gradient anywhere (|g| = 0), has local = 1.
    """

    def __init__(self, groups: list[dict], *, momentum: float, eta: float = 1e-3) -> None:
        super().__init__(groups, {"lr": 0.0, "momentum": momentum, "eta": eta})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if not weights:
                continue
            grads = [p.grad for p in weights]
            update = list(torch._foreach_add(grads, weights, alpha=group["weight_decay"]))
            if group["adapt"]:
                torch._foreach_mul_(update, self._local_rates(weights, grads, group))
            torch._foreach_mul_(update, group["lr"])
            velocity = [self._velocity(p) for p in weights]
            torch._foreach_mul_(velocity, group["momentum"])
            torch._foreach_add_(velocity, update)
            torch._foreach_sub_(weights, velocity)

    def _velocity(self, weight: Tensor) -> Tensor:
        state = self.state[weight]
        if not state:
            state["velocity"] = torch.zeros_like(weight)
        return state["velocity"]

    @staticmethod
    def _local_rates(weights: list[Tensor], grads: list[Tensor], group: dict) -> list[Tensor]:
        w = torch.stack(torch._foreach_norm(weights))
        g = torch.stack(torch._foreach_norm(grads))
        rates = group["eta"] * w / (g + group["weight_decay"] * w)
        return list(torch.where((w > 0) & (g > 0), rates, torch.ones_like(rates)).unbind())
