"""The semantic projector in 16 bits: what is lost of the differences between an image's rows, and its time."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lewel_kernels
from benchmarks import timing
from lewel.methods import split_linear
from lewel.methods.heads import MLP

C, D, K, G, P = 2048, 4096, 256, 4, 49  # LEWEL_B on a ResNet-50 at 224
EMULATED_IMAGES = 2  # in float16 on a CPU, which takes sixty times as long
Way = Callable[[nn.Module, Tensor], Tensor]  # to run layers on the rows of x (N, L, C)


@dataclass
class Row:
    """A way to compute the projector: relative errors in the Frobenius norm against float64, and milliseconds.

    ``errors`` are of what the rows of an image differ by, behind the first layer (W R) and the last (output), and of
    the gradients; ``spread`` is |R - mean| / |R|. What is emulated is not timed.
    """

    case: dict[str, int]
    variant: str
    errors: dict[str, float]
    spread: float
    p20: float | None = None
    p50: float | None = None
    p80: float | None = None
    samples: int = 1


def representations(images: int) -> Tensor:
    """R (images, K / G, C) in float64, as an untrained head makes it of features as after a ReLU."""
    features = torch.relu(torch.randn(images, C, P) + 0.5 * torch.randn(images, C, 1))
    head = MLP(C, D, K)
    with torch.no_grad():
        hidden = head.hidden(features.transpose(1, 2).flatten(0, 1)).view(images, P, D)
        weight, pixels = head.out.weight.double(), hidden.double().transpose(1, 2)
        wide = features.double().unsqueeze(-1)
        return lewel_kernels.fused_align_aggregate(wide, weight, pixels=pixels, num_groups=G, backend="reference")


def plain(layers: nn.Module, x: Tensor) -> Tensor:
    return layers(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def under(dtype: torch.dtype, way: Way, layers: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, dtype):
        return way(layers, x)


def ways(dtype: str) -> dict[str, Way]:
    if dtype == "float32":
        return {dtype: plain}
    both = {"autocast": plain, "split": split_linear.chain}
    return {f"{dtype}, {name}": partial(under, getattr(torch, dtype), way) for name, way in both.items()}


def first_layer(mlp: MLP) -> nn.Linear:
    layer = mlp.hidden[0]
    assert isinstance(layer, nn.Linear)
    return layer


def gradients(way: Way, mlp: MLP, x: Tensor, weigh: Tensor) -> tuple[Tensor, ...]:
    """The output of the projector computed one way, and the gradients of x and of the first layer's weight."""
    x = x.detach().requires_grad_()
    out = way(mlp, x).to(x.dtype)
    loss = (F.normalize(out, dim=-1) * weigh.to(out.dtype)).sum()
    return out.detach(), *torch.autograd.grad(loss, [x, first_layer(mlp).weight])


def apart(x: Tensor) -> Tensor:
    return x.double() - x.double().mean(1, keepdim=True)


def error(found: Tensor, truth: Tensor) -> float:
    """The relative error of found in the Frobenius norm."""
    return float((found.double() - truth).norm() / truth.norm())


def measure(images: int, dtypes: Sequence[str], device: str, seconds: float) -> list[Row]:
    """A row for float32, or two for a 16-bit dtype; all of them interleaved for ``seconds``, 0 to time none."""
    torch.manual_seed(0)
    r, mlp = representations(images).to(device), MLP(C, D, K).to(device)
    weigh = F.normalize(torch.randn(images, K // G, K).double(), dim=-1).to(device)
    wide, x = copy.deepcopy(mlp).double(), r.float()
    signal = apart(plain(first_layer(wide), r).detach())
    output, *truth = gradients(plain, wide, r, weigh)
    every = {name: way for dtype in dtypes for name, way in ways(dtype).items()}
    calls = {name: partial(gradients, way, mlp, x, weigh) for name, way in every.items()}
    times = timing.interleave(calls, device, seconds) if seconds else {}
    rows = []
    for name, way in every.items():
        out, *found = calls[name]()
        with torch.no_grad():
            errors = {"W R": error(apart(way(first_layer(mlp), x)), signal), "output": error(apart(out), apart(output))}
        errors |= {of: error(mine, wanted) for of, mine, wanted in zip(("dR", "dW"), found, truth, strict=True)}
        row = Row({"C": C, "D": D, "K": K, "images": images, "rows": K // G}, name, errors, error(r - apart(r), r))
        if own := times.get(name):
            (row.p20, row.p50, row.p80), row.samples = (1e3 * q for q in timing.quantiles(own)), len(own)
        rows.append(row)
    return rows


def print_row(row: Row) -> None:
    told = "".join(f"{of:>8} {value:.1e}" for of, value in row.errors.items())
    print(f"  {row.variant:<20}{row.case['images']} images{told}" + ("" if row.p50 is None else f"{row.p50:10.1f} ms"))
