"""The state of an evaluation that trains, written after every epoch, so that one that was stopped can go on."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lewel import distributed, whole
from lewel.data import one_view
from lewel.errors import LewelError
from lewel.evaluation import cache
from lewel.evaluation.subject import Subject
from lewel.recipe import plain
from lewel.run import checkpoint
from lewel.run.preemption import Stopped

FORMAT = "lewel evaluation 1"
QUOTED = 40  # characters of a value that a sentence quotes


def of(subject: Subject) -> dict[str, Any]:
    """What must be as it was where an evaluation goes on, beside its settings; every process calls it.

    These are weights, encoder, precision, what is done to the training images, and which images there are, as the key
    of cached features has them. Images from Python cannot be known again: their labels are compared, in order, and they
    themselves taken on trust.
    """
    cache.place(subject)
    key = subject.kept["features-key"]
    if key is not None:
        known = {name: value for name, value in key.of.items() if name != "format"}
        # A copy has other times of change.
        known["images"] = {name: value for name, value in key.of["images"].items() if name != "changed"}
    else:
        labels = {split: subject.labels(split) for split in ("train", "test")}
        known = {
            "weights": subject.digest,
            "encoder": dataclasses.asdict(subject.run.encoder),
            "precision": subject.run.precision,
            "images": {
                "size": subject.run.data.image_size,
                **{split: len(of_split) for split, of_split in labels.items()},
                **{f"{split}_labels": _hashed(of_split) for split, of_split in labels.items()},
            },
        }
    view = one_view.augmentation(subject.run)
    return {**known, "crop_scale": view.crop_scale, "flip": view.flip}


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


def going_on(subject: Subject, path: Path, settings: Mapping[str, Any], resume: str) -> str:
    """A line that says after which epoch the evaluation at path would go on; "" where there is none. Every process
    calls it. Raises LewelError as load does, so that a dry run says what the real one would."""

    def told() -> str:
        if not subject.loaded and resume == "auto":  # without weights nothing can be compared
            return f"{path} is there, and is compared once the weights are" if path.exists() else ""
        before = _load(path, settings, resume)
        return f"goes on after epoch {before['epoch']}, the last that {path} holds" if before is not None else ""

    return distributed.from_leader(told)


def stopped(stop: KeyboardInterrupt, epoch: int, epochs: int, *, kept: str = "") -> Stopped:
    """What a signal in the middle of an evaluation is told as; kept says what is kept where no epoch is saved."""
    on = f"epoch {epoch} of {epochs} is saved, and --resume auto goes on from there"
    nothing = "; ".join(filter(None, ("no epoch is saved yet", kept)))
    return Stopped(getattr(stop, "by", "SIGINT"), on if epoch else nothing)


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
    differ = [f"{key}: {_short(before.get(key))} -> {_short(now.get(key))}" for key in {**before, **now}
              if before.get(key) != now.get(key)]  # fmt: skip
    if differ:
        raise LewelError(f"{done}, with other settings ({'; '.join(differ)}); undo the change, {begin_anew}")
    return {name: value for name, value in state.items() if name != "format"}


def _listed(value: Any) -> Any:
    """Tables and lists as a state has them after it was written: no tuples."""
    if isinstance(value, Mapping):
        return {str(key): _listed(item) for key, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, (list, tuple)) else value


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= QUOTED else f"{text[:QUOTED]}..."


def _hashed(labels: Tensor) -> str:
    return hashlib.blake2b(labels.cpu().numpy().tobytes(), digest_size=8).hexdigest()
