"""The results of evaluations as files: RUN/eval/KIND-CHECKPOINT.json."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import time
import uuid
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lewel import distributed
from lewel.errors import LewelError
from lewel.recipe import plain
from lewel_kernels import __version__

if TYPE_CHECKING:  # which imports torchvision, and results are read without
    from lewel.evaluation.subject import Subject

FOLDER = "eval"  # in a run folder
PLACES = {"workers", "download", "storage"}  # settings of the data that change no image


def check(subject: Subject) -> None:
    """Raises LewelError where no result can be written; the first process calls it, before anything is computed."""
    folder = subject.folder / FOLDER
    was_there = folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _temporary(folder / "result.json") as path:
            path.touch()
        if not was_there:
            with contextlib.suppress(OSError):  # another evaluation may have come into it
                folder.rmdir()
    except OSError as error:
        raise _cannot(folder, error) from None


def write(subject: Subject, kind: str, settings: dict[str, Any], values: dict[str, Any], published: str = "") -> Path:
    """Writes what an evaluation has found to folder/eval/KIND-NAME.json, and returns the path; every process calls it.

    values holds "accuracy", the one number of this result in percent, and may hold "seconds"; without them they are
    those since the subject was opened. A result of the same weights, images and settings is replaced; beside one of
    others it gets a number, KIND-NAME-2.json, also where two processes that know nothing of each other write at once.

    Raises LewelError where the file cannot be written.
    """
    values = dict(values)
    content = {
        "kind": kind,
        "checkpoint": subject.name,
        "epoch": subject.epoch,
        "step": subject.step,
        "own": subject.own,
        "date": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
        "lewel": __version__,
        "torch": torch.__version__,
        "device": _device(subject.world.device),
        "processes": subject.world.size,
        "seconds": round(values.pop("seconds", time.monotonic() - subject.since), 3),
        "accuracy": float(values.pop("accuracy")),
        "values": values,
        "published": published,
    }
    return distributed.from_leader(lambda: _write(subject, kind, content, settings))


def _write(subject: Subject, kind: str, content: dict[str, Any], settings: dict[str, Any]) -> Path:
    folder = subject.folder / FOLDER
    text = json.dumps({**content, **_of(subject, settings)}, indent=2, ensure_ascii=False, default=plain.bare) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _temporary(folder / f"{kind}-{subject.name}.json") as temporary:
            with open(temporary, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            while True:
                path, taken = _place(subject, kind, settings)
                if taken:
                    os.replace(temporary, path)
                    return path
                with contextlib.suppress(FileExistsError):  # another has just taken the name
                    _claim(temporary, path)
                    return path
    except OSError as error:
        raise _cannot(folder, error) from None


def place(subject: Subject, kind: str, settings: dict[str, Any]) -> Path:
    """Where a result goes: the first of KIND-NAME.json, KIND-NAME-2.json ... that is free, or holds one of the same
    weights, images and settings. Looks at the images; the first process calls it."""
    return _place(subject, kind, settings)[0]


def _place(subject: Subject, kind: str, settings: dict[str, Any]) -> tuple[Path, bool]:
    """That, and whether it holds a result."""
    mine = _about(json.loads(json.dumps(_of(subject, settings), default=plain.bare)))  # as it will be read
    for path in _names(subject, kind):
        if not path.exists():
            return path, False
        if _about(_read(path)) == mine:
            return path, True
    raise AssertionError("numbers do not end")


def there(subject: Subject, kind: str) -> bool:
    """Whether there may be a result of this kind."""
    return next(_names(subject, kind)).exists()


def found(subject: Subject, kind: str, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The result that one of this kind and these settings would replace; the first process calls it."""
    return _read(place(subject, kind, settings))


def newest(folder: Path, kind: str = "") -> list[dict[str, Any]]:
    """The results in folder/eval whose kind starts with kind, the newest last; files that are none are passed over.

    Each has the name of its file as "file".
    """
    read = {path.name: _read(path) for path in sorted((folder / FOLDER).glob("*.json"))}
    results = [{**content, "file": name} for name, content in read.items() if content]
    return sorted((each for each in results if each["kind"].startswith(kind)), key=lambda each: each["date"])


def is_own(result: dict[str, Any]) -> bool:
    """Whether a result is of the run in whose folder it lies: of one of its checkpoints, on the images of its recipe.

    Other weights, which have no step, and images that --data-eval names make results of something else.
    """
    return bool(result.get("own", result.get("step", 0) is not None))


def _names(subject: Subject, kind: str) -> Iterator[Path]:
    stem = f"{kind}-{subject.name}"
    yield from (
        subject.folder / FOLDER / f"{stem}{f'-{number}' if number > 1 else ''}.json" for number in itertools.count(1)
    )


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A context with a name beside path that no other process has; nothing is left of it."""
    temporary = path.with_name(f".{uuid.uuid4().hex}.{path.name}.part")
    try:
        yield temporary
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _claim(temporary: Path, path: Path) -> None:
    """Gives a file a name that is free. Raises FileExistsError where it is not."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        os.replace(temporary, path)


def _cannot(folder: Path, error: OSError) -> LewelError:
    room = "make room, or " if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    return LewelError(
        f"results cannot be written to {folder}: {error.strerror or error}; {room}choose another place for them: --out "
        "FOLDER"
    )


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        kinds = {"kind": str, "date": str, "checkpoint": str, "accuracy": (int, float), "values": dict}
        return content if all(isinstance(content[key], kind) for key, kind in kinds.items()) else None  # type: ignore[arg-type]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _of(subject: Subject, settings: dict[str, Any]) -> dict[str, Any]:
    """What a result is of."""
    from lewel.evaluation.key import key_of  # which imports torchvision too

    sets, key = subject.sets, key_of(subject)
    return {
        "weights": subject.digest,
        "features": key and key.name,
        "images": {"train": len(sets.bank), "test": len(sets.test), "classes": sets.num_classes},
        "settings": settings,
        "recipe": plain.to_plain(subject.run),
    }


def _about(content: dict[str, Any] | None) -> Any:
    """The parts of a result's content by which two are of the same; None for a file that is no result.

    Encoder, precision and images are known by the key of the features, wherever the images lie; what came from Python
    has none, and is known by the recipe.
    """
    if content is None:
        return None
    about = [content.get(name) for name in ("weights", "settings", "images", "features")]
    if content.get("features"):
        return about
    recipe = content.get("recipe", {})
    images = {name: value for name, value in recipe.get("data", {}).items() if name not in PLACES}
    return [*about, images, recipe.get("encoder"), recipe.get("precision")]


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
