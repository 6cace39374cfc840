"""The semantic projector in 16 bits: what is lost of the differences between an image's rows, and its time.

python -m benchmarks.training.projector [--images 8] [--fp16] [--device cuda]
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import lewel_kernels
from benchmarks import timing
from lewel.methods import split_linear
from lewel.methods.heads import MLP

C, D, K, G, P = 2048, 4096, 256, 4, 49  # LEWEL_B on a ResNet-50 at 224
Way = Callable[[MLP, Tensor], Tensor]


def representations(images: int) -> Tensor:
    """R (images, K / G, C) in float64, as an untrained head makes it of features as after a ReLU."""
    features = torch.relu(torch.randn(images, C, P) + 0.5 * torch.randn(images, C, 1))
    head = MLP(C, D, K)
    with torch.no_grad():
        hidden = head.hidden(features.transpose(1, 2).flatten(0, 1)).view(images, P, D)
        weight, pixels = head.out.weight.double(), hidden.double().transpose(1, 2)
        wide = features.double().unsqueeze(-1)
        return lewel_kernels.fused_align_aggregate(wide, weight, pixels=pixels, num_groups=G, backend="reference")


def first_weight(mlp: MLP) -> Tensor:
    return dict(mlp.named_parameters())["hidden.0.weight"]


def rows_of(layer: MLP, x: Tensor) -> Tensor:
    """The projector without splitting, on the rows of x (N, L, C): (N, L, K)."""
    return layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def linear(mlp: MLP, x: Tensor) -> Tensor:
    return F.linear(x, first_weight(mlp))


def under(dtype: torch.dtype, way: Way) -> Way:
    def run(mlp: MLP, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, dtype):
            return way(mlp, x)

    return run


def gradients(way: Way, mlp: MLP, x: Tensor, weigh: Tensor) -> tuple[Tensor, ...]:
    """The output of the projector computed one way, and the gradients of x and of the first layer's weight."""
    x = x.detach().requires_grad_()
    out = way(mlp, x).to(x.dtype)
    loss = (F.normalize(out, dim=-1) * weigh.to(out.dtype)).sum()
    return out.detach(), *torch.autograd.grad(loss, [x, first_weight(mlp)])


def apart(x: Tensor) -> Tensor:
    return x.double() - x.double().mean(1, keepdim=True)


def error(found: Tensor, truth: Tensor) -> float:
    """The relative error of found in the Frobenius norm."""
    return float((found.double() - truth).norm() / truth.norm())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--fp16", action="store_true", help="also in float16, which CPUs are slow at")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.manual_seed(0)
    r, mlp = representations(options.images), MLP(C, D, K)
    weigh = F.normalize(torch.randn(options.images, K // G, K).double(), dim=-1)
    r, mlp, weigh = r.to(options.device), mlp.to(options.device), weigh.to(options.device)
    wide = copy.deepcopy(mlp).double()
    first = first_weight(wide).detach()
    signal = apart(r) @ first.t()
    truth = gradients(rows_of, wide, r, weigh)
    ways: dict[str, tuple[Way, Way]] = {"float32": (rows_of, linear)}
    for name, dtype in (("bfloat16", torch.bfloat16), ("float16", torch.float16)):
        if name == "bfloat16" or options.fp16:
            ways[f"{name}, autocast"] = under(dtype, rows_of), under(dtype, linear)
            ways[f"{name}, split"] = (
                under(dtype, split_linear.chain),
                lambda m, x, dtype=dtype: split_linear.split_linear(x, first_weight(m), dtype),  # type: ignore[misc]
            )
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    x = r.float()
    for _ in range(options.rounds):
        for name, (way, _) in ways.items():
            start = time.perf_counter()
            gradients(way, mlp, x, weigh)
            timing.synchronise(options.device)
            seconds[name].append(time.perf_counter() - start)
    print(f"C={C} D={D} K={K}, {options.images} images of {K // G} rows; |R - mean| / |R| {error(r - apart(r), r):.2%}")
    print("| projector | W R, apart | output, apart | dR | dW | ms |\n|---|---|---|---|---|---|")
    for name, (way, layer) in ways.items():
        found = gradients(way, copy.deepcopy(mlp), x, weigh)
        with torch.no_grad():
            hidden = layer(mlp, x)
        errors = [error(apart(hidden), signal), error(apart(found[0]), apart(truth[0]))]
        errors += [error(mine, theirs) for mine, theirs in zip(found[1:], truth[1:], strict=True)]
        cells = " | ".join(f"{value:.1e}" for value in errors)
        print(f"| {name} | {cells} | {1e3 * statistics.median(seconds[name]):.0f} |")


if __name__ == "__main__":
    main()
