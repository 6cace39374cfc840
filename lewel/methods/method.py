"""The four methods as one module: online and momentum network, predictors, queue, and the loss of a step."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from lewel import distributed, ranges
from lewel.errors import LewelError
from lewel.methods import encoders, losses, split_linear
from lewel.methods.heads import MLP, AlignedHead, MoCoHead, aligned_head, gap
from lewel.methods.key_queue import KeyQueue
from lewel.methods.momentum import follow, shuffle_bn, split_bn
from lewel.recipe import schema


class Embedding(NamedTuple):
    """What a network says about N images."""

    z: Tensor  # (N, K) global embedding
    aligned: Tensor  # (N, L, width) aligned embeddings; L = 0 without the aligned branch


class Step(NamedTuple):
    """What one pass gives; loss is what is differentiated, parts are its unweighted terms."""

    loss: Tensor
    parts: dict[str, Tensor]
    z: Tensor  # (N, K) online global embeddings of the first view
    keys: Tensor | None  # infonce: (size N, K) of all processes, what is enqueued afterwards


class Network(nn.Module):
    """Encoder, projector of the global embedding and, with the aligned branch, the semantic projector g_s."""

    def __init__(self, run: schema.Train) -> None:
        super().__init__()
        heads = run.heads
        self.encoder = encoders.build(run.encoder, run.data.image_size)
        width = self.encoder.channels
        self.head: nn.Module
        if run.method.aligned:
            if width % heads.num_groups:
                raise LewelError(
                    f"heads.num_groups must divide the {width} channels of {run.encoder.name}, got {heads.num_groups}"
                )
            self.head = aligned_head(width, heads, run.backend)
            if heads.semantic_projector == "separate":
                self.aligned_head = MLP(width, heads.hidden, heads.aligned_out)
        elif heads.projector == "moco" or (heads.projector == "auto" and run.method.loss == "infonce"):
            self.head = MoCoHead(width, heads.hidden, heads.num_maps)
        else:
            self.head = MLP(width, heads.hidden, heads.num_maps)

    def forward(self, images: Tensor) -> Embedding:
        """images (N, 3, H, W)."""
        with record_function(ranges.ENCODER):
            features = self.encoder(images)
        with record_function(ranges.HEAD):
            if not isinstance(self.head, AlignedHead):
                z = self.head(gap(features))
                return Embedding(z, z.new_empty(len(z), 0, z.shape[1]))
            z, pooled = self.head(features)
            return Embedding(z, split_linear.chain(getattr(self, "aligned_head", self.head.mlp), pooled))


class Method(nn.Module):
    """moco_v2, lewel_m, byol or lewel_b, by the switches of run.method."""

    def __init__(self, run: schema.Train) -> None:
        super().__init__()
        self.settings = run.method
        self.precision = run.precision
        self.seed = run.seed
        self.online = Network(run)
        self.target = copy.deepcopy(self.online).requires_grad_(False)
        width, hidden, aligned = run.heads.num_maps, run.heads.hidden, run.heads.aligned_out
        if run.method.loss == "infonce":
            self.queue = KeyQueue(run.method.queue, width)
        else:
            self.predictor = MLP(width, hidden, width)
            if run.method.aligned:
                self.aligned_predictor = MLP(aligned, hidden, aligned)
        self.train()

    def train(self, mode: bool = True) -> Method:
        super().train(mode)
        if self.settings.target == "eman":
            self.target.eval()
        return self

    def forward(self, first: Tensor, second: Tensor, momentum: float | None, draw: int = 0) -> Step:
        """Two views (N, 3, H, W) of the same images -> this pass's losses; call finish after the optimizer.

        momentum: m of this step, None in all but the first pass of a step that accumulates gradients. draw: number of
        the pass, the same in all processes, which fixes how ShuffleBN shuffles.
        """
        if self.settings.loss == "infonce":
            return self._contrast(first, second, momentum, draw)
        return self._predict(first, second)

    def finish(self, keys: Tensor | None, momentum: float) -> None:
        """What comes after the optimizer: the step's keys enter the queue (infonce), or the target follows (byol)."""
        if keys is not None:
            self.queue.enqueue(keys)
        else:
            self._follow(momentum)

    def autocast(self) -> torch.autocast:
        """The context that networks run in; losses stay outside."""
        device = next(self.parameters()).device.type
        dtype = torch.float16 if self.precision == "fp16" else torch.bfloat16
        return torch.autocast(device, dtype, enabled=self.precision != "fp32")

    def _contrast(self, first: Tensor, second: Tensor, momentum: float | None, draw: int) -> Step:
        views = [(first, second), (second, first)] if self.settings.symmetric else [(first, second)]
        with self.autocast():
            queries = [self.online(query) for query, _ in views]
            if momentum is not None:
                self._follow(momentum)
            with torch.no_grad():
                pairs = [self._keys(key, (self.seed, draw, view)) for view, (_, key) in enumerate(views)]
        tau, mine = self.settings.temperature, distributed.rank() * len(first)
        parts = {
            "global": _total(
                losses.info_nce(query.z, keys.z[mine : mine + len(first)], self.queue.keys, tau)
                for query, keys in zip(queries, pairs, strict=True)
            )
        }
        if self.settings.aligned:
            parts["aligned"] = _total(
                losses.aligned_info_nce(query.aligned, keys.aligned, tau, first=mine * self.settings.gather_negatives)
                for query, keys in zip(queries, pairs, strict=True)
            )
        return Step(self._weigh(parts), parts, queries[0].z.detach(), torch.cat([keys.z for keys in pairs]))

    def _keys(self, images: Tensor, seed: tuple[int, ...]) -> Embedding:
        """z of all processes' images, aligned embeddings of this one's, or of all where the loss contrasts with all."""
        kind = self.key_bn
        if kind == "shuffle":
            z, aligned = shuffle_bn(self.target, images, seed)
            mine = slice(distributed.rank() * len(images), (distributed.rank() + 1) * len(images))
            return Embedding(z, aligned if self.settings.gather_negatives else aligned[mine])
        z, aligned = split_bn(self.target, images, self.settings.split_bn if kind == "split" else 1)
        return Embedding(
            distributed.gather(z), distributed.gather(aligned) if self.settings.gather_negatives else aligned
        )

    @property
    def key_bn(self) -> str:
        """What settings.key_bn "auto" stands for, or what it says."""
        return self.settings.key_bn_among(distributed.size())

    def _predict(self, first: Tensor, second: Tensor) -> Step:
        with self.autocast():
            online = [self.online(view) for view in (first, second)]
            with torch.no_grad():
                target = [self.target(view) for view in (second, first)]
            predicted = [Embedding(self.predictor(o.z), self._predict_aligned(o.aligned)) for o in online]
        pairs = list(zip(predicted, target, strict=True))
        parts = {"global": _total(losses.byol_distance(p.z, t.z) for p, t in pairs)}
        if self.settings.aligned:
            parts["aligned"] = _total(losses.byol_distance(p.aligned, t.aligned) for p, t in pairs)
        return Step(self._weigh(parts), parts, online[0].z.detach(), None)

    def _predict_aligned(self, aligned: Tensor) -> Tensor:
        return split_linear.chain(self.aligned_predictor, aligned) if self.settings.aligned else aligned

    def _follow(self, momentum: float) -> None:
        follow(self.target, self.online, momentum, statistics=self.settings.target == "eman")

    def _weigh(self, parts: dict[str, Tensor]) -> Tensor:
        weight = self.settings.w_aligned
        return (1 - weight) * parts["global"] + (weight * parts["aligned"] if weight else 0)


def _total(directions: Iterable[Tensor]) -> Tensor:
    """The sum, not the mean, of the directions between the views."""
    return torch.stack(list(directions)).sum()
