"""The prediction of a momentum network: byol (Grill et al. 2020) and, with the aligned branch, lewel_b."""

from __future__ import annotations

import torch
from torch import Tensor

from lewel.methods import losses, split_linear
from lewel.methods.heads import MLP
from lewel.methods.objectives.base import Embed, Embedding, Objective, Terms, total
from lewel.recipe import schema


class Predict(Objective):
    """Compares predictions from the online embeddings of each view with the target's of the other. No negatives."""

    names = ("byol", "lewel_b")
    # temperature, queue and split_bn are not read either, but infonce's presets set them, and so do the recipes of runs
    # that --method.loss switched from one: refused, these could not go on.
    unread = ("symmetric", "key_bn", "gather_negatives")

    def __init__(self, run: schema.Train) -> None:
        super().__init__(run)
        width, aligned, hidden = run.heads.num_maps, run.heads.aligned_out, run.heads.hidden
        self.predictor = MLP(width, hidden, width)
        if run.method.aligned:
            self.aligned_predictor = MLP(aligned, hidden, aligned)

    def forward(
        self,
        online: Embed,
        target: Embed,
        first: Tensor,
        second: Tensor,
        momentum: float | None,
        draw: tuple[int, ...],
    ) -> Terms:
        """The distances 2 - 2 cos of both directions, summed: about 4 at the start."""
        mine = [online(view) for view in (first, second)]
        with torch.no_grad():
            theirs = [target(view) for view in (second, first)]
        pairs = list(zip([self._predicted(embedding) for embedding in mine], theirs, strict=True))
        parts = {"global": total(losses.byol_distance(p.z, t.z) for p, t in pairs)}
        if self.settings.aligned:
            parts["aligned"] = total(losses.byol_distance(p.aligned, t.aligned) for p, t in pairs)
        return Terms(parts, mine[0].z.detach())

    def _predicted(self, online: Embedding) -> Embedding:
        z, aligned = self.predictor(online.z), online.aligned
        return Embedding(z, split_linear.chain(self.aligned_predictor, aligned) if self.settings.aligned else aligned)
