"""The folder of a run: which one is written to, which checkpoint is continued, and opening a run that is there."""

from __future__ import annotations

import contextlib
import glob
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from lewel.errors import LewelError
from lewel.recipe.schema import Train
from lewel.run import checkpoint, lock
from lewel.run.lock import Lock

# What imports torchvision is imported where it is used: commands that only look at the files of runs start faster.
if TYPE_CHECKING:
    from lewel.data import Datasets
    from lewel.run.session import Session


def claim(run: Train, resume: str, claims: contextlib.ExitStack) -> tuple[Path, Path | None]:
    """What choose returns, checked to be usable, and the folder this process's alone until claims is closed.

    Of runs that start at the same moment each gets a folder of its own. Raises LewelError as choose does, and where
    a run that is still going holds the folder that run and resume name.
    """
    while True:
        folder, path = choose(run, resume)
        _check_checkpoints(folder)
        held = Lock(folder)
        claims.callback(held.release)  # first, for a signal may come at any moment
        try:
            held.take(wait=bool(resume))
        except lock.Taken:
            if run.out or resume:
                raise
            continue
        if resume:  # again, for the run that was waited for may have saved more
            return folder, usable(path if resume != "auto" else _newest(folder), resume)
        if not _holds_run(folder):
            return folder, None
        held.release()  # of a run that began after the choice, and has ended


def _check_checkpoints(folder: Path) -> None:
    """Raises LewelError where checkpoints cannot be written, which a run would find out after its first epoch."""
    path = folder / "checkpoints"
    if path.is_symlink() and not path.exists():
        raise LewelError(f"{path} is a link to {os.readlink(path)}, which is not there; make it, or remove the link")
    if path.exists() and not path.is_dir():
        raise LewelError(f"{path} is no folder, but checkpoints go there; remove it, or choose another --out")
    if path.exists() and not os.access(path, os.W_OK | os.X_OK):
        raise LewelError(f"checkpoints cannot be written to {path}: no permission; choose another --out")


def usable(path: Path | None, resume: str) -> Path | None:
    """The checkpoint that choose has found or, of "auto" where that is broken, the one before it, which is said."""
    if path is None:
        return None
    if resume == "auto":
        newest = checkpoint.newest(path.parent)
        return newest[0] if newest else None
    checkpoint.read(path)
    return path


def choose(run: Train, resume: str) -> tuple[Path, Path | None]:
    """The folder to write a run to, and the checkpoint to continue from or None; no run is ever written over."""
    out = expanded(run.out) if run.out else None
    if "://" in run.out:
        raise LewelError(f"out {run.out} is an address, and a run writes to a folder of this machine; name one")
    if out is not None and out.is_symlink() and not out.exists():
        raise LewelError(f"{out} is a link to {os.readlink(out)}, which is not there; make it, or choose another --out")
    if resume and resume != "auto":
        return _continued(out, resume)
    base = out or Path("runs", _name(run.preset))
    taken = [base] if _holds_run(base) or (not out and lock.lives(base)) else []
    if out is None:
        numbered = (f for f in base.parent.glob(f"{glob.escape(base.name)}-*") if _number(f, base) and f.is_dir())
        taken += sorted(numbered, key=lambda folder: _number(folder, base))
    if resume and taken:
        return taken[-1], _newest(taken[-1])
    if not taken:
        return base, None
    if out and lock.lives(base):
        raise lock.taken(base)
    if out:
        raise LewelError(f"{base} holds a run already; continue it with --resume auto or choose another --out")
    return base.with_name(f"{base.name}-{max(1, _number(taken[-1], base)) + 1}"), None


@contextlib.contextmanager
def interruptions(folder: Path) -> Iterator[None]:
    """A context whose KeyboardInterrupt says what of the run in folder is saved."""
    try:
        yield
    except KeyboardInterrupt as stop:
        if str(stop):
            raise
        saved = checkpoint.found(folder / "checkpoints")
        said = (
            f"{saved[-1]} is saved, and --resume auto goes on from there" if saved else "there is nothing to continue"
        )
        from lewel.run.preemption import Stopped

        raise Stopped(getattr(stop, "by", "SIGINT"), said) from None


