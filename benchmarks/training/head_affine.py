"""Whether the coupled head should hand its batch norm and ReLU to the op (pixels_affine): memory of a step, and time.

The head below does it, exactly; the trainer's does not (docs/performance.md says why).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import lewel_kernels
from benchmarks import timing
from benchmarks.heap import MIB
from lewel.cost import memory
from lewel.methods import heads
from lewel.methods.heads import CoupledHead
from lewel.recipe import presets

PRESETS = ("imagenet/lewel_b_eman_200", "imagenet/lewel_m_200", "cifar10/lewel_b_200")
PROCESSES = 8
WIDTH, SIDE = 2048, 7  # of a ResNet-50's map at 224


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


HEADS: dict[str, Callable[..., CoupledHead]] = {"eager": CoupledHead, "pixels_affine": AffineHead}


@dataclass
class Memory:
    """Bytes of one process at the peak of a preset's step in bf16 with one of HEADS, counted on fake tensors."""

    case: dict[str, object]
    variant: str
    step_bytes: int


@dataclass
class Time:
    """Milliseconds of forward and backward of one of HEADS, LEWEL_B's on a ResNet-50's map."""

    case: dict[str, object]
    variant: str
    p20: float
    p50: float
    p80: float
    samples: int
    speedup: float  # against eager


def count_memory(preset: str) -> list[Memory]:
    """Counts and prints a step's bytes with each head."""
    run = replace(presets.get(preset), precision="bf16")
    rows = []
    for name, head in HEADS.items():
        with mock.patch.object(heads, "CoupledHead", head):
            total = memory.expect(run, processes=PROCESSES).total
        rows.append(Memory({"preset": preset, "processes": PROCESSES, "precision": run.precision}, name, total))
        print(f"  {preset:<28}{name:<15}{total / MIB:10,.0f} MiB")
    return rows


def measure(images: int, precision: str, device: str, seconds: float) -> list[Time]:
    """Times each head on random features of so many images, and prints it; precision is fp32 or bf16."""
    settings = presets.get(PRESETS[0]).heads
    features = torch.randn(images, WIDTH, SIDE, SIDE, device=device).relu()
    features = features.contiguous(memory_format=torch.channels_last).requires_grad_()

    def step(head: nn.Module) -> None:
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16"):
            z, pooled = head(features)
        torch.autograd.grad(z.float().sum() + pooled.square().sum(), [features, *head.parameters()])

    calls = {name: partial(step, head(WIDTH, settings, None).to(device)) for name, head in HEADS.items()}
    times = timing.interleave(calls, device, seconds)
    case: dict[str, object] = {"images": images, "width": WIDTH, "side": SIDE, "precision": precision}
    rows = []
    for name, own in times.items():
        p20, p50, p80 = (1e3 * q for q in timing.quantiles(own))
        rows.append(row := Time(case, name, p20, p50, p80, len(own), timing.ratio(times["eager"], own)))
        print(f"  {f'{images} images, {precision}':<28}{name:<15}{p50:10.1f} ms  x {row.speedup:.2f}")
    return rows
