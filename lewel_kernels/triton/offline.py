"""The kernels compiled for GPUs that need not be here, and what the compiler made of them.

`python -m lewel_kernels.triton.offline` prints a table of `SHIPPED` and checks it against the committed budget. Triton
and the ptxas that comes with it compile without a GPU; they only have to be told of one.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import triton
from torch import Tensor

if TYPE_CHECKING:
    from lewel_kernels.dispatch import Needs
    from lewel_kernels.triton.launch import Launch

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}
# Bytes of shared memory that one block may have, by compute capability.
SHARED_LIMITS = {80: 166912, 89: 101376, 90: 232448}
BUDGET = Path("tests/triton_budget.json")
WRITE = "python -m lewel_kernels.triton.offline --write"


# What is compiled.


@dataclass(frozen=True)
class Request:
    """A call of the op, forward and backward, without its tensors: what another process can be told as JSON."""

    name: str
    N: int
    C: int
    D: int
    K: int
    G: int
    P: int
    dtype: str
    layout: str = "rows"  # of features and pixels: "rows" is channels_last, "planes" contiguous
    bias: bool = False
    affine: bool = False
    shared: bool = False  # the features are projected: no pixels
    maps: bool = False  # also returned, with a gradient
    tf32: bool = False  # allowed for matrix products in float32
    temperature: float = 0.05
    needs: Needs = (True,) * 6
    capabilities: tuple[int, ...] = (80, 90)

    def __str__(self) -> str:
        extras = [name for name in ("bias", "affine", "shared", "maps", "tf32") if getattr(self, name)]
        return " ".join([self.name, self.dtype, self.layout, *extras])


def _shipped() -> Iterator[Request]:
    m = Request("M", N=256, C=2048, D=2048, K=128, G=4, P=49, dtype="bf16")
    b = Request("B", N=256, C=2048, D=4096, K=256, G=4, P=49, dtype="bf16")
    d14 = Request("14x14", N=64, C=1024, D=1024, K=128, G=4, P=196, dtype="bf16")
    d56 = Request("56x56", N=32, C=256, D=256, K=128, G=4, P=3136, dtype="bf16")
    for shape in (m, b, d14, d56):
        yield from (replace(shape, dtype=dtype) for dtype in DTYPES)
        yield replace(shape, dtype="fp32", tf32=True)
        yield replace(shape, layout="planes")
        yield from (replace(shape, affine=True, dtype=dtype) for dtype in ("bf16", "fp16"))
    yield replace(m, bias=True, shared=True, maps=True)
    # The ablations of the paper, more maps or one group; and GPUs with little shared memory, which have no table.
    every = (80, 89, 90)
    for dtype in ("bf16", "fp32"):
        yield replace(m, name="K512", K=512, dtype=dtype, capabilities=every)
        yield replace(m, name="K256 G1", K=256, G=1, dtype=dtype, capabilities=every)
    for shape in (m, b, d14, d56):
        yield replace(shape, capabilities=(89,))


SHIPPED = tuple(_shipped())


def launches_of(request: Request, capability: int) -> list[Launch]:
    """What a request launches, forward and backward, on tensors of device "meta"."""
    from lewel_kernels.reference import accumulator
    from lewel_kernels.triton import configs, launch

    r, dtype = request, DTYPES[request.dtype]
    acc = accumulator(dtype)

    def image(channels: int) -> Tensor:
        strides = (r.P * channels, 1, channels) if r.layout == "rows" else (r.P * channels, r.P, 1)
        return torch.empty_strided((r.N, channels, r.P), strides, dtype=dtype, device="meta")

    def new(*size: int, of: torch.dtype = dtype) -> Tensor:
        return torch.empty(size, dtype=of, device="meta")

    call = launch.Call(
        image(r.C),
        None if r.shared else image(r.D),
        new(r.K, r.D),
        new(r.K) if r.bias else None,
        new(r.D, of=acc) if r.affine else None,
        new(r.D, of=acc) if r.affine else None,
        r.G,
        r.temperature,
        1e-12,
        configs.architecture((capability // 10, capability % 10)),
    )
    matmul = torch.backends.cuda.matmul
    before, matmul.allow_tf32 = matmul.allow_tf32, r.tf32
    try:
        (pooled, maps, heat, norm), forward = launch.plan_forward(call, out_dtype=dtype, return_maps=r.maps)
        d_maps = torch.empty_like(maps) if r.maps else None
        _, backward = launch.plan_backward(call, torch.empty_like(pooled), d_maps, heat, norm, r.needs)
    finally:
        matmul.allow_tf32 = before
    return forward + backward


# Compiling it.


@dataclass(frozen=True)
class Report:
    """What the compiler made of one kernel for one architecture."""

    kernel: str
    key: str  # of its configuration
    config: str
    source: str  # of the configuration
    request: str  # one that launches it
    capability: int
    registers: int = 0  # of a thread
    shared: int = 0  # bytes of a block
    stack: int = 0  # bytes of a thread, as are spills
    spill_stores: int = 0
    spill_loads: int = 0
    precision: str = ""  # of matrix products in float32; empty without products
    tensor_cores: dict[str, int] = field(default_factory=dict)  # instructions by name
    loads: dict[int, int] = field(default_factory=dict)  # instructions that read global memory, by bytes of a thread
    stores: dict[int, int] = field(default_factory=dict)
    error: str = ""  # why it does not compile; no number above is known then

    @property
    def arch(self) -> str:
        return f"sm_{self.capability}"

    @property
    def narrow_loads(self) -> int:
        return sum(count for size, count in self.loads.items() if size < 16)

    @property
    def wide_share(self) -> float:
        """The part of what is loaded that comes 16 bytes at a time."""
        total = sum(size * count for size, count in self.loads.items())
        return sum(size * count for size, count in self.loads.items() if size >= 16) / max(total, 1)

    def __str__(self) -> str:
        return f"{self.kernel} ({self.key}; {self.request}) on {self.arch}"


class _Driver:
    """Stands in for Triton's driver where that is asked which GPU to compile for."""

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
    """Stands in for a tensor where Triton asks for dtype and alignment. A storage starts at an aligned address."""

    def __init__(self, x: Tensor) -> None:
        self.dtype = x.dtype
        self.offset = int(x.storage_offset()) * x.element_size()

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


