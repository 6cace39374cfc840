"""The runs that were found as a table for people, or as records for other programs."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
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

    What a recipe has otherwise than its preset comes last, as short as fits into width columns: values go first, then
    the columns of SPARED, and the names of the settings never. What cannot be printed in a line is escaped.
    """
    whole = [run for run in runs if run.run is not None]
    lines = []
    if whole:
        rows = [dict(zip(HEADINGS, HEADINGS, strict=True)), *map(_cells, whole)]
        widths = {name: max(len(row[name]) for row in rows) for name in HEADINGS}
        if all(run.probe is None for run in whole):
            del widths["probe"]
        least = max(len(_changes(run, 0)) for run in whole)
        for name in SPARED:
            if _left(widths, width) < least:
                del widths[name]
        left = _left(widths, width)
        last = [next((title for title in TITLES if len(title) <= left), ""), *(_changes(run, left) for run in whole)]
        for row, more in zip(rows, last, strict=True):
            lines.append(GAP.join([*(row[name].ljust(w) for name, w in widths.items()), more]).rstrip())
    lines += [f"{escaped(run.name)}: broken: {escaped(run.wrong)}" for run in runs if run.run is None]
    return "\n".join(lines)


HEADINGS = ("run", "preset", "seed", "epoch", "kNN", "probe", "linear", "state", "changed")
SPARED = ("changed", "preset")  # the first one goes first
TITLES = ("otherwise than the preset", "otherwise")


def _left(widths: Mapping[str, int], width: int) -> int:
    """Columns that are left of width beside those of widths."""
    return width - sum(widths.values()) - len(GAP) * len(widths)


def _cells(run: Found) -> dict[str, str]:
    assert run.run is not None
    accuracy, k = run.knn_accuracy, run.knn_k
    neighbours = "" if accuracy is None or k == knn.USUAL else f" (k {k})"
    at = f"{run.epoch}/{run.run.epochs}" if run.epoch is not None else f"step {run.step} of ?/{run.run.epochs}"
    return {
        "run": escaped(run.name),
        "preset": escaped(run.run.preset),
        "seed": str(run.run.seed),
        "epoch": at,
        "kNN": _percent(accuracy) + neighbours,
        "probe": _percent(run.probe),
        "linear": _linear(run),
        "state": run.state,
        "changed": time.strftime("%Y-%m-%d %H:%M", time.localtime(run.changed)),
    }


def escaped(text: str) -> str:
    """Text in one line, with what would break it, or cannot be printed, as Python writes it: \\n, \\x1b."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


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
    return "''" if value == "" else escaped(str(value))


def records(runs: Sequence[Found]) -> list[dict[str, Any]]:
    """The runs as plain values for strict JSON, in which a number that is none, as of a recipe, is a null.

    Accuracies are in percent, times in ISO 8601 with the zone.
    """
    found = [
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
    return [_finite(record) for record in found]


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
