"""Compiles csrc/ with ninja into a cache that every process of a machine shares.

A build is a folder named after everything that goes into it: the sources, the flags, the versions of torch, Python and
the compiler, and the instruction set. It appears in the cache by one rename, so it is either whole or absent.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock

from lewel_kernels import env
from lewel_kernels.native.toolchain import (
    COMMAND,
    BuildError,
    Compiler,
    find_compiler,
    find_ninja,
    includes,
    torch_folder,
)

MODULE = "_lewel_native"
_LIBRARY = f"{MODULE}.so"
_UNITS = ("registration", "cpu/kernels_float", "cpu/kernels_double", "build_info")
_LOG = "build.log"


@dataclass(frozen=True)
class Build:
    """A build in the cache; seconds is None if it was there already."""

    library: Path
    seconds: float | None


def build() -> Build:
    """The extension for this machine, compiled unless the cache has it. Processes that ask at once compile it once.

    Raises:
        BuildError: if it is not in the cache and cannot be compiled.
    """
    if found := find():
        return Build(found, None)
    compiler = find_compiler()
    folder = cache() / _name(compiler)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if found := find():
                return Build(found, None)
            print("lewel_kernels: compiling the cpu backend, once; this takes some ten seconds", file=sys.stderr)
            start = time.perf_counter()
            _compile(compiler, folder)
            return Build(folder / _LIBRARY, time.perf_counter() - start)
    except OSError as error:
        raise BuildError(
            f"the cache folder {folder.parent} cannot be written ({error.strerror or error}); "
            f"set {env.CACHE_DIR.name} to one that can, then run `{COMMAND}`"
        ) from error


def find() -> Path | None:
    """The library in the cache, or None. Without a compiler, one that any compiler built from these sources will do.

    Raises:
        BuildError: if it is not in the cache and there is no compiler that could build it, or the cache cannot be read.
    """
    folder = cache()
    try:
        compiler = find_compiler()
    except BuildError:
        # The temporary folder of a build that was killed has a dot in its name.
        for path in sorted(folder.glob(f"{_name(None)}-*/{_LIBRARY}")):
            if "." not in path.parent.name:
                return path
        raise
    path = folder / _name(compiler) / _LIBRARY
    try:
        return path if path.is_file() else None
    except OSError as error:
        raise BuildError(
            f"the cache folder {folder} cannot be read ({error.strerror or error}); set {env.CACHE_DIR.name} to one "
            f"that can be read and written, then run `{COMMAND}`"
        ) from error


def cache() -> Path:
    """The folder that holds the builds of every version and machine.

    Raises:
        BuildError: if it lies in a home folder that is not known.
    """
    try:
        if chosen := env.CACHE_DIR.get():
            return Path(chosen).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lewel"
    except RuntimeError as error:  # of a user without a home
        raise BuildError(
            f"there is no folder for the compiled kernels ({error}); set {env.CACHE_DIR.name} to one that can be read "
            f"and written, then run `{COMMAND}`"
        ) from error


def sources() -> Path:
    """csrc/: inside the installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parent.parent
    shipped = package / "csrc"
    return shipped if shipped.is_dir() else package.parent / "csrc"


def flags() -> list[str]:
    """The compiler's flags, except those that only say where headers are."""
    return [
        "-std=c++17",
        "-O3",
        f"-march={isa()}",
        "-fPIC",
        "-fvisibility=hidden",
        "-Wno-psabi",
        # Nothing reads errno or traps. NaN and inf matter, so this is all of -ffast-math that is wanted.
        "-fno-math-errno",
        "-fno-trapping-math",
        # The oldest stable ABI of torch that has parallel_for.
        "-DTORCH_TARGET_VERSION=0x020a000000000000",
    ]


def isa() -> str:
    """The value of -march."""
    return env.CPU_ISA.get() or "native"


def _name(compiler: Compiler | None) -> str:
    """The folder of a build; without a compiler, the part of its name that does not depend on one."""
    inputs = [*flags(), torch.__version__, str(sys.implementation.cache_tag), platform.machine()]
    if isa() == "native":
        inputs.append(_processor())
    for path in sorted(sources().rglob("*")):
        if path.suffix in (".h", ".cpp"):
            inputs += [path.relative_to(sources()).as_posix(), path.read_text()]
    name = f"cpu-{_digest(inputs)}"
    return f"{name}-{_digest([*compiler.command, compiler.version])}" if compiler else name


def _digest(inputs: list[str]) -> str:
    return hashlib.sha256("\0".join(inputs).encode()).hexdigest()[:12]


def _processor() -> str:
    """What -march=native depends on: a cache on a shared disk serves machines of several generations."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(
        sorted({line for line in lines if line.startswith(("flags", "Features", "model name", "CPU part"))})
    )


def _compile(compiler: Compiler, folder: Path) -> None:
    """Compiles in a folder beside ``folder`` and renames it; after a failure the log stays as ``folder``.log."""
    ninja, headers = find_ninja(), includes()
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.", ignore_cleanup_errors=True) as work:
        Path(work, "build.ninja").write_text(_rules(compiler, headers))
        jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
        result = subprocess.run([ninja, *jobs], cwd=work, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if result.returncode:
            log = folder.with_name(f"{folder.name}.log")
            log.write_text(result.stdout)
            lines = result.stdout.splitlines()
            first = next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "no output")
            raise BuildError(
                f"compiling the kernels failed: {first.strip()} (the whole log is {log}); try another compiler by CXX "
                f"or report it, then run `{COMMAND}`"
            )
        finished = Path(work, "finished")
        finished.mkdir()
        shutil.move(Path(work, _LIBRARY), finished)
        (finished / _LOG).write_text(result.stdout)
        finished.rename(folder)


def _rules(compiler: Compiler, headers: list[str]) -> str:
    """The text of build.ninja."""

    def quoted(arguments: list[str]) -> str:
        return " ".join(shlex.quote(argument).replace("$", "$$") for argument in arguments)

    def path(file: Path) -> str:
        return str(file).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")

    library = torch_folder() / "lib"
    told = {"ISA": isa(), "FLAGS": " ".join(flags()), "TORCH": torch.__version__}
    defines = [f'-DLEWEL_{name}="{value}"' for name, value in told.items()]
    lines = [
        "ninja_required_version = 1.3",
        f"cxx = {quoted(list(compiler.command))}",
        f"cflags = {quoted([*flags(), *headers])}",
        f"ldflags = {quoted([f'-L{library}', '-ltorch_cpu', '-lc10'])}",
        "rule compile",
        "  command = $cxx $cflags $defines -c $in -o $out",
        "rule link",
        "  command = $cxx -shared $in $ldflags -o $out",
        *(f"build {unit}.o: compile {path(sources() / f'{unit}.cpp')}" for unit in _UNITS),
        f"  defines = {quoted(defines)}",  # of build_info, the last unit
        f"build {_LIBRARY}: link {' '.join(f'{unit}.o' for unit in _UNITS)}",
    ]
    return "\n".join(lines) + "\n"
