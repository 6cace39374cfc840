"""The CUDA kernels compiled for GPUs that need not be here, and what the compilers made of them.

nvcc compiles the translation units of csrc/cuda as they are. CUDA 13 has left out sm_70: for that, NVRTC 12.9 compiles
the kernels alone, those that nvcc finds the library to launch on its successor, sm_75.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import itertools
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lewel_kernels.native import nvcc, target
from lewel_kernels.native.targets import CUDA
from lewel_kernels.native.toolchain import BuildError, find_compiler

# Bytes of shared memory that one block may have, by compute capability.
SHARED_LIMITS = {70: 98304, 80: 166912, 90: 232448}
NVRTC = "nvidia-cuda-nvrtc-cu12==12.9.*"
_NAMESPACE = "lewel::cuda::"


class CompileError(RuntimeError):
    """A compiler refused its input; the message is what it said."""


@dataclass(frozen=True)
class Report:
    """What a compiler made of one kernel for one architecture."""

    kernel: str  # with its template's arguments, without namespaces
    capability: int
    compiler: str = ""
    registers: int = 0  # of a thread
    shared: int = 0  # bytes of a block
    stack: int = 0  # bytes of a thread, as are spills
    spill_stores: int = 0
    spill_loads: int = 0
    tensor_cores: dict[str, int] = field(default_factory=dict)  # instructions by name
    error: str = ""  # why it does not compile; no number above is known then

    @property
    def arch(self) -> str:
        return f"sm_{self.capability}"

    @property
    def template(self) -> str:
        return self.kernel.split("<")[0]

    @property
    def is_16_bit(self) -> bool:
        return bool(re.search(r"\b(Half|BFloat16)\b", self.kernel))

    def __str__(self) -> str:
        return f"{self.kernel} on {self.arch}"


# The tools.


def find_nvrtc() -> Path | None:
    """NVRTC of CUDA 12, the last that knows sm_70."""
    try:
        spec = importlib.util.find_spec("nvidia.cuda_nvrtc")
    except ImportError:
        return None
    folders = (spec.submodule_search_locations if spec else None) or ()
    return next((path for folder in folders if (path := Path(folder, "lib", "libnvrtc.so.12")).is_file()), None)


def find_disassembler() -> str | None:
    """nvdisasm: in the toolkit where that is whole, else Triton's."""
    spec = importlib.util.find_spec("triton")
    folders = [] if _without_nvcc() else [Path(nvcc.find().path).parent]
    folders += [
        Path(folder, "backends", "nvidia", "bin") for folder in (spec and spec.submodule_search_locations) or ()
    ]
    return shutil.which("nvdisasm", path=os.pathsep.join(map(str, folders))) or shutil.which("nvdisasm")


def unavailable(capability: int) -> str | None:
    """Why nothing can be compiled for an architecture here, as a sentence with a remedy, or None."""
    if capability < 75:
        if not find_nvrtc():
            return f"there is no NVRTC of CUDA 12, the last for sm_{capability}; pip install '{NVRTC}'"
    elif reason := _without_nvcc():
        return reason
    if not find_disassembler():
        return "there is no nvdisasm to find tensor-core instructions with; pip install triton, which brings it"
    return None


def _without_nvcc() -> str | None:
    try:
        nvcc.find()
        find_compiler()
    except BuildError as error:
        return str(error)
    return None


# What they say.


def resources(log: str) -> dict[str, dict[str, int]]:
    """What `ptxas -v` says of each kernel, by its mangled name. Functions that it calls count as its own."""
    _, *parts = re.split(r"Compiling entry function '([^']+)' for 'sm_\w+'", log)
    found = {}
    for name, text in zip(parts[::2], parts[1::2], strict=True):

        def number(pattern: str, text: str = text) -> int:
            return max((int(digits) for digits in re.findall(pattern, text)), default=0)

        found[name] = {
            "registers": number(r"Used (\d+) registers"),
            "shared": number(r"(\d+) bytes smem"),
            "stack": number(r"(\d+) bytes (?:stack frame|cumulative stack size)"),
            "spill_stores": number(r"(\d+) bytes spill stores"),
            "spill_loads": number(r"(\d+) bytes spill loads"),
        }
        if not found[name]["registers"]:
            raise RuntimeError(f"ptxas -v does not say how many registers {name} uses: {text}")
    return found


