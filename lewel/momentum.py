"""The momentum network: how it follows the online one, and which statistics its BN uses."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


@torch.no_grad()
def follow(target: nn.Module, online: nn.Module, momentum: float, *, statistics: bool) -> None:
    """target = momentum * target + (1 - momentum) * online, for parameters and, with statistics (EMAN), for BN's too.

    EMAN copies the integer buffers (num_batches_tracked); without statistics no buffer is touched.
    """
    old: list[Tensor] = list(target.parameters())
    new: list[Tensor] = list(online.parameters())
    if statistics:
        for mine, theirs in zip(target.buffers(), online.buffers(), strict=True):
            if mine.is_floating_point():
                old.append(mine)
                new.append(theirs)
            else:
                mine.copy_(theirs)
    torch._foreach_lerp_(old, new, 1 - momentum)


def split_bn(network: Callable[[Tensor], tuple[Tensor, ...]], images: Tensor, groups: int) -> tuple[Tensor, ...]:
    """SplitBN: the network on each of equal groups of images, as if every group were on a device of its own.

    A query's batch statistics then say nothing about which group its key was in, which is what ShuffleBN achieves among
    devices; the batch is in random order already, so nothing is shuffled, and nothing has to be put back.
    """
    parts = [network(group) for group in images.chunk(groups)]
    return tuple(torch.cat(outputs) for outputs in zip(*parts, strict=True))
