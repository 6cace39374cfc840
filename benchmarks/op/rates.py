"""What the machine reaches in the same run: the speed of a copy, and of a large matrix product."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from benchmarks import machine, timing
from benchmarks.op.cases import DTYPES
from benchmarks.op.cost import Rates

WARM_SECONDS = 0.3  # fresh pages and cold caches: the first samples are up to a third slower
COPY_SECONDS = 1.0
WAY_SECONDS = 0.2  # for each way to multiply, after half of it to warm up
SIDES = {"cpu": 1024, "cuda": 8192}  # of the square matrices


def measure_rates(device: str, dtype: str) -> Rates:
    """Bytes/s of a copy, which no dtype changes, and flop/s of a matrix product in dtype, measured on device."""
    return Rates(copy_rate(device), matmul_rate(device, dtype))


@functools.cache
def copy_rate(device: str) -> float:
    """Bytes/s of a copy far larger than the cache, read and write both counted; measured once in a process."""
    n = max(4 * machine.cache_bytes(device), 64 << 20)
    source, target = (torch.empty(n, dtype=torch.uint8, device=device) for _ in range(2))
    source.random_()
    return 2 * n / _best(lambda: target.copy_(source), device, WARM_SECONDS, COPY_SECONDS)


def matmul_rate(device: str, dtype: str) -> float:
    """Flop/s of a large product: the best of the ways in which PyTorch multiplies matrices."""
    k, kind = SIDES[torch.device(device).type], DTYPES[dtype]
    a, b = (torch.randn(k, k, device=device).to(kind) for _ in range(2))
    image = torch.randn(64, k, 7, 7, device=device).to(kind).contiguous(memory_format=torch.channels_last)
    kernel = b[:, :, None, None]
    # On a CPU these are three libraries' kernels, and which one is fastest depends on the dtype.
    ways: list[tuple[Callable[[], object], int]] = [
        (lambda: a @ b, k),
        (lambda: F.linear(a, b), k),
        (lambda: F.conv2d(image, kernel), 64 * 49),
    ]
    return max(2 * rows * k * k / _best(call, device, WAY_SECONDS / 2, WAY_SECONDS) for call, rows in ways)


def _best(call: Callable[[], object], device: str, warm: float, seconds: float) -> float:
    """Seconds of a call: the quickest sample of ``seconds`` of sampling, after ``warm`` seconds that do not count."""
    repeats = 1 if torch.device(device).type == "cpu" else 10  # on a GPU the launch of the first would show

    def samples(seconds: float) -> list[float]:
        end = time.perf_counter() + seconds
        found = [timing.sample(call, device, repeats)]
        while time.perf_counter() < end:
            found.append(timing.sample(call, device, repeats))
        return found

    samples(warm)
    return min(samples(seconds))
