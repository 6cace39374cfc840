"""NVRTC of CUDA 12, the last compiler that knows sm_70: a library, used through ctypes."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PACKAGE = "nvidia-cuda-nvrtc-cu12==12.9.*"


class CompileError(RuntimeError):
    """A compiler refused its input; the message is what it said."""


def find() -> Path | None:
    """The path of the library in the PyPI package, or None."""
    try:
        spec = importlib.util.find_spec("nvidia.cuda_nvrtc")
    except ImportError:
        return None
    folders = (spec.submodule_search_locations if spec else None) or ()
    return next((path for folder in folders if (path := Path(folder, "lib", "libnvrtc.so.12")).is_file()), None)


class Compiler:
    """The loaded library. Several threads may use it at a time."""

    def __init__(self, path: Path | None) -> None:
        self._library = ctypes.CDLL(str(path))
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        self.name = f"NVRTC {major.value}.{minor.value}"

    def compile(self, source: str, names: Sequence[str], options: Sequence[str]) -> tuple[str, bytes]:
        """Compiles source; returns the log and the cubin of the kernels with these names. Raises CompileError."""
        program = ctypes.c_void_p()
        text, no_headers = source.encode(), (0, None, None)
        self._call("nvrtcCreateProgram", ctypes.byref(program), text, b"kernels.cu", *no_headers)
        try:
            for name in names:
                self._call("nvrtcAddNameExpression", program, name.encode())
            array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
            failed = self._library.nvrtcCompileProgram(program, len(options), array)
            log = self._read("ProgramLog", program).rstrip(b"\0").decode()
            if failed:
                raise CompileError(log.strip())
            return log, self._read("CUBIN", program)
        finally:
            self._library.nvrtcDestroyProgram(ctypes.byref(program))

    def _read(self, what: str, program: ctypes.c_void_p) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"nvrtcGet{what}Size", program, ctypes.byref(size))
        found = ctypes.create_string_buffer(size.value)
        self._call(f"nvrtcGet{what}", program, found)
        return found.raw

    def _call(self, function: str, *arguments: Any) -> None:
        if status := getattr(self._library, function)(*arguments):
            raise CompileError(f"{function} ends with status {status}")
