"""The state of an evaluation that trains, written after every epoch, so that one that was stopped can go on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lewel import distributed, whole
from lewel.errors import LewelError
from lewel.recipe import plain
from lewel.run import checkpoint

FORMAT = "lewel evaluation 1"


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Writes state, whole or not at all; one process calls it.

    state has "settings", a table of plain values, and "epoch", the number of epochs done; the rest is the
    evaluation's own: tensors, numbers, strings, and tables and lists of them. Raises LewelError, with the reason, where
    it cannot be written; a state that was there before then stays.
    """
    told = whole.Told()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for stale in path.parent.glob(f".*.{path.name}"):  # of a process that was killed while it wrote
            stale.unlink(missing_ok=True)
        with whole.written(path) as temporary, open(temporary, "wb") as file:
            told.file = file
            torch.save({"format": FORMAT, **state}, told)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:  # torch's zip writer makes a RuntimeError of a full disk
        why = getattr(told.error or error, "strerror", None) or checkpoint.reason(error)
        raise LewelError(f"could not write {path}, with which the evaluation could go on: {why}") from None


def load(path: Path, settings: Mapping[str, Any], resume: str = "auto") -> dict[str, Any] | None:
    """The state at path, its tensors on the CPU, or None where there is none; every process calls it.

    Process 0 reads it for all. Raises LewelError where there is one and resume is not "auto", where its settings are
    others than these, which are named, and where it cannot be read.
    """
    return distributed.from_leader(lambda: _load(path, settings, resume))


def remove(path: Path) -> None:
    """Removes the state of an evaluation that is finished; one process calls it."""
    path.unlink(missing_ok=True)


def _load(path: Path, settings: Mapping[str, Any], resume: str) -> dict[str, Any] | None:
    if not path.exists():
        return None
    begin_anew = f"or remove {path}, and it begins anew"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise LewelError(f"{path}, an evaluation that was stopped, cannot be read: {error.strerror or error}") from None
    except Exception as error:  # whatever a file that is none leads the unpickler to
        raise LewelError(
            f"{path} is damaged, or no state of an evaluation ({checkpoint.reason(error)}); remove it, and the "
            "evaluation begins anew"
        ) from None
    known = state.get("format") if isinstance(state, dict) else None
    if known != FORMAT or not isinstance(state.get("settings"), dict) or not isinstance(state.get("epoch"), int):
        raise LewelError(
            f"{path} is no state of an evaluation that this version of lewel wrote (no '{FORMAT}' in it); remove it, "
            "and the evaluation begins anew"
        )
    done = f"{path} holds an evaluation that was stopped after epoch {state['epoch']}"
    if resume != "auto":
        raise LewelError(f"{done}; continue it by --resume auto, {begin_anew}")
    before, now = (dict(plain.flat(_listed(values))) for values in (state["settings"], settings))
    differ = [f"{key}: {before.get(key)} -> {now.get(key)}" for key in {**before, **now}
              if before.get(key) != now.get(key)]  # fmt: skip
    if differ:
        raise LewelError(f"{done}, with other settings ({'; '.join(differ)}); undo the change, {begin_anew}")
    return {name: value for name, value in state.items() if name != "format"}


def _listed(value: Any) -> Any:
    """Tables and lists as a state has them after it was written: no tuples."""
    if isinstance(value, Mapping):
        return {str(key): _listed(item) for key, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, (list, tuple)) else value
