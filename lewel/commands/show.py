"""lewel show RUN...: how runs go or went."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import tyro

from lewel.errors import LewelError
from lewel.evaluation import knn, outcome
from lewel.results import curves
from lewel.run import folders
from lewel.watching import log


@dataclass(frozen=True)
class ShowCommand:
    """Draws the curves of runs, finished, training or killed, prints a line about each and what eval found."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """run folders"""
    out: Path | None = None
    """the picture to write; left out, curves.png in the run folder or, of several runs, here"""


def run(arguments: list[str]) -> None:
    """Writes the picture and prints the table."""
    command = tyro.cli(ShowCommand, args=arguments, prog="lewel show")
    if not command.runs:
        raise LewelError("no run was given; name run folders: lewel show RUN...")
    logs, without = {}, []
    runs = [folders.expanded(run) for run in command.runs]
    for name, folder in zip(_names(runs), runs, strict=True):
        try:
            logs[name] = _records(folder)
        except LewelError as error:
            without.append(str(error))
    if not logs:
        raise LewelError("; ".join(without))
    for sentence in without:
        print(f"left out: {sentence}")
    out = folders.expanded(command.out or (runs[0] if len(runs) == 1 else Path()) / "curves.png")
    curves.draw(out, logs)
    neighbours = knn.neighbours(record for records in logs.values() for record in records)
    print(table(known([{"run": name, **summary(records, neighbours)} for name, records in logs.items()])))
    for name, folder in zip(_names(runs), runs, strict=True):
        for line in evaluated(folder) if name in logs else ():
            print(f"{name}: {line}")
    print(f"wrote {out}")


def summary(records: Sequence[dict[str, Any]], neighbours: Sequence[int]) -> dict[str, str]:
    """What the log says of the run so far, by the heading of the column.

    neighbours are the k whose first and last accuracy are told; of the linear probe and of RankMe it is the last. Speed
    is the median over the logged steps.
    """
    steps = [record for record in records if record["kind"] == "step" and {"loss", "z_std"} <= record.keys()]
    # Without the steps that fp16 overflowed in, unless there is no other.
    last = next((step for step in reversed(steps) if math.isfinite(step["loss"])), steps[-1])

    def typical(key: str, form: str) -> str:
        values = [step[key] for step in steps if key in step]
        return format(median(values), form) if values else "-"

    def accuracies(k: int) -> dict[str, str]:
        found = [record[key] for record in records if (key := knn.key("knn", k)) in record]
        name = knn.name(k)
        first, last = (f"{found[0]:.1f}", f"{found[-1]:.1f}") if found else ("-", "-")
        return {f"{name} first": first, f"{name} last": last}

    def last_of(key: str) -> str:
        found = [record[key] for record in records if key in record]
        return f"{found[-1]:.1f}" if found else "-"

    trained = [accuracies(k) for k in neighbours or [knn.USUAL]]
    return {
        "step": str(steps[-1]["step"]),
        "loss": f"{last['loss']:.4g}",
        **{heading: value for columns in trained for heading, value in columns.items()},
        "probe": last_of("probe"),
        "RankMe": last_of("rankme"),
        "std of z": f"{last['z_std']:.2f}",
        "images/s": typical("images_per_s", ".0f"),
        "waiting": typical("data_wait", ".1%"),
        "peak MiB": format(last["peak_memory_mib"], ".0f") if "peak_memory_mib" in last else "-",
    }


def evaluated(folder: Path) -> list[str]:
    """The newest result of each kind that lewel eval has left in a run folder, as a line each, in the kinds' order.

    Those of other weights or images have lines of their own after them, by the names of their files.
    """
    found = outcome.newest(folder)
    latest = {result["kind"]: result for result in found if outcome.is_own(result)}
    return [
        f"{_numbers(result)}, of {result['checkpoint']}, {result['date'][:10]}" for _, result in sorted(latest.items())
    ] + [
        f"other weights or images ({result['file']}): {_numbers(result)}, {result['date'][:10]}"
        for result in sorted(found, key=lambda result: result["file"])
        if not outcome.is_own(result)
    ]


def _numbers(result: dict[str, Any]) -> str:
    """The kind of a result and its accuracy; of kNN one for each number of neighbours."""
    accuracies = result["values"].get("knn")
    if not isinstance(accuracies, dict) or not all(isinstance(value, float) for value in accuracies.values()):
        return f"{result['kind']} {result['accuracy']:.1f} %"
    return ", ".join(f"kNN-{k} {accuracy:.1f} %" for k, accuracy in accuracies.items())


def known(rows: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """The rows without the columns of which no row has a value."""
    return [{k: value for k, value in row.items() if any(other[k] != "-" for other in rows)} for row in rows]


def table(rows: Sequence[dict[str, str]]) -> str:
    """The rows under their headings, the first column to the left and numbers to the right."""
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    )


def _records(folder: Path) -> list[dict[str, Any]]:
    path = folder / "log.jsonl"
    folders.check_run(folder, path.name)
    records, left_out = log.read_counted(path)
    if left_out:
        print(f"left {left_out} lines out of {path} that are no records")
    if not any(record["kind"] == "step" and {"loss", "z_std"} <= record.keys() for record in records):
        raise LewelError(f"the log of {folder} has no step yet; the first is logged when training starts")
    return records


def _names(folders: Sequence[Path]) -> list[str]:
    """The folders' own names, or their paths where two have the same."""
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]
