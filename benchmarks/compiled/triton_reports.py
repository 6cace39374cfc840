"""The kernels compiled for GPUs that need not be here, and what the compiler made of them.

Triton and the ptxas that comes with it compile without a GPU; they only have to be told of one.
"""

from __future__ import annotations

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

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Request:
        """What `dataclasses.asdict` and JSON made of a request: its tuples are lists there."""
        fields: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in values.items()}
        return cls(**fields)

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
        yield from (replace(shape, layout="planes", dtype=dtype) for dtype in ("bf16", "fp16", "fp32"))
        yield replace(shape, layout="planes", affine=True)
        yield from (replace(shape, affine=True, dtype=dtype) for dtype in ("bf16", "fp16"))
    yield replace(m, shared=True)
    yield replace(d56, name="56x56 G8", G=8)
    # The ablations of the paper, more maps or one group; and GPUs with little shared memory, which have no table.
    every = (80, 89, 90)
    for dtype in ("bf16", "fp32"):
        yield replace(m, name="K512", K=512, dtype=dtype, capabilities=every)
        yield replace(m, name="K256 G1", K=256, G=1, dtype=dtype, capabilities=every)
    for shape in (m, b, d14, d56):
        yield replace(shape, capabilities=(89,))


def _with_more(request: Request) -> Iterator[Request]:
    """What sees a bias, or a gradient of the maps, is another kernel; none sees both. M alone for 32 bits and 64."""
    yield request
    if request.name == "M" or request.dtype in ("bf16", "fp16"):
        yield replace(request, bias=True, maps=True)


SHIPPED = tuple(itertools.chain.from_iterable(map(_with_more, _shipped())))


def launches_of(request: Request, capability: int) -> list[Launch]:
    """What a request launches, forward and backward, on tensors of device "meta"."""
    from lewel_kernels.reference import accumulator
    from lewel_kernels.triton import backward_launches, configs, forward_launches, launch

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
        (pooled, maps, heat, norm), forward = forward_launches.plan(call, out_dtype=dtype, return_maps=r.maps)
        d_maps = torch.empty_like(maps) if r.maps else None
        _, backward = backward_launches.plan(call, torch.empty_like(pooled), d_maps, heat, norm, r.needs)
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
    serialized: int = 0  # 1 where ptxas waits for each wgmma before it issues the next
    # Of each operand that products still read while their loop goes on: its buffers, and the least that it needs.
    buffers: list[list[int]] = field(default_factory=list)
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
    arguments = {name: _Tensor(x) if isinstance(x, Tensor) else x for name, x in launch.arguments.items()}
    with _compiling_for(capability), contextlib.redirect_stdout(sys.stderr):  # Triton prints what ptxas refuses
        compiled = launch.kernel.warmup(
            grid=launch.grid, **arguments, **launch.constants, **launch.options,
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
    facts["buffers"] = buffers(compiled.asm["ttgir"])
    return facts | {"shared": facts["shared"] + compiled.metadata.shared}


def ptxas(ptx: str, capability: int) -> dict[str, int]:
    """What `ptxas -v` says of a kernel; the ptxas and the flags are Triton's own."""
    compiler = triton.backends.nvidia.compiler
    arch, tool = compiler.sm_arch_from_capability(capability), compiler.get_ptxas(capability)
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [tool.path, "-v", "-lineinfo", f"--gpu-name={arch}", file.name, "-o", os.devnull]
        log = subprocess.run(command, check=True, capture_output=True, text=True).stderr

    def number(pattern: str) -> int:
        return max((int(found) for found in re.findall(pattern, log)), default=0)

    facts = {
        "registers": number(r"Used (\d+) registers"),
        "shared": number(r"(\d+) bytes smem"),  # static; Triton's is dynamic, and in its metadata
        "stack": number(r"(\d+) bytes stack frame"),
        "spill_stores": number(r"(\d+) bytes spill stores"),
        "spill_loads": number(r"(\d+) bytes spill loads"),
        "serialized": int("wgmma.mma_async instructions are serialized" in log),
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


_ALLOCATION = re.compile(
    r"(%\w+) = ttg\.local_alloc\b(?: :.* !ttg\.memdesc<(\d+)x)?"
)  # with buffers, or filled where it is
_VIEW = re.compile(r"(%\w+) = ttg\.memdesc_\w+ (%\w+)")
_ASYNC_COPY = re.compile(r"\bttg\.async_copy_global_to_local %[\w#]+, (%\w+)")
_PRODUCT = re.compile(r"\bttng\.warp_group_dot (%\w+)\S*, (%\w+)\S*,")
_DEFINED = re.compile(r"\s*(%\w+)(?::\d+)? =")
_PENDING = re.compile(r"\bttng\.warp_group_dot_wait\b.*\bpendings = (\d+)")


def buffers(ttgir: str) -> list[list[int]]:
    """Of each operand that products still read while their loop goes on: its buffers, and the least that it needs.

    On sm_90 a loop may leave its last products pending and go on to write what a later step multiplies. With c copies
    to shared memory under way before the loop, step i copies for step i + c: the steps i to i + c need a buffer each,
    and so does every step before i whose products are pending beside those of step i. What a step computes, in
    registers or not, is written at its start, and has one buffer. Triton has given fewer than it takes
    (docs/backends.md), and no result shows it unless the timing is bad.
    """
    lines = ttgir.splitlines()
    there: dict[str, int] = {}  # buffers of an allocation
    allocation: dict[str, str] = {}  # that a view is of
    for line in lines:
        if found := _ALLOCATION.search(line):
            there[found[1]] = int(found[2] or 1)
        elif found := _VIEW.search(line):
            allocation[found[1]] = allocation.get(found[2], found[2])
    result = []
    for before, loop in _innermost_loops(lines):
        copied = [allocation[found[1]] for line in before if (found := _ASYNC_COPY.search(line))]
        products = [found.groups() for line in loop if (found := _PRODUCT.search(line))]
        pending = [int(found[1]) for line in loop if (found := _PENDING.search(line))]
        if not products or not pending or not pending[-1]:
            continue
        computed = {found[1] for line in loop if (found := _DEFINED.match(line))}
        for x in dict.fromkeys(allocation.get(x, x) for product in products for x in product):
            if x in there or x in computed:
                ahead = 1 if x in computed else copied.count(x)
                result.append([there.get(x, 1), ahead + -(-pending[-1] // len(products))])
    return sorted(result)


def _innermost_loops(lines: list[str]) -> Iterator[tuple[list[str], list[str]]]:
    """For each loop that holds no other: the lines before it, and its own."""
    begin, end = 0, ""
    for i, line in enumerate(lines):
        if "scf.for" in line:
            begin, end = i, line[: len(line) - len(line.lstrip())] + "}"
        elif end and line.startswith(end):
            yield lines[:begin], lines[begin:i]
            end = ""


def compile_all(requests: Iterable[Request], capabilities: Sequence[int], processes: int = 2) -> list[Report]:
    """Reports of all distinct kernels of the requests; one that does not compile has an `error`.

    They are compiled by fresh processes, which plan the launches themselves: a process that interprets kernels has
    none that could be compiled.
    """
    work = {"requests": [asdict(request) for request in requests], "capabilities": list(capabilities)}
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}

    def worker(rank: int) -> list[Report]:
        command = [sys.executable, "-m", "benchmarks.compiled.triton_reports"]
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
    requests = [Request.from_json(request) for request in work["requests"]]
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


if __name__ == "__main__":  # a process of `compile_all`
    print(json.dumps([asdict(report) for report in _work(json.load(sys.stdin))]))
