"""Many linear classifiers on the same features, trained together as one stacked matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lewel import distributed

MOMENTUM = 0.9
TRUST = 1e-3  # eta of LARC
SPREAD = 0.01  # standard deviation of initial weights
ROOM = 2**24  # numbers that the logits, or the gradients, of the heads that are computed at a time may be
ROWS = 1024  # that are classified at a time
ALIGNED = 8  # a row of the matrix has a multiple of so many numbers


class Head(NamedTuple):
    """What makes a head differ from those beside it."""

    rate: float
    """learning rate where the schedule is at 1"""
    seed: int
    """of its initial weights"""


class _Part(NamedTuple):
    """Views of what a step of some of the heads works on; n of them, with B images a batch and rows of D numbers."""

    weights: Tensor  # (n, K, D)
    velocity: Tensor  # (n, K, D)
    rates: Tensor  # (n, 1, 1), negative
    logits: Tensor  # (n, K, B)
    errors: Tensor  # (n, K, B)
    summed: Tensor  # (n K D + 1,): the gradient's sum over images, and how many these are
    blind: bool

    @property
    def gradient(self) -> Tensor:
        return self.summed[:-1].view_as(self.weights)


class Heads:
    """L linear classifiers of features (B, C) into K classes; each has a learning rate and initial weights of its own.

    seeing heads train on every image. blind ones, which have the numbers after those, leave out images that are held
    out. An image of label -1, which has none, counts for no head. The optimizer is SGD with momentum as PyTorch writes
    it: v = momentum v + g, w = w - rate v, without decay. With larc, g is scaled before, as in apex (simsiam:
    main_lincls.py): by eta |w| / (|g| + 1e-8), for the weights and the bias of each head apart, but by nothing where
    |w| or |g| is 0, as that of the bias at the first step.

    The weights are (L, K, D), D at least C + 1: column C is the bias, for features get a 1 there, and zeros after it.
    No head's numbers enter those of another, so one that diverges disturbs none. Every process of several gives its
    share of each batch; weights are the same in all.
    """

    def __init__(
        self,
        seeing: Sequence[Head],
        blind: Sequence[Head] = (),
        *,
        classes: int,
        width: int,
        larc: bool = False,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.heads, self.classes, self.width, self.larc = (*seeing, *blind), classes, width, larc
        self.blind = len(seeing)  # number of the first blind head
        row = -(-(width + 1) // ALIGNED) * ALIGNED
        start = torch.zeros(len(self.heads), classes, row, dtype=dtype)
        drawn: dict[int, Tensor] = {}
        for head, weights in zip(self.heads, start, strict=True):
            if head.seed not in drawn:
                drawn[head.seed] = torch.randn(classes, width, generator=torch.Generator().manual_seed(head.seed))
            weights[:, :width] = SPREAD * drawn[head.seed]
        self.weights = start.to(device)
        self.velocity = torch.zeros_like(self.weights)
        rates = torch.tensor([-head.rate for head in self.heads], dtype=dtype)
        self._rates = rates.to(device)[:, None, None]
        self._images = 0
        self._rows = self._truth = self.weights.new_empty(0)
        self._parts: list[_Part] = []

    def step(self, features: Tensor, labels: Tensor, factor: float, held: Tensor | None = None) -> None:
        """One step on features (B, C), of 16 or 32 bits, and their labels (B,) int64, at the rates times factor.

        The loss is the mean over the images that have labels, those below 0 being none. held (B,) bool says which
        images blind heads must not see; of several processes each gives a share of the batch.
        """
        # The mean cross-entropy of logits Z = X W^T has the gradient (softmax(Z) - onehot)^T X / B in W. Everything is
        # transposed, images last: a softmax over a middle dimension is vectorised over them, over 10 classes it is not.
        if len(features) != self._images:
            self._lay_out(len(features))
        rows, truth = self._rows, self._truth
        rows[:, : self.width].copy_(features)
        rows[:, self.width] = 1
        truth.zero_().scatter_(0, labels.clamp(min=0)[None], 1)
        # An image whose row is zeros, the 1 for the bias included, adds nothing to a gradient. The blind come last.
        without = labels < 0
        rows.masked_fill_(without[:, None], 0)
        sees = True
        for part in self._parts:
            if part.blind and sees:
                assert held is not None, "blind heads are to be told what is held out"
                without, sees = without | held, False
                rows.masked_fill_(without[:, None], 0)
            torch.mm(part.weights.flatten(0, 1), rows.T, out=part.logits.flatten(0, 1))
            torch.softmax(part.logits, 1, out=part.errors)
            part.errors.sub_(truth)
            torch.sum(~without, 0, dtype=rows.dtype, out=part.summed[-1])
            torch.mm(part.errors.flatten(0, 1), rows, out=part.gradient.flatten(0, 1))
            distributed.add_up(part.summed)
            scale = part.summed[-1].clamp(min=1).reciprocal()
            if self.larc:
                scale = self._adapted(part, scale)
            part.velocity.mul_(MOMENTUM).addcmul_(part.gradient, scale)
            part.weights.addcmul_(part.velocity, part.rates, value=factor)

    def correct(self, features: Tensor, labels: Tensor, top: int = 1, scale: float = 1.0) -> Tensor:
        """How many of features (N, C), times scale, each head classifies as labels (N,) say: (L,) int64.

        With top, of how many the class is among its first top ones. A class is before another only if its logit is
        higher: heads that know nothing are right of nothing. Of several processes each counts the rows it is given.
        """
        found = torch.zeros(len(self.heads), dtype=torch.int64, device=self.weights.device)
        for some, truth in zip(features.split(ROWS), labels.split(ROWS), strict=True):
            rows = self._with_one(len(some))
            rows[:, : self.width].copy_(some).mul_(scale)
            size = max(1, ROOM // (len(rows) * self.classes))
            for first in range(0, len(self.heads), size):
                weights = self.weights[first : first + size]
                logits = torch.mm(weights.flatten(0, 1), rows.T).unflatten(0, weights.shape[:2])
                place = truth.expand(len(weights), 1, -1)
                its = logits.gather(1, place)
                logits.scatter_(1, place, -torch.inf)
                # What is not a number is before every class.
                right = logits.amax(1, True) < its if top == 1 else (~(logits < its)).sum(1, True) < top
                found[first : first + size] += (right & its.isfinite()).sum((1, 2))
        return found

    def finite(self) -> list[bool]:
        """Of each head whether all its weights are; one whose rate is too high may have others."""
        return self.weights.isfinite().flatten(1).all(1).tolist()

    def state_dict(self) -> dict[str, Tensor]:
        return {"weights": self.weights, "velocity": self.velocity}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, value in self.state_dict().items():
            value.copy_(state[name])

    def _lay_out(self, images: int) -> None:
        """Room for batches of so many images, and the parts in which heads are computed."""
        heads, classes, row = self.weights.shape
        self._images = images
        self._rows = self._with_one(images)
        self._truth = self.weights.new_zeros(classes, images)
        size = min(max(1, ROOM // (classes * max(images, row))), heads)
        logits, errors = (self.weights.new_empty(size, classes, images) for _ in range(2))
        summed = self.weights.new_empty(size * classes * row + 1)
        self._parts = []
        for start, end, blind in ((0, self.blind, False), (self.blind, heads, True)):
            for first in range(start, end, size):
                at = slice(first, min(first + size, end))
                n = at.stop - first
                numbers = summed[: n * classes * row + 1]
                views = self.weights[at], self.velocity[at], self._rates[at], logits[:n], errors[:n], numbers
                self._parts.append(_Part(*views, blind))

    def _with_one(self, images: int) -> Tensor:
        """Rows (images, D) for features: zeros, but a 1 for the bias."""
        rows = self.weights.new_zeros(images, self.weights.shape[2])
        rows[:, self.width] = 1
        return rows

    def _adapted(self, part: _Part, scale: Tensor) -> Tensor:
        """LARC's factor of each number of a gradient, (n, 1, D), times scale, which makes a sum over images a mean."""
        factors = torch.empty_like(part.weights[:, :1])
        for columns in (slice(0, self.width), slice(self.width, None)):
            w, g = (
                torch.linalg.vector_norm(x[..., columns], dim=(1, 2), keepdim=True)
                for x in (part.weights, part.gradient)
            )
            g = g * scale
            adapts = (w > 0) & (g > 0)
            factors[..., columns] = torch.where(adapts, TRUST * w / (g + 1e-8), 1.0) * scale
        return factors
