"""A fault that users of the trainer meet, and the right answer to it: a row of the tables that test_faults.py runs.

A command runs in an empty folder of its own, where `arrange` has made the fault and tiny.yaml is a recipe.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from PIL import Image
from tiny_runs import TINY

from lewel import cli
from lewel.recipe import plain

OF_FILES = replace(
    TINY,
    epochs=1,
    data=replace(TINY.data, name="folder", batch_size=8),
    method=replace(TINY.method, queue=8),
)
TRAIN = "train --config tiny.yaml"


@dataclass(frozen=True)
class Ended:
    """What a command left."""

    folder: Path  # where it ran
    status: int
    printed: str  # on both streams


@dataclass(frozen=True)
class Fault:
    """A fault, the command that meets it, and what is right."""

    name: str
    arrange: Callable[[Path], None]
    """makes the fault in the folder given, before the command"""
    command: str
    """what follows `lewel`, in a shell's words"""
    says: tuple[str, ...] = ()
    """parts of what is printed, in any order"""
    never: tuple[str, ...] = ("Traceback",)
    """what is not"""
    status: int = 0
    left: Callable[[Ended], None] | None = None
    """asserts what is right of the state that is left"""
    env: Mapping[str, str] = field(default_factory=dict)
    """environment variables of the command"""
    patches: Mapping[str, object] = field(default_factory=dict)
    """what stands in the place of a dotted name, for a command that has no process of its own"""
    during: Callable[[subprocess.Popen[bytes], Path], None] | None = None
    """what happens while it runs, in a process of its own"""
    alone: bool = False
    """whether it needs a process of its own, which takes seconds to start"""
    slow: bool = False
    """whether it waits for make test-all"""

    def run(self, folder: Path, capfd: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch) -> Ended:
        """Arranges the fault in folder, runs the command there, and checks everything that the row says."""
        (folder / "tiny.yaml").write_text(plain.to_yaml(OF_FILES))
        self.arrange(folder)
        run = self._in_a_process if self.alone or self.during else self._here
        ended = run(folder, capfd, patch)
        assert ended.status == self.status, ended.printed
        for part in self.says:
            assert part in ended.printed, f"{part!r} is not in:\n{ended.printed}"
        for part in self.never:
            assert part not in ended.printed, ended.printed
        if self.left is not None:
            self.left(ended)
        return ended

    def _here(self, folder: Path, capfd: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch) -> Ended:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["lewel", *shlex.split(self.command)])
        patch.setattr("warnings.showwarning", lambda said, kind, *_: print(f"{kind.__name__}: {said}", file=sys.stderr))
        patch.setattr("lewel.console.end_interrupted", lambda: None)
        for name, value in self.env.items():
            patch.setenv(name, value)
        for name, instead in self.patches.items():
            patch.setattr(name, instead)
        status: object = 0
        try:
            cli.main()
        except SystemExit as stop:
            status = stop.code
        out, err = capfd.readouterr()
        return Ended(folder, int(status or 0), out + err)  # type: ignore[call-overload]

    def _in_a_process(self, folder: Path, capfd: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch) -> Ended:
        with start(self.command, folder, self.env) as process:
            if self.during is not None:
                self.during(process, folder)
            printed = process.communicate(timeout=240)[0]
        return Ended(folder, process.returncode, printed.decode(errors="replace"))


def start(command: str, folder: Path, env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """A `lewel` command in a process of its own, in folder, on one thread; both its streams are its stdout."""
    there = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2]), **os.environ, **(env or {})}
    return subprocess.Popen(
        [sys.executable, "-m", "lewel", *shlex.split(command)],
        cwd=folder,
        env=there,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def picture(path: Path, colour: int = 0, size: tuple[int, int] = (40, 32)) -> Path:
    """Writes an image of one colour, and the folders that it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (colour % 256, 255 - colour % 256, 90)).save(path)
    return path


def pictures(folder: Path, count: int, ending: str = "png") -> None:
    """Writes count images of different colours into folder."""
    for i in range(count):
        picture(folder / f"{i:03}.{ending}", 7 * i)


def labelled(root: Path, train: int = 8, test: int = 2) -> None:
    """Writes root/train and root/test with so many images in each of the class folders ant and bee."""
    for split, count in (("train", train), ("test", test)):
        for name in ("ant", "bee"):
            pictures(root / split / name, count)
