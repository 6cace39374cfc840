"""What the rows of a table came to: mean and deviation over seeds beside the paper's numbers, as text and as JSON."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lewel.ablations import tables
from lewel.ablations.rows import Asked, RowRun
from lewel.ablations.tables import Row, Table
from lewel.errors import LewelError
from lewel.evaluation import knn
from lewel.recipe import plain
from lewel.watching import log
from lewel_kernels import __version__


@dataclass(frozen=True)
class Numbers:
    """The accuracies of a row's seeds, percent; those that are missing are left out."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.values) if self.values else None

    @property
    def std(self) -> float | None:
        """The sample's deviation, by n - 1; None of fewer than two seeds."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def __str__(self) -> str:
        if self.mean is None:
            return "-"
        return f"{self.mean:.1f} ± {'-' if self.std is None else f'{self.std:.1f}'}"


@dataclass(frozen=True)
class Result:
    """A row and what its seeds came to."""

    row: Row
    runs: tuple[tuple[RowRun, float | None, float | None], ...]
    """of each seed the run, its linear accuracy and its kNN accuracy; None where there is none"""

    @property
    def linear(self) -> Numbers:
        return Numbers(tuple(linear for _, linear, _ in self.runs if linear is not None))

    @property
    def knn(self) -> Numbers:
        return Numbers(tuple(accuracy for _, _, accuracy in self.runs if accuracy is not None))


def of(table: Table, runs: Iterable[RowRun]) -> list[Result]:
    """What a table's rows came to, of the runs that are there; runs may hold those of other tables too."""
    by_row: dict[str, list[tuple[RowRun, float | None, float | None]]] = {row.name: [] for row in table.rows}
    for run in runs:
        if run.row.name in by_row:
            by_row[run.row.name].append((run, *accuracies(run)))
    return [Result(row, tuple(by_row[row.name])) for row in table.rows]


def accuracies(run: RowRun) -> tuple[float | None, float | None]:
    """A run's linear and kNN accuracy, with 200 neighbours, at its last epoch; None where it has not come so far."""
    found = run.found()
    if found is None or found.state != "finished":
        return None, None
    result = run.linear()
    return (float(result["accuracy"]) if result else None), found.knn.get(knn.USUAL)


def markdown(table: Table, results: Sequence[Result], asked: Asked) -> str:
    """The table like the paper's: its columns and numbers, then ours, under a header that says what was run."""
    ours = f"linear ({asked.protocol})"
    heading = [*table.columns, "IN-100 acc. (paper)", "VOC mIoU (paper)", ours, "kNN-200", "seeds"]
    lines = [heading, ["---"] * len(table.columns) + ["---:"] * 5]
    for result in results:
        count, neighbours, every = len(result.linear.values), len(result.knn.values), len(result.runs)
        seeds = f"{count}" if count == every else f"{count} of {every}"
        seeds += f" (kNN {neighbours})" if neighbours != count else ""
        row = result.row
        lines.append([*row.cells, _shown(row.accuracy), _shown(row.miou), str(result.linear), str(result.knn), seeds])
    widths = [max(len(line[i]) for n, line in enumerate(lines) if n != 1) for i in range(len(heading))]
    lines[1] = [rule[:-1] + "-" * (width - len(rule)) + rule[-1] for rule, width in zip(lines[1], widths, strict=True)]
    text = ("| " + " | ".join(_padded(line, widths, len(table.columns))) + " |" for line in lines)
    return "\n".join([f"# {table.title}", "", *(f"- {line}" for line in header(table, results, asked)), "", *text, ""])


def _padded(cells: Sequence[str], widths: Sequence[int], texts: int) -> Iterator[str]:
    """Cells as wide as their columns: the first ones, texts, to the left, and numbers to the right."""
    for number, (cell, width) in enumerate(zip(cells, widths, strict=True)):
        yield cell.ljust(width) if number < texts else cell.rjust(width)


