"""The training steps that are timed: each method of the presets, its aligned op as eager lines or fused."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args, get_type_hints
from unittest import mock

import torch
from torch import Tensor

import lewel_kernels
from benchmarks import timing
from benchmarks.op.providers import eager_maps, eager_pool
from benchmarks.timing import Call, Key
from lewel.recipe import checks, feature_maps, presets, schema
from lewel.run import session
from lewel.run.step import Stepper

# The sets whose presets say how a method is built, first those for small encoders: a method that gets a preset in one
# of them is measured without a change here.
SMALL, LARGE = "cifar10/", "imagenet/"
_RUNS = [preset.run for where in (SMALL, LARGE) for name, preset in presets.PRESETS.items() if name.startswith(where)]
METHODS: dict[str, schema.MethodSettings] = {}
for _run in _RUNS:
    METHODS.setdefault(_run.method.name, _run.method)
# A method with the aligned branch, and the same without it.
BASELINES = {name: replace(method, w_aligned=0.0).name for name, method in METHODS.items() if method.aligned}
ENCODERS = feature_maps.RESNETS
# "ambient" is for those who call a method under an autocast of their own.
PRECISIONS = tuple(name for name in get_args(get_type_hints(schema.Train)["precision"]) if name != "ambient")
BATCH = 128
NUM_BATCHES = 4
# Small, so that the weights stay sane on noise for as long as it takes. The work does not depend on it.
LR = 1e-3


@dataclass(frozen=True)
class StepCase:
    """What all methods of one comparison share."""

    encoder: str
    image_size: int
    batch: int
    precision: str
    device: str = "cpu"

    def __str__(self) -> str:
        return f"{self.encoder}, {self.image_size}x{self.image_size}, batch {self.batch}, {self.precision}"


def case_on(device: str, encoder: str, image_size: int, batch: int, precision: str) -> StepCase:
    """The StepCase of the options; "auto", or 0 for the image size, is replaced by what suits the device."""
    if encoder == "auto":
        encoder = "tiny" if torch.device(device).type == "cpu" else "resnet50"
    if precision == "auto":
        precision = session.precision_on(torch.device(device))
    return StepCase(encoder, image_size or (32 if encoder == "tiny" else 224), batch, precision, device)


def recipe(case: StepCase, method: str) -> schema.Train:
    """The recipe of a method's first preset for ImageNet, or for CIFAR-10 with the tiny encoder, on the case's images.

    Where there is only one of the two, it serves both. A baseline has the recipe of its method with the aligned branch,
    with w_aligned = 0: the heads too, of which MoCo v2's projector alone leaves out the BN. The queue and SplitBN are
    shrunk to what the batch divides.

    Raises:
        LewelError: it cannot be trained.
    """
    sets = (SMALL, LARGE) if case.encoder == "tiny" else (LARGE, SMALL)
    with_branch = next((aligned for aligned, baseline in BASELINES.items() if baseline == method), method)
    mine = [run for run in _RUNS if run.method.name == with_branch]
    run = next(run for where in sets for run in mine if run.preset.startswith(where))
    if with_branch != method:
        projector = run.heads.projector if method == "moco_v2" else "mlp"
        run = replace(run, method=replace(run.method, w_aligned=0.0), heads=replace(run.heads, projector=projector))
    stem = "imagenet" if case.image_size >= 128 else "small"
    run = replace(
        run,
        data=schema.Data(image_size=case.image_size, batch_size=case.batch),
        encoder=replace(run.encoder, name=case.encoder, stem=stem),
        method=replace(
            run.method,
            queue=max(1, run.method.queue // case.batch) * case.batch,
            split_bn=math.gcd(run.method.split_bn, case.batch),
        ),
        precision=case.precision,
    )
    checks.check(run)
    return run


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
NO_BRANCH = "no branch"


class Candidate:
    """A method whose steps are timed, with one choice of the aligned op: a key of OPS, or NO_BRANCH."""

    def __init__(self, case: StepCase, method: str, variant: str) -> None:
        run = recipe(case, method)
        self.op = OPS.get(variant)
        self.method, self.optimizer = session.build(run, torch.device(case.device))
        scaler = torch.amp.GradScaler(torch.device(case.device).type, enabled=run.precision == "fp16")
        stepper = Stepper(self.method, self.method, self.optimizer, scaler)
        self.take = functools.partial(stepper.take, count=1, step=0, lr=LR, momentum=run.method.momentum)

    def step(self, first: Tensor, second: Tensor, op: Callable[..., Tensor] | None = None) -> Tensor:
        """Takes one step of the trainer on two views (N, 3, H, W); returns its loss. ``op`` replaces its own op."""
        with mock.patch.object(lewel_kernels, "fused_align_aggregate", op or self.op):
            return self.take([(first, second)]).loss

    def held_bytes(self) -> int:
        """Bytes that outlive a step: both networks with buffers, queue, gradients, the optimizer's state."""
        own = [*self.method.parameters(), *self.method.buffers()]
        grads = [p.grad for p in self.method.parameters() if p.grad is not None]
        state = [x for entry in self.optimizer.state.values() for x in entry.values() if isinstance(x, Tensor)]
        return sum(x.nbytes for x in own + grads + state)

    def first_call(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, dict[str, Any]] | None:
        """Takes a step; returns features, weight and options of its first call of the op, None without one."""
        seen: list[tuple[Tensor, Tensor, dict[str, Any]]] = []

        def spy(features: Tensor, weight: Tensor, **options: Any) -> Tensor:
            seen.append((features.detach(), weight.detach(), options | {"pixels": options["pixels"].detach()}))
            return OPS["eager"](features, weight, **options)

        if self.op is not None:
            self.step(first, second, spy)
        return seen[0] if seen else None


def make_views(case: StepCase) -> list[tuple[Tensor, Tensor]]:
    """Batches that take turns, each two views (N, 3, H, W) of random values, channels_last as in the trainer."""
    torch.manual_seed(0)
    images = torch.randn(NUM_BATCHES, 2, case.batch, 3, case.image_size, case.image_size, device=case.device)
    first, second = ([x.contiguous(memory_format=torch.channels_last) for x in images[:, view]] for view in range(2))
    return list(zip(first, second, strict=True))


def steps_of(candidates: Mapping[Key, Candidate], views: Sequence[tuple[Tensor, Tensor]]) -> dict[Key, Call]:
    """By candidate, a function that takes a step on the next pair of views each time it is called."""
    return {
        key: timing.taking_turns([functools.partial(candidate.step, *pair) for pair in views])
        for key, candidate in candidates.items()
    }
