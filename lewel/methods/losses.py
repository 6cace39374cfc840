"""InfoNCE against a queue, InfoNCE among aligned embeddings, and cosines of predictions.

All compute in at least float32, also where they are called under autocast.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from lewel import ranges
from lewel.errors import LewelError

Loss = TypeVar("Loss", bound=Callable[..., Tensor])
BLOCK_BYTES = 32 << 20  # of aligned logits; a GPU is busy for longer than it takes to launch the work on a block


def without_autocast(loss: Loss) -> Loss:
    """Decorator of a loss whose first argument is a tensor: runs it without autocast, so products keep its dtype."""

    @functools.wraps(loss)
    def protected(x: Tensor, /, *args: Any, **options: Any) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return loss(x, *args, **options)

    return protected  # type: ignore[return-value]


def unit(x: Tensor) -> Tensor:
    """x (..., K) scaled to length one, in at least float32."""
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)


@ranges.ranged(ranges.LOSS)
@without_autocast
def info_nce(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Global contrastive loss, 0-dim: query (N, K) against its key (N, K) and the negatives in queue (Q, K).

    Rows of queue must have length one. Starts near ln(1 + Q) once the queue holds keys of the same network.
    """
    query, key = unit(query), unit(key)
    positive = (query * key).sum(-1, keepdim=True)
    logits = torch.cat([positive, query @ queue.T], dim=1) / temperature  # [N, 1 + Q]
    return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long))


@ranges.ranged(ranges.LOSS)
@without_autocast
def aligned_info_nce(query: Tensor, key: Tensor, temperature: float, *, first: int = 0) -> Tensor:
    """Aligned contrastive loss, 0-dim: query (N, L, K) against the key (M, L, K) of the same image and l.

    The key of image n is number first + n; first is rank * N where the keys are those of all processes. Negatives are
    all aligned keys of the other M - 1 images; the other l of the same image are left out. Starts near ln(1 + (M - 1)
    L). The logits (N L, M L) exist a block at a time.

    Raises:
        LewelError: not every query has a key, or, in the backward, a second derivative is wanted.
    """
    num_images, num_aligned, width = query.shape
    if key.shape[1:] != query.shape[1:] or not 0 <= first <= len(key) - num_images:
        raise LewelError(
            f"each of N = {num_images} queries needs its key: give keys (M, {num_aligned}, {width}), of its images "
            f"or of all processes, first from 0 to M - N; got keys {tuple(key.shape)} and first = {first}"
        )
    queries, keys = (unit(query) / temperature).flatten(0, 1), unit(key).flatten(0, 1)
    return _SumOfAlignedInfoNCE.apply(queries, keys, num_aligned, first) / len(queries)


class _SumOfAlignedInfoNCE(torch.autograd.Function):
    """Sum of the aligned InfoNCE over queries (N L, K), divided by the temperature already, against keys (M L, K).

    The forward computes the gradients too: it has the probabilities that they need, and keeps N L x K numbers in place
    of them. A backward that began at the queries again would need a third matrix product beside the two of the plain
    formula, and be slower than that.
    """

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, num_aligned: int, first: int) -> Tensor:
        of_queries, of_keys, *_ = ctx.needs_input_grad
        grad_queries = torch.empty_like(queries) if of_queries else None
        grad_keys = torch.zeros_like(keys) if of_keys else None
        losses = queries.new_empty(len(queries))
        another = ~torch.eye(num_aligned, dtype=torch.bool, device=queries.device)[..., None]
        num_keys = len(keys) // num_aligned
        images = max(1, BLOCK_BYTES // (keys.element_size() * len(keys) * num_aligned))  # of a block
        buffers = queries.new_empty(2, min(images * num_aligned, len(queries)), len(keys))
        for begin in range(0, len(queries), images * num_aligned):
            rows, its_key = slice(begin, begin + images * num_aligned), begin + first * num_aligned
            logits, p = buffers[:, : len(queries[rows])]
            torch.mm(queries[rows], keys.T, out=logits)  # autocast leaves alone what says where to put its result
            by_image = logits.view(-1, num_aligned, num_keys, num_aligned)
            same_image = by_image.diagonal(its_key // num_aligned, 0, 2)  # [L, L, images]
            same_image.masked_fill_(another, float("-inf"))
            torch.log_softmax(logits, 1, out=p)
            positives = p.diagonal(its_key)
            torch.neg(positives, out=losses[rows])
            if of_queries or of_keys:
                p.exp_()
                positives.sub_(1)
            if grad_queries is not None:
                torch.mm(p, keys, out=grad_queries[rows])
            if grad_keys is not None:
                grad_keys.addmm_(p.T, queries[rows])
        ctx.save_for_backward(grad_queries, grad_keys)
        return losses.sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # once_differentiable takes the saved gradients for constants: zero, and no error
            raise LewelError("the aligned InfoNCE has no second derivative: take its gradient without create_graph")
        return *(None if gradient is None else grad * gradient for gradient in ctx.saved_tensors), None, None


def byol_distance(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean of 2 - 2 cos(prediction, target) over all rows (..., K): 2 for unrelated vectors, 0 for parallel ones."""
    return 2 - 2 * cosine(prediction, target)


@ranges.ranged(ranges.LOSS)
@without_autocast
def cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean cosine of prediction and target over all rows (..., K)."""
    return (unit(prediction) * unit(target)).sum(-1).mean()
