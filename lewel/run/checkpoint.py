"""Checkpoints: each is one file with everything that the next step depends on; an error says why one cannot be used.

No generator is stored: order, augmentation and every draw of a step are functions of the seed and the step.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lewel.errors import LewelError
from lewel.recipe import plain
from lewel.recipe.schema import Train
from lewel.run import lock
from lewel.whole import Told

if TYPE_CHECKING:  # they import torchvision, which looking for checkpoints does not need
    from lewel.methods.method import Method
    from lewel.run.session import Session

FORMAT, BEFORE = "lewel checkpoint 4", "lewel checkpoint 3"
KEYS: dict[str, Any] = {
    **dict.fromkeys(("step", "epoch", "images", "processes"), int),
    **dict.fromkeys(("config", "method", "optimizer", "scaler"), dict),
    "seconds": (int, float),
}
_NAMES = re.compile(r"step-[0-9]+\.pt")


class CheckpointError(LewelError):
    """A checkpoint that cannot be used, or could not be written."""


def save(session: Session) -> Path:
    """Writes checkpoints/step-NNNNNNNN.pt under a temporary name, renames it, removes old ones, returns its path.

    The run.keep newest stay, and those after every run.keep_every epochs. Raises CheckpointError if it cannot write,
    and LewelError where another process has taken the folder over.
    """
    lock.check_mine(session.folder)
    state = {
        "format": FORMAT,
        "config": plain.to_plain(session.run),
        "step": session.steps_done,
        "epoch": session.epochs_done,
        "images": len(session.sets.train),
        "processes": session.world.size,
        "seconds": session.seconds,
        "method": session.method.state_dict(),
        "optimizer": session.optimizer.state_dict(),
        "scaler": session.scaler.state_dict(),
    }
    if session.probe is not None:
        state["probe"] = session.probe.state_dict()
    if session.sets.known_by is not None:
        state["known_by"] = session.sets.known_by.remembered()
    folder = session.folder / "checkpoints"
    path = folder / name_of(session.steps_done)
    temporary, told = folder / f".{path.name}.{os.getpid()}", Told()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob(".step-*"):  # of a process that was killed while it wrote
            stale.unlink()
        with open(temporary, "wb") as file:
            told.file = file
            torch.save(state, told)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        every = session.run.keep_every * len(session.loader)
        for old in found(folder)[: -session.run.keep]:
            if not every or int(old.stem.removeprefix("step-")) % every:
                old.unlink()
    except (OSError, RuntimeError) as error:  # torch's zip writer makes a RuntimeError of a full disk
        lock.check_mine(session.folder)  # it may just have gone
        why = getattr(told.error or error, "strerror", None) or reason(error)
        raise CheckpointError(f"could not write {path}: {why}; {_offer(path)}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)  # it has its name by now, unless something went wrong
    return path


def name_of(step: int) -> str:
    """The file name of the checkpoint after so many steps."""
    return f"step-{step:08d}.pt"


def remove_after(folder: Path, step: int) -> str:
    """Removes the checkpoints of later steps, which a run that continues after step makes again; returns what to say.

    Those that cannot be used are renamed instead, for nobody has decided that nothing can be had from them.
    """
    said = ""
    for path in found(folder):
        if path.name <= name_of(step):
            continue
        try:
            _content(path)
        except CheckpointError:
            aside = path.with_name(f"{path.name}.broken")
            path.replace(aside)
            said += f"; {path.name}, which cannot be used, is named {aside.name} now"
        else:
            path.unlink()
            said += f"; removed {path.name}, which comes later"
    return said


def found(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first; files of other names are none.

    Raises CheckpointError where there is a folder that cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(folder / entry.name for entry in entries if _NAMES.fullmatch(entry.name) and entry.is_file())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise CheckpointError(
            f"the checkpoints in {folder} cannot be listed ({error.strerror}); have its owner let you read it"
        ) from None


def newest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint in a folder that is whole, and its content; None where there is none at all.

    Those that are broken, as by a disk that was full, are passed over and named. Raises CheckpointError
    where every one is, where one cannot be read at the moment, and where another version wrote it.
    """
    passed_over: list[str] = []
    for path in reversed(found(folder)):
        try:
            state = _content(path)
        except _Broken as error:
            passed_over.append(str(error))
            continue
        if passed_over:
            print(f"{'; '.join(passed_over)}; {path}, the one before, is taken instead", flush=True)
        return path, state
    if passed_over:
        raise CheckpointError(f"no checkpoint in {folder} can be used: {'; '.join(passed_over)}")
    return None


