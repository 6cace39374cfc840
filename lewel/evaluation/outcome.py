"""The results of evaluations as files: RUN/eval/KIND-CHECKPOINT.json."""

from __future__ import annotations

import json
import os
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lewel.errors import LewelError
from lewel.recipe import plain
from lewel.whole import written
from lewel_kernels import __version__

if TYPE_CHECKING:  # which imports torchvision, and results are read without
    from lewel.evaluation.subject import Subject

FOLDER = "eval"  # in a run folder
PLACES = {"workers", "download", "storage"}  # settings of the data that change no image


def write(subject: Subject, kind: str, settings: dict[str, Any], values: dict[str, Any], published: str = "") -> Path:
    """Writes what an evaluation has found to folder/eval/KIND-NAME.json, and returns the path.

    values holds "accuracy", the one number of this result in percent, and may hold "seconds"; without them they are
    those since the subject was opened. A result of the same weights, images and settings is replaced; beside one of
    others it gets a number, KIND-NAME-2.json. Only the first process writes; all return a path.

    Raises LewelError where the file cannot be written.
    """
    values = dict(values)
    content = {
        "kind": kind,
        "checkpoint": subject.name,
        "epoch": subject.epoch,
        "step": subject.step,
        "date": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
        "lewel": __version__,
        "torch": torch.__version__,
        "device": _device(subject.world.device),
        "processes": subject.world.size,
        "seconds": round(values.pop("seconds", time.monotonic() - subject.since), 3),
        "accuracy": float(values.pop("accuracy")),
        "values": values,
        "published": published,
        **_of(subject, settings),
    }
    path = place(subject, kind, settings)
    if subject.world.leads:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with written(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
                file.write(json.dumps(content, indent=2, ensure_ascii=False, default=plain.bare) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise LewelError(
                f"the result could not be written to {path}: {error.strerror}; make room or choose another --out"
            ) from None
    return path


def place(subject: Subject, kind: str, settings: dict[str, Any]) -> Path:
    """Where a result goes: the first of KIND-NAME.json, KIND-NAME-2.json ... that is free, or holds one of the same
    weights, images and settings."""
    first = subject.folder / FOLDER / f"{kind}-{subject.name}.json"
    mine = _about(json.loads(json.dumps(_of(subject, settings), default=plain.bare)))  # as it will be read
    number, path = 1, first
    while path.exists() and _about(_read(path)) != mine:
        number += 1
        path = first.with_name(f"{first.stem}-{number}{first.suffix}")
    return path


def newest(folder: Path, kind: str = "") -> list[dict[str, Any]]:
    """The results in folder/eval whose kind starts with kind, the newest last; files that are none are passed over."""
    found = [content for path in sorted((folder / FOLDER).glob("*.json")) if (content := _read(path))]
    return sorted((c for c in found if c["kind"].startswith(kind)), key=lambda content: content["date"])


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        kinds = {"kind": str, "date": str, "checkpoint": str, "accuracy": (int, float), "values": dict}
        return content if all(isinstance(content[key], kind) for key, kind in kinds.items()) else None  # type: ignore[arg-type]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _of(subject: Subject, settings: dict[str, Any]) -> dict[str, Any]:
    """What a result is of."""
    sets = subject.sets
    return {
        "weights": subject.digest,
        "images": {"train": len(sets.bank), "test": len(sets.test), "classes": sets.num_classes},
        "settings": settings,
        "recipe": plain.to_plain(subject.run),
    }


def _about(content: dict[str, Any] | None) -> Any:
    """The parts of a result's content by which two are of the same; None for a file that is no result."""
    if content is None:
        return None
    images = {name: value for name, value in content.get("recipe", {}).get("data", {}).items() if name not in PLACES}
    return [content.get(name) for name in ("weights", "settings", "images")] + [images]


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
