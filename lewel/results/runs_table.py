"""The runs that were found as a table for people, or as records for other programs."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal

from lewel.evaluation import knn
from lewel.recipe import plain
from lewel.recipe.schema import Train
from lewel.results import linear_results
from lewel.results.found_runs import Found

Sort = Literal["date", "linear", "knn", "name"]
GAP = "  "
KEYS: dict[str, Callable[[Found], Any]] = {
    "date": lambda run: run.changed,
    "linear": lambda run: -math.inf if run.linear_accuracy is None else run.linear_accuracy,
    "knn": lambda run: -math.inf if run.knn_accuracy is None else run.knn_accuracy,
    "name": lambda run: run.name,
}


def ordered(runs: Sequence[Found], by: Sort) -> list[Found]:
    """The runs with the newest, or the best, last; those without a value come first."""
    return sorted(sorted(runs, key=lambda run: run.name), key=KEYS[by])


def text(runs: Sequence[Found], width: int) -> str:
    """A line for each run under their headings, and one for each broken run with what is wrong with it.

    What a recipe has otherwise than its preset comes last, as short as fits into width columns: values go first, and
    the names of the settings never.
    """
    whole = [run for run in runs if run.run is not None]
    lines = []
    if whole:
        with_probe = any(run.probe is not None for run in whole)
        rows = [HEADINGS, *map(_cells, whole)]
        shown = [tuple(c for i, c in enumerate(row) if with_probe or i != HEADINGS.index("probe")) for row in rows]
        widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
        left = width - sum(widths) - len(GAP) * len(widths)
        last = ["otherwise than the preset", *(_changes(run, left) for run in whole)]
        for cells, more in zip(shown, last, strict=True):
            lines.append(GAP.join([*(c.ljust(w) for c, w in zip(cells, widths, strict=True)), more]).rstrip())
    lines += [f"{run.name}: broken: {run.wrong}" for run in runs if run.run is None]
    return "\n".join(lines)


HEADINGS = ("run", "preset", "seed", "epoch", "kNN", "probe", "linear", "state", "changed")


def _cells(run: Found) -> tuple[str, ...]:
    assert run.run is not None
    accuracy, k = run.knn_accuracy, run.knn_k
    neighbours = "" if accuracy is None or k == knn.USUAL else f" (k {k})"
    at = f"{run.epoch}/{run.run.epochs}" if run.epoch is not None else f"step {run.step} of ?/{run.run.epochs}"
    return (
        run.name,
        run.run.preset,
        str(run.run.seed),
        at,
        _percent(accuracy) + neighbours,
        _percent(run.probe),
        _linear(run),
        run.state,
        time.strftime("%Y-%m-%d %H:%M", time.localtime(run.changed)),
    )


def _percent(accuracy: float | None) -> str:
    return "-" if accuracy is None else f"{accuracy:.1f}"


def _linear(run: Found) -> str:
    """The number, and what it is of where that is not the cached protocol."""
    of = linear_results.protocol_of(run.linear) if run.linear else ""
    return _percent(run.linear_accuracy) + (f" ({of})" if of else "")


def _changes(run: Found, width: int) -> str:
    """What differs from the preset, in the first of four forms that fits; the shortest, names alone, always does."""
    changes = run.changes()
    alike = Counter(name.rpartition(".")[2] for name, _ in plain.flat(plain.to_plain(Train())))
    short = {name: part if alike[part := name.rpartition(".")[2]] == 1 else name for name in changes}
    forms = (
        ", ".join(f"{name} {_shown(old)} -> {_shown(new)}" for name, (old, new) in changes.items()),
        ", ".join(f"{name} {_shown(new)}" for name, (_, new) in changes.items()),
        ", ".join(f"{short[name]} {_shown(new)}" for name, (_, new) in changes.items()),
    )
    return next((form for form in forms if len(form) <= width), ", ".join(short.values()))


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return "[" + " ".join(map(_shown, value)) + "]"
    return "''" if value == "" else str(value)


def records(runs: Sequence[Found]) -> list[dict[str, Any]]:
    """The runs as plain values for JSON; accuracies are in percent, times in ISO 8601 with the zone."""
    return [
        {
            "name": run.name,
            "folder": str(run.folder),
            "state": run.state,
            "changed": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(run.changed)),
            "wrong": run.wrong or None,
            "preset": run.run.preset if run.run else None,
            "seed": run.run.seed if run.run else None,
            "epoch": run.epoch,
            "epochs": run.run.epochs if run.run else None,
            "step": run.step,
            "changes": {name: {"preset": old, "run": new} for name, (old, new) in run.changes().items()},
            "knn": {str(k): accuracy for k, accuracy in run.knn.items()},
            "probe": run.probe,
            "linear": run.linear and {key: run.linear.get(key) for key in ("kind", "checkpoint", "epoch", "accuracy")},
        }
        for run in runs
    ]
