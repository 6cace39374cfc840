"""The compiled extensions: each loaded when a backend first needs it, built if this machine has not built it yet.

Importing this package imports and builds nothing. One process tries each target (targets.py) once; the outcome, good or
bad, is remembered.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
from pathlib import Path
from types import ModuleType

from lewel_kernels import env
from lewel_kernels.native import builder
from lewel_kernels.native.target import Target
from lewel_kernels.native.targets import TARGETS
from lewel_kernels.native.toolchain import BuildError

_lock = threading.Lock()
_reasons: dict[str, str | None] = {}  # of the targets that were tried


def unavailable(target: str = "cpu") -> str | None:
    """Why the extension cannot be used, as a sentence with a remedy, or None once its ops are registered."""
    if target not in _reasons:
        with _lock:
            if target not in _reasons:
                _reasons[target] = _try(TARGETS[target])
    return _reasons[target]


def require(target: str = "cpu") -> None:
    """Raises RuntimeError with what `unavailable` says: for calls that chose the op earlier, as exported programs."""
    if reason := unavailable(target):
        raise RuntimeError(reason)


def module(target: str) -> ModuleType:
    """The loaded extension.

    Raises:
        RuntimeError: if it cannot be used; the message says why.
    """
    require(target)
    return sys.modules[TARGETS[target].module]


def build_info(target: str = "cpu") -> dict[str, str | int]:
    """What the loaded extension was compiled with: isa and vector_bytes of the cpu's, or archs and nvcc of the CUDA
    kernels'; and compiler, flags, torch, torch_abi of each.

    Raises:
        RuntimeError: if the extension cannot be used; the message says why.
    """
    info: dict[str, str | int] = module(target).build_info()
    return info


def status(target: str = "cpu") -> str:
    """One line for a report, found without building anything."""
    if target in _reasons:
        if reason := _reasons[target]:
            return f"unavailable: {reason}"
        info = build_info(target)
        if target == "cpu":
            return f"loaded, {info['isa']} with vectors of {info['vector_bytes']} bytes, by {info['compiler']}"
        return f"loaded, {info['archs']}, by nvcc {info['nvcc']} with {info['compiler']}"
    command = TARGETS[target].command
    try:
        built = builder.find(TARGETS[target])
    except BuildError as error:
        return f"cannot be built: {error}, then run `{command}`"
    if built is None:
        return f"not built yet; `{command}` does, and so does its first use"
    unavailable(target)  # loads it
    return status(target)


def _try(target: Target) -> str | None:
    try:
        _load(target, builder.build(target).library)
    except BuildError as error:
        return f"{error}, then run `{target.command}`"
    return None


# Where a library is as it should be, and deleting it would not help.
_REMEDIES = {
    "failed to map segment": "if {} is mounted noexec, or guarded by a policy of the system, set "
    f"{env.CACHE_DIR.name} to another folder",
    "version `": "the compiler's library is newer than the one that Python has loaded: set CXX to an older compiler",
}


def _load(target: Target, library: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(target.module, library)
    assert spec is not None
    assert spec.loader is not None
    try:
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
    except ImportError as error:
        if builder.is_noexec(library.parent):
            raise BuildError(builder.noexec(library.parent.parent)) from error
        remedy = next((remedy for words, remedy in _REMEDIES.items() if words in str(error)), "delete {}")
        raise BuildError(
            f"the compiled extension {library} cannot be loaded ({error}); {remedy.format(library.parent)}"
        ) from error
    sys.modules[target.module] = loaded
    return loaded
