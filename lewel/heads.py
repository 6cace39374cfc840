"""Projectors and predictors (B1-B3 of docs/math.md), among them the coupled head that also makes the alignment maps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import lewel_kernels


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


class MoCoHead(nn.Sequential):
    """MoCo v2's own projector: Linear, ReLU, Linear with biases, PyTorch's initialisation, no BN."""

    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__(nn.Linear(width, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, out))


class CoupledHead(nn.Module):
    """One MLP read twice: at the GAP token it gives the global embedding, at every position the alignment maps.

    Its BN statistics run over all N (1 + P) rows, GAP tokens and positions jointly (B2).
    """

    def __init__(
        self, width: int, hidden: int, num_maps: int, *, num_groups: int, temperature: float, backend: str | None
    ) -> None:
        super().__init__()
        self.mlp = MLP(width, hidden, num_maps)
        self.num_groups = num_groups
        self.temperature = temperature
        self.backend = backend

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """features (N, C, H, W) -> global embedding z (N, K), aligned representations R (N, K // num_groups, C).

        R is float32 also under autocast: it differs from GAP by about one percent, of which bfloat16 keeps little.
        """
        tokens = self.tokens(features)
        z = self.mlp.out(tokens[:, 0])  # B3 at the GAP row
        pooled = lewel_kernels.fused_align_aggregate(features, self.mlp.out.weight, **self._alignment(features, tokens))
        return z, pooled

    def maps(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """features (N, C, H, W) -> alignment maps A (N, K, H W), aligned representations R (N, K // num_groups, C)."""
        pooled, maps = lewel_kernels.fused_align_aggregate(
            features, self.mlp.out.weight, return_maps=True, **self._alignment(features, self.tokens(features))
        )
        return maps, pooled

    def tokens(self, features: Tensor) -> Tensor:
        """B1, B2: features (N, C, H, W) -> Hn (N, 1 + P, D), the GAP row first."""
        positions = features.flatten(2).transpose(1, 2)  # [N, P, C]
        rows = torch.cat([positions.mean(1, keepdim=True), positions], dim=1)
        hidden = self.mlp.hidden(rows.flatten(0, 1))
        return hidden.unflatten(0, rows.shape[:2])

    def _alignment(self, features: Tensor, tokens: Tensor) -> dict[str, Any]:
        return {
            "pixels": tokens[:, 1:].transpose(1, 2),  # [N, D, P], a view
            "num_groups": self.num_groups,
            "temperature": self.temperature,
            "out_dtype": torch.promote_types(features.dtype, torch.float32),
            "backend": self.backend,
        }
