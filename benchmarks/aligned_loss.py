"""How the aligned InfoNCE of LEWEL_M grows: (N L)^2 logits, in milliseconds and bytes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from lewel.live import LiveStorages
from lewel.losses import aligned_info_nce

from . import footprint, timing
from .report import MIB

L, WIDTH, TEMPERATURE = 32, 128, 0.2  # LEWEL_M at K = 128, G = 4
BATCHES = (8, 16, 32, 64, 128)


@dataclass
class Loss:
    """Forward and backward of the loss over N images on one rank; ``logits_bytes`` is one (N L)^2 float32 matrix.

    ``live_bytes`` is counted and the same everywhere, ``peak_bytes`` measured, with what operators need inside.
    """

    case: dict[str, int]
    p20: float
    p50: float
    p80: float
    logits_bytes: int
    saved_bytes: int
    live_bytes: int
    peak_bytes: int | None


def logits_bytes(n: int) -> int:
    """Bytes of the logits of ``n`` images."""
    return 4 * (n * L) ** 2


def live_bytes(n: int) -> int:
    """The most bytes alive at once in forward and backward of ``n`` images, on tensors without contents."""
    with FakeTensorMode():
        queries, keys = _embeddings(n, "cpu")
        with LiveStorages([queries, keys]) as storages:
            _gradient(queries, keys)
    return storages.most


def _embeddings(n: int, device: str) -> tuple[Tensor, Tensor]:
    queries, keys = (torch.randn(n, L, WIDTH, device=device) for _ in range(2))
    return queries.requires_grad_(), keys


def _gradient(queries: Tensor, keys: Tensor) -> object:
    return torch.autograd.grad(aligned_info_nce(queries, keys, TEMPERATURE), queries)


def measure(n: int, device: str, seconds: float) -> Loss:
    """Milliseconds and bytes at N = ``n``."""
    queries, keys = _embeddings(n, device)

    def call() -> object:
        return _gradient(queries, keys)

    (times,) = timing.interleave({"loss": call}, device, seconds).values()
    p20, p50, p80 = (1e3 * q for q in timing.quantiles(times))
    return Loss(
        {"N": n, "L": L, "width": WIDTH}, p20, p50, p80,
        logits_bytes=logits_bytes(n),
        saved_bytes=footprint.saved_bytes(call, [queries, keys]),
        live_bytes=live_bytes(n),
        peak_bytes=footprint.peak_bytes(call, device),
    )  # fmt: skip


def print_row(row: Loss) -> None:
    peak = "" if row.peak_bytes is None else f"   peak {row.peak_bytes / MIB:9.1f} MiB"
    print(
        f"  N={row.case['N']:<4} {row.p50:9.2f} ms   logits {row.logits_bytes / MIB:8.1f} MiB"
        f"   saved {row.saved_bytes / MIB:8.1f} MiB   live {row.live_bytes / MIB:8.1f} MiB{peak}"
    )
