"""Rows of ablations that are done as far as their files tell, without a step of training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from lewel.ablations.rows import RowRun
from lewel.evaluation import linear_plan
from lewel.recipe import plain
from lewel.recipe.schema import Train

STEPS = 4  # of an epoch


def write(folder: Path, run: Train, epochs: int, knn: float | None = None, linear: float | None = None) -> None:
    """A run that has come through so many epochs, with these accuracies; it has its report at its last epoch."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(plain.to_yaml(run))
    records = [{"kind": "baselines", "step": 0, "knn_pixels": 20.0, "knn_untrained": 12.0}]
    for epoch in range(1, epochs + 1):
        accuracies = {} if knn is None else {"knn": knn, "knn_20": knn + 1}
        records += [{"kind": "step", "step": STEPS * epoch, "loss": 1.0, "z_std": 1.0}]
        records += [{"kind": "epoch", "step": STEPS * epoch, "epoch": epoch, **accuracies}]
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    newest = f"step-{STEPS * epochs:08d}"
    (folder / "checkpoints" / f"{newest}.pt").touch()
    if epochs == run.epochs:
        (folder / "report.txt").write_text("done\n")
    if linear is not None:
        result(folder, newest, linear)


def result(
    folder: Path,
    checkpoint: str,
    accuracy: float,
    kind: str = "linear-cached",
    date: str = "2026-01-01",
    settings: dict[str, Any] | None = None,
    number: int = 1,
    **more: Any,
) -> None:
    """A result of lewel eval linear for the run in folder, with other settings, or other values, where given."""
    (folder / "eval").mkdir(exist_ok=True)
    usual = linear_plan.made(linear_plan.Settings(kind.removeprefix("linear-")), 4096, 1).settings
    content = {
        "kind": kind, "checkpoint": checkpoint, "epoch": 1, "step": int(checkpoint[-8:]), "accuracy": accuracy,
        "date": date, "values": {}, "processes": 1, "images": {"train": 4096, "test": 1000, "classes": 10},
        "settings": usual | (settings or {}), "recipe": yaml.safe_load((folder / "config.yaml").read_text()), **more,
    }  # fmt: skip
    name = f"{kind}-{checkpoint}" + (f"-{number}" if number > 1 else "")
    (folder / "eval" / f"{name}.json").write_text(json.dumps(content))


def of(run: RowRun, linear: float | None = None, knn: float | None = 30.0, epochs: int | None = None) -> None:
    """The folder of a row, at its last epoch or after fewer."""
    write(run.folder, run.run, run.run.epochs if epochs is None else epochs, knn, linear)
