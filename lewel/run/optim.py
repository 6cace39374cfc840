"""SGD, LARS and AdamW, with biases, norms and tokens left out of decay where the recipe says so."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from lewel.recipe import schema

# Parts of names, between dots, that torchvision and timm give to learned positions and tokens: matrices that are added
# or looked up, not multiplied by. timm's no_weight_decay() and a test agree.
TOKENS = re.compile(
    r"(^|\.)(pos_embed\w*|position_embedding\w*|\w+_pos|rel_pos\w*|relative_position_bias_table|cpb_mlp"
    r"|attention_biases\w*|logit_scale|\w*(cls|class|reg|dist|mask|storage)_token\w*|register_tokens)(\.|$)"
)


def build(
    settings: schema.Optim, named: Iterable[tuple[str, nn.Parameter]], undecayed: Iterable[nn.Parameter] = ()
) -> torch.optim.Optimizer:
    """The optimizer of settings, its learning rate still to be set by the schedule.

    named is what named_parameters() gives; those that are not trained are left out. There are two groups of parameters:
    matrices, which decay and which LARS scales, and the rest: tensors of one dimension, and tokens and positions, known
    by their names. Parameters in undecayed have two such groups of their own, for their rate does not fall.
    """
    trained, held = [(name, p) for name, p in named if p.requires_grad], set(undecayed)
    groups = _groups(settings, [(name, p) for name, p in trained if p not in held])
    if held:
        groups += [{**group, "decays": False} for group in _groups(settings, [(n, p) for n, p in trained if p in held])]
    if settings.name == "lars":
        return LARS(groups, momentum=settings.momentum)
    if settings.name == "adamw":
        return torch.optim.AdamW(groups, lr=0.0, betas=(settings.momentum, 0.999), fused=True)
    optimizer = torch.optim.SGD(groups, lr=0.0, momentum=settings.momentum, fused=True)
    for _, p in trained if settings.momentum else []:
        # Else the first step makes it, out of memory as it is if a gradient scaler skips that step.
        optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return optimizer


def is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter is what LARS scales and decay is for: no bias, norm, token or learned position."""
    return parameter.ndim > 1 and not TOKENS.search(name)


def _groups(settings: schema.Optim, trained: list[tuple[str, nn.Parameter]]) -> list[dict]:
    """Two groups: matrices, and the rest, which decays only with decay_all and which LARS does not scale."""
    rest = settings.weight_decay if settings.decay_all else 0.0
    return [
        {"params": [p for n, p in trained if is_matrix(n, p)], "weight_decay": settings.weight_decay, "adapt": True},
        {"params": [p for n, p in trained if not is_matrix(n, p)], "weight_decay": rest, "adapt": False},
    ]


class LARS(torch.optim.Optimizer):
    """SGD with a learning rate per tensor (You et al. 2017); groups with adapt=False take the plain one.

    local = eta |w| / (|g| + wd |w|);  d = (g + wd w) * local * lr;  v = momentum v + d;  w = w - v
    A tensor of zeros, or without a gradient anywhere (|g| = 0), has local = 1.

    A gradient scaler hands over its scale and what it found (grad_scale, found_inf), so that neither a step nor its
    omission waits for the device.
    """

    _step_supports_amp_scaling = True

    def __init__(self, groups: list[dict], *, momentum: float, eta: float = 1e-3) -> None:
        super().__init__(groups, {"lr": 0.0, "momentum": momentum, "eta": eta})
        self._counts: dict[tuple[int, ...], Tensor] = {}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        # Where there is no scaler there are no such attributes: it multiplies the grad_scale that it finds by its own.
        scale: Tensor | None = getattr(self, "grad_scale", None)
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if not weights:
                continue
            grads = [p.grad for p in weights]
            if scale is not None:
                grads = list(torch._foreach_div(grads, scale))
            update = list(torch._foreach_add(grads, weights, alpha=group["weight_decay"]))
            if group["adapt"]:
                update = self._scaled(update, self._local_rates(weights, grads, group))
            torch._foreach_mul_(update, group["lr"])
            velocities = [self._velocity(p) for p in weights] if group["momentum"] else []
            # v = momentum v + d, w = w - v, or nothing at all where the scaler found an infinity: one kernel.
            torch._fused_sgd_(
                weights, update, velocities, weight_decay=0.0, momentum=group["momentum"],
                lr=1.0, dampening=0.0, nesterov=False, maximize=False, is_first_step=False, found_inf=found_inf,
            )  # fmt: skip

    def _velocity(self, weight: Tensor) -> Tensor:
        state = self.state[weight]
        if not state:
            state["velocity"] = torch.zeros_like(weight)
        return state["velocity"]

    @staticmethod
    def _local_rates(weights: list[Tensor], grads: list[Tensor], group: dict) -> Tensor:
        """``local`` of the formula for each tensor, (len(weights),)."""
        w = torch.stack(torch._foreach_norm(weights))
        g = torch.stack(torch._foreach_norm(grads))
        rates = group["eta"] * w / (g + group["weight_decay"] * w)
        return torch.where((w > 0) & (g > 0), rates, torch.ones_like(rates))

    def _scaled(self, tensors: Sequence[Tensor], factors: Tensor) -> list[Tensor]:
        """Each dense tensor times its entry of factors (len(tensors),), in one product; foreach launches one each."""
        sizes = tuple(t.numel() for t in tensors)
        if sizes not in self._counts:  # the same in all steps: copied to the device once
            self._counts[sizes] = torch.tensor(sizes, device=factors.device)
        # In the order of memory, whatever the strides.
        flat = torch.cat([t.as_strided((size,), (1,)) for t, size in zip(tensors, sizes, strict=True)])
        flat *= factors.repeat_interleave(self._counts[sizes], output_size=len(flat))
        return [
            part.as_strided(t.shape, t.stride(), part.storage_offset())
            for part, t in zip(flat.split(sizes), tensors, strict=True)
        ]

    def __setstate__(self, state: dict) -> None:
        """Called for a copy, which gets no more than what state_dict holds, and by load_state_dict."""
        super().__setstate__(state)
        self._counts = {}
