"""What the machine reaches in the same run: the speed of a copy, and of a large matrix product."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from . import machine, timing
from .cases import DTYPES
from .cost import Rates


def measure_rates(device: str, dtype: str) -> Rates:
    """Copy bandwidth, and the matmul rate of a dtype: the best of the ways in which PyTorch multiplies matrices."""
    on_cpu, kind = torch.device(device).type == "cpu", DTYPES[dtype]
    n = max(4 * machine.cache_bytes(device), 64 << 20)
    source, target = (torch.empty(n, dtype=torch.uint8, device=device) for _ in range(2))
    source.random_()
    copy = 2 * n / _quick(lambda: target.copy_(source), device)
    k = 2048 if on_cpu else 8192
    a, b = (torch.randn(k, k, device=device).to(kind) for _ in range(2))
    image = torch.randn(64, k, 7, 7, device=device).to(kind).contiguous(memory_format=torch.channels_last)
    kernel = b[:, :, None, None]
    # On a CPU these are three libraries' kernels, and which one is fastest depends on the dtype.
    ways: list[tuple[Callable[[], object], int]] = [
        (lambda: a @ b, k),
        (lambda: F.linear(a, b), k),
        (lambda: F.conv2d(image, kernel), 64 * 49),
    ]
    return Rates(copy, max(2 * rows * k * k / _quick(call, device) for call, rows in ways))


def _quick(call: Callable[[], object], device: str) -> float:
    """Seconds of a call, the quickest fifth of some samples of a few calls each."""
    call()
    return sorted(timing.sample(call, device, repeats=3) for _ in range(6))[1]
