"""Compiles csrc/ with ninja into a cache that every process of a machine shares.

A build is a folder named after everything that goes into it: the sources, the flags, the versions of torch, Python and
the compilers, and what it is compiled for. It appears in the cache by one rename, so it is either whole or absent.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from lewel_kernels import env
from lewel_kernels.native.target import Target, Tools
from lewel_kernels.native.target import sources as sources
from lewel_kernels.native.toolchain import BuildError, find_ninja, run

_LOG = "build.log"
_NO_SPACE = {errno.ENOSPC: "No space left on device", errno.EDQUOT: "Disk quota exceeded"}


@dataclass(frozen=True)
class Build:
    """A build in the cache; seconds is None if it was there already."""

    library: Path
    seconds: float | None


def build(target: Target) -> Build:
    """The extension for this machine, compiled unless the cache has it. Processes that ask at once compile it once.

    Raises:
        BuildError: if it is not in the cache and cannot be compiled.
    """
    if found := find(target):
        return Build(found, None)
    tools = target.find_tools()
    folder = cache() / _name(target, tools)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if is_noexec(folder.parent):
            raise BuildError(noexec(folder.parent))
        with _lock(folder.with_name(f"{folder.name}.lock")):
            if found := find(target):
                return Build(found, None)
            _say(f"lewel_kernels: {target.notice(tools)}")
            start = time.perf_counter()
            _compile(target, tools, folder)
            return Build(folder / target.library, time.perf_counter() - start)
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise BuildError(_full(folder.parent)) from error
        raise BuildError(
            f"the cache folder {folder.parent} cannot be written ({error.strerror or error}); "
            f"set {env.CACHE_DIR.name} to one that can"
        ) from error


def find(target: Target) -> Path | None:
    """The library in the cache, or None. Without its compilers, one that any built from these sources will do.

    Raises:
        BuildError: if it is not in the cache and there is no compiler that could build it, or the cache cannot be read.
    """
    target.check()
    folder = cache()
    try:
        tools = target.find_tools()
    except BuildError:
        # The temporary folder of a build that was killed has a dot in its name.
        for path in sorted(folder.glob(f"{_name(target, None)}-*/{target.library}")):
            if "." not in path.parent.name:
                return path
        raise
    path = folder / _name(target, tools) / target.library
    try:
        return path if path.is_file() else None
    except OSError as error:
        raise BuildError(
            f"the cache folder {folder} cannot be read ({error.strerror or error}); set {env.CACHE_DIR.name} to one "
            f"that can be read and written"
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
            f"and written"
        ) from error


def is_noexec(folder: Path) -> bool:
    """Whether the folder lies on a file system from which no program and no library may be run."""
    try:
        return bool(os.statvfs(folder).f_flag & os.ST_NOEXEC)
    except (OSError, AttributeError):  # the latter where the system does not tell
        return False


def noexec(folder: Path) -> str:
    """What an error says of such a folder; the caller adds the command that builds once more."""
    return (
        f"the folder {folder} is mounted noexec, so that no library can be loaded from it; set {env.CACHE_DIR.name} to "
        f"one that is not"
    )


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """A context in which one process builds while the others wait; the system unlocks for one that is killed.

    Where nothing can be locked (some file systems know no locks, and the file may be somebody else's) they build side
    by side, which only costs time. A lock made of a file's being there would outlive a process that is killed.
    """
    with ExitStack() as held:
        with suppress(OSError, ImportError):
            import fcntl  # not on Windows

            file = held.enter_context(path.open("a"))
            fcntl.flock(file, fcntl.LOCK_EX)
            held.callback(fcntl.flock, file, fcntl.LOCK_UN)  # a process forked meanwhile has the file open too
        yield


def _say(text: str) -> None:
    """Prints text on stderr, which may be closed, full or None; that it cannot be printed is no error."""
    if sys.stderr is not None:
        with suppress(Exception):
            print(text, file=sys.stderr)


def _name(target: Target, tools: Tools | None) -> str:
    """The name of a build's folder; without tools, the part of it that does not depend on them."""
    name = f"{target.name}-{_digest(target.inputs())}"
    return f"{name}-{_digest(target.versions(tools))}" if tools else name


def _digest(inputs: list[str]) -> str:
    return hashlib.sha256("\0".join(inputs).encode(errors="backslashreplace")).hexdigest()[:12]


def _jobs() -> list[str]:
    chosen = os.environ.get("MAX_JOBS")
    if not chosen:
        return []
    if not chosen.isdecimal() or int(chosen) == 0:
        raise BuildError(f"the variable MAX_JOBS must be a number of processes, such as 4; got {chosen!r}: correct it")
    return ["-j", chosen]


def _compile(target: Target, tools: Tools, folder: Path) -> None:
    """Compiles in a folder beside ``folder`` and renames it; after a failure the log stays as ``folder``.log."""
    ninja = find_ninja()
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.", ignore_cleanup_errors=True) as work:
        target.write(Path(work), tools)
        jobs = _jobs()
        try:
            result = run([ninja, *jobs], cwd=work, stderr=subprocess.STDOUT)
        except OSError as error:
            raise BuildError(
                f"{ninja} does not run ({error.strerror or error}); run `python -m pip install --force-reinstall ninja`"
            ) from error
        if result.returncode:
            raise BuildError(_failure(result.stdout, folder.with_name(f"{folder.name}.log")))
        finished = Path(work, "finished")
        finished.mkdir()
        shutil.move(Path(work, target.library), finished)
        (finished / _LOG).write_text(result.stdout, encoding="utf-8")
        if not (folder / target.library).is_file():  # what is left of a build that was cleared away in part
            shutil.rmtree(folder, ignore_errors=True)
        try:
            finished.rename(folder)
        except OSError:  # a process that could not be locked out may have been quicker
            if not (folder / target.library).is_file():
                raise


def _failure(output: str, log: Path) -> str:
    """What the compilers' output means and what to do about it; the output itself is written to ``log``."""
    lines = output.splitlines()
    if any(words in line for line in lines for words in _NO_SPACE.values()):
        return _full(log.parent)
    try:
        log.write_text(output, encoding="utf-8")
        where = f"the whole log is {log}"
    except OSError as error:
        where = f"the log {log} cannot be written: {error.strerror or error}"
    told = f"compiling the kernels failed: {{}} ({where}); "
    for words, remedy in _REMEDIES.items():
        if line := next((line for line in lines if words in line), None):
            return told.format(line.strip()) + remedy
    first = next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "no output")
    return told.format(first.strip()) + "try another compiler by CXX or report it"


_REMEDIES = {
    "unsupported GNU version": "set CXX to an older compiler, one that this nvcc takes",
    "unsupported clang version": "set CXX to an older compiler, one that this nvcc takes",
    "Killed signal": "the memory may not do for that many compilers at once: set MAX_JOBS=1",
}


def _full(folder: Path) -> str:
    temporary = os.environ.get("TMPDIR") or "/tmp"  # tempfile would look for one that has space, and raise
    return (
        f"no space is left on the disk of the cache folder {folder} or of the compilers' temporary files in "
        f"{temporary}; free some, or set {env.CACHE_DIR.name} or TMPDIR to a folder that has some"
    )