def tensor_cores(sass: str) -> dict[str, dict[str, int]]:
    """Instructions of the tensor cores that nvdisasm finds in each kernel, by its mangled name."""
    _, *parts = re.split(r"\.section\s+\.text\.([\w$.]+)", sass)
    pattern = re.compile(r"\b[HDIQ]G?MMA(?=\.)")
    return {
        name: dict(sorted(Counter(pattern.findall(text)).items()))
        for name, text in zip(parts[::2], parts[1::2], strict=True)
    }


def demangled(name: str) -> str:
    """A kernel's name as C++ has it, without the types of its parameters and without its namespace."""
    status = ctypes.c_int()
    demangle = ctypes.CDLL("libstdc++.so.6").__cxa_demangle
    demangle.restype, free = ctypes.c_void_p, ctypes.CDLL(None).free
    free.argtypes = [ctypes.c_void_p]
    pointer = demangle(name.encode(), None, None, ctypes.byref(status))
    if not pointer:
        return name
    try:
        text = ctypes.string_at(pointer).decode()
    finally:
        free(pointer)
    return _without_parameters(text).removeprefix("void ").replace(_NAMESPACE, "")


def _without_parameters(text: str) -> str:
    """`void f<(E)1>(int)` -> `void f<(E)1>`."""
    depth = 0
    for i, character in enumerate(text):
        if character == "(" and depth == 0:
            return text[:i]
        depth += (character == "<") - (character == ">")
    return text


def _reports(log: str, cubin: bytes, capability: int, compiler: str) -> list[Report]:
    """What a compiler made of the kernels in a binary, and said of them."""
    disassembler = find_disassembler()
    assert disassembler is not None
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([disassembler, "-c", file.name], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"nvdisasm cannot read what {compiler} made: {done.stderr}")
    facts: dict[str, dict[str, Any]] = {**resources(log)}
    cores = tensor_cores(done.stdout)
    if facts.keys() - cores.keys():
        raise RuntimeError(f"nvdisasm does not find {', '.join(sorted(facts.keys() - cores.keys()))}")
    return [
        Report(demangled(name), capability, compiler, **fact, tensor_cores=cores[name]) for name, fact in facts.items()
    ]


# Compiling.


def compile_all(
    capabilities: Sequence[int],
    threads: int = 2,
    known: Iterable[str] = (),
    sources: Path | None = None,
) -> list[Report]:
    """Reports of all kernels of the library; what does not compile has an `error`.

    Args:
        capabilities: Those that `unavailable` has nothing against.
        threads: How many compilers run at a time.
        known: The kernels to compile for sm_70 where there is no nvcc to list them.
        sources: csrc/, or a folder that stands in for it.
    """
    csrc = sources or target.sources()
    units = sorted(csrc.glob("cuda/kernels_*.cu"))
    with ThreadPoolExecutor(threads) as pool:
        names = sorted(known)
        if min(capabilities) < 75 and not _without_nvcc():
            # There are no bfloat16 instructions before sm_80.
            listed = pool.map(lambda unit: _names(unit, csrc), (x for x in units if "bfloat16" not in x.name))
            names = sorted(set(itertools.chain.from_iterable(listed)))
        jobs = []
        for capability in capabilities:
            if capability < 75:
                shares = filter(None, (names[i :: 4 * threads] for i in range(4 * threads)))
                jobs += [pool.submit(_compile_names, share, capability, csrc) for share in shares]
            else:
                jobs += [pool.submit(_compile_unit, unit, capability, csrc) for unit in units]
        reports = itertools.chain.from_iterable(job.result() for job in jobs)
        # Two units may have a kernel in common.
        distinct = {(report.kernel, report.capability): report for report in reports}
    return [distinct[key] for key in sorted(distinct)]


