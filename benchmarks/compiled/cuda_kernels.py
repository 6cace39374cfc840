"""The CUDA kernels compiled for GPUs that need not be here, and what the compilers made of them.

nvcc compiles the translation units of csrc/cuda as a build does. CUDA 13 has left out sm_70: for that, NVRTC 12.9
compiles the kernels by name, those that the library has for its successor, sm_75.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.compiled import cuda_launches, nvrtc
from benchmarks.compiled.listings import demangled, resources, short, tensor_cores
from benchmarks.compiled.nvrtc import CompileError
from benchmarks.compiled.report import SHARED_LIMITS, Report
from lewel_kernels.native import nvcc, target
from lewel_kernels.native.targets import CUDA
from lewel_kernels.native.toolchain import BuildError, find_compiler

CAPABILITIES = (70, 80, 90)
_FIRST_OF_NVCC = 75
# Kernels that multiply no matrices. Any other one in 16 bits needs tensor cores.
WITHOUT_PRODUCTS = {"softmax_kernel", "maps_kernel", "maps_bwd_kernel", "sum_kernel"}


class CudaReport(Report):
    """The report of a kernel, named with its template's arguments; or of a file, if that does not compile."""

    kind = "cuda"
    tensor_instructions = "HMMA"
    bounded = ("registers", "shared")
    expected = ("tensor_core_instructions",)

    @property
    def template(self) -> str:
        return self.kernel.split("<")[0]

    @property
    def shared_limit(self) -> int:
        return SHARED_LIMITS[89 if self.capability == 80 else self.capability]  # sm_86 and sm_89 run sm_80's code

    @property
    def needs_tensor_cores(self) -> bool:
        return self.template not in WITHOUT_PRODUCTS and bool(re.search(r"\b(Half|BFloat16)\b", self.kernel))


# The tools.


def find_disassembler() -> str | None:
    """nvdisasm: the toolkit's, where it has one, else Triton's."""
    spec = importlib.util.find_spec("triton")
    folders = [] if _without(nvcc.find) else [Path(nvcc.find().path).parent]
    folders += [
        Path(folder, "backends", "nvidia", "bin") for folder in (spec and spec.submodule_search_locations) or ()
    ]
    return shutil.which("nvdisasm", path=os.pathsep.join(map(str, folders))) or shutil.which("nvdisasm")


def unavailable(capability: int) -> str | None:
    """Why nothing can be compiled for an architecture here, as a sentence with a remedy, or None."""
    reason = _without(find_compiler)
    if not reason and capability >= _FIRST_OF_NVCC:
        reason = _without(nvcc.find)
    elif not reason and not nvrtc.find():
        reason = f"there is no NVRTC of CUDA 12, the last for sm_{capability}; pip install '{nvrtc.PACKAGE}'"
    if not reason and not find_disassembler():
        reason = "there is no nvdisasm to find tensor-core instructions with; pip install triton, which brings it"
    return reason


def _without(find: Callable[[], object]) -> str | None:
    """Why ``find`` does not find its tool, or None."""
    try:
        find()
    except BuildError as error:
        return str(error)
    return None


# What they say.


def _reports(log: str, cubin: bytes, capability: int, compiler: str) -> list[CudaReport]:
    """The reports of the kernels in a cubin; log is what the compiler printed about them."""
    disassembler = find_disassembler()
    assert disassembler is not None
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        sass = _run([disassembler, "-c", file.name])[0]
    cores = tensor_cores(sass)
    facts: dict[str, dict[str, Any]] = {**resources(log)}
    if lost := facts.keys() - cores.keys():
        raise RuntimeError(f"nvdisasm does not find {', '.join(sorted(lost))} in what {compiler} made")
    return [
        CudaReport(
            kernel=short(demangled(name)), capability=capability, compiler=compiler, **fact, tensor_cores=cores[name]
        )
        for name, fact in facts.items()
    ]


def _refused(kernel: str, capability: int, compiler: str, error: CompileError) -> CudaReport:
    return CudaReport(kernel=kernel, capability=capability, compiler=compiler, error=f"does not compile: {error}")


def _run(command: Sequence[str | Path], folder: str | None = None) -> tuple[str, str]:
    """Runs a program; returns its stdout and stderr. `folder` is for its temporary files. Raises CompileError."""
    environment = os.environ | ({"TMPDIR": folder} if folder else {})
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise CompileError((done.stderr + done.stdout).strip() or f"{command[0]} ended with status {done.returncode}")
    return done.stdout, done.stderr


# Compiling.


def compile_all(capabilities: Sequence[int], processes: int = 2) -> list[CudaReport]:
    """Reports of all kernels of the library, for architectures for which `unavailable` returns None."""
    shared = {capability: cuda_launches.shared_bytes(capability) for capability in capabilities}
    known = {kernel for kernels in shared.values() for kernel in kernels}
    reports = compile_kernels(target.sources(), capabilities, processes, known)
    return [_with_shared(report, shared[report.capability]) for report in reports]


