"""Rows as data: JSON lines under ``results/<device>/``, one file for each suite, each line with its provenance."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from . import machine
from .cases import Case, Shape
from .measure import Row

ROOT = Path(__file__).parent / "results"
Record = dict[str, Any]
QUIET = 0.5  # cores that others may keep busy before a run counts as disturbed
MEASUREMENT = ("case", "provider", "mode", "launch", "call", "method", "variant")  # what tells the rows of a run apart


class Recorder:
    """Appends rows as they come, so that a run that is cut short keeps what it measured.

    Rows of one run share their provenance, ``run`` among it: the date and time when it began.
    """

    def __init__(self, suite: str, device: str, provenance: Mapping[str, object]) -> None:
        self.path = ROOT / machine.slug(machine.device_name(device)) / f"{suite}.jsonl"
        self.context = {"suite": suite, "run": provenance["date"], **provenance}

    def append(self, rows: Iterable[object]) -> None:
        """Rows are dataclasses or dictionaries. All are written at once, so that two runs do not mix their lines.

        Raises:
            OSError: the disk took only a part of the rows, or none.
        """
        every = [asdict(row) if is_dataclass(row) and not isinstance(row, type) else row for row in rows]
        lines = "".join(json.dumps({**self.context, **row}) + "\n" for row in every)  # type: ignore[dict-item]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            size = os.fstat(file).st_size
            cut = size > 0 and os.pread(file, 1, size - 1) != b"\n"  # by a writer that was killed
            data = ("\n" * cut + lines).encode()
            if os.write(file, data) < len(data):
                raise OSError(f"only a part of the rows could be written to {self.path}")
        finally:
            os.close(file)


def read(device: str, suite: str) -> list[Record]:
    """Every record of a suite on a device (a folder's name), oldest first; none where nothing was run.

    What is no record of a run, such as a line that was cut short, is left out with a sentence on stderr.
    """
    path = ROOT / device / f"{suite}.jsonl"
    records = []
    for number, line in enumerate(path.read_bytes().split(b"\n") if path.exists() else (), 1):
        if not line:
            continue
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict) and "run" in record:
            records.append(record)
        else:
            _leave_out(path, number)
    return records


@cache  # every table and picture reads the file again
def _leave_out(path: Path, number: int) -> None:
    print(f"{path}:{number} is left out, for it is no record of a run.", file=sys.stderr)


def disturbed(record: Record) -> bool:
    """Whether others kept the machine busy when the run began; a system that does not tell is taken for quiet."""
    busy = record.get("busy_cores")
    return busy is not None and busy > QUIET


def latest(device: str, suite: str) -> list[Record]:
    """The records of one run: a quiet one where there is any, of these the fullest, of these the last.

    So a run that was cut short hides nothing, nor one beside other processes. Full is what has the most distinct
    measurements that were made: a provider that could not run is none.
    """
    runs: dict[str, list[Record]] = {}
    for record in read(device, suite):
        runs.setdefault(record["run"], []).append(record)

    def rank(run: str) -> tuple[bool, int, str]:
        made = (r for r in runs[run] if r.get("samples", 1))  # not every suite counts its samples
        measurements = {json.dumps([r.get(key) for key in MEASUREMENT], sort_keys=True) for r in made}
        return not any(map(disturbed, runs[run])), len(measurements), run

    return runs[max(runs, key=rank)] if runs else []


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
