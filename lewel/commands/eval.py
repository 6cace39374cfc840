"""lewel eval KIND RUN: what the features of a run are worth."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from lewel.errors import LewelError
from lewel.evaluation.features import knn_accuracy
from lewel.run import folders


@dataclass(frozen=True)
class KnnCommand:
    """Prints kNN-200 accuracy of a run's newest checkpoint."""

    run: tyro.conf.Positional[Path]
    """run folder"""
    data_root: str = ""
    """where the images are now; empty means where they were in training"""


def run(arguments: list[str]) -> None:
    """Prints one line."""
    kinds = {"knn": KnnCommand}
    if not arguments or arguments[0] not in kinds:
        given = " ".join(arguments) or "nothing"
        raise LewelError(f"lewel eval needs one of {', '.join(kinds)} and a run folder, got {given}")
    command = tyro.cli(kinds[arguments[0]], args=arguments[1:], prog=f"lewel eval {arguments[0]}")
    session = folders.load(command.run, command.data_root)
    print(f"{command.run}: kNN {knn_accuracy(session):.2f} % after epoch {session.epochs_done}")
