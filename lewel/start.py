"""A run from its recipe to its report, in all its processes: what `lewel train` and lewel.train both do."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from lewel import console, data, distributed
from lewel.cost import plan
from lewel.errors import LewelError, is_out_of_memory
from lewel.evaluation import at_end
from lewel.methods.encoders import Wrapped
from lewel.recipe import checks, schema
from lewel.recipe.feature_maps import CUSTOM
from lewel.results import report
from lewel.run import exhausted, folders, initial
from lewel.run.preemption import Stopped, at_once
from lewel.run.session import Session, from_python, prepare
from lewel.train import train as train_session
from lewel.watching import boards, log
from lewel.watching.progress import Progress

SAVED = "training has finished and is saved"
BEFORE_STEPS = "before the first step; a --dry-run tells what the recipe needs"


@dataclass(frozen=True)
class Run:
    """A run that lewel.train has trained."""

    session: Session
    finished: bool
    """False where SIGTERM ended it early; train(..., resume="auto") goes on"""

    @property
    def encoder(self) -> nn.Module:
        """The trained encoder: images (N, 3, H, W), normalised as in training, to a feature map (N, C, h, w).

        Of a run whose encoder came from Python it is that very module.
        """
        encoder = self.session.method.online.encoder
        return encoder.model if self.config.encoder.name == CUSTOM and isinstance(encoder, Wrapped) else encoder

    @property
    def folder(self) -> Path:
        """Where config.yaml, log.jsonl, checkpoints, pictures and report.txt lie."""
        return self.session.folder

    @property
    def config(self) -> schema.Train:
        """The whole recipe."""
        return self.session.run

    @property
    def log(self) -> list[dict[str, Any]]:
        """The records of log.jsonl: each has its kind ("baselines", "step", "epoch" ...), its step and its numbers."""
        return log.read(self.folder / "log.jsonl")


def start(
    run: schema.Train, resume: str = "", *, encoder: nn.Module | None = None, sets: data.Datasets | None = None
) -> Run:
    """Checks a recipe, trains it from the start or from a checkpoint, and writes the run's report.

    Of several processes, one that fails ends all of them, for the others would wait for it.
    """
    run = from_python(run, encoder, sets)
    with console.lossy(), contextlib.ExitStack() as held:
        checks.check(run, processes=distributed.announced())
        world = distributed.join()
        if world.leads:  # another one may wait for it in a call that handlers cannot interrupt
            held.enter_context(at_once())
        try:
            folder, path = distributed.from_leader(lambda: _places(run, resume, held))
            with folders.interruptions(folder), exhausted.sentences(folder, world.device, lambda: BEFORE_STEPS):
                session = prepare(replace(run, out=str(folder)), folder, encoder=encoder, sets=sets, fill=False)
                if world.leads:
                    print(plan.recipe_of(session), flush=True)
                if run.init and path is None:
                    initial.begin(session)
                finished = train_session(session, path)
                if finished and session.run.linear_at_end:
                    _linear(session)
                if finished and world.leads:
                    _report(session)
        except Exception as error:
            if world.size > 1:
                held.close()
                distributed.abandon(error)
            raise
        return Run(session, finished)


def _places(run: schema.Train, resume: str, held: contextlib.ExitStack) -> tuple[Path, Path | None]:
    """The run folder, claimed until held closes, and the checkpoint to continue from or None, which can be read."""
    boards.check_installed(run)
    folder, path = folders.claim(run, resume, held)
    if run.init and path is None:
        initial.source(run)  # what is not there is told of before any image is looked for
    elif run.init:
        print(f"the run continues with its own weights, not those of init {run.init}")
    if path is None and resume == "auto":
        print(f"nothing to continue: there is no checkpoint in {folder}, so this run starts from the beginning")
    return folder, path


def _linear(session: Session) -> None:
    """Evaluates by a linear classifier; where that fails it is told, and the report goes without its accuracy.

    Of several processes one that fails ends all of them, for the others would wait for it: report.txt is there before.
    """
    world = session.world
    if world.size > 1 and world.leads:
        report.write_summary(session)
    try:
        at_end.evaluate(session, Progress(print, bar=sys.stderr.isatty()) if world.leads else None)
    except KeyboardInterrupt as stop:
        raise Stopped(getattr(stop, "by", "SIGINT"), f"{SAVED}; --resume auto writes the report") from None
    except Exception as error:
        told = (
            f"{SAVED}, but there is no linear accuracy: {_reason(error)}; once that is put right, `lewel eval linear "
            f"{session.folder}` has it, and --no-linear-at-end goes without"
        )
        if world.size > 1:
            raise LewelError(told) from None
        print(told, flush=True)


def _report(session: Session) -> None:
    try:
        report.write(session)
    except KeyboardInterrupt as stop:
        raise Stopped(getattr(stop, "by", "SIGINT"), f"{SAVED}; --resume auto writes the report") from None
    except Exception as error:
        raise LewelError(
            f"{SAVED}, but the report could not be written: {_reason(error)}; once that is put right, --resume auto "
            "writes it"
        ) from None


def _reason(error: Exception) -> str:
    """Why something failed after the training, in a clause. Raises what is no fault of memory, disk or input."""
    if is_out_of_memory(error):
        return "memory ran out"
    if isinstance(error, LewelError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.filename or 'a file'}: {error.strerror or error}"
    raise error