def read(path: Path) -> dict[str, Any]:
    """The content of a checkpoint file, tensors on the CPU. Raises CheckpointError, with the reason, if it is none."""
    try:
        return _content(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {_offer(path)}") from None


class _Broken(CheckpointError):
    """A file that is no checkpoint, and will not become one."""


def _content(path: Path) -> dict[str, Any]:
    state = _loaded(path)
    known = state.get("format") if isinstance(state, dict) else None
    if not isinstance(state, dict) or known not in (FORMAT, BEFORE):
        if isinstance(known, str) and known.startswith("lewel"):
            raise CheckpointError(
                f"{path} was not written by this version of lewel train, which reads '{FORMAT}' and '{BEFORE}', but by "
                f"that of '{known}'; continue with that one"
            )
        raise _Broken(f"{path} was not written by this version of lewel train (no '{FORMAT}' in it)")
    missing = [key for key in KEYS if key not in state]
    if missing:
        raise _Broken(f"{path} is incomplete (it lacks {', '.join(missing)})")
    odd = [key for key, kind in KEYS.items() if not isinstance(state[key], kind)]
    odd += [key for key in ("step", "epoch", "images", "processes") if key not in odd and state[key] < 0]
    if odd:
        values = ", ".join(f"{key} cannot be {state[key]!r:.40}" for key in odd)
        raise _Broken(f"{path} is damaged ({values})")
    return state if known == FORMAT else _named_as_now(state)


def _loaded(path: Path) -> Any:
    """What torch reads in a file, which is broken where no later attempt could read it either."""
    try:
        if not _is_whole(path):
            raise _Broken(f"{path} is truncated or no checkpoint at all ({path.stat().st_size:,} bytes)")
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint {path}") from None
    except CheckpointError:
        raise
    except (OSError, MemoryError, RuntimeError) as error:  # of the disk, the memory or the permissions
        text = str(error)
        if "PytorchStreamReader" in text and "file read failed" not in text:
            raise _Broken(f"{path} is damaged ({reason(error)})") from None
        raise CheckpointError(
            f"{path} cannot be read now ({getattr(error, 'strerror', None) or reason(error)})"
        ) from None
    except Exception as error:  # a foreign file leads the unpickler to whatever it leads it to
        raise _Broken(f"{path} is truncated or no checkpoint at all ({reason(error)})") from None


def _is_whole(path: Path) -> bool:
    """Whether a file begins and ends as the archives of torch.save do."""
    with open(path, "rb") as file:
        start = file.read(4)
        file.seek(-min(22, path.stat().st_size), os.SEEK_END)
        return start == b"PK\3\4" and file.read(4) == b"PK\5\6"


def _named_as_now(state: dict[str, Any]) -> dict[str, Any]:
    """The content of a checkpoint 3 with the names of a checkpoint 4, where the objective owns queue and predictors."""
    owned = ("queue.", "predictor.", "aligned_predictor.")
    names = {name: f"objective.{name}" if name.startswith(owned) else name for name in state["method"]}
    return {**state, "method": {names[name]: value for name, value in state["method"].items()}}


def config_of(state: dict[str, Any], path: Path) -> Train:
    """The recipe that a checkpoint was trained with."""
    return plain.from_plain(state["config"], source=str(path))


def load_weights(method: Method, state: dict[str, Any], path: Path) -> None:
    """Puts the networks and the objective of a checkpoint into method. Raises CheckpointError if they do not fit."""
    try:
        method.load_state_dict(state["method"])
    except (RuntimeError, TypeError) as error:
        raise CheckpointError(
            f"the weights in {path} do not fit its recipe ({reason(error)}); {_offer(path)}"
        ) from None


def reason(error: Exception) -> str:
    """The first line of an error that says something."""
    lines = [line.strip() for line in str(error).splitlines()] or [""]
    text = (lines[1][:200] if lines[0].endswith(":") and len(lines) > 1 else lines[0]).split(". ")[0]
    return text if len(text) > 8 else f"{type(error).__name__} {text}".strip()


def _offer(path: Path) -> str:
    """The sentence that names what can be used instead of path."""
    others = [other for other in found(path.parent) if other.name < path.name]
    if not others:
        return "there is no earlier checkpoint beside it; nothing was changed"
    return f"the one before it is {others[-1]}, continue from there with --resume {others[-1]}; nothing was changed"
