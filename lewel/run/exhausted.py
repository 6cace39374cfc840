"""Memory that runs out under a run, told in a sentence: where that was, what needs less, and what is saved."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from lewel.errors import LewelError, is_out_of_memory
from lewel.recipe import checks
from lewel.run import checkpoint
from lewel.run.session import Session


@contextlib.contextmanager
def sentences(folder: Path, device: torch.device, at: Callable[[], str]) -> Iterator[None]:
    """A context in which memory that runs out becomes a LewelError, with what at says of the moment and what helps."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        on_gpu = isinstance(error, torch.OutOfMemoryError) or "CUDA" in str(error)
        saved = checkpoint.found(folder / "checkpoints")[-1:]
        then = f"{saved[0]} is saved: --resume auto goes on from there" if saved else "no step is saved yet"
        raise LewelError(f"the memory of {device if on_gpu else 'cpu'} ran out {at()}; {then}") from None


def in_a_step(session: Session) -> str:
    """A clause about the step after those that are done: what its passes hold, and how a run would hold less."""
    run, processes = session.run, session.world.size
    images = run.data.batch_size // (processes * run.accumulate)
    halved, smaller = replace(run, accumulate=2 * run.accumulate), "a smaller --data.batch-size"
    try:
        checks.check(halved, processes=processes)
        less = f"--accumulate {halved.accumulate} halves them (or {smaller})"
    except LewelError:
        less = f"{smaller} takes less"
    saved = checkpoint.found(session.folder / "checkpoints")
    anew = "in a new run " if saved else ""  # one that goes on may have to keep its passes
    return f"at step {session.steps_done + 1} with {images} images of {run.data.image_size} pixels a pass; {anew}{less}"
