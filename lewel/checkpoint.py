"""Checkpoints: one file at the end of an epoch with everything that the next step depends on, or a sentence why not."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from lewel import recipe
from lewel.config import Train
from lewel.errors import LewelError
from lewel.method import Method

FORMAT = "lewel checkpoint 2"
KEYS = ("config", "epoch", "images", "seconds", "method", "optimizer", "rng")
FREE_TO_CHANGE = ("preset", "out", "keep", "log_every", "knn_every", "backend", "data.root", "data.workers")


class CheckpointError(LewelError):
    """A checkpoint that cannot be used, or could not be written."""


def save(
    folder: Path,
    epoch: int,
    *,
    run: Train,
    method: Method,
    optimizer: torch.optim.Optimizer,
    images: int,
    seconds: float,
) -> Path:
    """Writes folder/epoch-NNNN.pt under a temporary name, renames it, and removes all but the newest run.keep.

    images is the number of training images, seconds the time that training took so far.
    """
    state = {
        "format": FORMAT,
        "config": recipe.to_plain(run),
        "epoch": epoch,
        "images": images,
        "seconds": seconds,
        "method": method.state_dict(),
        "optimizer": optimizer.state_dict(),
        "rng": torch.get_rng_state(),
    }
    path = folder / name_of(epoch)
    temporary = folder / f".{path.name}.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob(".epoch-*"):  # of a process that was killed while it wrote
            stale.unlink()
        with open(temporary, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        for old in found(folder)[: -run.keep]:
            old.unlink()
    except (OSError, RuntimeError) as error:  # torch's zip writer makes a RuntimeError of a full disk
        raise CheckpointError(f"could not write {path}: {_reason(error)}; {_offer(path)}") from None
    finally:
        temporary.unlink(missing_ok=True)  # it has its name by now, unless something went wrong
    return path


def name_of(epoch: int) -> str:
    """The file name of the checkpoint after an epoch, counted from 1."""
    return f"epoch-{epoch:04d}.pt"


def remove_after(folder: Path, epoch: int) -> list[Path]:
    """Removes the checkpoints of later epochs, which a run that continues after epoch makes again; returns them."""
    later = [path for path in found(folder) if path.name > name_of(epoch)]
    for path in later:
        path.unlink()
    return later


def found(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    return sorted(folder.glob("epoch-*.pt"))


def read(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU, or the reason why it is none."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint {path}; {_offer(path)}") from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"{path} is truncated or no checkpoint at all ({_reason(error)}); {_offer(path)}"
        ) from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} was not written by this version of lewel train (no '{FORMAT}' in it); {_offer(path)}"
        )
    missing = [key for key in KEYS if key not in state]
    if missing:
        raise CheckpointError(f"{path} is incomplete (it lacks {', '.join(missing)}); {_offer(path)}")
    return state


def config_of(state: dict[str, Any], path: Path) -> Train:
    """The recipe that a checkpoint was trained with."""
    return recipe.from_plain(state["config"], source=str(path))


def restore(path: Path, *, run: Train, method: Method, optimizer: torch.optim.Optimizer, images: int) -> dict[str, Any]:
    """Puts a checkpoint into method and optimizer, which run describes, and the generator; returns its content.

    images is the number of training images now: with another one, order and schedule would be others.
    """
    state = read(path)
    old = config_of(state, path)
    if old.method.name != run.method.name:
        raise CheckpointError(
            f"{path} holds {old.method.name} but this run is {run.method.name}; "
            f"resume it with the recipe it was trained with, or start {run.method.name} in another folder (--out)"
        )
    changed = recipe.differences(old, run, ignore=FREE_TO_CHANGE)
    if changed:
        raise CheckpointError(
            f"{path} was trained with another recipe ({'; '.join(changed)}); "
            "a resumed run continues exactly, so undo the change or start anew in another folder (--out)"
        )
    if state["images"] != images:
        raise CheckpointError(
            f"{path} was trained on {state['images']} images but there are {images} now; "
            "a resumed run continues exactly, so restore the images or start anew in another folder (--out)"
        )
    load_weights(method, state, path)
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["rng"])
    return state


def load_weights(method: Method, state: dict[str, Any], path: Path) -> None:
    """Puts the networks and the queue of a checkpoint into method."""
    try:
        method.load_state_dict(state["method"])
    except (RuntimeError, TypeError) as error:
        raise CheckpointError(
            f"the weights in {path} do not fit its recipe ({_reason(error)}); {_offer(path)}"
        ) from None


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _offer(path: Path) -> str:
    """The sentence that names what can be used instead of path."""
    others = [other for other in found(path.parent) if other.name < path.name]
    if not others:
        return "there is no earlier checkpoint beside it; nothing was changed"
    return f"the one before it is {others[-1]}, continue from there with --resume {others[-1]}; nothing was changed"
