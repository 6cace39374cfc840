"""How the aligned InfoNCE of LEWEL_M grows: (N L)^2 logits, in milliseconds and bytes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lewel.losses import aligned_info_nce

from . import footprint, timing

L, WIDTH, TEMPERATURE = 32, 128, 0.2  # LEWEL_M at K = 128, G = 4
BATCHES = (8, 16, 32, 64, 128)


@dataclass
class Loss:
    """Forward and backward of the loss over N images on one rank; ``logits_bytes`` is one (N L)^2 float32 matrix."""

    case: dict[str, int]
    p20: float
    p50: float
    p80: float
    logits_bytes: int
    saved_bytes: int
    peak_bytes: int | None


def measure(n: int, device: str, seconds: float) -> Loss:
    """Milliseconds and bytes at N = ``n``."""
    queries, keys = (torch.randn(n, L, WIDTH, device=device) for _ in range(2))
    queries.requires_grad_()

    def call() -> object:
        return torch.autograd.grad(aligned_info_nce(queries, keys, TEMPERATURE), queries)

    (times,) = timing.interleave({"loss": call}, device, seconds).values()
    p20, p50, p80 = (1e3 * q for q in timing.quantiles(times))
    return Loss(
        {"N": n, "L": L, "width": WIDTH}, p20, p50, p80,
        logits_bytes=4 * (n * L) ** 2,
        saved_bytes=footprint.saved_bytes(call, [queries, keys]),
        peak_bytes=footprint.peak_bytes(call, device),
    )  # fmt: skip


def print_row(row: Loss) -> None:
    mib = 1 << 20
    peak = "" if row.peak_bytes is None else f"   peak {row.peak_bytes / mib:9.1f} MiB"
    print(
        f"  N={row.case['N']:<4} {row.p50:9.2f} ms   logits {row.logits_bytes / mib:8.1f} MiB"
        f"   saved {row.saved_bytes / mib:8.1f} MiB{peak}"
    )
