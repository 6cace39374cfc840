"""What a run says: a bar on a terminal or plain lines, and always one JSON object a line in log.jsonl.

Every record has its kind and "step", the number of optimizer steps done.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 15


class RunLog:
    """Writes records to a file and tells a person the important part."""

    def __init__(self, path: Path, *, total_steps: int, first_step: int) -> None:
        _drop_after(path, first_step)
        self.file = open(path, "a")  # noqa: SIM115
        self.bar = tqdm(total=total_steps, initial=first_step, unit="step", disable=not sys.stderr.isatty())
        self.spoke = time.monotonic()

    def step(self, record: dict[str, Any]) -> None:
        """A training step's record; plain lines appear at most every 15 seconds."""
        self._write("step", record)
        shown = {key: record[key] for key in ("loss", "lr", "z_std", "images_per_s")}
        if not self.bar.disable:
            self.bar.set_postfix(shown)
        elif time.monotonic() - self.spoke > SECONDS_BETWEEN_LINES:
            self.say(f"step {record['step']}  " + "  ".join(f"{key} {value:.4g}" for key, value in shown.items()))

    def advance(self) -> None:
        self.bar.update()

    def record(self, kind: str, values: dict[str, Any], line: str) -> None:
        """A record of another kind, with the line that a person sees."""
        self._write(kind, values)
        self.say(line)

    def say(self, line: str) -> None:
        self.spoke = time.monotonic()
        tqdm.write(line) if not self.bar.disable else print(line, flush=True)

    def close(self) -> None:
        self.bar.close()
        self.file.close()

    def _write(self, kind: str, values: dict[str, Any]) -> None:
        self.file.write(json.dumps({"kind": kind, **values}) + "\n")
        self.file.flush()


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a log; a last line that was cut off is left out."""
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def _drop_after(path: Path, step: int) -> None:
    """Removes what a killed run wrote after the checkpoint that it now continues from."""
    if not path.exists():
        return
    kept = [record for record in read(path) if record["step"] <= step]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(record) + "\n" for record in kept))
    os.replace(temporary, path)