def expanded(path: str | os.PathLike[str]) -> Path:
    """A path with ~ and ~user in full. Raises LewelError for a user that there is none of."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise LewelError(
            f"{os.fspath(path)} names no folder ({str(error).rstrip('.')}); write the path in full"
        ) from None


def _name(preset: str) -> str:
    """A preset's name as that of a folder."""
    name = (
        re.sub(r"[/\\\x00-\x1f\x7f]+", "-", preset).strip(". ").encode(errors="replace")[:200].decode(errors="ignore")
    )
    return name or "run"


def _number(folder: Path, base: Path) -> int:
    """n of a folder BASE-n, 0 of any other."""
    number = folder.name[len(base.name) + 1 :]
    return int(number) if number.isascii() and number.isdigit() else 0


def _newest(folder: Path) -> Path | None:
    checkpoints = checkpoint.found(folder / "checkpoints")
    return checkpoints[-1] if checkpoints else None


def _instead_of(path: Path) -> str:
    """What to say of a folder where a checkpoint was to be named."""
    run = path.parent if path.name == "checkpoints" else path
    if newest := _newest(run):
        return f"{path} is a folder; continue that run by --out {run} --resume auto, or name a checkpoint: {newest}"
    return f"{path} is a folder, and no run folder with checkpoints; name one of its files step-NNNNNNNN.pt"


def _continued(out: Path | None, given: str) -> tuple[Path, Path]:
    path = expanded(given).resolve()
    if path.is_dir():
        raise LewelError(_instead_of(path))
    if not path.is_file():
        words = "" if os.sep in given else '; --resume takes a checkpoint, or "auto" for the newest of a run folder'
        raise LewelError(f"there is no checkpoint {path} to resume from{words}")
    if not out and path.parent.name != "checkpoints":
        raise LewelError(f"{path} lies in no run folder's checkpoints/, so --out must say where the run goes on")
    folder = out.resolve() if out else path.parent.parent
    if folder != path.parent.parent and _holds_run(folder):
        raise LewelError(f"{folder} holds another run already; choose another --out to continue {path} in")
    return folder, path


def check_run(folder: Path, file: str) -> None:
    """Raises LewelError where a folder lacks a file that every run has; names the run that folder is a part of."""
    if (folder / file).exists():
        return
    runs = (above for above in folder.parents if all((above / name).is_file() for name in ("config.yaml", "log.jsonl")))
    within = next(runs, None) if folder.exists() else None
    why = "it is a file" if folder.is_file() else f"it has no {file}" if folder.exists() else "it is not there"
    instead = "lewel train says where it writes" if within is None else f"it lies in the run {within}, name that"
    raise LewelError(f"{folder} is no run folder: {why}; {instead}")


def newest(folder: Path) -> tuple[Path, dict[str, Any], Train]:
    """The newest checkpoint in a run folder: its path, its content on the CPU, and the recipe it was trained with.

    A broken one is passed over, and said to be.

    Raises:
        LewelError: folder holds no run, or no checkpoint that can be used.
    """
    check_run(folder, "config.yaml")
    found = checkpoint.newest(folder / "checkpoints")
    if found is None:
        raise LewelError(f"{folder} has no checkpoint yet; one is written at the end of every epoch")
    path, state = found
    return path, state, checkpoint.config_of(state, path)


def load(
    folder: Path,
    data_root: tuple[str, ...] = (),
    *,
    data_eval: str = "",
    encoder: nn.Module | None = None,
    sets: Datasets | None = None,
    opened: tuple[Path, dict[str, Any], Train] | None = None,
) -> Session:
    """The session of a run that has finished or stopped: its data sets, and method and probe of its newest checkpoint.

    A probe that the checkpoint lacks, or that is of other classes than the test images, is fresh, and says nothing.
    data_root and data_eval say where the images lie now; empty means where they lay in training. encoder and sets are
    those of a run that had them from Python, opened what newest has returned. Raises LewelError as newest does.
    """
    from lewel.run.resuming import restore_probe
    from lewel.run.session import prepare

    path, state, run = opened or newest(folder)
    if data_root or data_eval:
        places = replace(run.data, root=data_root or run.data.root, eval=data_eval or run.data.eval)
        run = replace(run, data=places)
    session = prepare(run, folder, encoder=encoder, sets=sets)
    checkpoint.load_weights(session.method, state, path)
    restore_probe(session, state)
    session.steps_done, session.seconds = state["step"], state["seconds"]
    return session


def _holds_run(folder: Path) -> bool:
    """Whether there is a run, or checkpoints of one, among which another run's would get lost."""
    return (folder / "config.yaml").exists() or bool(checkpoint.found(folder / "checkpoints"))
