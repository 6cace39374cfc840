"""Error budgets: how far a result may be from a float64 truth, given how far eager PyTorch is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Errors:
    """Largest and root-mean-square distance of a tensor from the truth, and what is allowed for each."""

    max: float
    rms: float
    max_allowed: float
    rms_allowed: float

    @property
    def ok(self) -> bool:
        # Written so that a NaN fails.
        return self.max <= self.max_allowed and self.rms <= self.rms_allowed

    @property
    def shares(self) -> tuple[float, float]:
        """max and rms, each as a part of what is allowed; infinite for a NaN, or for an error where none is allowed."""
        return _share(self.max, self.max_allowed), _share(self.rms, self.rms_allowed)

    @property
    def share(self) -> float:
        return max(self.shares)

    def __str__(self) -> str:
        return (
            f"max {self.max:.2e} (allowed {self.max_allowed:.2e}), rms {self.rms:.2e} (allowed {self.rms_allowed:.2e})"
        )


def _rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item() if x.numel() else 0.0


def _max(x: Tensor) -> float:
    return x.abs().max().item() if x.numel() else 0.0


def _share(error: float, allowed: float) -> float:
    if not error:
        return 0.0
    return math.inf if math.isnan(error) or not allowed else error / allowed


def compare(result: Tensor, eager: Tensor, truth: Tensor, *, widened: bool = True) -> Errors:
    """Budget of ``result`` against a float64 ``truth``, both maxima and both root mean squares taken over all elements.

    max |result - truth| <= 2 max |eager - truth| + 2 max |(T + 0.3 - 0.3) - T|, T being the truth rounded to the dtype
    of the result. rms(result - truth) <= 1.25 rms(eager - truth); where eager happens to be exact, twice the rms of
    rounding the truth is allowed.

    ``widened`` is for a verdict on one draw: it allows the ratio of rms 1 + 3 / sqrt(n) times as much, three standard
    deviations of such a ratio over n elements. An rms over n independent errors of one size spreads by 1 / sqrt(2 n) of
    itself, a ratio of two by 1 / sqrt(n). Errors of one image are not independent: measured ratios spread 1 to 4 times
    as far, so a single draw of few numbers may be outside by luck. What decides about the contract is `typical_share`.
    """
    sampling = 1 + 3 / max(truth.numel(), 1) ** 0.5 if widened else 1.0
    rounded = truth.to(result.dtype)
    ours, theirs = result.double() - truth, eager.double() - truth
    slack = _max((rounded + 0.3 - 0.3).double() - rounded.double())
    return Errors(
        max=_max(ours),
        rms=_rms(ours),
        max_allowed=2 * _max(theirs) + 2 * slack,
        rms_allowed=max(1.25 * sampling * _rms(theirs), 2 * _rms(rounded.double() - truth)),
    )


# No draw is worth more than this to the others: eager can be unlucky by any factor, and exact errors are zero.
_LUCK = 1 / 4


def typical_share(draws: Iterable[Errors]) -> float:
    """The error of a typical draw as a part of what is allowed.

    The larger of two geometric means over draws: of the shares of max, and of those of rms.

    Not a mean of squares: where few maps have a small norm, their errors have no finite variance, one draw outweighs a
    hundred others, and whether it is ours or eager's is luck. The ratio of both is as often too small as too large.
    A NaN, or an error where none is allowed, makes it infinite; 0 without draws.
    """
    parts = zip(*(errors.shares for errors in draws), strict=True)
    return max((math.exp(sum(math.log(max(x, _LUCK)) for x in part) / len(part)) for part in parts), default=0.0)


def check(names: tuple[str, ...], results: list[Tensor], eager: list[Tensor], truth: list[Tensor]) -> str | None:
    """None when every tensor keeps its budget, else a sentence that names the first one that does not."""
    for name, a, b, t in zip(names, results, eager, truth, strict=True):
        if a.shape != t.shape:
            return f"{name} has shape {tuple(a.shape)}, expected {tuple(t.shape)}"
        if not (errors := compare(a.detach(), b.detach(), t.detach())).ok:
            return f"{name} is too far from the float64 truth: {errors}"
    return None


def with_gradients(function: Callable[..., Tensor], inputs: tuple[Tensor, ...], grad: Tensor) -> list[Tensor]:
    """The output of ``function(*inputs)`` followed by the gradient of each input."""
    output = function(*inputs)
    return [output, *torch.autograd.grad(output, inputs, grad.to(output.dtype))]
