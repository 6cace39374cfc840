"""SimSiam (Chen & He 2021, arXiv 2011.10566): one network, a predictor, a stop-gradient; with the branch, lewel_s."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn

from lewel.methods import losses, split_linear
from lewel.methods.objectives.base import Embed, Objective, Projectors, Terms
from lewel.recipe import schema


class SimSiamHead(nn.Sequential):
    """SimSiam's projector: Linear layers with BN and ReLU, the last with BN alone, which has no weights of its own.

    PyTorch's initialisation, no biases. Its authors take three layers, and two for CIFAR-10.
    """

    def __init__(self, width: int, hidden: int, out: int, layers: int = 3) -> None:
        parts: list[nn.Module] = []
        for _ in range(layers - 1):
            parts += [nn.Linear(width, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True)]
            width = hidden
        super().__init__(*parts, nn.Linear(width, out, bias=False), nn.BatchNorm1d(out, affine=False))


class SimSiam(Objective):
    """-(cos(p1, sg z2) + cos(p2, sg z1)) / 2 for the embeddings z of two views and their predictions p; -1 at best.

    With the aligned branch z is that of the coupled head, whose BN is on the hidden layer alone, and the aligned
    embeddings have the same loss with a predictor of their own.
    """

    names = ("simsiam", "lewel_s")
    projectors: ClassVar[Projectors] = {"simsiam": SimSiamHead, "simsiam2": partial(SimSiamHead, layers=2)}
    has_target = False
    # As of byol: temperature, queue and split_bn are not read, and yet not refused.
    unread = ("target", "momentum", "momentum_schedule", "symmetric", "key_bn", "gather_negatives")

    def __init__(self, run: schema.Train) -> None:
        super().__init__(run)
        self.predictor = bottleneck(run.heads.num_maps)
        if run.method.aligned:
            self.aligned_predictor = bottleneck(run.heads.aligned_out)

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
