"""Whether the coupled head should hand its batch norm and ReLU to the op (pixels_affine): memory of a step, and time.

The head below does it, exactly; the trainer's does not (docs/performance.md says why).

python -m benchmarks.training.head_affine [--images 8] [--device cuda]
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import lewel_kernels
from benchmarks import timing
from lewel.cost import memory
from lewel.methods import heads
from lewel.methods.heads import CoupledHead
from lewel.recipe import presets, schema

PRESETS = ("imagenet/lewel_b_eman_200", "imagenet/lewel_m_200", "cifar10/lewel_b_200")


class Statistics(torch.autograd.Function):
    """Mean and biased variance over the rows of h (rows, D) in float32, as BN takes them; only h itself is saved."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, mean: Tensor, var: Tensor, momentum: float) -> tuple[Tensor, Tensor]:
        of_batch = torch.ops.aten.batch_norm_update_stats(h, mean, var, momentum)
        ctx.save_for_backward(h, of_batch[0])
        return of_batch

    @staticmethod
    def backward(ctx: Any, d_mean: Tensor, d_var: Tensor) -> tuple[Tensor, None, None, None]:
        h, mean = ctx.saved_tensors
        slope = 2 * d_var / len(h)
        return torch.addcmul(d_mean / len(h) - slope * mean, h, slope).to(h.dtype), None, None, None


class AffineHead(CoupledHead):
    """The coupled head with pixels_affine: its normalised hidden map exists inside the op alone."""

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        positions = features.flatten(2).transpose(1, 2)  # [N, P, C]
        rows = torch.cat([positions.mean(1, keepdim=True), positions], dim=1)
        linear, norm, _ = self.mlp.hidden
        assert isinstance(norm, nn.BatchNorm1d)
        h = linear(rows.flatten(0, 1))  # B1
        mean, var = norm.running_mean, norm.running_var
        if norm.training:
            mean, var = Statistics.apply(h, mean, var, norm.momentum)
        assert mean is not None
        assert var is not None
        scale = norm.weight * (var + norm.eps).rsqrt()
        shift = norm.bias - mean * scale
        h = h.unflatten(0, rows.shape[:2])
        z = self.mlp.out(torch.relu(h[:, 0] * scale + shift))
        options = self.options(features, h[:, 1:]) | {"pixels_affine": (scale, shift)}
        return z, lewel_kernels.fused_align_aggregate(features, self.mlp.out.weight, **options)


HEADS = {"eager": CoupledHead, "pixels_affine": AffineHead}


def print_memory() -> None:
    print("| preset, one of 8 processes, bf16 | eager MiB | pixels_affine MiB | less |\n|---|---|---|---|")
    for preset in PRESETS:
        run = replace(presets.get(preset), precision="bf16")
        needed = []
        for head in HEADS.values():
            with mock.patch.object(heads, "CoupledHead", head):
                needed.append(memory.expect(run, processes=8).total)
        print(f"| {preset} | {needed[0] / 2**20:,.0f} | {needed[1] / 2**20:,.0f} | {1 - needed[1] / needed[0]:.1%} |")


def print_time(images: int, device: str, rounds: int) -> None:
    """Prints the time of forward and backward of each head, in turns, for LEWEL_B on a ResNet-50's map at 224."""
    settings = schema.Heads(hidden=4096, num_maps=256, num_groups=4)
    made = {name: head(2048, settings, None).to(device) for name, head in HEADS.items()}
    features = torch.randn(images, 2048, 7, 7, device=device).relu().contiguous(memory_format=torch.channels_last)
    features.requires_grad_()
    print(f"\nhead, {images} images, {device}, {torch.get_num_threads()} threads\n| precision | eager ms | "
          "pixels_affine ms |\n|---|---|---|")  # fmt: skip
    for precision in ("fp32", "bf16"):
        seconds: dict[str, list[float]] = {name: [] for name in made}
        for _ in range(rounds + 1):  # the first is a warm-up
            for name, head in made.items():
                start = time.perf_counter()
                with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
                    z, pooled = head(features)
                torch.autograd.grad(z.float().sum() + pooled.square().sum(), [features, *head.parameters()])
                timing.synchronise(device)
                seconds[name].append(time.perf_counter() - start)
        print(
            f"| {precision} | " + " | ".join(f"{1e3 * statistics.median(t[1:]):.0f}" for t in seconds.values()) + " |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    print_memory()
    print_time(options.images, options.device, options.rounds)


if __name__ == "__main__":
    main()