def compile_launch(launch: Launch, capability: int, request: str = "") -> Report:
    """Compiles a launch as Triton would on the GPU; its tensors may be on any device, "meta" too."""
    if not isinstance(launch.kernel, triton.JITFunction):
        raise RuntimeError("kernels are interpreted in this process; unset TRITON_INTERPRET before it imports them")
    config = launch.config
    arguments = {name: _Tensor(x) if isinstance(x, Tensor) else x for name, x in launch.arguments.items()}
    with _compiling_for(capability), contextlib.redirect_stdout(sys.stderr):  # Triton prints what ptxas refuses
        compiled = launch.kernel.warmup(
            grid=launch.grid, **arguments, **launch.constants,
            num_warps=config.num_warps, num_stages=config.num_stages, enable_fp_fusion=True,
        )  # fmt: skip
    return Report(**_names(launch, capability, request), **_facts(compiled))


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
    return facts | {"shared": facts["shared"] + compiled.metadata.shared}


def ptxas(ptx: str, capability: int) -> dict[str, int]:
    """What `ptxas -v` says of a kernel; the ptxas and the flags are Triton's own."""
    arch = triton.backends.nvidia.compiler.sm_arch_from_capability(capability)
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [triton.knobs.nvidia.ptxas.path, "-v", "-lineinfo", f"--gpu-name={arch}", file.name, "-o", os.devnull]
        log = subprocess.run(command, check=True, capture_output=True, text=True).stderr

    def number(pattern: str) -> int:
        return max((int(found) for found in re.findall(pattern, log)), default=0)

    facts = {
        "registers": number(r"Used (\d+) registers"),
        "shared": number(r"(\d+) bytes smem"),  # static; Triton's is dynamic, and in its metadata
        "stack": number(r"(\d+) bytes stack frame"),
        "spill_stores": number(r"(\d+) bytes spill stores"),
        "spill_loads": number(r"(\d+) bytes spill loads"),
    }
    if not facts["registers"]:
        raise RuntimeError(f"ptxas -v does not say how many registers it used: {log}")
    return facts


_TENSOR_CORES = re.compile(r"\b(mma\.sync|wgmma)(?=\.aligned|\.mma_async)")
_ACCESS = re.compile(r"\b(ld|st)\.global(?:\.[\w:]+)*?(?:\.v(\d))?\.[bfsu](\d+)\s")
_COPY = re.compile(r"\bcp\.async\.c[ag]\.shared\.global\S* *\[[^]]*\], *\[[^]]*\], *(0x[0-9a-f]+|\d+)")
_BULK = re.compile(r"\bcp\.async\.bulk\.(?:tensor\.\w+\.)?shared::cluster\.global")  # TMA, in units of 16 bytes


