"""InfoNCE with a queue of keys: moco_v2 (He et al. 2020, Chen et al. 2020) and, with the aligned branch, lewel_m."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from lewel import distributed
from lewel.errors import LewelError
from lewel.methods import losses
from lewel.methods.key_queue import KeyQueue
from lewel.methods.momentum import shuffle_bn, split_bn
from lewel.methods.objectives.base import Embed, Embedding, Objective, Projectors, Terms, total
from lewel.recipe import schema
from lewel.recipe.feature_maps import CUSTOM


class MoCoHead(nn.Sequential):
    """MoCo v2's own projector: Linear, ReLU, Linear with biases, PyTorch's initialisation, no BN."""

    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__(nn.Linear(width, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, out))


class Contrast(Objective):
    """InfoNCE: first views in the online network are queries, second views in the target are keys. It has the queue."""

    names = ("moco_v2", "lewel_m")
    projectors: ClassVar[Projectors] = {"moco": MoCoHead}

    def __init__(self, run: schema.Train) -> None:
        super().__init__(run)
        self.queue = KeyQueue(run.method.queue, run.heads.num_maps)

    def forward(
        self,
        online: nn.Module,
        target: nn.Module,
        first: Tensor,
        second: Tensor,
        momentum: float | None,
        draw: tuple[int, ...],
    ) -> Terms:
        """The terms of one pass, in MoCo's order: queries, then the target follows, then keys."""
        views = [(first, second), (second, first)] if self.settings.symmetric else [(first, second)]
        queries = [online(query) for query, _ in views]
        if momentum is not None:
            self.follow(online, target, momentum)
        with torch.no_grad():
            pairs = [self._keys(target, key, (*draw, view)) for view, (_, key) in enumerate(views)]
        tau, mine = self.settings.temperature, distributed.rank() * len(first)
        parts = {
            "global": total(
                losses.info_nce(query.z, keys.z[mine : mine + len(first)], self.queue.keys, tau)
                for query, keys in zip(queries, pairs, strict=True)
            )
        }
        if self.settings.aligned:
            parts["aligned"] = total(
                losses.aligned_info_nce(query.aligned, keys.aligned, tau, first=mine * self.settings.gather_negatives)
                for query, keys in zip(queries, pairs, strict=True)
            )
        return Terms(parts, queries[0].z.detach(), torch.cat([keys.z for keys in pairs]))

    def finish(self, online: nn.Module, target: nn.Module | None, keys: Tensor | None, momentum: float) -> None:
        """Puts the keys (size N, K) of all processes and passes into the queue; forward let the target follow."""
        if keys is None:
            raise LewelError("finish takes the keys of the step's passes, Pass.keys, for the queue, and got None")
        self.queue.enqueue(keys)

    def _keys(self, target: Embed, images: Tensor, seed: tuple[int, ...]) -> Embedding:
        """The target's z of all processes' images; aligned embeddings of this one's, or of all (gather_negatives)."""
        kind = self.key_bn
        if kind == "shuffle":
            z, aligned = shuffle_bn(target, images, seed)
            mine = slice(distributed.rank() * len(images), (distributed.rank() + 1) * len(images))
            return Embedding(z, aligned if self.settings.gather_negatives else aligned[mine])
        z, aligned = split_bn(target, images, self.settings.split_bn if kind == "split" else 1)
        return Embedding(
            distributed.gather(z), distributed.gather(aligned) if self.settings.gather_negatives else aligned
        )

    @property
    def key_bn(self) -> str:
        """settings.key_bn, with "auto" replaced by what it stands for in so many processes."""
        return self.settings.key_bn_among(distributed.size())

    @classmethod
    def check(cls, run: schema.Train, processes: int) -> None:
        super().check(run, processes)
        method, images = run.method, run.data.batch_size // (processes * run.accumulate)
        if method.gather_negatives and not method.aligned:
            raise LewelError(f"method.gather_negatives is about the aligned loss of lewel_m, but this is {method.name}")
        keys = run.keys_per_step
        if method.queue < keys:
            raise LewelError(f"method.queue must hold at least the {keys} keys that a step adds, got {method.queue}")
        if method.key_bn == "shuffle" and processes == 1:
            raise LewelError("method.key_bn shuffle needs several processes (torchrun); on one, split stands in for it")
        splits = method.key_bn_among(processes) == "split"
        if splits and images % method.split_bn:
            raise LewelError(
                f"the images of a pass must be divisible by method.split_bn, got {images} in {method.split_bn} groups"
            )
        # The narrowest BN of the keys: over the aligned vectors or, without them, over the positions of the map.
        if method.aligned:
            per_image = run.heads.num_maps // run.heads.num_groups
        else:  # of an encoder from Python the map is not known here
            per_image = run.map_side**2 if run.encoder.name != CUSTOM else 2
        if splits and method.target == "parameters" and images // method.split_bn * per_image < 2:
            raise LewelError(
                "method.split_bn must leave two rows a group for BN statistics, "
                f"got {images} images in {method.split_bn} groups; choose at most {images // 2}"
            )

    @classmethod
    def images_met(cls, run: schema.Train, processes: int) -> dict[str, str]:
        method, own = run.method, run.data.batch_size // (processes * run.accumulate)
        met, kind = {}, method.key_bn_among(processes)
        if kind != "plain":
            keys = f"{own // method.split_bn} images" if kind == "split" else f"{own} images of all processes"
            met["batch norm of keys"] = keys
        if method.aligned:
            met["the aligned loss"] = f"{own * processes if method.gather_negatives else own} images"
        return met

    @classmethod
    def least_steps(cls, run: schema.Train) -> int:
        return -(-run.method.queue // run.keys_per_step)

    @classmethod
    def check_images(cls, run: schema.Train, images: int) -> None:
        steps = images // run.data.batch_size
        if steps < cls.least_steps(run):
            keys = steps * run.keys_per_step
            raise LewelError(
                f"method.queue holds {run.method.queue} keys but an epoch of {images} images makes only {keys}, so "
                f"most images would meet an old key of their own among the negatives; choose at most {keys}"
            )
