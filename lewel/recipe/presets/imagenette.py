"""Imagenette at 128 pixels: lightly's benchmark, on torchvision's ResNet-18 as it is."""

from __future__ import annotations

from dataclasses import replace

from lewel.recipe.presets.preset import BYOL, MOCO_V2, SIMCLR_VIEWS, Preset, aligned
from lewel.recipe.schema import Data, EncoderSettings, Heads, Optim, Train

# lightly, with SimCLR's views (see preset.py): SGD 0.06 per 256 images, weight decay 5e-4, on the mean of both
# directions; here it is their sum, so half the rate and twice the decay are its steps, or, for BYOL (see cifar10.py), a
# quarter and four times.
MOCO = Train(
    data=Data("imagenette", image_size=128, workers=8, augmentation=SIMCLR_VIEWS),
    encoder=EncoderSettings("resnet18", stem="imagenet"),
    heads=Heads(hidden=2048, num_maps=128, num_groups=4),
    method=replace(MOCO_V2, symmetric=True, temperature=0.1),
    optim=Optim(lr=0.06 / 2, weight_decay=2 * 5e-4, warmup_epochs=0),
    epochs=200,
    precision="auto",
    knn_every=10,
)
BYOL_LIGHTLY = replace(
    MOCO,
    heads=Heads(hidden=4096, num_maps=256, num_groups=4),
    method=replace(BYOL, momentum_schedule="constant"),
    optim=replace(MOCO.optim, lr=0.06 / 4, weight_decay=4 * 5e-4),
)


def _preset(run: Train, *known: str) -> Preset:
    return Preset(run, 9_469, *known)


PRESETS = {
    "imagenette/moco_v2": _preset(MOCO, "kNN-200 78.6", "lightly, SimCLR views"),
    "imagenette/lewel_m": _preset(aligned(MOCO)),
    "imagenette/byol": _preset(BYOL_LIGHTLY, "kNN-200 70.5", "lightly, SimCLR views"),
    "imagenette/lewel_b": _preset(aligned(BYOL_LIGHTLY)),
}
