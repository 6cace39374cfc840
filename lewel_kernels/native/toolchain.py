"""What every build needs from the machine: a C++ compiler, ninja, and the headers of torch, pybind11 and Python."""

from __future__ import annotations

import contextlib
import functools
import os
import shlex
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch


class BuildError(RuntimeError):
    """An extension cannot be built; the message is a sentence that ends with what to do before it is built again."""


@dataclass(frozen=True)
class Compiler:
    command: tuple[str, ...]
    version: str


def find_compiler() -> Compiler:
    if chosen := os.environ.get("CXX"):
        try:
            command = shlex.split(chosen)
        except ValueError as error:
            raise BuildError(
                f"the variable CXX cannot be split into a command ({error}): {chosen!r}; correct or unset it"
            ) from error
        if not command or shutil.which(command[0]) is None:
            raise BuildError(
                f"the variable CXX names the C++ compiler {(command or [chosen])[0]!r}, which is not there; correct or "
                f"unset it"
            )
    else:
        found = next((name for name in ("g++", "clang++", "c++") if shutil.which(name)), None)
        if found is None:
            raise BuildError("there is no C++ compiler on the PATH; install g++ (Debian and Ubuntu: apt install g++)")
        command = [found]
    return Compiler(tuple(command), _version(tuple(command), shutil.which(command[0]) or ""))


def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs a program with an empty stdin and returns it with its stdout as text, in whatever encoding it printed."""
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, errors="replace", **options
    )


@functools.cache
def _version(command: tuple[str, ...], path: str) -> str:
    try:
        result = run([*command, "--version"], stderr=subprocess.DEVNULL, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildError(f"the C++ compiler {path} does not run ({error}); set CXX to one that does") from error
    return result.stdout.splitlines()[0] if result.stdout else "unknown"


def find_ninja() -> str:
    with contextlib.suppress(ImportError, AttributeError):  # a folder of that name is imported without BIN_DIR
        if found := shutil.which(str(Path(import_module("ninja").BIN_DIR) / "ninja")):
            return found
    if found := shutil.which("ninja"):
        return found
    raise BuildError("ninja is not installed; run `python -m pip install ninja`")


def header_folders() -> list[str]:
    try:
        pybind11 = import_module("pybind11").get_include()
    except (ImportError, AttributeError) as error:  # the latter of a folder of that name
        raise BuildError("pybind11 is not installed; run `python -m pip install pybind11`") from error
    # pybind11 first: torch ships a copy of its own that refuses to live with the stable ABI.
    return [pybind11, str(torch_folder() / "include"), python_headers()]


def python_headers() -> str:
    python = sysconfig.get_path("include")
    if not (Path(python) / "Python.h").is_file():
        raise BuildError(
            f"Python's headers are not in {python}; install them (Debian and Ubuntu: apt install python3-dev)"
        )
    return python


def torch_folder() -> Path:
    return Path(torch.__file__).parent
