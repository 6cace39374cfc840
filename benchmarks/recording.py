"""Rows as data: JSON lines under ``results/<device>/``, one file for each suite, each line with its provenance."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from benchmarks import heap, machine, timing

ROOT = Path(__file__).parent / "results"
Record = dict[str, Any]
QUIET = 0.5  # cores that others may keep busy before a run counts as disturbed
FIELDS = {"run", "date", "case"}  # without which a line is no record of a run
CIRCUMSTANCES = ("commit", "device", "driver", "threads", "versions", "heap_kept")
WITHHELD: Record = {"speedups": {}, "percent_of_floor": None, "overhead": None, "speedup": None}  # of a problem
MEASUREMENT = ("case", "provider", "mode", "launch", "call", "method", "variant")  # what tells the rows of a run apart


class Recorder:
    """Appends rows as they come, so that a run that is cut short keeps what it measured.

    Rows of one run share their provenance, ``run`` among it: the date and time when it began. With ``keep=False``
    nothing is written.
    """

    def __init__(self, suite: str, device: str, provenance: Mapping[str, object], *, keep: bool = True) -> None:
        self.path = ROOT / machine.slug(timing.device_name(device)) / f"{suite}.jsonl"
        self.context: Record = {"suite": suite, "run": provenance["date"], **provenance}
        self.keep, self.measured = keep, False

    def append(self, rows: Iterable[object]) -> None:
        """Rows are dataclasses or dictionaries. All are written at once, so that two runs do not mix their lines.

        Raises:
            OSError: the disk took only a part of the rows, or none.
        """
        self.measured = True
        if not self.keep:
            return
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

    def finish(self) -> None:
        """Prints where the rows are; ends the process with a sentence where there are none."""
        if not self.measured:
            sys.exit("Nothing was measured.")
        if self.keep:
            print(f"\nAppended to {self.path}")


def begin(suite: str, options: argparse.Namespace) -> Recorder:
    """The recorder of a command that is about to measure ``suite``, given its options (device, no_record)."""
    return Recorder(suite, options.device, quiet_machine(options.device), keep=not options.no_record)


def quiet_machine(device: str) -> dict[str, object]:
    """Makes the process ready to be timed, prints a warning where others keep the machine busy; the provenance."""
    torch.backends.cudnn.allow_tf32 = False  # as products are by default: float32 means float32 for everybody
    busy = timing.busy_cores()
    if busy is not None and busy > QUIET:
        print(f"Other processes keep {busy:.1f} cores of this machine busy: wait for them, or the times mean little.")
    return machine.provenance(device, busy=busy, heap_kept=heap.keep_heap())


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
        if isinstance(record, dict) and record.keys() >= FIELDS:
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


def runs(device: str, suite: str) -> list[list[Record]]:
    """The run that counts and its repetitions, each a list of records, the oldest first; none where nothing was run.

    The run that counts is a quiet one if there is one; of these the one with the most cases in the most modes, of these
    the one with the most measurements, of these the last: so a run that was cut short hides nothing, nor one beside
    other processes. A provider that could not run makes no measurement. A repetition is a run that made the same
    measurements of the same commit in the same circumstances.
    """
    every: dict[str, list[Record]] = {}
    for record in read(device, suite):
        every.setdefault(record["run"], []).append(record)
    made = {run: [r for r in records if r.get("samples", 1)] for run, records in every.items()}  # not all count them

    def rank(run: str) -> tuple[bool, int, int, str]:
        cases, measurements = (len(_distinct(made[run], names)) for names in (("case", "mode"), MEASUREMENT))
        return not any(map(disturbed, every[run])), cases, measurements, run

    def what(run: str) -> list[object]:
        told = [every[run][0].get(name) for name in CIRCUMSTANCES]
        return [any(map(disturbed, every[run])), _distinct(made[run], MEASUREMENT), *told]

    if not every:
        return []
    best = max(every, key=rank)
    known = every[best][0].get("commit") and not every[best][0].get("dirty")  # else they may be runs of different code
    same = [run for run in sorted(every) if known and what(run) == what(best)] or [best]
    return [every[run] for run in same]


def latest(device: str, suite: str) -> list[Record]:
    """The records of the run that counts; where it was repeated, with the median over its repetitions of each number.

    Their ``repetitions`` then says of how many. A problem in one of them is a problem: its speed-ups are withheld.
    """
    repeated = runs(device, suite)
    if len(repeated) < 2:
        return list(chain.from_iterable(repeated))
    found: dict[str, list[Record]] = {}
    for record in chain.from_iterable(repeated):
        found.setdefault(identity(record), []).append(record)
    return [_middle(of_one) | {"repetitions": len(repeated)} for of_one in found.values()]


def identity(record: Record, names: Sequence[str] = MEASUREMENT) -> str:
    """A text that is the same for the records of one measurement in several runs."""
    return json.dumps([record.get(name) for name in names], sort_keys=True)


def _distinct(records: Iterable[Record], names: Sequence[str]) -> set[str]:
    return {identity(record, names) for record in records}


def _middle(records: Sequence[Record]) -> Record:
    """The last of some records of one measurement, with the median of each of its numbers."""
    middle = dict(records[-1])
    for name in middle.keys() - {"case"}:
        values = [record.get(name) for record in records]
        tables = [value for value in values if isinstance(value, dict)]
        if len(tables) == len(values):
            shared = set.intersection(*map(set, tables))
            middle[name] = {key: _median([table[key] for table in tables]) for key in tables[-1] if key in shared}
        else:
            middle[name] = _median(values)
    problem = next((record["problem"] for record in records if record.get("problem")), None)
    if problem:
        middle |= {"problem": problem, **{name: nothing for name, nothing in WITHHELD.items() if name in middle}}
    return middle


def _median(values: Sequence[Any]) -> Any:
    """The median if all values are numbers, else the last value."""
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return statistics.median(values) if numbers else values[-1]


def devices() -> list[str]:
    """The names of the folders with results, one for each device, sorted."""
    return sorted(path.name for path in ROOT.iterdir() if path.is_dir()) if ROOT.exists() else []


def circumstances(records: Sequence[Record]) -> str:
    """Machine, versions and date of the run that made the records, as the beginning of a sentence."""
    r = records[0]
    on_cpu = r["instructions"] is not None
    details = f" with {r['instructions']}, {r['threads']} threads" if on_cpu else f", driver {r['driver']}"
    state = f"commit {r['commit'][:7]}" + (" with changes" if r["dirty"] else "") if r["commit"] else "no commit known"
    about = f"{r['device']}{details}, torch {r['versions']['torch'].split('+')[0]}, {r['date'][:10]}, {state}"
    if "repetitions" in r:
        about += f", medians over {r['repetitions']} runs"
    return about + (f", while others kept {r['busy_cores']:.1f} cores busy" if disturbed(r) else "")
