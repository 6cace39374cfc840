"""The results of evaluations as files: RUN/eval/KIND-CHECKPOINT.json."""

from __future__ import annotations

import json
import os
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from lewel.errors import LewelError
from lewel.evaluation.subject import Subject
from lewel.recipe import plain
from lewel.whole import written
from lewel_kernels import __version__

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
        "weights": subject.digest,
        "date": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
        "lewel": __version__,
        "torch": torch.__version__,
        "device": _device(subject.world.device),
        "processes": subject.world.size,
        "seconds": round(values.pop("seconds", time.monotonic() - subject.since), 3),
        "images": {
            "train": len(subject.sets.bank), "test": len(subject.sets.test), "classes": subject.sets.num_classes,
        },
        "settings": settings,
        "accuracy": float(values.pop("accuracy")),
        "values": values,
        "published": published,
        "recipe": plain.to_plain(subject.run),
    }  # fmt: skip
    content = json.loads(json.dumps(content, default=plain.bare))  # as it will be read
    path = _free(place(subject, kind), content)
    if subject.world.leads:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with written(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
                file.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise LewelError(
                f"the result could not be written to {path}: {error.strerror}; make room or choose another --out"
            ) from None
    return path


def place(subject: Subject, kind: str) -> Path:
    """Where a result of that kind goes, unless another one lies there."""
    return subject.folder / FOLDER / f"{kind}-{subject.name}.json"


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


def _free(path: Path, content: dict[str, Any]) -> Path:
    """path, or the first of path-2, path-3 ... that is free or holds a result of the same weights and settings."""
    number, tried = 1, path
    while tried.exists() and _about(_read(tried)) != _about(content):
        number += 1
        tried = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return tried


def _about(content: dict[str, Any] | None) -> Any:
    """What a result is of."""
    if content is None:
        return None
    images = {key: value for key, value in content.get("recipe", {}).get("data", {}).items() if key not in PLACES}
    return [content.get("weights"), content.get("settings"), content.get("images"), images]


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
