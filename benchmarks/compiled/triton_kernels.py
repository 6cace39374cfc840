"""The kernels compiled for GPUs that need not be here, and what the compiler made of them.

Triton and the ptxas that comes with it compile without a GPU; they only have to be told of one.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import triton

from benchmarks.compiled.listings import buffers, instructions, resources
from benchmarks.compiled.report import Report
from benchmarks.compiled.requests import SHIPPED, Request, launches_of
from lewel_kernels.plan import Array

if TYPE_CHECKING:
    from lewel_kernels.triton.launch import Launch

CAPABILITIES = (80, 89, 90)


@dataclass(frozen=True, kw_only=True)
class TritonReport(Report):
    """The report of a kernel compiled in one configuration."""

    kind = "triton"
    tensor_instructions = "mma.sync or wgmma"
    bounded = ("registers", "shared", "narrow_loads", "serialized")

    key: str  # of its configuration
    config: str
    source: str  # of the configuration
    request: str  # one that launches it
    compiler: str = f"Triton {triton.__version__}"
    precision: str = ""  # of matrix products in float32; empty without products
    serialized: int = 0  # 1 where ptxas waits for each wgmma before it issues the next
    # Of each operand that products still read while their loop goes on: its buffers, and the least that it needs.
    buffers: list[list[int]] = field(default_factory=list)
    loads: dict[int, int] = field(default_factory=dict)  # instructions that read global memory, by bytes of a thread
    stores: dict[int, int] = field(default_factory=dict)

    @property
    def entry(self) -> str:
        return self.key

    @property
    def needs_tensor_cores(self) -> bool:
        return self.precision == "tf32" or bool(self.precision and {"bf16", "fp16"} & set(self.key.split()))

    @property
    def narrow_loads(self) -> int:
        return sum(count for size, count in self.loads.items() if size < 16)

    @property
    def wide_share(self) -> float:
        """The share of loaded bytes, 0 to 1, that comes 16 bytes or more at a time."""
        total = sum(size * count for size, count in self.loads.items())
        return sum(size * count for size, count in self.loads.items() if size >= 16) / max(total, 1)

    def __str__(self) -> str:
        return f"{self.kernel} ({self.key}; {self.request}) on {self.arch}"

    def faults(self) -> list[str]:
        sentences = super().faults()
        for there, least in self.buffers:
            if there < least:
                sentences.append(
                    f"{self} races with itself: it overwrites what products still read, for an operand of theirs has "
                    f"buffers: {there}; needed: {least}"
                )
        # What TF32 multiplies may have to be transposed on its way to shared memory, number by number.
        if not self.error and "rows" in self.key.split() and self.wide_share < 0.5 and self.precision != "tf32":
            found = ", ".join(f"{count} of {size} bytes" for size, count in self.loads.items())
            sentences.append(f"{self} loads rows by {found}; expected: the most of it 16 bytes at a time")
        return sentences

    def row(self) -> dict[str, str]:
        """The line of the table; loads and stores of global memory are written as instructions x bytes."""
        row = super().row()
        row["tensor cores"] += ", serialized" if self.serialized else ""
        loads, stores = (", ".join(f"{n}x{size}" for size, n in sizes.items()) for sizes in (self.loads, self.stores))
        return row | {"loads": loads, "stores": stores, "request": self.request, "config": self.config}


def unavailable(capability: int) -> str | None:
    """Always None: Triton brings all that compiling takes."""
    return None


class _Driver:
    """Stands in for Triton's driver when Triton asks which GPU to compile for."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> Any:
        return triton.backends.compiler.GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> str:
        # Kernels keep what is compiled for a device: under a name no launch on a real one, a number, can meet it.
        return f"sm_{self.capability}, absent"

    def get_current_stream(self, device: str) -> int:
        return 0


class _Tensor:
    """Stands in for a tensor when Triton asks for dtype and alignment."""

    def __init__(self, x: Array) -> None:
        self.dtype, self.offset = x.dtype, x.offset

    def data_ptr(self) -> int:
        return self.offset


@contextlib.contextmanager
def _compiling_for(capability: int) -> Iterator[None]:
    driver = triton.runtime.driver
    before = driver._active  # not `active`, which looks for a GPU
    driver.set_active(_Driver(capability))
    try:
        yield
    finally:
        driver._active = before


