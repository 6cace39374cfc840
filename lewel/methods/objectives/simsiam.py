"""SimSiam (Chen & He 2021, arXiv 2011.10566): one network, a predictor, a stop-gradient; with the branch, lewel_s."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from torch import Tensor, nn

from lewel.methods import losses, split_linear
from lewel.methods.heads import SimSiamHead
from lewel.methods.objectives.base import Embed, Objective, Terms
from lewel.recipe import schema


class SimSiam(Objective):
    """-(cos(p1, sg z2) + cos(p2, sg z1)) / 2 for the embeddings z of two views and their predictions p; -1 at best.

    With the aligned branch z is that of the coupled head, whose BN is on the hidden layer alone, and the aligned
    embeddings have the same loss with a predictor of their own.
    """

    names = ("simsiam", "lewel_s")
    has_target = False
    unread = ("target", "momentum", "momentum_schedule", "symmetric", "key_bn", "gather_negatives")

    def __init__(self, run: schema.Train) -> None:
        super().__init__(run)
        self.predictor = bottleneck(run.heads.num_maps)
        if run.method.aligned:
            self.aligned_predictor = bottleneck(run.heads.aligned_out)

    @staticmethod
    def projector(width: int, heads: schema.Heads) -> nn.Module:
        return SimSiamHead(width, heads.hidden, heads.num_maps)

    def forward(
        self, online: Embed, target: None, first: Tensor, second: Tensor, momentum: Any, draw: tuple[int, ...]
    ) -> Terms:
        one, two = online(first), online(second)
        parts = {"global": symmetric_loss(self.predictor, one.z, two.z)}
        if self.settings.aligned:
            predict = partial(split_linear.chain, self.aligned_predictor)
            parts["aligned"] = symmetric_loss(predict, one.aligned, two.aligned)
        return Terms(parts, one.z.detach())

    def undecayed(self) -> Iterable[nn.Parameter]:
        """The predictors' parameters: with a constant rate they reach 68.1 instead of 67.7 percent (Table 1)."""
        return self.parameters()


def bottleneck(width: int) -> nn.Sequential:
    """The predictor (rows, width) -> (rows, width); its hidden layer of width // 4 has BN and ReLU."""
    hidden = max(1, width // 4)
    return nn.Sequential(
        nn.Linear(width, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, width)
    )


def symmetric_loss(predict: Any, one: Tensor, two: Tensor) -> Tensor:
    """Mean of -cos over rows and both directions, 0-dim; the embedding that is predicted gets no gradient."""
    return -(losses.cosine(predict(one), two.detach()) + losses.cosine(predict(two), one.detach())) / 2