def _nvcc(arguments: Sequence[str | Path], csrc: Path, folder: str) -> str:
    """Runs nvcc as a build does, with its temporary files in a folder; what it says."""
    command = [nvcc.find().path, "-ccbin", find_compiler().command[0], *CUDA.flags(), "-I", csrc, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"TMPDIR": folder})
    if done.returncode:
        raise CompileError((done.stderr + done.stdout).strip())
    return done.stderr


def _names(unit: Path, csrc: Path) -> list[str]:
    """The kernels that a unit has on sm_75."""
    with tempfile.TemporaryDirectory() as folder:
        ptx = Path(folder, "unit.ptx")
        _nvcc(["-ptx", "-arch=sm_75", unit, "-o", ptx], csrc, folder)
        return [demangled(name) for name in re.findall(r"\.entry\s+([\w$]+)", ptx.read_text())]


def _compile_unit(unit: Path, capability: int, csrc: Path) -> list[Report]:
    version = "nvcc " + nvcc.find().version.rpartition(".")[0]
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "unit.cubin")
        try:
            log = _nvcc(["-cubin", f"-arch=sm_{capability}", "-Xptxas=-v", unit, "-o", cubin], csrc, folder)
        except CompileError as error:
            return [Report(unit.name, capability, version, error=str(error))]
        return _reports(log, cubin.read_bytes(), capability, version)


def _compile_names(names: Sequence[str], capability: int, csrc: Path) -> list[Report]:
    headers = sorted(csrc.glob("cuda/*_kernels.h"))
    source = "\n".join([*(f'#include "cuda/{header.name}"' for header in headers), "using namespace lewel::cuda;", ""])
    options = [f"--gpu-architecture=sm_{capability}", "--std=c++17", f"--include-path={csrc}", "--ptxas-options=-v"]
    # NVRTC takes a lambda in a lambda for a function of the host, which nvcc does not.
    options.append("--device-as-default-execution-space")
    version = "NVRTC {}.{}".format(*_nvrtc_version())
    try:
        log, cubin = _nvrtc(source, names, options)
    except CompileError as error:
        if len(names) > 1:  # which of them is it?
            return list(itertools.chain.from_iterable(_compile_names([name], capability, csrc) for name in names))
        return [Report(names[0], capability, version, error=str(error))]
    return _reports(log, cubin, capability, version)


@functools.cache
def _nvrtc_library() -> ctypes.CDLL:
    return ctypes.CDLL(str(find_nvrtc()))


@functools.cache
def _nvrtc_version() -> tuple[int, int]:
    major, minor = ctypes.c_int(), ctypes.c_int()
    _nvrtc_library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return major.value, minor.value


def _nvrtc(source: str, names: Sequence[str], options: Sequence[str]) -> tuple[str, bytes]:
    """The log and the cubin of the kernels of these names. Several threads may do this at a time."""
    library = _nvrtc_library()
    program = ctypes.c_void_p()

    def call(function: str, *arguments: Any) -> None:
        if status := getattr(library, function)(*arguments):
            raise CompileError(f"{function} failed with status {status}")

    def read(what: str) -> bytes:
        size = ctypes.c_size_t()
        call(f"nvrtcGet{what}Size", program, ctypes.byref(size))
        text = ctypes.create_string_buffer(size.value)
        call(f"nvrtcGet{what}", program, text)
        return text.raw

    call("nvrtcCreateProgram", ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None)
    try:
        for name in names:
            call("nvrtcAddNameExpression", program, name.encode())
        arguments = [option.encode() for option in options]
        array = (ctypes.c_char_p * len(arguments))(*arguments)
        failed = library.nvrtcCompileProgram(program, len(arguments), array)
        log = read("ProgramLog").rstrip(b"\0").decode()
        if failed:
            raise CompileError(log.strip())
        return log, read("CUBIN")
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))
