"""ImageNet-100, the set of the paper's ablations: 240 epochs at twice the rate of ImageNet-1K, all else the same.

data.classes names the list of its hundred class folders; without it, data.root must hold these alone. The paper
doubles 1.8 per 512 images of SGD for its BYOL type; the optimizer here is the official script's for that rate, LARS.
"""

from __future__ import annotations

from dataclasses import replace

from lewel.recipe.presets import imagenet
from lewel.recipe.presets.preset import Preset, aligned
from lewel.recipe.schema import Train


def _doubled(run: Train) -> Train:
    return replace(run, optim=replace(run.optim, lr=2 * run.optim.lr), epochs=240, knn_bank=0)


BYOL = _doubled(replace(imagenet.BYOL_EMAN, data=replace(imagenet.BYOL_EMAN.data, batch_size=512)))
BYOL = replace(BYOL, optim=replace(BYOL.optim, weight_decay=1e-6))


def _preset(run: Train, linear: float, source: str, by: str) -> Preset:
    return Preset(run, 126_689, f"linear {linear}", source, linear_by=by)


PRESETS = {
    "imagenet100/moco_v2": _preset(_doubled(imagenet.MOCO), 79.5, "paper, Table 5", "b"),
    "imagenet100/lewel_m": _preset(_doubled(imagenet.LEWEL_MOCO), 82.1, "paper, Table 5", "b"),
    "imagenet100/byol": _preset(BYOL, 81.4, "Table 7, official LARS", "a"),
    "imagenet100/lewel_b": _preset(aligned(BYOL), 83.3, "Table 7, official LARS", "a"),
}
