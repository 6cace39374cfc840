"""lewel eval KIND RUN: what the features of a run, or of a file of weights, are worth."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, get_args, get_origin

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from lewel import distributed, meeting
from lewel.errors import LewelError
from lewel.evaluation import linear_plan, logistic, neighbours, offline, semi
from lewel.evaluation.opening import Asked


@dataclass(frozen=True)
class Common:
    """What every kind of evaluation takes; its own settings follow in a field `settings`."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="[RUN]")] = ""
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
    """processes that read images; without it as many as the recipe has"""
    out: str = ""
    """folder whose eval/ gets results and features; empty means the run's, or runs/NAME for weights without a run"""
    dry_run: bool = False
    """print what would be evaluated, and neither compute nor write anything"""

    def asked(self, kind: str) -> Asked:
        return Asked(
            Path(self.run) if self.run else None, self.weights, self.preset, self.config, self.data_root,
            self.data_eval, self.workers, self.out, kind=kind,
        )  # fmt: skip


@dataclass(frozen=True)
class KnnCommand(Common):
    """Prints the kNN accuracy of a run's newest checkpoint, for each number of neighbours."""

    settings: Annotated[neighbours.Settings, tyro.conf.arg(name="")] = field(default_factory=neighbours.Settings)


@dataclass(frozen=True)
class LinearCommand(Common):
    """Prints the accuracy of a linear classifier on the frozen features of a run's newest checkpoint."""

    settings: Annotated[linear_plan.Settings, tyro.conf.arg(name="")] = field(default_factory=linear_plan.Settings)


@dataclass(frozen=True)
class LogisticCommand(Common):
    """Fits scikit-learn's logistic regression to the features of a run's newest checkpoint."""

    settings: Annotated[logistic.Settings, tyro.conf.arg(name="")] = field(default_factory=logistic.Settings)


@dataclass(frozen=True)
class SemiCommand(Common):
    """Fine-tunes the whole network on 1 % or 10 % of the labels, and prints its accuracy on the test images."""

    settings: Annotated[semi.Settings, tyro.conf.arg(name="")] = field(default_factory=semi.Settings)


COMMANDS: dict[str, type[Common]] = {
    "knn": KnnCommand,
    "linear": LinearCommand,
    "logistic": LogisticCommand,
    "semi": SemiCommand,
}


USAGE = """usage: lewel eval KIND [RUN] ...

  knn        the share of test images whose nearest training images, by their features, are of the same class
  logistic   scikit-learn's logistic regression on the features: a linear accuracy in seconds
  linear     a linear classifier, by a cheap protocol or a published one (--protocol cached, a, b, moco)
  semi       the whole network fine-tuned on 1 % or 10 % of the labels

for example: lewel eval knn runs/lewel_m --dry-run
lewel eval KIND --help lists the flags of a kind"""

REGISTRY = ConstructorRegistry()


@REGISTRY.primitive_rule
def _left_out(kind: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """Reads a number that may be left out, or several, as numbers: who writes a flag gives one, and never None."""
    parts = [part for part in get_args(kind.type) if part is not NoneType]
    if not isinstance(kind.type, UnionType) or len(parts) != 1:
        return None
    several = get_origin(parts[0]) is tuple
    item = get_args(parts[0])[0] if several else parts[0]
    if item not in (int, float):
        return None

    def made(words: list[str]) -> Any:
        numbers = tuple(map(item, words))
        return numbers if several else numbers[0]

    name = "INT" if item is int else "FLOAT"
    return PrimitiveConstructorSpec(
        nargs="*" if several else 1,
        metavar=f"[{name} [{name} ...]]" if several else name,
        instance_from_str=made,
        is_instance=lambda value: value is None or isinstance(value, (tuple, int, float)),
        str_from_instance=lambda value: [str(each) for each in (value if isinstance(value, tuple) else [value])],
    )


def run(arguments: list[str]) -> None:
    """Runs the evaluation that the arguments name and prints its numbers in one line."""
    if arguments[:1] in (["-h"], ["--help"], ["help"]):
        print(USAGE)
        return
    if not arguments:
        raise LewelError(f"lewel eval needs a kind and a run folder\n\n{USAGE}")
    if arguments[0] not in COMMANDS:
        near = difflib.get_close_matches(arguments[0], COMMANDS, n=1)
        meant = f"; did you mean {near[0]}?" if near else ""
        given = " ".join(arguments)
        raise LewelError(f"lewel eval needs one of {', '.join(COMMANDS)} and a run folder, got {given}{meant}")
    kind = arguments[0]
    command: Any = tyro.cli(COMMANDS[kind], args=arguments[1:], prog=f"lewel eval {kind}", registry=REGISTRY)
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
            print("\n".join(filter(None, (*result.more, result.published, f"wrote {result.path}"))))
    distributed.leave()
