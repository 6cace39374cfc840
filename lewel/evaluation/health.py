"""Numbers that tell whether a run is healthy: collapse, memory, sharpness and place of the alignment maps."""

from __future__ import annotations

import math
import resource
import sys
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lewel import distributed
from lewel.methods.heads import AlignedHead
from lewel.methods.losses import unit

if TYPE_CHECKING:  # which imports torchvision, and curves are drawn without
    from lewel.methods.method import Method

COLLAPSED = 0.1  # a run whose spread_of stays below for a whole epoch is warned of


def spread_of(z: Tensor) -> Tensor:
    """Standard deviation over the batch of normalised z (N, K), times sqrt(K): 1 all over the sphere, 0 collapsed.

    0-dim and on the device of z, for read.
    """
    return unit(z.detach()).std(0).mean() * math.sqrt(z.shape[1])


def read(values: dict[str, Tensor]) -> dict[str, float]:
    """0-dim tensors of one device -> numbers, means over the processes; the host waits for the device once."""
    stacked = distributed.average(torch.stack([value.detach().float() for value in values.values()]))
    return dict(zip(values, stacked.tolist(), strict=True))


def peak_memory() -> float:
    """The most memory that this process has held, in MiB: of tensors on the GPU, else of the whole process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


@torch.no_grad()
def maps_of(method: Method, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Maps A (N, K, h, w), aligned R (N, L, C), features (N, C, h, w), float32, of the online network in eval mode."""
    head = method.online.head
    assert isinstance(head, AlignedHead), "maps exist where method.w_aligned is above 0"
    method.eval()
    with method.autocast(), torch.compiler.set_stance("force_eager"):
        features = method.online.encoder(images)
        maps, pooled = head.maps(features)
    method.train()
    return maps.float().unflatten(2, features.shape[2:]), pooled.float(), features.float()


def map_statistics(method: Method, images: Tensor) -> dict[str, float]:
    """Mean entropy of the maps over ln P (1 = uniform), and how far aligned vectors lie from GAP, |R - GAP| / |GAP|."""
    maps, pooled, features = maps_of(method, images)
    maps = maps.flatten(2)
    entropy = -(maps * maps.clamp_min(1e-12).log()).sum(-1).mean() / math.log(maps.shape[-1])
    gap = features.mean((2, 3)).unsqueeze(1)
    distance = (pooled - gap).norm(dim=-1) / gap.norm(dim=-1)
    return {"map_entropy": float(entropy), "map_spread": float(distance.mean())}
