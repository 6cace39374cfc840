"""The folder of a run: which one is written to, which checkpoint is continued, and opening a run that is there."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from lewel.data import Datasets
from lewel.errors import LewelError
from lewel.recipe.schema import Train
from lewel.run import checkpoint
from lewel.run.session import Session, prepare


def choose(run: Train, resume: str) -> tuple[Path, Path | None]:
    """The folder to write a run to, and the checkpoint to continue from or None; no run is ever written over."""
    if resume and resume != "auto":
        return _continued(run.out, Path(resume).resolve())
    base = Path(run.out or Path("runs", run.preset.replace("/", "-")))
    taken = [base] if _holds_run(base) else []
    if not run.out:
        taken += sorted(
            (folder for folder in base.parent.glob(f"{base.name}-*") if folder.name[len(base.name) + 1 :].isdigit()),
            key=lambda folder: int(folder.name[len(base.name) + 1 :]),
        )
    if resume and taken:
        checkpoints = checkpoint.found(taken[-1] / "checkpoints")
        return taken[-1], checkpoints[-1] if checkpoints else None
    if not taken:
        return base, None
    if run.out:
        raise LewelError(f"{base} holds a run already; continue it with --resume auto or choose another --out")
    number = int(taken[-1].name[len(base.name) + 1 :] or 1) + 1
    return base.with_name(f"{base.name}-{number}"), None


def _continued(out: str, path: Path) -> tuple[Path, Path]:
    if not path.is_file():
        raise LewelError(f"there is no checkpoint {path} to resume from")
    if not out and path.parent.name != "checkpoints":
        raise LewelError(f"{path} lies in no run folder's checkpoints/, so --out must say where the run goes on")
    folder = Path(out).resolve() if out else path.parent.parent
    if folder != path.parent.parent and _holds_run(folder):
        raise LewelError(f"{folder} holds another run already; choose another --out to continue {path} in")
    return folder, path


def check_writable(folder: Path) -> None:
    try:
        parent = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
        tempfile.TemporaryFile(dir=parent).close()
    except OSError as error:
        raise LewelError(f"cannot write to the run folder {folder}: {error.strerror}; choose another --out") from None


def newest(folder: Path) -> tuple[Path, dict[str, Any], Train]:
    """The newest checkpoint in a run folder: its path, its content on the CPU, and the recipe it was trained with.

    Raises:
        LewelError: folder holds no run, or no checkpoint yet.
    """
    if not _holds_run(folder):
        raise LewelError(f"{folder} is no run folder: it has no config.yaml; lewel train says where it writes")
    found = checkpoint.found(folder / "checkpoints")
    if not found:
        raise LewelError(f"{folder} has no checkpoint yet; one is written at the end of every epoch")
    state = checkpoint.read(found[-1])
    return found[-1], state, checkpoint.config_of(state, found[-1])


def load(
    folder: Path,
    data_root: tuple[str, ...] = (),
    *,
    data_eval: str = "",
    encoder: nn.Module | None = None,
    sets: Datasets | None = None,
) -> Session:
    """The session of a run that has finished or stopped: its data sets, and the weights of its newest checkpoint.

    data_root and data_eval say where the images lie now; empty means where they lay in training. encoder and sets are
    those of a run that had them from Python. Raises LewelError as newest does.
    """
    path, state, run = newest(folder)
    if data_root or data_eval:
        places = replace(run.data, root=data_root or run.data.root, eval=data_eval or run.data.eval)
        run = replace(run, data=places)
    session = prepare(run, folder, encoder=encoder, sets=sets)
    checkpoint.load_weights(session.method, state, path)
    session.steps_done, session.seconds = state["step"], state["seconds"]
    return session


def _holds_run(folder: Path) -> bool:
    return (folder / "config.yaml").exists()
