"""Where a run can be watched besides its log: TensorBoard where that is installed, Weights & Biases where asked for.

Both get every number of log.jsonl under its kind and name, as in "step/loss", at the record's step.
"""

from __future__ import annotations

import functools
import importlib.util
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from lewel.errors import LewelError
from lewel.recipe.schema import Train


class Sink(Protocol):
    """Takes the records of a run."""

    def write(self, kind: str, values: dict[str, Any]) -> None:
        """One record; values hold "step", the number of optimizer steps done."""

    def close(self) -> None:
        """Called after the last record."""


def boards(folder: Path, *, first_step: int, run: Train | None) -> list[Sink]:
    """The boards that the run in folder writes to: TensorBoard if it is installed, Weights & Biases if run asks for it.

    first_step above 0 continues the boards of an earlier start.
    """
    made: list[Sink] = []
    if _is_installed("tensorboard"):
        try:
            made.append(TensorBoard(folder, first_step))
        except Exception as error:  # of a full disk, or of a TensorBoard that does not fit what is installed beside it
            why = getattr(error, "strerror", None) or error
            print(f"TensorBoard cannot write to {folder} ({why}); the run goes on without it", flush=True)
    if run is not None and run.wandb:
        made.append(WeightsAndBiases(folder, first_step, run))
    return made


def check_installed(run: Train) -> None:
    """Raises LewelError if run asks for Weights & Biases and it is not installed.

    The command line calls it before it reads anything.
    """
    if run.wandb and not _is_installed("wandb"):
        raise LewelError(
            f'wandb is {run.wandb!r} but Weights & Biases is not installed; pip install "lewel[wandb]", or leave it out'
        )


class TensorBoard:
    """Event files in the run folder itself: `tensorboard --logdir runs` shows every run under its own name."""

    def __init__(self, folder: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        _silence_threads()
        # Hides what a killed run wrote after the checkpoint; the baselines are records of step 0.
        self.writer = SummaryWriter(folder, purge_step=first_step + 1 if first_step else 0)

    def write(self, kind: str, values: dict[str, Any]) -> None:
        for name, value in _numbers(kind, values).items():
            self.writer.add_scalar(name, value, values["step"])
        self.writer.flush()  # a killed run loses nothing that its log has

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """A run of the project run.wandb, its id kept in the run folder so that a resumed run goes on in the same place."""

    def __init__(self, folder: Path, first_step: int, run: Train) -> None:
        import wandb

        kept = folder / "wandb-id.txt"
        known = kept.read_text().strip() if first_step and kept.exists() else None
        try:
            self.run = wandb.init(
                project=run.wandb, name=folder.name, dir=folder, config=asdict(run), id=known, resume="allow"
            )
        except wandb.Error as error:
            raise LewelError(
                f"Weights & Biases does not start: {str(error).rstrip('.')}; "
                "WANDB_MODE=offline keeps its files in the run folder, without --wandb it is left out"
            ) from None
        kept.write_text(self.run.id + "\n")

    def write(self, kind: str, values: dict[str, Any]) -> None:
        # What was sent cannot be taken back, and a resumed run only repeats it: the steps up to there are left out.
        if values["step"] >= self.run.step:
            self.run.log(_numbers(kind, values), step=values["step"])

    def close(self) -> None:
        self.run.finish()


@functools.cache
def _silence_threads() -> None:
    """Has the threads of TensorBoard print no traceback, once a process: whoever writes to it meets the same error."""
    say = threading.excepthook

    def say_others(failed: threading.ExceptHookArgs) -> None:
        if not type(failed.thread).__module__.startswith("tensorboard."):
            say(failed)

    threading.excepthook = say_others


def _is_installed(name: str) -> bool:
    """Whether the package can be imported; a mere folder of that name, like those that wandb leaves, is none."""
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None


def _numbers(kind: str, values: dict[str, Any]) -> dict[str, float]:
    return {f"{kind}/{name}": value for name, value in values.items() if name != "step"}
