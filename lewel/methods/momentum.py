"""The momentum network: how it follows the online one, and which images its BN takes statistics over."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lewel import distributed, ranges
from lewel.errors import LewelError

Network = Callable[[Tensor], tuple[Tensor, ...]]


@ranges.ranged(ranges.MOMENTUM)
@torch.no_grad()
def follow(target: nn.Module, online: nn.Module, momentum: float, *, statistics: bool) -> None:
    """target = momentum * target + (1 - momentum) * online, for parameters and, with statistics (EMAN), for BN's too.

    EMAN copies the integer buffers (num_batches_tracked); without statistics no buffer is touched.
    """
    old: list[Tensor] = list(target.parameters())
    new: list[Tensor] = list(online.parameters())
    if statistics:
        buffers = list(zip(target.buffers(), online.buffers(), strict=True))
        counts = [pair for pair in buffers if not pair[0].is_floating_point()]
        old += [mine for mine, _ in buffers if mine.is_floating_point()]
        new += [theirs for _, theirs in buffers if theirs.is_floating_point()]
        torch._foreach_copy_([mine for mine, _ in counts], [theirs for _, theirs in counts])
    torch._foreach_lerp_(old, new, 1 - momentum)


def split_bn(network: Network, images: Tensor, groups: int) -> tuple[Tensor, ...]:
    """SplitBN: the network on each of equal groups of images, as if every group were on a device of its own.

    A query's batch statistics then say nothing about which group its key was in, which is what ShuffleBN achieves among
    devices; the batch is in random order already, so nothing is shuffled, and nothing has to be put back.
    Raises LewelError for images (N, ...) that groups does not divide.
    """
    if len(images) % groups:
        raise LewelError(
            f"SplitBN needs groups of equal size, got {len(images)} images for {groups} groups; "
            "choose another method.split_bn, or drop the last batch of an epoch where it is smaller"
        )
    parts = [network(group) for group in images.chunk(groups)]
    return tuple(torch.cat(outputs) for outputs in zip(*parts, strict=True))


def shuffle_bn(network: Network, images: Tensor, seed: tuple[int, ...]) -> tuple[Tensor, ...]:
    """ShuffleBN: every process runs the network on images drawn from all processes, and gets all outputs.

    images (N, ...) are this process's; each output is (size N, ...), in the order of ranks and images, not as they were
    shuffled. seed must be the same in all processes. No gradient. A process receives the N images that it runs the
    network on, not those of all.
    """
    import numpy as np  # here, for recipes are listed without it too

    count, rank, size = len(images), distributed.rank(), distributed.size()
    shuffled = np.random.default_rng(seed).permutation(count * size)
    seen = shuffled.reshape(size, count)  # by each process, as numbers among the images of all
    owner = seen // count
    arriving = owner[rank].argsort(kind="stable")  # places in seen[rank], in the order of ranks that images come in
    leaving = seen[owner == rank] - rank * count
    orders = torch.from_numpy(np.concatenate([leaving, arriving.argsort(), shuffled.argsort()]))
    if images.is_cuda:
        orders = orders.pin_memory()  # or the copy would wait for the device
    leave, arrive, back = orders.to(images.device, non_blocking=True).split([count, count, count * size])
    sent, received = (owner == rank).sum(1).tolist(), np.bincount(owner[rank], minlength=size).tolist()
    outputs = network(distributed.exchange(images[leave], sent, received)[arrive])
    return tuple(distributed.gather(output)[back] for output in outputs)
