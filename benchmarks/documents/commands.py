"""The command that draws the pictures and writes the tables of the documents: plot."""

from __future__ import annotations

import argparse
import sys

from benchmarks import recording
from benchmarks.documents import plot, quotes


def _plot(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--check", action="store_true", help="write nothing; fail where a document disagrees with data"
    )
    command.set_defaults(call=run_plot)


COMMANDS = {"plot": _plot}


def run_plot(given: argparse.Namespace) -> int:
    try:
        return _check() if given.check else _write()
    except ValueError as error:  # results that a document quotes are missing
        sys.exit(str(error))


def _check() -> int:
    stale = quotes.stale() + [path for device in recording.devices() for path in plot.stale(device)]
    for path in stale:
        print(f"{path} disagrees with benchmarks/results; run `make docs`", file=sys.stderr)
    return int(bool(stale))


def _write() -> int:
    for device in recording.devices():
        for path in plot.write(device):
            print(path)
    quotes.write()
    return 0
