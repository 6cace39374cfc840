"""lewel eval KIND RUN: what the features of a run, or of a file of weights, are worth."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from lewel import distributed, meeting
from lewel.errors import LewelError
from lewel.evaluation import logistic, neighbours, offline
from lewel.evaluation.opening import Asked


@dataclass(frozen=True)
class Common:
    """What every kind of evaluation takes; its own settings follow in a field `settings`."""

    run: tyro.conf.Positional[Path | None] = None
    """run folder, whose newest checkpoint is evaluated; may be left out with --weights"""
    weights: str = ""
    """a file of weights to evaluate: a checkpoint, an export, the authors' file, torchvision's names; or the words
    torchvision or timm. Without RUN, --preset or --config a checkpoint is evaluated by its own recipe"""
    preset: str = ""
    """recipe whose encoder and data are taken, for weights without a run; or --config"""
    config: str = ""
    """the same of a YAML file"""
    data_root: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """where the images are now, the flag once for each place (--data-root A --data-root B); empty means where they were
    in training"""
    data_eval: str = ""
    """labelled images to compare, for a run on images without labels; empty means those of training"""
    workers: int | None = None
    """processes that read images; None means the recipe's"""
    out: str = ""
    """folder whose eval/ gets results and features; empty means the run's, or runs/NAME for weights without a run"""
    dry_run: bool = False
    """print what would be evaluated, and neither compute nor write anything"""

    def asked(self, kind: str) -> Asked:
        return Asked(
            self.run, self.weights, self.preset, self.config, self.data_root, self.data_eval, self.workers, self.out,
            kind=kind,
        )  # fmt: skip


@dataclass(frozen=True)
class KnnCommand(Common):
    """Prints the kNN accuracy of a run's newest checkpoint, for each number of neighbours."""

    settings: Annotated[neighbours.Settings, tyro.conf.arg(name="")] = field(default_factory=neighbours.Settings)


@dataclass(frozen=True)
class LogisticCommand(Common):
    """Fits scikit-learn's logistic regression to the features of a run's newest checkpoint."""

    settings: Annotated[logistic.Settings, tyro.conf.arg(name="")] = field(default_factory=logistic.Settings)


COMMANDS: dict[str, type[Common]] = {
    "knn": KnnCommand,
    "logistic": LogisticCommand,
}


def run(arguments: list[str]) -> None:
    """Runs the evaluation that the arguments name and prints its numbers in one line."""
    if not arguments or arguments[0] not in COMMANDS:
        given = " ".join(arguments) or "nothing"
        raise LewelError(f"lewel eval needs one of {', '.join(COMMANDS)} and a run folder, got {given}")
    command: Any = tyro.cli(COMMANDS[arguments[0]], args=arguments[1:], prog=f"lewel eval {arguments[0]}")
    asked = command.asked(arguments[0])
    if command.dry_run:
        planned = offline.plan(asked, command.settings)
        if meeting.speaks():
            print(planned)
    else:
        result = offline.run(asked, command.settings)
        if result.subject.world.leads:
            epoch = result.subject.epoch
            after = f" after epoch {epoch}" if epoch is not None else ""
            print(f"{command.run or command.weights}: {result.said}{after}")
            print("\n".join(filter(None, (result.published, f"wrote {result.path}"))))
    distributed.leave()
