"""Rows as data: JSON lines under ``results/<device>/``, one file for each suite, each line with its provenance."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from . import machine
from .cases import Case, Shape
from .measure import Row

ROOT = Path(__file__).parent / "results"
Record = dict[str, Any]


class Recorder:
    """Appends rows as they come, so that a run that is cut short keeps what it measured.

    Rows of one run share their provenance, ``run`` among it: the date and time when it began.
    """

    def __init__(self, suite: str, device: str, provenance: Mapping[str, object]) -> None:
        self.path = ROOT / machine.slug(machine.device_name(device)) / f"{suite}.jsonl"
        self.context = {"suite": suite, "run": provenance["date"], **provenance}

    def append(self, rows: Iterable[object]) -> None:
        """Rows are dataclasses or dictionaries."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            for row in rows:
                values = asdict(row) if is_dataclass(row) and not isinstance(row, type) else row
                file.write(json.dumps({**self.context, **values}) + "\n")  # type: ignore[dict-item]


def read(device: str, suite: str) -> list[Record]:
    """Every record of a suite on a device (a folder's name), oldest first; none where nothing was run."""
    path = ROOT / device / f"{suite}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def latest(device: str, suite: str) -> list[Record]:
    """The records of one run: the last of those that measured the most cases, so that a partial run hides nothing."""
    runs: dict[str, list[Record]] = {}
    for record in read(device, suite):
        runs.setdefault(record["run"], []).append(record)
    cases = {run: len({json.dumps(r["case"], sort_keys=True) for r in records}) for run, records in runs.items()}
    return max(runs.items(), key=lambda item: (cases[item[0]], item[0]))[1] if runs else []


def rows(records: Iterable[Record]) -> list[Row]:
    """Records of a suite of `measure` as its rows again."""
    fields = Row.__dataclass_fields__
    found = []
    for record in records:
        values = {name: record[name] for name in fields if name in record}
        case = record["case"]
        values["case"] = Case(**{**case, "shape": Shape(**case["shape"])})
        found.append(Row(**values))
    return found


def devices() -> list[str]:
    """The folders that hold results."""
    return sorted(path.name for path in ROOT.iterdir() if path.is_dir()) if ROOT.exists() else []
