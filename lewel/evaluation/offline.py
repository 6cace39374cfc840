"""An evaluation from what a person asks for to its result file: what `lewel eval` and lewel.eval both do."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from lewel import distributed
from lewel.errors import LewelError, is_out_of_memory
from lewel.evaluation import cache, linear, logistic, neighbours, outcome, semi, subject
from lewel.evaluation.kinds import Kind, worded
from lewel.evaluation.subject import Asked, Subject
from lewel.run.preemption import Stopped, at_once
from lewel.watching.progress import Progress

KINDS: dict[str, Kind] = {
    "knn": neighbours.KIND,
    "linear": linear.KIND,
    "logistic": logistic.KIND,
    "semi": semi.KIND,
}
MEANS_NOTHING = " (which means nothing: with one class in the bank every answer is that class)"


@dataclass(frozen=True)
class Result:
    """What an evaluation has found."""

    subject: Subject
    values: dict[str, Any]
    path: Path
    said: str
    """its numbers, in a line"""
    more: list[str]
    """lines about them"""
    published: str


def run(asked: Asked, settings: Any) -> Result:
    """Evaluates, and writes the result; every process calls it, and the first one speaks.

    Of several processes, one that fails ends all of them, for the others would wait for it. Raises LewelError for
    whatever keeps it from a result, with what of the work is kept.
    """
    kind, world = KINDS[asked.kind], distributed.join()
    progress = Progress(print, bar=sys.stderr.isatty()) if world.leads else None
    opened: list[Subject] = []
    # Another process may wait for the first in a call that handlers cannot interrupt.
    notices = at_once() if world.leads else contextlib.nullcontext()
    try:
        with notices, _as_it_was(asked.encoder), _worded():
            opened.append(subject.find(asked, tell=progress))
            return _run(opened[0], kind, settings, progress)
    except KeyboardInterrupt as stop:
        if str(stop) or not opened:
            raise
        raise Stopped(getattr(stop, "by", "SIGINT"), cache.kept(opened[0])) from None
    except Exception as error:
        told = _out_of_memory(opened) if is_out_of_memory(error) else error
        if world.size > 1:
            distributed.abandon(told)
        if told is error:
            raise
        raise told from None


def _run(what: Subject, kind: Kind, settings: Any, progress: Progress | None) -> Result:
    if kind.classifies:
        what.check_several()
    used = kind.resolved(what, settings)
    if kind.classifies and (without := what.check_classes()) and what.world.leads:
        print(without, flush=True)
    if (planned := kind.planned(what, settings)) and what.world.leads:
        print(planned, flush=True)
    distributed.from_leader(lambda: outcome.check(what))
    before = what.digest
    values = kind.evaluate(what, settings, progress)
    assert what.digest == before, "the frozen encoder has changed"
    published = kind.published(what, settings)
    path = outcome.write(what, kind.name(settings), used, values, published)
    kind.done(what, settings)
    said = kind.said(values) + MEANS_NOTHING * what.sets.one_class
    return Result(what, values, path, said, kind.more(values), published)


def plan(asked: Asked, settings: Any) -> str:
    """What run would evaluate, in lines; computes and writes nothing. Raises its LewelErrors, as far as they show."""
    kind, world = KINDS[asked.kind], distributed.join()
    try:
        with _worded():
            return _planned(subject.find(asked, dry=True), kind, settings)
    except Exception as error:
        if world.size > 1:
            distributed.abandon(error)
        raise


def _planned(what: Subject, kind: Kind, settings: Any) -> str:
    if kind.classifies:
        what.check_several()
    used = kind.resolved(what, settings)
    without = what.check_classes() if kind.classifies else ""
    sets, config = what.sets, what.run.data
    where = f" in {', '.join(config.roots)}" if config.roots else ""
    lines = [
        f"weights: {what.said}",
        f"images: {len(sets.bank):,} to learn from and {len(sets.test):,} to test by, of {sets.num_classes} "
        f"classes ({config.name}{where}), at {config.image_size} pixels",
    ]
    if without:
        lines.append(without)
    if kind.cached(settings):
        lines.append(f"features: {_features(what)}")
    if planned := kind.planned(what, settings):
        lines.append(planned)
    path = distributed.from_leader(lambda: outcome.place(what, kind.name(settings), used))
    lines.append(f"the result would go to {path}")
    if published := kind.published(what, settings):
        lines.append(published)
    return "\n".join(lines)


def _features(what: Subject) -> str:
    if not what.loaded:
        return "to be computed"
    folder = cache.place(what)
    if folder is None:
        return "to be computed, and not kept, for images or encoder come from Python"
    done, every = (sum(counts) for counts in zip(*(cache.there(what, s) for s in ("train", "test")), strict=True))
    if done == every:
        return f"all {every} parts are in {folder}"
    return f"{done} of {every} parts are in {folder}" if done else f"to be computed, into {folder}"


def _out_of_memory(opened: list[Subject]) -> LewelError:
    kept = cache.kept(opened[0]) if opened else ""
    return LewelError(f"memory ran out in the evaluation; end what else takes it{'; ' if kept else ''}{kept}")


@contextlib.contextmanager
def _worded() -> Iterator[None]:
    """A context whose LewelErrors name the flags of `lewel eval`."""
    try:
        yield
    except LewelError as error:
        error.args = (worded(str(error)),)
        raise


@contextlib.contextmanager
def _as_it_was(module: nn.Module | None) -> Iterator[None]:
    """A context after which a module from Python is in the modes it was in, and its parameters are as trainable."""
    modes = {part: part.training for part in module.modules()} if module is not None else {}
    trained = {part: part.requires_grad for part in module.parameters()} if module is not None else {}
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode
        for parameter, grad in trained.items():
            parameter.requires_grad_(grad)
