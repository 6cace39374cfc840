"""CIFAR-10: a minute's recipes for a CPU, and the literature's of 200 epochs for a GPU."""

from __future__ import annotations

from dataclasses import replace

from lewel.recipe.presets.preset import (
    BYOL,
    BYOL_VIEWS,
    LEWEL_B,
    LEWEL_M,
    MOCO_V2,
    MOCO_VIEWS,
    SIMCLR_VIEWS,
    SIMSIAM,
    Preset,
    aligned,
)
from lewel.recipe.schema import Data, EncoderSettings, Heads, Optim, Train

NO_BLUR = (0.0, 0.0)  # of 32 pixels nothing would be left
# Short runs follow parameters alone: EMAN needs thousands of steps to recover from its start.
CIFAR10_MOCO = Train(
    data=Data("cifar10", image_size=32, augmentation=replace(MOCO_VIEWS, blur=NO_BLUR)),
    encoder=EncoderSettings("tiny", stem="small"),
    heads=Heads(hidden=512, num_maps=64, num_groups=8),
    optim=Optim(lr=0.12, weight_decay=5e-4, warmup_epochs=0.5),
    epochs=4,
    precision="auto",
)
CIFAR10_BYOL = replace(
    CIFAR10_MOCO,
    data=replace(CIFAR10_MOCO.data, augmentation=replace(BYOL_VIEWS, blur=NO_BLUR)),
    optim=replace(CIFAR10_MOCO.optim, lr=0.2),
)
# The demo of MoCo's authors, whose views are SimCLR's without blur, but for MoCo v2's head of two layers, and for
# queries, whose BN it splits as the keys'.
MOCO_200 = Train(
    data=replace(CIFAR10_MOCO.data, batch_size=512, augmentation=replace(SIMCLR_VIEWS, blur=NO_BLUR)),
    encoder=EncoderSettings("resnet18", stem="small"),
    heads=Heads(hidden=2048, num_maps=128, num_groups=4),
    method=replace(MOCO_V2, temperature=0.1),
    optim=Optim(lr=0.03, weight_decay=5e-4, warmup_epochs=0),
    epochs=200,
    precision="auto",
    knn_every=10,
)
# lightly, with SimCLR's views (see preset.py): SGD 0.06 per 128 images, weight decay 5e-4. Its loss is half the sum of
# -cos over both directions, here it is the sum of 2 - 2 cos, whose gradient is four times that: with a
# quarter of lightly's rate and four times its decay, the optimizer takes the same steps as there.
BYOL_200 = replace(
    MOCO_200,
    data=replace(MOCO_200.data, batch_size=128),
    heads=Heads(hidden=1024, num_maps=256, num_groups=4),
    method=replace(BYOL, momentum_schedule="constant"),
    optim=Optim(lr=0.12 / 4, weight_decay=4 * 5e-4, warmup_epochs=0),
)
# Chen & He 2021, appendix D: a projector of two layers, views as on ImageNet but for the blur.
SIMSIAM_800 = replace(
    MOCO_200,
    data=replace(MOCO_200.data, augmentation=CIFAR10_MOCO.data.augmentation),
    heads=Heads(hidden=2048, num_maps=2048, projector="simsiam2"),
    method=SIMSIAM,
    epochs=800,
)


def _preset(run: Train, expected: str = "", source: str = "untuned", cost: str = "") -> Preset:
    return Preset(run, 50_000, expected, source, cost)


def _short(run: Train, knn: float, seconds: int) -> Preset:
    return _preset(run, f"kNN-200 {knn}", "prototype, one seed", f"{seconds} s, 4 cores")


PRESETS = {
    "cifar10/moco_v2": _short(replace(CIFAR10_MOCO, method=MOCO_V2), 49.1, 43),
    "cifar10/lewel_m": _short(replace(CIFAR10_MOCO, method=LEWEL_M), 49.7, 46),
    "cifar10/byol": _short(replace(CIFAR10_BYOL, method=BYOL), 41.2, 78),
    "cifar10/lewel_b": _short(replace(CIFAR10_BYOL, method=LEWEL_B), 40.5, 112),
    "cifar10/moco_v2_200": _preset(MOCO_200, "kNN-200 82.6", "MoCo's CIFAR-10 demo"),
    "cifar10/lewel_m_200": _preset(aligned(MOCO_200)),
    "cifar10/byol_200": _preset(BYOL_200, "kNN-200 86.9", "lightly, SimCLR views"),
    "cifar10/lewel_b_200": _preset(aligned(BYOL_200)),
    "cifar10/simsiam_800": _preset(SIMSIAM_800, "kNN-200 90.0", "SimSiam, appendix D"),
}
