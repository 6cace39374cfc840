"""What an optimizer step of each method costs on this machine: the paper's cost table (Tab. 9), measured."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args, get_type_hints

import torch
from torch import Tensor

import lewel_kernels
from benchmarks import heap, timing
from benchmarks.timing import Call, Key
from lewel.errors import LewelError
from lewel.methods.heads import LearnedMapsHead
from lewel.recipe import checks, presets, schema
from lewel.run import session
from lewel.run.step import Stepper

METHODS = {"moco_v2": presets.MOCO_V2, "lewel_m": presets.LEWEL_M, "byol": presets.BYOL, "lewel_b": presets.LEWEL_B}
BASELINES = {"lewel_m": "moco_v2", "lewel_b": "byol"}  # the same without the aligned branch
ENCODERS = get_args(get_type_hints(schema.Encoder)["name"])
PRECISIONS = tuple(name for name in get_args(get_type_hints(schema.Train)["precision"]) if name != "auto")
PAPER = """
The paper's own cost of the aligned branch, ResNet-50 at 224 on 8 V100 (seconds of an epoch):
  LEWEL_M 0.7 % over MoCo v2 (1222 s, 1213 s), LEWEL_B 4.4 % over BYOL (1191 s, 1141 s)"""
BATCH = 128
NUM_BATCHES = 4
# Small, so that the weights stay sane on noise for as long as it takes. The work does not depend on it.
LR = 1e-3
MIB = 1 << 20


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


def case_on(device: str, encoder: str, image_size: int, batch: int, precision: str) -> Case:
    """The comparison that is asked for; where it says "auto", or 0 for the size, the one that suits the device."""
    if encoder == "auto":
        encoder = "tiny" if torch.device(device).type == "cpu" else "resnet50"
    if precision == "auto":
        precision = session.precision_on(torch.device(device))
    return Case(encoder, image_size or (32 if encoder == "tiny" else 224), batch, precision, device)


def recipe(case: Case, method: str, backend: str | None = None) -> schema.Train:
    """The paper's heads and queue on a torchvision encoder, those of the CIFAR-10 presets on the tiny one."""
    settings, heads, queue = METHODS[method], presets.CIFAR10_MOCO.heads, 4096
    if case.encoder != "tiny":
        contrasts, queue = settings.loss == "infonce", 65536
        heads = schema.Heads(hidden=2048 if contrasts else 4096, num_maps=128 if contrasts else 256, num_groups=4)
    run = schema.Train(
        data=schema.Data(image_size=case.image_size, batch_size=case.batch),
        encoder=schema.Encoder(case.encoder, stem="imagenet" if case.image_size >= 128 else "small"),  # type: ignore[arg-type]
        heads=heads,
        method=replace(
            settings, queue=max(1, queue // case.batch) * case.batch, split_bn=math.gcd(settings.split_bn, case.batch)
        ),
        precision=case.precision,  # type: ignore[arg-type]
        backend=backend,
    )
    checks.check(run)
    return run


class Candidate:
    """A method whose steps are timed, from the same weights with every backend of the aligned op."""

    def __init__(self, case: Case, method: str, backend: str | None = None) -> None:
        run = recipe(case, method, backend)
        self.method, self.optimizer = session.build(run, torch.device(case.device))
        scaler = torch.amp.GradScaler(torch.device(case.device).type, enabled=run.precision == "fp16")
        stepper = Stepper(self.method, self.method, self.optimizer, scaler)
        self.take = functools.partial(stepper.take, count=1, step=0, lr=LR, momentum=run.method.momentum)

    def step(self, first: Tensor, second: Tensor) -> Tensor:
        """One step of the trainer on two views; its loss."""
        return self.take([(first, second)]).loss

    def held_bytes(self) -> int:
        """What outlives a step: weights and buffers of both networks, queue, gradients, the optimizer's state."""
        own = [*self.method.parameters(), *self.method.buffers()]
        grads = [p.grad for p in self.method.parameters() if p.grad is not None]
        state = [x for entry in self.optimizer.state.values() for x in entry.values() if isinstance(x, Tensor)]
        return sum(x.nbytes for x in own + grads + state)

    @torch.no_grad()
    def backend(self, images: Tensor) -> str:
        """The backend that the aligned op of a step on images runs on; "" without the aligned branch."""
        head = self.method.online.head
        if not isinstance(head, LearnedMapsHead):
            return ""
        with self.method.autocast():
            features = self.method.online.encoder(images)
            _, hidden, weight = head.read(features)
            return lewel_kernels.explain(features, weight, **head.options(features, hidden)).backend or ""


def make_views(case: Case) -> list[tuple[Tensor, Tensor]]:
    """Batches that take turns, each two views (N, 3, H, W) of random values, channels_last as in the trainer."""
    torch.manual_seed(0)
    images = torch.randn(NUM_BATCHES, 2, case.batch, 3, case.image_size, case.image_size, device=case.device)
    first, second = ([x.contiguous(memory_format=torch.channels_last) for x in images[:, view]] for view in range(2))
    return list(zip(first, second, strict=True))


def steps_of(candidates: Mapping[Key, Candidate], views: Sequence[tuple[Tensor, Tensor]]) -> dict[Key, Call]:
    """For each candidate a call that takes a step on the next of the views."""
    return {
        key: timing.taking_turns([functools.partial(candidate.step, *pair) for pair in views])
        for key, candidate in candidates.items()
    }


@dataclass(frozen=True)
class Row:
    """One method on one backend of the aligned op; None is what does not apply, or what the system does not tell."""

    method: str
    op: str  # "" without the aligned branch
    ms: float  # a step, median
    images_per_second: float
    peak_bytes: int | None  # of a process that trains it: what it holds, and what a step needs beside
    overhead: float | None  # of the aligned branch over BASELINES, percent
    rounds: int


def measure(case: Case, methods: Sequence[str], seconds: float) -> list[Row]:
    """A row for each method, two where it has the aligned branch; all of them interleaved for ``seconds``.

    Raises:
        LewelError: the recipe cannot be trained, or the device has too little memory for it.
    """
    try:
        return _measure(case, methods, seconds)
    except torch.OutOfMemoryError:
        pass
    raise LewelError(f"{case.device} has too little memory for {case}; try --batch {case.batch // 2}")


def _measure(case: Case, methods: Sequence[str], seconds: float) -> list[Row]:
    candidates = {
        (method, backend): Candidate(case, method, backend)
        for method in methods
        for backend in ((None, "reference") if METHODS[method].aligned else (None,))
    }
    views = make_views(case)
    calls = steps_of(candidates, views)
    times = timing.interleave(calls, case.device, seconds)
    rows = []
    for (method, backend), candidate in candidates.items():
        own, base = times[method, backend], times.get((BASELINES.get(method, ""), None))
        _, p50, _ = timing.quantiles(own)
        step_bytes = heap.peak_bytes(calls[method, backend], case.device)
        name = candidate.backend(views[0][0])
        row = Row(
            method, name if backend or not name else f"fused ({name})", 1e3 * p50, case.batch / p50,
            None if step_bytes is None else candidate.held_bytes() + step_bytes,
            None if base is None else 100 * (timing.ratio(own, base) - 1), len(own),
        )  # fmt: skip
        rows.append(row)
    return rows


def table(case: Case, rows: Sequence[Row]) -> str:
    """The rows under the case, and what the paper measured."""
    lines = [
        f"{case}, a step of all in turn, {rows[0].rounds} rounds",
        f"  {'method':<9}{'aligned op':<16}{'ms a step':>10}{'images/s':>10}{'peak MiB':>10}  aligned branch costs",
    ]
    for row in rows:
        peak = "" if row.peak_bytes is None else f"{row.peak_bytes / MIB:.0f}"
        cost = "" if row.overhead is None else f"{row.overhead:+.1f} % of {BASELINES[row.method]}"
        lines.append(
            f"  {row.method:<9}{row.op:<16}{row.ms:>10.2f}{row.images_per_second:>10.1f}{peak:>10}  {cost}".rstrip()
        )
    return "\n".join([*lines, PAPER])
