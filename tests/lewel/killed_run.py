"""A run in a process of its own that somebody may kill, or that kills itself in the middle of writing a checkpoint."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import sys
from dataclasses import replace
from multiprocessing.synchronize import Semaphore
from pathlib import Path
from typing import Any

import torch
from tiny_runs import TINY

from lewel.methods import encoders
from lewel.run import checkpoint
from lewel.run.session import Session, prepare
from lewel.train import train

RUN = replace(TINY, epochs=30, save_every=1, knn_every=8)


def go_on(
    folder: Path, saved: Semaphore, die_at: tuple[int, int] | None = None, workers: int = 0, terminal: str = ""
) -> None:
    """Trains RUN in folder from its newest checkpoint, or from the start; releases saved with every checkpoint.

    With a narrow encoder, whose ninety checkpoints are soon on the disk. After Ctrl-C the exit code is that of `lewel`.
    die_at: which of the checkpoints that it writes it leaves unfinished, from 0, and at which byte.
    terminal: the path of one that the process is then in the foreground of, and writes to.
    """
    if terminal:
        os.setsid()
        for output in (1, 2):
            os.dup2(os.open(terminal, os.O_RDWR), output)  # the first that a session opens is its own
    _begin()
    if die_at is not None:
        _die_while_saving(*die_at)
    found = checkpoint.found(folder / "checkpoints")
    save = checkpoint.save

    def save_and_tell(session: Session) -> Path:
        path = save(session)
        saved.release()
        return path

    checkpoint.save = save_and_tell
    run = replace(RUN, data=replace(RUN.data, workers=workers))
    try:
        train(prepare(run, folder), found[-1] if found else None)
    except KeyboardInterrupt:
        sys.exit(130)


def _begin() -> None:
    torch.set_num_threads(1)
    encoders._tiny = functools.partial(encoders._tiny, 8)  # type: ignore[assignment]
    # As in a run from the command line: workers are children of the run. From a server they would be nobody's.
    multiprocessing.set_start_method("fork", force=True)


def _die_while_saving(which: int, at_byte: int) -> None:
    save, saved = torch.save, []

    class Half:
        """A file that takes so many bytes, and the process with them."""

        def __init__(self, file: Any) -> None:
            self.file, self.left = file, at_byte

        def write(self, content: bytes) -> int:
            self.file.write(memoryview(content)[: self.left])
            self.file.flush()
            self.left -= len(content)
            if self.left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return len(content)

        def flush(self) -> None:
            self.file.flush()

    def count_and_save(state: Any, file: Any) -> None:
        saved.append(file)
        save(state, Half(file) if len(saved) > which else file)

    torch.save = count_and_save  # type: ignore[assignment]


def fail(folder: Path) -> None:
    """A run with data workers that ends by an error of no known kind."""
    _begin()
    session = prepare(replace(RUN, data=replace(RUN.data, workers=2)), folder)
    session.method.online.encoder.register_forward_pre_hook(_run_out_of_memory)
    train(session, None)


def _run_out_of_memory(module: torch.nn.Module, inputs: tuple) -> None:
    if module.training:
        raise RuntimeError("out of memory")
