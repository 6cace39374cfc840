"""What two processes compute, in one: it takes the share of the one, then that of the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lewel.methods import losses
from lewel.methods.method import Method, Pass
from lewel.methods.momentum import follow, split_bn


class InTurns:
    """Called as a method of batch_norm local, for the images of both processes; its loss is the mean of theirs.

    Running statistics are those of the first process, which both have before every step.
    """

    def __init__(self, method: Method) -> None:
        self.method = method

    def __call__(self, first: Tensor, second: Tensor, momentum: float | None, draw: int = 0) -> Pass:
        parts, keys = self.both(first, second, momentum, draw)
        mean = {name: torch.stack(of_each).mean() for name, of_each in parts.items()}
        weight = self.method.settings.w_aligned
        return Pass((1 - weight) * mean["global"] + weight * mean["aligned"], mean, first.flatten(1), keys)

    def both(
        self, first: Tensor, second: Tensor, momentum: float | None, draw: int = 0
    ) -> tuple[dict[str, list[Tensor]], Tensor | None]:
        """The losses of each process, and the keys of both."""
        if momentum is not None and self.method.settings.loss == "infonce":
            follow(self.method.target, self.method.online, momentum, statistics=False)
        shares = [slice(0, len(first) // 2), slice(len(first) // 2, None)]
        if self.method.settings.loss == "byol":
            method = self.method
            seen = self._alternately(
                lambda process: method.objective(
                    method.online, method.target, first[shares[process]], second[shares[process]], None, (0, 0)
                )
            )
            return {name: [step.parts[name] for step in seen] for name in seen[0].parts}, None
        return self._contrast(first, second, draw, shares)

    def _contrast(
        self, first: Tensor, second: Tensor, draw: int, shares: list[slice]
    ) -> tuple[dict[str, list[Tensor]], Tensor]:
        method, settings = self.method, self.method.settings
        views = [(first, second), (second, first)] if settings.symmetric else [(first, second)]
        orders = [
            np.random.default_rng((method.seed, draw, view)).permutation(len(first))
            if settings.key_bn == "shuffle"
            else np.arange(len(first))
            for view in range(len(views))
        ]

        @torch.no_grad()
        def described(images: Tensor) -> tuple[Tensor, ...]:
            return split_bn(method.target, images, settings.split_bn if settings.key_bn == "split" else 1)

        def see(process: int) -> tuple[list, list]:
            mine = shares[process]
            queries = [method.online(query[mine]) for query, _ in views]
            return queries, [described(key[order][mine]) for order, (_, key) in zip(orders, views, strict=True)]

        (mine, my_keys), (theirs, their_keys) = self._alternately(see)
        parts: dict[str, list[Tensor]] = {"global": [], "aligned": []}
        keys = [
            [torch.cat(both)[order.argsort()] for both in zip(*of_both, strict=True)]
            for order, *of_both in zip(orders, my_keys, their_keys, strict=True)
        ]
        for queries, share in zip((mine, theirs), shares, strict=True):
            terms: dict[str, list[Tensor]] = {"global": [], "aligned": []}
            for query, (z, aligned) in zip(queries, keys, strict=True):
                queue = method.objective.queue.keys
                terms["global"].append(losses.info_nce(query.z, z[share], queue, settings.temperature))
                negatives, place = (aligned, share.start) if settings.gather_negatives else (aligned[share], 0)
                terms["aligned"].append(
                    losses.aligned_info_nce(query.aligned, negatives, settings.temperature, first=place)
                )
            for name, directions in terms.items():
                parts[name].append(sum(directions))
        return parts, torch.cat([z for z, _ in keys])

    def _alternately(self, see: Callable[[int], Any]) -> list[Any]:
        """What each process sees, [first, second]."""
        before, found = [x.clone() for x in self.method.buffers()], {}
        for process in (1, 0):
            for buffer, value in zip(self.method.buffers(), before, strict=True):
                buffer.data.copy_(value)  # where autograd, which has no use for running statistics, does not look
            found[process] = see(process)
        return [found[0], found[1]]
