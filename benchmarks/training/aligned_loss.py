"""How the aligned InfoNCE of LEWEL_M grows: (N L)^2 logits at once or in blocks, in milliseconds and bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks import heap, timing
from benchmarks.heap import MIB
from benchmarks.op import footprint
from lewel.cost.live import LiveStorages
from lewel.methods.losses import aligned_info_nce, unit

L, WIDTH, TEMPERATURE = 32, 128, 0.2  # LEWEL_M at K = 128, G = 4
BATCHES = (8, 16, 32, 64, 128, 256)


def plain(query: Tensor, key: Tensor, temperature: float) -> Tensor:
    """The formula with all logits at once, each query's key among the keys of the same images."""
    num_images, num_aligned, _ = query.shape
    logits = unit(query).flatten(0, 1) @ unit(key).flatten(0, 1).T / temperature  # [N L, N L]
    image = torch.arange(num_images, device=query.device).repeat_interleave(num_aligned)
    same_image = image[:, None] == image
    same_image.fill_diagonal_(False)
    logits = logits.masked_fill(same_image, float("-inf"))
    return F.cross_entropy(logits, torch.arange(len(logits), device=query.device))


FORMULAS: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {"plain": plain, "blocked": aligned_info_nce}


@dataclass
class Loss:
    """Milliseconds and bytes of a formula's forward and backward over N images on one rank.

    ``logits_bytes`` is one (N L)^2 float32 matrix. ``live_bytes`` is counted and the same everywhere, ``peak_bytes``
    measured, with what operators need inside.
    """

    case: dict[str, int]
    variant: str
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


def live_bytes(n: int, formula: str) -> int:
    """The most bytes alive at once in forward and backward of ``n`` images, counted on fake tensors."""
    with FakeTensorMode():
        queries, keys = _embeddings(n, "cpu")
        with LiveStorages([queries, keys]) as storages:
            _gradient(formula, queries, keys)
    return storages.most


def _embeddings(n: int, device: str) -> tuple[Tensor, Tensor]:
    queries, keys = (torch.randn(n, L, WIDTH, device=device) for _ in range(2))
    return queries.requires_grad_(), keys


def _gradient(formula: str, queries: Tensor, keys: Tensor) -> object:
    return torch.autograd.grad(FORMULAS[formula](queries, keys, TEMPERATURE), queries)


def measure(n: int, device: str, seconds: float) -> list[Loss]:
    """Milliseconds and bytes of each formula at N = ``n``."""
    queries, keys = _embeddings(n, device)
    calls = {formula: partial(_gradient, formula, queries, keys) for formula in FORMULAS}
    rows = []
    for formula, times in timing.interleave(calls, device, seconds).items():
        p20, p50, p80 = (1e3 * q for q in timing.quantiles(times))
        rows.append(Loss(
            {"N": n, "L": L, "width": WIDTH}, formula, p20, p50, p80,
            logits_bytes=logits_bytes(n),
            saved_bytes=footprint.saved_bytes(calls[formula], [queries, keys]),
            live_bytes=live_bytes(n, formula),
            peak_bytes=heap.peak_bytes(calls[formula], device),
        ))  # fmt: skip
    return rows


def print_row(row: Loss) -> None:
    peak = "" if row.peak_bytes is None else f"   peak {row.peak_bytes / MIB:9.1f} MiB"
    print(
        f"  N={row.case['N']:<4} {row.variant:<8} {row.p50:9.2f} ms   logits {row.logits_bytes / MIB:8.1f} MiB"
        f"   saved {row.saved_bytes / MIB:8.1f} MiB   live {row.live_bytes / MIB:8.1f} MiB{peak}"
    )
