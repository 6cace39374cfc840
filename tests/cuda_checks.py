"""C++ programs of checks, one per name, compiled for both emulated GPUs: see cuda_checks.h."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kept
import pytest

from lewel_kernels.native import targets
from lewel_kernels.native.toolchain import find_compiler

ARCHS = (70, 80)
NO_ADDRESSES = 77  # the exit status where memory that is never touched is not to be had

needs_compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in ("g++", "clang++", "c++")), reason="there is no C++ compiler to test with"
)


def names(source: str, arch: int) -> list[str]:
    """The checks that a source beside this file defines for a GPU."""
    parts = re.compile(r"^#if LEWEL_EMULATED == 80\n(.*?)(?:^#else\n(.*?))?^#endif\n", re.M | re.S)
    text = parts.sub(lambda match: match[1] if arch == 80 else match[2] or "", kept.ROOT.joinpath(source).read_text())
    return re.findall(r'^(?:CHECKED\(|const Listed \w+\(")(\w+)', text, re.M)


def each(source: str) -> Any:
    """A test's parameters arch and name, for each check."""
    named = [pytest.param(arch, name, id=f"{name}-{arch}") for arch in ARCHS for name in names(source, arch)]
    return pytest.mark.parametrize(("arch", "name"), named)


def run(program: Path, *arguments: str) -> str:
    """What it prints: the names of its checks, or of the one that is named `NAME: ok`."""
    result = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60, check=False)
    if result.returncode == NO_ADDRESSES:
        pytest.skip(result.stdout.strip())
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@functools.cache
def program(source: str, arch: int, *flags: str) -> Path:
    """What a source is compiled to, kept between runs."""
    compiler, sources = find_compiler(), [source, "tests/emulation/emulation.cpp"]
    common = ("-std=c++17", "-Wno-psabi", "-pthread", "-Itests/emulation", "-Icsrc", f"-DLEWEL_EMULATED={arch}")
    command = [*compiler.command, *common, *flags, *sources]
    read = [kept.ROOT / source, kept.ROOT / "tests/cuda_checks.h"]
    read += kept.files("csrc/cuda", "tests/emulation", suffixes=(".h", ".cpp"))
    processor = [targets._processor()] if "-march=native" in flags else []

    def compile(path: Path) -> None:
        done = subprocess.run([*command, "-o", path], cwd=kept.ROOT, stderr=subprocess.PIPE, text=True, check=False)
        assert done.returncode == 0, done.stderr

    return kept.kept(f"{Path(source).stem}-sm_{arch}", [*command, compiler.version, *processor, *read], compile)