def _with_shared(report: CudaReport, shared: dict[str, int]) -> CudaReport:
    if report.error:
        return report
    if report.kernel not in shared:
        return replace(report, error="is launched by no call of benchmarks/compiled/cuda_launches.py; add one there")
    return replace(report, shared=report.shared + shared[report.kernel])


def compile_kernels(
    csrc: Path, capabilities: Sequence[int], threads: int = 2, known: Iterable[str] = ()
) -> list[CudaReport]:
    """Reports of all kernels below a folder; what does not compile has an `error`. Shared memory is what is static.

    Args:
        csrc: It has cuda/kernels_*.cu, and the kernels themselves in cuda/*_kernels.h.
        capabilities: What to compile for.
        threads: How many compilers run at a time.
        known: The kernels, for sm_70 where there is no nvcc to list them.
    """
    units = sorted(csrc.glob("cuda/kernels_*.cu"))
    with ThreadPoolExecutor(threads) as pool:
        names = set(known)
        if min(capabilities) < _FIRST_OF_NVCC and not _without(nvcc.find):
            names = set(itertools.chain.from_iterable(pool.map(lambda unit: kernels_of(unit, csrc), units)))
        # The backend takes no bfloat16 before sm_80, which has no instructions for it.
        shared_out = sorted(name for name in names if "BFloat16" not in name)
        jobs = []
        for capability in capabilities:
            if capability >= _FIRST_OF_NVCC:
                jobs += [pool.submit(_compile_unit, unit, capability, csrc) for unit in units]
            else:
                shares = (shared_out[i :: 4 * threads] for i in range(4 * threads))
                jobs += [pool.submit(_compile_names, share, capability, csrc) for share in shares if share]
        # Units may have kernels in common.
        found = itertools.chain.from_iterable(job.result() for job in jobs)
        distinct = {(report.kernel, report.capability): report for report in found}
    return [distinct[key] for key in sorted(distinct)]


def _nvcc(arguments: Sequence[str | Path], csrc: Path, folder: str) -> str:
    """Runs nvcc as a build does; returns what it prints."""
    compiler = find_compiler().command
    host = ["-ccbin", *compiler] if len(compiler) == 1 else []  # it takes one word, and here it only preprocesses
    return _run([nvcc.find().path, *host, *CUDA.flags(), "-I", csrc, *arguments], folder)[1]


def kernels_of(unit: Path, csrc: Path) -> list[str]:
    """The kernels that nvcc finds in a unit for sm_75. What it makes of them does not matter, hence -O0."""
    with tempfile.TemporaryDirectory() as folder:
        ptx = Path(folder, "unit.ptx")
        try:
            _nvcc(["-ptx", f"-arch=sm_{_FIRST_OF_NVCC}", "-Xcicc", "-O0", unit, "-o", ptx], csrc, folder)
        except CompileError as error:
            raise CompileError(f"{unit.name} does not compile for sm_{_FIRST_OF_NVCC}: {error}") from error
        return [short(demangled(name)) for name in re.findall(r"\.entry\s+([\w$]+)", ptx.read_text())]


def _compile_unit(unit: Path, capability: int, csrc: Path) -> list[CudaReport]:
    compiler = f"nvcc {nvcc.find().version.rpartition('.')[0]}"
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "unit.cubin")
        try:
            log = _nvcc(["-cubin", f"-arch=sm_{capability}", "-Xptxas=-v", unit, "-o", cubin], csrc, folder)
        except CompileError as error:
            return [_refused(unit.name, capability, compiler, error)]
        return _reports(log, cubin.read_bytes(), capability, compiler)


def _compile_names(names: Sequence[str], capability: int, csrc: Path) -> list[CudaReport]:
    headers = [f'#include "cuda/{header.name}"' for header in sorted(csrc.glob("cuda/*_kernels.h"))]
    options = [
        f"--gpu-architecture=sm_{capability}",
        "--std=c++17",
        f"--include-path={csrc}",
        "--ptxas-options=-v",
        # NVRTC takes a generic lambda inside a lambda for a function of the host, which nvcc does not.
        "--device-as-default-execution-space",
    ]
    compiler = nvrtc.Compiler(nvrtc.find())
    try:
        log, cubin = compiler.compile("\n".join([*headers, "using namespace lewel::cuda;\n"]), names, options)
    except CompileError as error:
        if len(names) > 1:  # which of them is it?
            return [report for name in names for report in _compile_names([name], capability, csrc)]
        return [_refused(names[0], capability, compiler.name, error)]
    return _reports(log, cubin, capability, compiler.name)