def header(table: Table, results: Sequence[Result], asked: Asked) -> list[str]:
    """What was run, in lines."""
    recipes = [run.run for result in results for run, _, _ in result.runs]
    names = dict.fromkeys(run.preset for run in recipes)
    epochs = dict.fromkeys(run.epochs for run in recipes)
    changed = [f"{name}={value}" for name, value in asked.settings.items()]
    there, here = _maps(table, results)
    paper = "the paper's numbers are of ImageNet-100 with ResNet-50, 240 epochs"
    return [
        f"data: {asked.data}{''.join(f', {root}' for root in asked.roots)}; presets: {', '.join(names)}",
        f"epochs: {', '.join(map(str, epochs))}; seeds: {' '.join(map(str, asked.seeds))}"
        + (f"; in every row: {', '.join(changed)}" if changed else ""),
        f"linear: protocol {asked.protocol}, accuracy of the last epoch on the test images; kNN-200 of the last epoch; "
        "percent, mean ± deviation (n - 1) over seeds",
        f"{paper}; K is {there} there and {here} here",
        *notes(table, results),
        f"{time.strftime('%Y-%m-%d')}, lewel {__version__}",
    ]


def apart(table: Table, results: Sequence[Result]) -> Row | None:
    """The point of Fig. 3a, w = 0, that no line may join to the others where its preset has more otherwise than w."""
    return next((result.row for result in results if table.name == "fig3a" and _otherwise(result, results)), None)


def _otherwise(result: Result, results: Sequence[Result]) -> list[str]:
    """What a row has otherwise than LEWEL_M's, beside its settings, in clauses."""
    own = next(each for each in results if each.row.method == "lewel_m")
    ignored = {"out", "preset", "seed", "method.w_aligned", *result.row.settings, *own.row.settings}
    here, there = (dict(plain.flat(plain.to_plain(each.runs[0][0].run))) for each in (result, own))
    return [f"{k} {here[k]}, not {there[k]}" for k in here if k not in ignored and here[k] != there[k]]


def notes(table: Table, results: Sequence[Result]) -> list[str]:
    """Sentences that a reader of the numbers must know."""
    row = apart(table, results)
    if row is None:
        return []
    result = next(each for each in results if each.row is row)
    preset = result.runs[0][0].run.preset
    return [f"w = 0 is the preset {preset}, which has settings of its own: {', '.join(_otherwise(result, results))}"]


def _maps(table: Table, results: Sequence[Result]) -> tuple[int, int]:
    """K that the table's rows are multiples of: in the paper, and in the recipes."""
    own = next(result for result in results if "heads.num_maps" not in result.row.settings)
    return 256 if table.name == "table7" else 128, own.runs[0][0].run.heads.num_maps


def record(table: Table, results: Sequence[Result], asked: Asked) -> dict[str, Any]:
    """The same as plain values for JSON."""
    return {
        "table": table.name,
        "title": table.title,
        "data": asked.data,
        "roots": list(asked.roots),
        "presets": tables.BASES[asked.data],
        "epochs": list(dict.fromkeys(run.run.epochs for result in results for run, _, _ in result.runs)),
        "seeds": list(asked.seeds),
        "protocol": asked.protocol,
        "settings": dict(asked.settings),
        "notes": notes(table, results),
        "date": time.strftime("%Y-%m-%d"),
        "lewel": __version__,
        "rows": [_row(table, result) for result in results],
    }


def _row(table: Table, result: Result) -> dict[str, Any]:
    row = result.row
    return {
        "name": row.name,
        "cells": dict(zip(table.columns, row.cells, strict=True)),
        "settings": dict(row.settings),
        "paper": {"imagenet100": row.accuracy, "voc_miou": row.miou},
        **{
            kind: {"mean": numbers.mean, "std": numbers.std, "seeds": len(numbers.values)}
            for kind, numbers in (("linear", result.linear), ("knn", result.knn))
        },
        "runs": [
            {"seed": run.seed, "folder": str(run.folder), "linear": linear, "knn": accuracy}
            for run, linear, accuracy in result.runs
        ],
    }


def write(table: Table, results: Sequence[Result], asked: Asked) -> str:
    """Writes TABLE.md and TABLE.json, and returns the text. Raises LewelError where it cannot."""
    text = markdown(table, results, asked)
    folder = asked.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LewelError(f"cannot write to {folder}: {error.strerror}; choose another --out") from None
    log.write_text(folder / f"{table.name}.md", text)
    log.write_text(folder / f"{table.name}.json", json.dumps(record(table, results, asked), indent=1) + "\n")
    return text


def _shown(number: float | None) -> str:
    return "-" if number is None else f"{number:.1f}"
