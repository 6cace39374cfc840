"""What a linear evaluation found: the rate that is chosen, last and best accuracy, and how a person is told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lewel.errors import LewelError
from lewel.evaluation.linear_plan import Plan, counted, significant

TOP = 5  # classes that the second accuracy is of; of fewer than these it says nothing


class Reached(NamedTuple):
    """What each of some heads reached at the end, accuracies in percent."""

    top1: Sequence[float]
    top5: Sequence[float]
    """on the test images, like top1"""
    held_out: Sequence[float]
    """on the training images that are held out"""
    finite: Sequence[bool]
    """whether its weights are numbers: a head that diverged is never chosen"""

    def part(self, first: int, end: int | None) -> Reached:
        at = slice(first, end)
        return Reached(self.top1[at], self.top5[at], self.held_out[at], self.finite[at])


def choice(plan: Plan, grid: Reached) -> int:
    """The place of the rate whose heads, the mean over seeds, are best on what is held out.

    grid has the heads of all rates, the seeds of one beside each other. Raises LewelError where all diverged.
    """
    means = _by_rate(plan, grid.held_out).mean(1)
    left = _by_rate(plan, grid.finite).all(1)
    if not left.any():
        raise LewelError(
            f"the classifiers of all {len(plan.rates)} learning rates diverged, the lowest {plan.rates[0]:g} per 256 "
            "images; give lower --rates"
        )
    return int(np.where(left, means, -1.0).argmax())


def of(
    plan: Plan, history: Sequence[Sequence[float]], result: Reached, grid: Reached, classes: int, held: int
) -> dict[str, Any]:  # fmt: skip
    """The values of a linear evaluation, as its JSON has them.

    Args:
        history: after each epoch, the accuracy on the test images of each head of the result.
        result: what these heads, one a seed, reached; they saw all training images.
        grid: what the heads of all rates reached, which saw none of those held out.
        classes: how many there are.
        held: how many training images are held out.

    Returns a table. "accuracy": the result, the mean over seeds after the last epoch, which "last" has with deviation
    and top-5. "best": of the epoch where that mean was highest, and so chosen on the test images. "rate": of the
    result, per 256 images. "grid": of each rate the accuracy on what is held out and on the test images; the rate alone
    where it diverged. "choice": the best of them on what is held out; "edge": a clause where it is at an end of the
    grid. "diverged": whether the result did. "notes": what is other than the protocol has it. Raises LewelError where
    the whole grid diverged.
    """
    place, rates = choice(plan, grid), plan.rates
    tried: list[dict[str, float | None]] = [
        {
            "rate": significant(rate),
            **({"held_out": _rounded(on.mean()), **_spread(top1, "top1")} if all(finite) else {}),
        }
        for rate, on, top1, finite in zip(
            rates, *(_by_rate(plan, x) for x in (grid.held_out, grid.top1, grid.finite)), strict=True
        )
    ]
    rate, curves = plan.protocol.rate or rates[place], np.array(history)
    means = curves.mean(1)
    best = int(means.argmax())
    edge = ""
    if len(rates) > 1 and place in (0, len(rates) - 1):
        edge = f"the best rate is the {'highest' if place else 'lowest'} of the grid; --rates has others"
    return {
        "accuracy": _rounded(means[-1]),
        "protocol": plan.name,
        "rate": significant(rate),
        "batch_size": plan.batch_size,
        "epochs": plan.epochs,
        "seeds": plan.seeds,
        "held_out": held,
        "last": {
            **_spread(np.array(result.top1), "top1"),
            **(_spread(np.array(result.top5), "top5") if classes >= TOP else {}),
        },
        "best": {"epoch": best + 1, **_spread(curves[best], "top1")},
        "choice": tried[place],
        "grid": tried,
        "edge": edge,
        "diverged": not all(result.finite),
        "notes": list(plan.notes),
    }


def said(values: dict[str, Any]) -> str:
    """The numbers in a clause."""
    last = values["last"]
    return f"linear {_said(last, 'top1')}" + (f", top-5 {_said(last, 'top5')}" if "top5" in last else "")


def more(values: dict[str, Any]) -> list[str]:
    """What else a person is told of values: how they came about, and the best epoch."""
    best, choice, count = values["best"], values["choice"], len(values["grid"])
    seeds = f"mean of {values['seeds']} seeds, " if values["seeds"] > 1 else ""
    rate = f"{seeds}{counted(values['epochs'], 'epoch')}, learning rate {values['rate']:.3g} per 256 images"
    edge = f"; {values['edge']}" if values["edge"] else ""
    lost = "; classifiers diverged at it" if values["diverged"] else ""
    held = f"{choice['held_out']:.2f} % of {values['held_out']:,} training images held out"
    if values["protocol"] == "cached":
        by = f"the best of {count} on {held}" if count > 1 else "the only one given"
        lines = [f"cached features, not the protocol; expect .5 to 1 below it: {rate}, {by}{lost}{edge}"]
    else:
        grid = f"the best rate of a grid of {count}" if count > 1 else "the only rate beside it"
        lines = [
            f"protocol {values['protocol']}: {rate}, its own{lost}",
            f"{grid} is {choice['rate']:.3g}, with {held}, and has {_said(choice, 'top1')} of the test images{edge}",
        ]
    return [*lines, f"best epoch: {best['epoch']}, with {_said(best, 'top1')}, chosen on the test images themselves"]


def _by_rate(plan: Plan, values: Sequence[Any]) -> np.ndarray:
    return np.array(values).reshape(len(plan.rates), plan.seeds)


def _spread(values: np.ndarray, name: str) -> dict[str, float | None]:
    """Mean over seeds and, of several, their standard deviation."""
    deviation = _rounded(values.std(ddof=1)) if len(values) > 1 else None
    return {name: _rounded(values.mean()), f"{name}_std": deviation}


def _said(values: dict[str, Any], name: str) -> str:
    deviation = values[f"{name}_std"]
    return f"{values[name]:.2f}" + (f" +- {deviation:.2f}" if deviation is not None else "") + " %"


def _rounded(value: Any) -> float:
    return round(float(value), 4)