def compile_launch(launch: Launch, capability: int, request: str = "") -> TritonReport:
    """Compiles a launch as Triton would on the GPU. Raises RuntimeError where kernels are interpreted."""
    if not isinstance(launch.kernel, triton.JITFunction):
        raise RuntimeError("kernels are interpreted in this process; unset TRITON_INTERPRET before it imports them")
    arguments = {name: _Tensor(x) if isinstance(x, Array) else x for name, x in launch.arguments.items()}
    with _compiling_for(capability), contextlib.redirect_stdout(sys.stderr):  # Triton prints what ptxas refuses
        compiled = launch.kernel.warmup(
            grid=launch.grid, **arguments, **launch.constants, **launch.options,
        )  # fmt: skip
    return TritonReport(**_names(launch, capability, request), **_facts(compiled))


def _names(launch: Launch, capability: int, request: str) -> dict[str, Any]:
    return {
        "kernel": launch.kernel.__name__, "key": launch.config.key, "config": str(launch.config),
        "source": launch.config.source, "request": request, "capability": capability,
        "precision": launch.constants.get("PRECISION", ""),
    }  # fmt: skip


@functools.cache  # Triton returns the same object for the same specialisation
def _facts(compiled: Any) -> dict[str, Any]:
    ptx = compiled.asm["ptx"]
    facts: dict[str, Any] = {**ptxas(ptx, compiled.metadata.target.arch), **instructions(ptx)}
    facts["buffers"] = buffers(compiled.asm["ttgir"])
    return facts | {"shared": facts["shared"] + compiled.metadata.shared}


def ptxas(ptx: str, capability: int) -> dict[str, int]:
    """The numbers of `ptxas -v` for a kernel's PTX; the ptxas and the flags are those that Triton uses."""
    compiler = triton.backends.nvidia.compiler
    arch, tool = compiler.sm_arch_from_capability(capability), compiler.get_ptxas(capability)
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [tool.path, "-v", "-lineinfo", f"--gpu-name={arch}", file.name, "-o", os.devnull]
        log = subprocess.run(command, check=True, capture_output=True, text=True).stderr

    (facts,) = resources(log).values()
    return facts | {"serialized": int("wgmma.mma_async instructions are serialized" in log)}


def compile_all(
    capabilities: Sequence[int], processes: int = 2, requests: Iterable[Request] = SHIPPED
) -> list[TritonReport]:
    """Reports of all distinct kernels of the requests; one that does not compile has an `error`.

    They are compiled by fresh processes, which plan the launches themselves: a process that interprets kernels has
    none that could be compiled.
    """
    work = {"requests": [asdict(request) for request in requests], "capabilities": list(capabilities)}
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}

    def worker(rank: int) -> list[TritonReport]:
        command = [sys.executable, "-m", "benchmarks.compiled.triton_kernels"]
        share = json.dumps(work | {"rank": rank, "processes": processes})
        done = subprocess.run(command, input=share, capture_output=True, text=True, env=environment)
        if done.returncode:
            raise RuntimeError(f"a process that compiles kernels ended with status {done.returncode}:\n{done.stderr}")
        return [TritonReport.from_json(report) for report in json.loads(done.stdout)]

    with ThreadPoolExecutor(processes) as threads:
        parts = threads.map(worker, range(processes))
        return sorted(itertools.chain.from_iterable(parts), key=lambda r: (r.key, r.capability, r.request))


def _work(work: dict[str, Any]) -> list[TritonReport]:
    """Reports of a process's share. Launches that differ in types and sizes alone share it: Triton sees duplicates."""
    requests = [Request.from_json(request) for request in work["requests"]]
    groups: dict[str, list[tuple[Launch, int, str]]] = defaultdict(list)
    for capability, request in itertools.product(work["capabilities"], requests):
        if capability not in request.capabilities:
            continue
        for launch in launches_of(request, capability):
            constants = sorted(launch.constants.items(), key=str)
            group = f"{launch.config.key} {capability} {launch.kernel.__name__} {launch.config} {constants}"
            groups[group].append((launch, capability, str(request)))
    reports: dict[str, TritonReport] = {}
    for group in sorted(groups)[work["rank"] :: work["processes"]]:
        for launch, capability, asked in groups[group]:
            try:
                report = compile_launch(launch, capability, asked)
            except Exception as error:  # the compiler's own, ptxas', or any of Python in a kernel
                report = TritonReport(
                    **_names(launch, capability, asked), error=f"does not compile: {str(error).strip() or repr(error)}"
                )
            reports.setdefault(repr(replace(report, request="")), report)
    return list(reports.values())


if __name__ == "__main__":  # a process of `compile_all`
    print(json.dumps([asdict(report) for report in _work(json.load(sys.stdin))]))
