"""What a linear evaluation found: the rate that is chosen, last and best accuracy, and how a person is told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lewel.errors import LewelError
from lewel.evaluation.linear_plan import Plan

TOP = 5  # classes that the second accuracy is of; with fewer it says nothing


def of(
    plan: Plan,
    history: Sequence[Sequence[float]],
    top5: Sequence[float],
    held_out: Sequence[float],
    finite: Sequence[bool],
    classes: int,
) -> dict[str, Any]:
    """The values of a result from what all heads of a plan reached, in percent.

    Args:
        history: of each epoch the accuracy of each head on the test images.
        top5: at the end, whether the class is among the first five.
        held_out: at the end, on the training images that are held out.
        finite: whether the weights of each head are finite numbers; others are never chosen.

    Returns a table, whose parts are those of the JSON: "accuracy", the result, which is the mean over seeds at the end;
    "last" with its deviation and top-5; "best", of the epoch where the mean was highest, chosen on the test images;
    "rate", per 256 images; "grid", for each rate what its heads reach that saw no image held out, on these ("held_out")
    and on the test images ("top1"), None where one diverged; "choice", the row of the rate that is best on those held
    out; "curve", the mean after each epoch; and plan.settings. Raises LewelError where no rate of the grid is left.
    """
    curves = np.array(history).reshape(len(history), -1, plan.seeds)  # (epochs, rates, seeds), as the rest
    five, chosen_by, whole = (np.array(x).reshape(-1, plan.seeds) for x in (top5, held_out, finite))
    count = len(plan.rates)
    first = len(whole) - count  # blind heads come after those that see all
    left = whole[first:].all(1)
    if not plan.protocol.rate:
        left &= whole[:first].all(1)  # its result is that of the twin
    if not left.any():
        raise LewelError(
            f"the classifiers of all {count} learning rates diverged, the lowest {plan.rates[0]:g} per 256 images; "
            "--rates names others"
        )
    means = np.where(left, chosen_by[first:].mean(1), -1)
    place = int(means.argmax())
    result = 0 if plan.protocol.rate else place
    mean = curves[:, result].mean(1)
    best = int(mean.argmax())
    grid = [
        {"rate": rate, "held_out": _rounded(means[i]), **_spread(curves[-1, first + i], "top1")}
        if left[i]
        else {"rate": rate, "held_out": None, "top1": None, "top1_std": None}
        for i, rate in enumerate(plan.rates)
    ]
    notes = [*plan.notes]
    if count > 1 and place in (0, count - 1):
        notes.append(f"the best rate is the {'highest' if place else 'lowest'} of the grid; --rates has others")
    if not whole[result].all():
        notes.append("a classifier of the protocol's rate diverged")
    return {
        **plan.settings,
        "accuracy": _rounded(mean[-1]),
        "rate": plan.protocol.rate or plan.rates[place],
        "effective_rate": plan.scale * (plan.protocol.rate or plan.rates[place]),
        "last": {
            **_spread(curves[-1, result], "top1"),
            **(_spread(five[result], "top5") if classes >= TOP else {}),
        },
        "best": {"epoch": best + 1, **_spread(curves[best, result], "top1")},
        "choice": grid[place],
        "grid": grid,
        "curve": [_rounded(value) for value in mean],
        "notes": notes,
    }


def lines(values: dict[str, Any], published: str, images: int) -> list[str]:
    """What a person is told of values, and of what was published, on so many test images."""
    last, best, choice, seeds = (values[name] for name in ("last", "best", "choice", "seeds"))
    fifth = f", top-5 {_said(last, 'top5')}" if "top5" in last else ""
    cached = values["protocol"] == "cached"
    by = "cached features, not the protocol; expect .5 to 1 below it" if cached else f"protocol {values['protocol']}"
    of = f"mean of {seeds} seeds " if seeds > 1 else ""
    told = [f"linear accuracy {_said(last, 'top1')}{fifth}, {of}on {images:,} test images ({by})"]
    rate = f"learning rate {values['rate']:.3g} per 256 images"
    on = f"on the {values['held_out']:.3g} of the training images held out"
    if not cached:
        said = f"the best of {len(values['grid'])} rates {on}, {choice['rate']:.3g} with {choice['held_out']:.2f} %"
        told.append(f"{rate}, the protocol's; {said} there, has {_said(choice, 'top1')}")
    elif len(values["grid"]) > 1:
        told.append(f"{rate}, the best of {len(values['grid'])} {on}: {choice['held_out']:.2f} % there")
    else:
        told.append(f"{rate}, the one that was given")
    told[-1] += "".join(f"; {note}" for note in values["notes"])
    told.append(
        f"best epoch {best['epoch']} of {values['epochs']}: {_said(best, 'top1')}, chosen on the test images themselves"
    )
    return [*told, *([published] if published else [])]


def _spread(values: np.ndarray, name: str) -> dict[str, float | None]:
    """Mean over seeds and, of several, their standard deviation."""
    deviation = _rounded(values.std(ddof=1)) if len(values) > 1 else None
    return {name: _rounded(values.mean()), f"{name}_std": deviation}


def _said(values: dict[str, Any], name: str) -> str:
    deviation = values[f"{name}_std"]
    return f"{values[name]:.2f}" + (f" +- {deviation:.2f}" if deviation is not None else "") + " %"


def _rounded(value: Any) -> float:
    return round(float(value), 4)