def instructions(ptx: str) -> dict[str, dict[Any, int]]:
    """Instructions of the tensor cores, and those that access global memory by the bytes of one thread."""
    sizes: dict[str, Counter[int]] = {"ld": Counter(), "st": Counter()}
    for what, length, bits in _ACCESS.findall(ptx):
        sizes[what][int(length or 1) * int(bits) // 8] += 1
    sizes["ld"].update(int(size, 0) for size in _COPY.findall(ptx))
    sizes["ld"].update(16 for _ in _BULK.findall(ptx))
    return {
        "tensor_cores": dict(Counter(_TENSOR_CORES.findall(ptx))),
        "loads": dict(sorted(sizes["ld"].items())),
        "stores": dict(sorted(sizes["st"].items())),
    }


def compile_all(requests: Iterable[Request], capabilities: Sequence[int], processes: int = 2) -> list[Report]:
    """Reports of all distinct kernels of the requests; one that does not compile has an `error`.

    They are compiled by fresh processes, which plan the launches themselves: a process that interprets kernels has
    none that could be compiled.
    """
    work = {"requests": [asdict(request) for request in requests], "capabilities": list(capabilities)}
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}

    def worker(rank: int) -> list[Report]:
        command = [sys.executable, "-m", "lewel_kernels.triton.offline", "--worker"]
        share = json.dumps(work | {"rank": rank, "processes": processes})
        done = subprocess.run(command, input=share, capture_output=True, text=True, env=environment)
        if done.returncode:
            raise RuntimeError(f"a process that compiles kernels ended with status {done.returncode}:\n{done.stderr}")
        return [_from_json(report) for report in json.loads(done.stdout)]

    with ThreadPoolExecutor(processes) as threads:
        parts = threads.map(worker, range(processes))
        return sorted(itertools.chain.from_iterable(parts), key=lambda r: (r.key, r.capability, r.request))


def _from_json(report: dict[str, Any]) -> Report:
    """Numbers that are keys come back as numbers."""
    sizes = {name: {int(size): count for size, count in report[name].items()} for name in ("loads", "stores")}
    return Report(**report | sizes)


def _work(work: dict[str, Any]) -> list[Report]:
    """The share of one process. Launches that differ in types and sizes alone stay together: Triton sees duplicates."""
    requests = [Request(**{n: tuple(x) if isinstance(x, list) else x for n, x in r.items()}) for r in work["requests"]]
    groups: dict[str, list[tuple[Launch, int, str]]] = defaultdict(list)
    for capability, request in itertools.product(work["capabilities"], requests):
        if capability not in request.capabilities:
            continue
        for launch in launches_of(request, capability):
            constants = sorted(launch.constants.items(), key=str)
            group = f"{launch.config.key} {capability} {launch.kernel.__name__} {launch.config} {constants}"
            groups[group].append((launch, capability, str(request)))
    reports: dict[str, Report] = {}
    for group in sorted(groups)[work["rank"] :: work["processes"]]:
        for launch, capability, asked in groups[group]:
            try:
                report = compile_launch(launch, capability, asked)
            except Exception as error:  # the compiler's own, ptxas', or any of Python in a kernel
                report = Report(**_names(launch, capability, asked), error=str(error).strip() or repr(error))
            reports.setdefault(repr(replace(report, request="")), report)
    return list(reports.values())


# The budget.


def faults(report: Report) -> list[str]:
    """What no kernel may do, whatever its budget, as sentences."""
    if report.error:
        return [f"{report} does not compile: {report.error}"]
    sentences = []
    if report.stack or report.spill_stores or report.spill_loads:
        sentences.append(
            f"{report} spills registers: {report.spill_stores} bytes stored, {report.spill_loads} loaded, a stack of "
            f"{report.stack}; allowed: 0"
        )
    limit = SHARED_LIMITS[report.capability]
    if report.shared > limit:
        sentences.append(f"{report} takes {report.shared} bytes of shared memory; a block may have {limit}")
    words = report.key.split()
    is_tf32 = report.precision == "tf32"
    if (is_tf32 or (report.precision and ("bf16" in words or "fp16" in words))) and not report.tensor_cores:
        sentences.append(f"{report} multiplies matrices without tensor cores; expected: mma.sync or wgmma")
    # What TF32 multiplies may have to be transposed on its way to shared memory, number by number.
    if "rows" in words and report.wide_share < 0.5 and not is_tf32:
        found = ", ".join(f"{count} of {size} bytes" for size, count in report.loads.items())
        sentences.append(f"{report} loads rows by {found}; expected: the most of it 16 bytes at a time")
    return sentences


