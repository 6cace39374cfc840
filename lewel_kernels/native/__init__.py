"""The compiled extension: loaded when a backend first needs it, built if this machine has not built it yet.

Importing this package imports and builds nothing. One process tries once; the outcome, good or bad, is remembered.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
from pathlib import Path
from types import ModuleType

from lewel_kernels.native import builder

_lock = threading.Lock()
_tried = False
_reason: str | None = None


def unavailable() -> str | None:
    """Why the extension cannot be used, as a sentence with a remedy, or None once its ops are registered."""
    global _tried, _reason
    with _lock:
        if not _tried:
            try:
                _load(builder.build().library)
            except builder.BuildError as error:
                _reason = str(error)
            _tried = True
        return _reason


def require() -> None:
    """Raise what `unavailable` says: for an op that was chosen elsewhere, in an exported program for one."""
    if reason := unavailable():
        raise RuntimeError(reason)


def build_info() -> dict[str, str | int]:
    """What the loaded extension was compiled with: isa, vector_bytes, compiler, flags, torch, torch_abi.

    Raises:
        RuntimeError: if the extension cannot be used; the message says why.
    """
    require()
    info: dict[str, str | int] = sys.modules[builder.MODULE].build_info()
    return info


def status() -> str:
    """One line for a report, found without building anything."""
    if _tried:
        if _reason:
            return f"unavailable: {_reason}"
        info = build_info()
        return f"loaded, {info['isa']} with vectors of {info['vector_bytes']} bytes, by {info['compiler']}"
    try:
        built = builder.find()
    except builder.BuildError as error:
        return f"cannot be built: {error}"
    if built is None:
        return "not built yet; `python -m lewel_kernels.build` does, and so does its first use"
    unavailable()  # loads it
    return status()


def _load(library: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(builder.MODULE, library)
    assert spec is not None
    assert spec.loader is not None
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:
        raise builder.BuildError(
            f"the compiled extension {library} cannot be loaded ({error}); delete {library.parent} and run "
            f"`{builder.COMMAND}`"
        ) from error
    sys.modules[builder.MODULE] = module
    return module
