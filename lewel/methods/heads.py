"""The MLP of projectors and predictors (B1-B3 of docs/math.md), and the heads that make aligned representations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lewel_kernels
from lewel.recipe import schema


class MLP(nn.Module):
    """Linear, BN, ReLU, Linear, no biases: (rows, width) -> (rows, out), BN statistics over the rows."""

    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__()
        first = nn.Linear(width, hidden, bias=False)
        self.hidden = nn.Sequential(first, nn.BatchNorm1d(hidden), nn.ReLU(inplace=True))
        self.out = nn.Linear(hidden, out, bias=False)
        for layer in (first, self.out):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, rows: Tensor) -> Tensor:
        return self.out(self.hidden(rows))


class AlignedHead(nn.Module, ABC):
    """The base of heads with alignment maps: features in, global embedding z (N, K) and aligned representations R out.

    R is float32 also under autocast: it differs from GAP by about one percent, of which bfloat16 keeps little.
    """

    def __init__(self, width: int, settings: schema.Heads, backend: str | None) -> None:
        super().__init__()
        self.mlp = MLP(width, settings.hidden, settings.num_maps)
        self.settings = settings
        self.backend = backend

    @abstractmethod
    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """features (N, C, H, W) -> global embedding z (N, K), aligned representations R (N, K // num_groups, C)."""

    @abstractmethod
    def maps(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """features (N, C, H, W) -> alignment maps A (N, K, H W), aligned representations R (N, K // num_groups, C)."""


class LearnedMapsHead(AlignedHead):
    """A head whose maps an MLP makes at every position; the fused op pools the features with them."""

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        z, hidden, weight = self.read(features)
        return z, lewel_kernels.fused_align_aggregate(features, weight, **self.options(features, hidden))

    def maps(self, features: Tensor) -> tuple[Tensor, Tensor]:
        _, hidden, weight = self.read(features)
        options = self.options(features, hidden)
        pooled, maps = lewel_kernels.fused_align_aggregate(features, weight, return_maps=True, **options)
        return maps, pooled

    @abstractmethod
    def read(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """features (N, C, H, W) -> z (N, K), the hidden map Hn (N, P, D) and the weight W2 (K, D) of the heat maps."""

    def options(self, features: Tensor, hidden: Tensor) -> dict[str, Any]:
        """What the op takes beside features and weight; hidden is Hn (N, P, D) at the positions."""
        return {
            "pixels": hidden.transpose(1, 2),  # [N, D, P], a view
            "num_groups": self.settings.num_groups,
            "temperature": self.settings.tau,
            "out_dtype": torch.promote_types(features.dtype, torch.float32),
            "backend": self.backend,
        }


class CoupledHead(LearnedMapsHead):
    """LEWEL's: one MLP read twice, at the GAP token as the global embedding, at every position as the alignment maps.

    Its BN statistics run over all N (1 + P) rows, GAP tokens and positions jointly (B2).
    """

    def read(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        positions = features.flatten(2).transpose(1, 2)  # [N, P, C]
        rows = torch.cat([positions.mean(1, keepdim=True), positions], dim=1)
        hidden = self.mlp.hidden(rows.flatten(0, 1)).unflatten(0, rows.shape[:2])  # B1, B2
        return self.mlp.out(hidden[:, 0]), hidden[:, 1:], self.mlp.out.weight  # B3 at the GAP row


class SeparateHead(LearnedMapsHead):
    """The ablation without coupling (Tab. 5): an MLP of its own makes the maps, from the positions alone."""

    def __init__(self, width: int, settings: schema.Heads, backend: str | None) -> None:
        super().__init__(width, settings, backend)
        self.map_mlp = MLP(width, settings.hidden, settings.num_maps)

    def read(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        positions = features.flatten(2).transpose(1, 2)  # [N, P, C]
        hidden = self.map_mlp.hidden(positions.flatten(0, 1)).unflatten(0, positions.shape[:2])
        return self.mlp(gap(features)), hidden, self.map_mlp.out.weight


class FixedMapsHead(AlignedHead):
    """The ablations without learned maps: random ones, drawn anew for every image (Tab. 6, "w/ rand."), or uniform.

    z is that of an MLP at the GAP token. Random maps are E2-E4 of Gaussian noise in place of heat maps. With uniform
    ones every R is the GAP token.
    """

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self.mlp(gap(features)), self.maps(features)[1]

    def maps(self, features: Tensor) -> tuple[Tensor, Tensor]:
        features = features.to(torch.promote_types(features.dtype, torch.float32)).flatten(2)
        heat = features.new_ones(len(features), self.settings.num_maps, features.shape[2])
        if self.settings.maps == "random":
            heat.normal_()
        maps = (F.normalize(heat, dim=1) / self.settings.tau).softmax(-1)
        with torch.autocast(features.device.type, enabled=False):
            return maps, lewel_kernels.align_aggregate(features, maps, self.settings.num_groups)


def aligned_head(width: int, settings: schema.Heads, backend: str | None) -> AlignedHead:
    """The head that settings.maps and settings.coupling name."""
    if settings.maps != "learned":
        return FixedMapsHead(width, settings, backend)
    return (CoupledHead if settings.coupling == "coupled" else SeparateHead)(width, settings, backend)


def gap(features: Tensor) -> Tensor:
    """Global average pooling: (N, C, H, W) -> (N, C)."""
    return features.mean((2, 3))