def budget_of(reports: Iterable[Report]) -> dict[str, Any]:
    """The least budget that the reports keep, by architecture and key.

    Registers are counted in steps of 8, in which the hardware hands them to threads.
    """
    archs: dict[str, dict[str, dict[str, int]]] = defaultdict(dict)
    for report in reports:
        found = {
            "registers": min(-(-report.registers // 8) * 8, 255),
            "shared": report.shared,
            "narrow_loads": report.narrow_loads,
        }
        entry = archs[report.arch].setdefault(report.key, found)
        entry.update({name: max(entry[name], number) for name, number in found.items()})
    return {"triton": triton.__version__, **{arch: dict(sorted(archs[arch].items())) for arch in sorted(archs)}}


def to_text(budget: dict[str, Any]) -> str:
    """JSON with a line for each entry."""

    def block(entries: dict[str, Any]) -> str:
        return (
            "{\n" + ",\n".join(f"  {json.dumps(key)}: {json.dumps(entry)}" for key, entry in entries.items()) + "\n }"
        )

    parts = (f" {json.dumps(k)}: {block(x) if isinstance(x, dict) else json.dumps(x)}" for k, x in budget.items())
    return "{\n" + ",\n".join(parts) + "\n}\n"


def excesses(reports: Sequence[Report], budget: dict[str, Any]) -> list[str]:
    """Where kernels and budget disagree, as sentences. The numbers are those of the budget's version of Triton."""
    sentences = []
    for report in reports:
        allowed = budget.get(report.arch, {}).get(report.key)
        if allowed is None:
            sentences.append(f"{report} has no budget; {WRITE} gives it one")
            continue
        for name, number in allowed.items():
            if (found := getattr(report, name)) > number:
                sentences.append(f"{report} has {name.replace('_', ' ')}: {found}; allowed: {number}")
    compiled = {(report.arch, report.key) for report in reports}
    for arch in sorted({report.arch for report in reports}):
        for key in budget.get(arch, {}):
            if (arch, key) not in compiled:
                sentences.append(f"the budget of {key} on {arch} is nobody's; {WRITE} removes it")
    return sentences


def table(reports: Iterable[Report]) -> str:
    """A line for each report. Loads and stores of global memory are instructions x bytes."""
    rows = [["key", "arch", "request", "config", "registers", "shared", "spills", "tensor cores", "loads", "stores"]]
    for r in reports:
        cores = ", ".join(f"{count} {name}" for name, count in r.tensor_cores.items()) or "-"
        loads, stores = (", ".join(f"{n}x{size}" for size, n in sizes.items()) for sizes in (r.loads, r.stores))
        numbers = r.registers, r.shared, max(r.spill_stores, r.spill_loads)
        rows.append([r.key, r.arch, r.request, r.config, *map(str, numbers), cores, loads, stores])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def main() -> int:
    every = sorted(SHARED_LIMITS)
    parser = argparse.ArgumentParser(prog="python -m lewel_kernels.triton.offline", description=__doc__)
    parser.add_argument("--capability", type=int, nargs="+", choices=every, default=every)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--budget", type=Path, default=BUDGET)
    parser.add_argument("--write", action="store_true", help="write the budget instead of checking it")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps([asdict(report) for report in _work(json.load(sys.stdin))]))
        return 0
    reports = compile_all(SHIPPED, options.capability, options.processes)
    print(table(reports), end="\n\n")
    budget = json.loads(options.budget.read_text()) if options.budget.exists() else {}
    if options.write:
        budget |= budget_of(reports)
        options.budget.write_text(to_text(budget))
    sentences = [sentence for report in reports for sentence in faults(report)] + excesses(reports, budget)
    print(*sentences or ["All is in order."], sep="\n")
    return 1 if sentences else 0


if __name__ == "__main__":
    sys.exit(main())
