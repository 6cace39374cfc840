"""lewel eval KIND RUN: what the features of a run are worth."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from lewel.api import knn_of
from lewel.cost.plan import one_class
from lewel.errors import LewelError


@dataclass(frozen=True)
class KnnCommand:
    """Prints the kNN accuracy of a run's newest checkpoint, for each number of neighbours."""

    run: tyro.conf.Positional[Path]
    """run folder"""
    data_root: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """where the images are now, the flag once for each place (--data-root A --data-root B); empty means where they were
    in training"""
    data_eval: str = ""
    """labelled images to compare, for a run on images without labels; empty means those of training"""
    k: tuple[int, ...] | None = None
    """numbers of neighbours that vote; None means the recipe's knn_k, like the two below"""
    temperature: float | None = None
    """a neighbour of cosine similarity s has exp(s / temperature) votes"""
    bank: int | None = None
    """training images in the bank, at equal distances; 0 means all"""


def run(arguments: list[str]) -> None:
    """Runs the evaluation that the arguments name and prints its numbers in one line."""
    kinds = {"knn": KnnCommand}
    if not arguments or arguments[0] not in kinds:
        given = " ".join(arguments) or "nothing"
        raise LewelError(f"lewel eval needs one of {', '.join(kinds)} and a run folder, got {given}")
    command = tyro.cli(kinds[arguments[0]], args=arguments[1:], prog=f"lewel eval {arguments[0]}")
    session, epoch, accuracies = knn_of(
        command.run, command.data_root, command.data_eval, command.k, command.temperature, command.bank
    )
    told = ", ".join(f"kNN-{k} {accuracy:.2f} %" for k, accuracy in accuracies.items())
    if one_class(session.sets):
        told += " (which means nothing: with one class in the bank every answer is that class)"
    print(f"{command.run}: {told} after epoch {epoch}")
