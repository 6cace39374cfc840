"""InfoNCE against a queue, InfoNCE among aligned embeddings, and the BYOL distance. All in at least float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def unit(x: Tensor) -> Tensor:
    """x (..., K) scaled to length one, in at least float32."""
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)


def info_nce(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Global contrastive loss: query (N, K) finds its key (N, K) among queue (Q, K), whose rows have length one.

    Starts near ln(1 + Q) once the queue holds keys of the same network.
    """
    query, key = unit(query), unit(key)
    positive = (query * key).sum(-1, keepdim=True)
    logits = torch.cat([positive, query @ queue.T], dim=1) / temperature  # [N, 1 + Q]
    return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long))


def aligned_info_nce(query: Tensor, key: Tensor, temperature: float, *, first: int = 0) -> Tensor:
    """Aligned contrastive loss: query (N, L, K) finds key (N, L, K) of the same image and l.

    Negatives are all aligned keys of the other images; the other l of the same image are left out. Starts near
    ln(1 + (N - 1) L).
    """
    images, aligned, _ = query.shape
    logits = unit(query).flatten(0, 1) @ unit(key).flatten(0, 1).T / temperature  # [N L, M L]
    mine = torch.arange(first, first + images, device=query.device).repeat_interleave(aligned)
    theirs = torch.arange(len(key), device=query.device).repeat_interleave(aligned)
    positive = torch.arange(len(logits), device=query.device) + first * aligned
    same_image = mine[:, None] == theirs
    same_image[torch.arange(len(logits)), positive] = False
    return F.cross_entropy(logits.masked_fill(same_image, float("-inf")), positive)


def byol_distance(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean of 2 - 2 cos(prediction, target) over all rows (..., K): 2 for unrelated vectors, 0 for parallel ones."""
    return 2 - 2 * (unit(prediction) * unit(target)).sum(-1).mean()
