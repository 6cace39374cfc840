"""A linear classifier trained beside a method on the features of its encoder; the method learns nothing from it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lewel import distributed, ranges

ROWS = 1024  # images that are classified at a time


class Probe(nn.Module):
    """Softmax regression on standardised features (N, C), a step of SGD a pass; labels (N,) are below classes, or -1.

    Features of methods differ in scale a hundredfold, and so do the rates that suit them: here each channel has its
    running mean taken off and is divided by its running deviation, and one rate suits all. It classifies by a running
    mean of the weights that SGD goes through, which its noise leaves. Everything starts at zero and the gradient is
    written down: no generator is touched, no graph is made, nothing waits for the device. Several processes learn as
    one from the images of all, by one exchange a pass. It computes in float32, or in what it was converted to.
    """

    RATE = 30.0  # over the number of channels, with which the curvature grows
    MOMENTUM = 0.9
    MEMORY = 0.98  # of the weights that it classifies by: of the last 50 passes; at first their plain mean
    STATISTICS = 0.9  # of mean and variance, likewise
    SMALLEST = 1e-4  # is added to a channel's variance, times the mean over all: a dead one is not blown up

    fast: Tensor
    velocity: Tensor
    weights: Tensor
    mean: Tensor
    variance: Tensor
    numbers: Tensor

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.channels, self.classes, self.passes = channels, classes, 0
        for name in ("fast", "velocity", "weights"):  # of each class those of the channels, and its bias
            self.register_buffer(name, torch.zeros(classes, channels + 1))
        for name in ("mean", "variance"):
            self.register_buffer(name, torch.zeros(channels))
        self.register_buffer("numbers", torch.arange(classes), persistent=False)

    def get_extra_state(self) -> int:
        return self.passes

    def set_extra_state(self, state: Any) -> None:
        self.passes = int(state)

    @ranges.ranged(ranges.PROBE)
    @torch.no_grad()
    def learn(self, features: Tensor, labels: Tensor) -> None:
        """A pass: features (N, C) and labels (N,) int64, both on the probe's device; all processes call it together.

        The mean of the loss is over the images with a label, in all processes; mean and variance are over all images,
        and standardise from the next pass on. The first pass has none, and moves no weight. A process may have no
        image (N = 0) in a later pass.
        """
        with torch.autocast(features.device.type, enabled=False):
            # An overflow, of a step that a gradient scaler leaves out, shall not stay in the statistics for ever.
            offset = features.to(self.mean.dtype).nan_to_num(0.0, 0.0, 0.0) - self.mean
            rows, known = self._standardised(offset), labels >= 0
            error = (rows @ self.fast.T).softmax(1)
            error.sub_((labels[:, None] == self.numbers).to(error.dtype))
            error.mul_(known[:, None])
            counts = torch.stack([known.sum(), known.new_full((), len(rows), dtype=torch.int64)]).to(rows.dtype)
            parts = (error.T @ rows, offset.sum(0), offset.square().sum(0), counts)
            shared = distributed.average(torch.cat([part.flatten() for part in parts]))
            gradient, shift, square, counts = shared.split([part.numel() for part in parts])
            count, images = counts
            if self.passes:
                self.velocity.mul_(self.MOMENTUM).add_((gradient / count.clamp_min(1e-6)).view_as(self.velocity))
                self.fast.add_(self.velocity, alpha=-self.RATE / len(self.mean))
                self.weights.lerp_(self.fast, max(1 - self.MEMORY, 1 / self.passes))
            new = (images > 0).to(rows.dtype) * max(1 - self.STATISTICS, 1 / (self.passes + 1))
            shift, square = shift / images.clamp_min(1e-6), square / images.clamp_min(1e-6)
            self.mean.addcmul_(shift, new)
            self.variance.lerp_((square - shift.square()).clamp_min_(0), new)
        self.passes += 1

    @torch.no_grad()
    def correct(self, features: Tensor, labels: Tensor) -> Tensor:
        """How many of features (N, C) it gives their labels (N,), 0-dim int64; -1 is no class, and never given."""
        right = labels.new_zeros(())
        for rows, truth in zip(features.split(ROWS), labels.split(ROWS), strict=True):
            scores = self._standardised(rows.to(self.mean.dtype) - self.mean) @ self.weights.T
            right += (scores.argmax(1) == truth).sum()
        return right

    def _standardised(self, offset: Tensor) -> Tensor:
        """(N, C) less its mean -> (N, C + 1), divided by its deviation, with ones for the biases."""
        floor = self.SMALLEST * self.variance.mean() + torch.finfo(offset.dtype).tiny
        return nn.functional.pad(offset * (self.variance + floor).rsqrt(), (0, 1), value=1.0)
