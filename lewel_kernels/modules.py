"""The op as a layer: holds weight and bias, no maths."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from lewel_kernels import checks, dispatch
from lewel_kernels.functional import fused_align_aggregate


class AlignAggregate(nn.Module):
    """`fused_align_aggregate` with its projection as parameters.

    Args:
        in_dim: D, channels that the projection reads.
        num_maps: K, number of alignment maps.
        num_groups, temperature, eps, out_dtype, backend: as `fused_align_aggregate`.
        bias: whether the projection has one (the official head has none).
        device, dtype: of the parameters.

    The weight (K, D) is initialised Kaiming normal, fan_out, gain sqrt 2, as LEWEL's heads; the bias is zero.

    Raises:
        TypeError, ValueError: as `fused_align_aggregate`, for what is known before a call; a size is not positive.
    """

    def __init__(
        self,
        in_dim: int,
        num_maps: int,
        *,
        num_groups: int = 4,
        temperature: float = 1.0,
        eps: float = 1e-12,
        bias: bool = False,
        out_dtype: torch.dtype | None = None,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_dim, self.num_maps = in_dim, num_maps
        for name, value in (("in_dim", in_dim), ("num_maps", num_maps)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}")
        checks.check_groups(num_groups, num_maps, "num_maps")
        self.temperature = temperature
        self.eps = eps
        checks.check_constants(self.temperature, self.eps, out_dtype)
        if backend is not None:
            dispatch.check_name(backend, "the backend argument")
        self.num_groups = num_groups
        self.out_dtype = out_dtype
        self.backend = backend
        self.weight = nn.Parameter(torch.empty(num_maps, in_dim, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(num_maps, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    @property
    def temperature(self) -> float:
        """The softmax temperature tau. It can be set between calls.

        torch.compile compiles once more for a second value, and for no further ones.
        """
        return self._temperature

    @temperature.setter
    def temperature(self, value: float) -> None:
        self._temperature = checks.known("temperature", value)

    @property
    def eps(self) -> float:
        """Lower bound of the norm over maps. It can be set between calls, as temperature can."""
        return self._eps

    @eps.setter
    def eps(self, value: float) -> None:
        self._eps = checks.known("eps", value)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=math.sqrt(2 / self.weight.shape[0]))
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(
        self,
        features: Tensor,
        pixels: Tensor | None = None,
        return_maps: bool = False,
        *,
        pixels_affine: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """features (N, C, H, W) or (N, C, P), pixels (N, D, ...) -> (N, L, C), and the maps (N, K, P) if asked for.

        pixels_affine: (scale, shift), both (D,), as in `fused_align_aggregate`.
        """
        options: dict[str, Any] = dict(
            pixels=pixels, pixels_affine=pixels_affine, num_groups=self.num_groups, temperature=self.temperature,
            eps=self.eps, out_dtype=self.out_dtype, backend=self.backend, return_maps=return_maps,
        )  # fmt: skip
        return fused_align_aggregate(features, self.weight, self.bias, **options)

    def extra_repr(self) -> str:
        # Sharding may have left the parameters without their shapes, or the module without them.
        weight = getattr(self, "weight", None)
        backend = dispatch.foreseen(None if weight is None else weight.device.type, self.backend)
        return (
            f"{self.in_dim}, {self.num_maps}, num_groups={self.num_groups}, temperature={self.temperature}, "
            f"bias={getattr(self, 'bias', True) is not None}, backend={backend}"
        )
