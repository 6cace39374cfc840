"""A copy of an encoder with a classifier behind it, trained by labels as a whole."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from lewel import data, distributed
from lewel.data.one_view import Labelled
from lewel.errors import LewelError
from lewel.evaluation.features import BATCH
from lewel.evaluation.subject import Subject
from lewel.run.step import seed_of

MOMENTUM, WEIGHT_DECAY = 0.9, 1e-4  # the decay of everything, norms and biases too (LEWEL: main_semi.py)
NAMELESS = -1  # the label of an image that could not be read
FIRST = 5  # classes that top-5 looks at


class Tuned(nn.Module):
    """Images (N, 3, S, S) -> logits (N, classes)."""

    def __init__(self, encoder: nn.Module, channels: int, classes: int) -> None:
        super().__init__()
        self.encoder, self.fc = encoder, nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.encoder(images).mean((2, 3), dtype=torch.float32))


class Tuning(contextlib.AbstractContextManager["Tuning"]):
    """A context in which a copy of a subject's encoder is trained; every process enters it.

    Its random numbers are functions of seed, epoch, step and process, and the caller's generators stay as they were.
    """

    def __init__(self, subject: Subject, seed: int) -> None:
        self.subject, self.seed = subject, seed
        device = subject.world.device
        self._fork = torch.random.fork_rng([device] if device.type == "cuda" else [])

    def __enter__(self) -> Tuning:
        self._fork.__enter__()
        subject, device = self.subject, self.subject.world.device
        encoder = copy.deepcopy(subject.encoder)
        channels = _thaw(encoder, subject)
        torch.manual_seed(self.seed)
        self.tuned = Tuned(encoder, channels, subject.sets.num_classes).to(device)
        self.call: nn.Module = self.tuned
        if distributed.size() > 1:  # before each step all take the BN buffers of the first
            self.call = DistributedDataParallel(self.tuned, gradient_as_bucket_view=True)
        parts = ([p for p in part.parameters() if p.requires_grad] for part in (self.tuned.encoder, self.tuned.fc))
        groups = [{"params": parameters, "lr": 0.0} for parameters in parts]
        self.optimizer = torch.optim.SGD(groups, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
        self.scaler = torch.amp.GradScaler(device.type, enabled=subject.run.precision == "fp16")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._fork.__exit__(kind, error, trace)

    def epoch(self, loader: data.TrainLoader[Labelled], epoch: int, rates: Sequence[float]) -> float:
        """Trains for one epoch, counted from 0, by rates of encoder and classifier; the mean of its batches' losses.

        An image of label -1, which has none, counts for nothing, and a batch without any label is passed over. The
        network is in train mode, so that BN adapts. Raises LewelError for a loss that is not finite.
        """
        subject, world, steps = self.subject, self.subject.world, 0
        device = world.device
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self.tuned.train()
        total = torch.zeros((), device=device)
        for step, batch in enumerate(loader.epoch(epoch)):
            torch.manual_seed(seed_of(self.seed, epoch, step, subject.world.rank))  # for dropout
            labels = batch.labels.to(device, non_blocking=True)
            named = (batch.labels >= 0).sum().to(device)
            everywhere = world.size * distributed.average(named.double())
            if not everywhere:
                continue
            with subject.autocast():
                logits = self.call(subject.to_device(batch.images))
            # The mean over the labelled images of all processes, of whose gradients DDP takes the mean.
            sums = F.cross_entropy(logits.float(), labels, ignore_index=NAMELESS, reduction="sum")
            loss = sums * (world.size / everywhere).float()
            self.optimizer.zero_grad()
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            total += loss.detach()
            steps += 1
        if not steps:
            raise LewelError("none of the images to fine-tune on could be read; repair or restore them")
        mean = float(distributed.average(total)) / steps
        if not math.isfinite(mean):
            raise LewelError(f"the loss became {mean} in epoch {epoch + 1} of fine-tuning; try a lower --fc-lr or --lr")
        return mean

    @torch.no_grad()
    def accuracies(self) -> tuple[float, float]:
        """Top-1 and top-5 of all test images in percent, in eval mode, with the BN statistics of the first process."""
        subject, world, test = self.subject, self.subject.world, self.subject.sets.test
        distributed.share(self.tuned.buffers())
        self.tuned.eval()
        right = torch.zeros(2, dtype=torch.float64, device=world.device)
        mine = np.arange(len(test))[world.rank :: world.size]
        for images, labels in data.eval_batches(test, BATCH, subject.run.data.workers, indices=mine):
            with subject.autocast():
                logits = self.tuned(subject.to_device(images))
            first = logits.float().topk(min(FIRST, logits.shape[1])).indices
            hits = first == labels.to(world.device)[:, None]
            right += torch.stack([hits[:, 0].sum(), hits.sum()])
        top1, top5 = (100 * world.size * distributed.average(right) / len(test)).tolist()
        return top1, top5

    def state(self) -> dict[str, Any]:
        """Everything that the next epoch depends on."""
        return {
            "weights": self.tuned.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.tuned.load_state_dict(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])


def _thaw(encoder: nn.Module, subject: Subject) -> int:
    """Lets every parameter train that the features depend on, as no classifier inside does; the features' width."""
    encoder.eval().requires_grad_(True)
    images, _ = subject.sets.test[np.arange(1)]
    parameters = list(encoder.parameters())
    with subject.autocast():
        features = encoder(subject.to_device(images)).mean((2, 3), dtype=torch.float32)
    gradients = torch.autograd.grad(features.sum(), parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.requires_grad_(gradient is not None)
    return features.shape[1]
