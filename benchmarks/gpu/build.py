"""Compiles the kernels before anything is measured: how many there are, how long it takes, what is wrong with them.

Triton keeps what it compiles on disk, under all that goes into it: the first launch finds it there.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import partial

import torch

from benchmarks.compiled import triton_kernels
from benchmarks.compiled.report import SHARED_LIMITS
from benchmarks.compiled.requests import Request
from benchmarks.gpu import right
from benchmarks.gpu.tune_space import FIRST
from lewel_kernels import cuda, native
from lewel_kernels.native import builder
from lewel_kernels.native.targets import TARGETS

LEAST_CAPABILITY = 80  # of what Triton compiles the kernels for
REHEARSED = 2  # requests, and the architecture that they are compiled for where there is no GPU
REHEARSED_CAPABILITY = 90
FILES = len(right.DTYPES)  # that nvcc compiles at once: csrc/cuda has one for each dtype


@dataclass
class Row:
    """Kernels that were compiled together; a problem is a sentence."""

    case: dict[str, str]  # kernels: the backend's name; architecture; of which calls
    count: int | None  # of kernels for a GPU; None where they are for the processor
    seconds: float
    problem: str | None


def measure(device: str) -> Iterator[Row]:
    """Yields a Row as each is done. The two compilers work at once, Triton's on the most valuable calls first."""
    backends = ("cuda",) if torch.device(device).type == "cuda" else ("cpu", "cuda")
    works = batches(device)
    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
        pending = [*(first.submit(library, name) for name in backends), *(second.submit(work) for work in works)]
        for done in as_completed(pending):
            yield done.result()


def library(backend: str) -> Row:
    """Builds a backend's library and returns its Row; cuda's for TORCH_CUDA_ARCH_LIST, or for the tests' emulation."""
    start = time.monotonic()
    case = {"kernels": backend, "architecture": "", "calls": "all"}
    name = cuda.gpus.library if backend == "cuda" else backend
    try:
        build = builder.build(TARGETS[name])
        info = native.build_info(name)
    except (RuntimeError, ValueError) as error:
        return Row(case, None, time.monotonic() - start, f"the {backend} backend cannot be built: {error}")
    case["architecture"] = str(info.get("archs") or info["isa"])
    # Each has a section of its own in the code for a GPU, whatever its architecture.
    found = set(re.findall(rb"\.text\.(_ZN5lewel4cuda\w+)", build.library.read_bytes()))
    return Row(case, len(found) or None, build.seconds or 0.0, None)


def batches(device: str) -> list[Callable[[], Row]]:
    """Functions that have Triton compile kernels and return a Row: all that `right` launches, a few on the CPU."""
    every = right.requests(device, "triton")
    if torch.device(device).type != "cuda":
        return [partial(kernels, "rehearsed", every[:REHEARSED], REHEARSED_CAPABILITY)]
    major, minor = torch.cuda.get_device_capability(device)
    if (capability := 10 * major + minor) < LEAST_CAPABILITY:
        return []
    heads = [request for request in every if request.name in FIRST]
    others = [request for request in every if request.name not in FIRST]
    return [partial(kernels, name, some, capability) for name, some in (("heads", heads), ("wider maps", others))]


def kernels(calls: str, requests: Sequence[Request], capability: int) -> Row:
    """Compiles the distinct Triton kernels of the requests and returns a Row with their number, seconds and faults.

    ``calls`` is the row's label. As many processes compile as nvcc leaves cores.
    """
    start = time.monotonic()
    every = [replace(request, capabilities=(capability,)) for request in requests]
    case = {"kernels": "triton", "architecture": f"sm_{capability}", "calls": calls}
    try:
        reports = triton_kernels.compile_all([capability], max(1, (os.cpu_count() or 1) - FILES), every)
    except RuntimeError as error:
        return Row(case, None, time.monotonic() - start, str(error).strip())
    known = capability in SHARED_LIMITS
    found = [fault for report in reports if known or report.error for fault in report.faults()]
    return Row(case, len(reports), time.monotonic() - start, "; ".join(found) or None)


def print_row(row: Row) -> None:
    what = f"{row.case['kernels']}, {row.case['calls']}, for {row.case['architecture'] or 'nothing'}"
    count = "" if row.count is None else f"{row.count} kernels in "
    print(f"{what}: {count}{row.seconds:.1f} s{f'; {row.problem}' if row.problem else ''}", flush=True)
