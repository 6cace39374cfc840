"""The four methods as one module: online and momentum network, predictors, queue, and the loss of a step."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lewel import config, encoders, losses
from lewel.errors import LewelError
from lewel.heads import MLP, CoupledHead, MoCoHead
from lewel.momentum import follow, split_bn
from lewel.queue import KeyQueue


class Embedding(NamedTuple):
    """What a network says about N images."""

    z: Tensor  # (N, K) global embedding
    aligned: Tensor  # (N, L, K) aligned embeddings; L = 0 without the aligned branch


class Step(NamedTuple):
    """What one step gives; loss is what is differentiated, parts are its unweighted terms."""

    loss: Tensor
    parts: dict[str, Tensor]
    z: Tensor  # (N, K) online global embeddings of the first view
    keys: Tensor | None  # infonce: what is enqueued afterwards


class Network(nn.Module):
    """Encoder, projector of the global embedding and, with the aligned branch, the semantic projector g_s."""

    def __init__(self, run: config.Train) -> None:
        super().__init__()
        heads = run.heads
        self.encoder = encoders.build(run.encoder)
        width = self.encoder.channels
        self.head: nn.Module
        if run.method.aligned:
            if width % heads.num_groups:
                raise LewelError(
                    f"heads.num_groups must divide the {width} channels of {run.encoder.name}, got {heads.num_groups}"
                )
            self.head = CoupledHead(
                width,
                heads.hidden,
                heads.num_maps,
                num_groups=heads.num_groups,
                temperature=heads.tau,
                backend=run.backend,
            )
            self.aligned_head = MLP(width, heads.hidden, heads.num_maps)
        elif run.method.loss == "infonce" and heads.projector != "mlp":
            self.head = MoCoHead(width, heads.hidden, heads.num_maps)
        else:
            self.head = MLP(width, heads.hidden, heads.num_maps)

    def forward(self, images: Tensor) -> Embedding:
        """images (N, 3, H, W)."""
        features = self.encoder(images)
        if not isinstance(self.head, CoupledHead):
            z = self.head(features.mean((2, 3)))
            return Embedding(z, z.new_empty(len(z), 0, z.shape[1]))
        z, pooled = self.head(features)
        with torch.autocast(pooled.device.type, enabled=False):
            return Embedding(z, on_rows(self.aligned_head, pooled))


def on_rows(module: nn.Module, x: Tensor) -> Tensor:
    """module applied to the N L rows of x (N, L, width), so that its BN statistics run over all of them."""
    return module(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class Method(nn.Module):
    """moco_v2, lewel_m, byol or lewel_b, by the switches of run.method."""

    def __init__(self, run: config.Train) -> None:
        super().__init__()
        self.settings = run.method
        self.precision = run.precision
        self.online = Network(run)
        self.target = copy.deepcopy(self.online).requires_grad_(False)
        width, hidden = run.heads.num_maps, run.heads.hidden
        if run.method.loss == "infonce":
            self.queue = KeyQueue(run.method.queue, width)
        else:
            self.predictor = MLP(width, hidden, width)
            if run.method.aligned:
                self.aligned_predictor = MLP(width, hidden, width)
        self.train()

    def train(self, mode: bool = True) -> Method:
        super().train(mode)
        if self.settings.target == "eman":
            self.target.eval()
        return self

    def forward(self, first: Tensor, second: Tensor, momentum: float) -> Step:
        """Two views (N, 3, H, W) of the same images -> the losses of this step; call finish after the optimizer."""
        if self.settings.loss == "infonce":
            return self._contrast(first, second, momentum)
        return self._predict(first, second)

    def finish(self, step: Step, momentum: float) -> None:
        """What comes after the optimizer: keys enter the queue (infonce), or the target follows (byol)."""
        if step.keys is not None:
            self.queue.enqueue(step.keys)
        else:
            self._follow(momentum)

    def autocast(self) -> torch.autocast:
        """The context that networks run in; losses stay outside."""
        device = next(self.parameters()).device.type
        return torch.autocast(device, torch.bfloat16, enabled=self.precision == "bf16")

    def _contrast(self, first: Tensor, second: Tensor, momentum: float) -> Step:
        views = [(first, second), (second, first)] if self.settings.symmetric else [(first, second)]
        with self.autocast():
            queries = [self.online(query) for query, _ in views]
            self._follow(momentum)
            with torch.no_grad():
                keys = [Embedding(*split_bn(self.target, key, self.settings.split_bn)) for _, key in views]
        tau, pairs = self.settings.temperature, list(zip(queries, keys, strict=True))
        parts = {"global": _total(losses.info_nce(q.z, k.z, self.queue.keys, tau) for q, k in pairs)}
        if self.settings.aligned:
            parts["aligned"] = _total(losses.aligned_info_nce(q.aligned, k.aligned, tau) for q, k in pairs)
        return Step(self._weigh(parts), parts, queries[0].z.detach(), torch.cat([k.z for k in keys]))

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
        return on_rows(self.aligned_predictor, aligned) if self.settings.aligned else aligned

    def _follow(self, momentum: float) -> None:
        follow(self.target, self.online, momentum, statistics=self.settings.target == "eman")

    def _weigh(self, parts: dict[str, Tensor]) -> Tensor:
        weight = self.settings.w_aligned
        return (1 - weight) * parts["global"] + (weight * parts["aligned"] if weight else 0)


def _total(directions: Iterable[Tensor]) -> Tensor:
    """The sum, not the mean, of the directions between the views."""
    return torch.stack(list(directions)).sum()
