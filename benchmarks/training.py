"""The training steps that are timed: every method with the op, with the lines it replaces, or without the branch."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, get_args, get_type_hints
from unittest import mock

import torch
from torch import Tensor

import lewel_kernels
from lewel import config, presets

from .providers import eager_maps, eager_pool

METHODS = {"moco_v2": presets.MOCO_V2, "lewel_m": presets.LEWEL_M, "byol": presets.BYOL, "lewel_b": presets.LEWEL_B}
ENCODERS = get_args(get_type_hints(config.Encoder)["name"])
PRECISIONS = tuple(name for name in get_args(get_type_hints(config.Train)["precision"]) if name != "auto")
NUM_BATCHES = 4
# Small, so that the weights stay sane on noise for as long as it takes. The work does not depend on it.
LR = 1e-3


@dataclass(frozen=True)
class Case:
    """What all methods of one comparison share."""

    encoder: str
    image_size: int
    batch: int
    precision: str
    device: str = "cpu"

    def __str__(self) -> str:
        return f"{self.encoder}, {self.image_size}x{self.image_size}, batch {self.batch}, {self.precision}"


def eager(
    features: Tensor, weight: Tensor, *, pixels: Tensor, num_groups: int, temperature: float, out_dtype: torch.dtype,
    backend: str | None,
) -> Tensor:  # fmt: skip
    """The lines that the op replaces, as the trainer calls it: (N, C, H, W), (K, D), (N, D, P) -> (N, L, C).

    Under autocast they pool in 16 bits and only then convert to out_dtype, as a user's lines do; the op never rounds.
    """
    maps = eager_maps(pixels.unflatten(2, features.shape[2:]), weight, temperature=temperature)
    return eager_pool(features, maps, num_groups=num_groups).to(out_dtype)


OPS: dict[str, Callable[..., Tensor]] = {"eager": eager, "fused": lewel_kernels.fused_align_aggregate}


def recipe(case: Case, method: str) -> config.Train:
    """The paper's heads and queue on a torchvision encoder, those of the CIFAR-10 presets on the tiny one."""
    settings, heads, queue = METHODS[method], presets.CIFAR10_MOCO.heads, 4096
    if case.encoder != "tiny":
        contrasts, queue = settings.loss == "infonce", 65536
        heads = config.Heads(hidden=2048 if contrasts else 4096, num_maps=128 if contrasts else 256, num_groups=4)
    run = config.Train(
        data=config.Data(image_size=case.image_size, batch_size=case.batch),
        encoder=config.Encoder(case.encoder, stem="imagenet" if case.image_size >= 128 else "small"),  # type: ignore[arg-type]
        heads=heads,
        method=replace(
            settings, queue=max(1, queue // case.batch) * case.batch, split_bn=math.gcd(settings.split_bn, case.batch)
        ),
        precision=case.precision,  # type: ignore[arg-type]
    )
    config.check(run)
    return run


class Candidate:
    """A method with one choice of the aligned op, from the same weights as every other choice."""

    def __init__(self, case: Case, method: str, variant: str) -> None:
        from lewel import session, step  # need torchvision, which no other command of the benchmarks does

        run, self.op = recipe(case, method), OPS.get(variant)
        self.method, optimizer = session.build(run, torch.device(case.device))
        scaler = torch.amp.GradScaler(case.device, enabled=run.precision == "fp16")
        stepper = step.Stepper(self.method, self.method, optimizer, scaler)
        self.take = functools.partial(stepper.take, count=1, step=0, lr=LR, momentum=run.method.momentum)

    def step(self, first: Tensor, second: Tensor, op: Callable[..., Tensor] | None = None) -> Tensor:
        """One step of the trainer on two views; its loss."""
        with mock.patch.object(lewel_kernels, "fused_align_aggregate", op or self.op):
            return self.take([(first, second)]).loss

    def first_call(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, dict[str, Any]] | None:
        """Features, weight and options that a step, which this takes, first hands the op; None without the branch."""
        seen: list[tuple[Tensor, Tensor, dict[str, Any]]] = []

        def spy(features: Tensor, weight: Tensor, **options: Any) -> Tensor:
            seen.append((features.detach(), weight.detach(), options | {"pixels": options["pixels"].detach()}))
            return OPS["eager"](features, weight, **options)

        if self.op is not None:
            self.step(first, second, spy)
        return seen[0] if seen else None


def make_views(case: Case) -> list[tuple[Tensor, Tensor]]:
    """Batches that take turns, each two views (N, 3, H, W) of random values, channels_last as in the trainer."""
    torch.manual_seed(0)
    images = torch.randn(NUM_BATCHES, 2, case.batch, 3, case.image_size, case.image_size, device=case.device)
    first, second = ([x.contiguous(memory_format=torch.channels_last) for x in images[:, view]] for view in range(2))
    return list(zip(first, second, strict=True))
