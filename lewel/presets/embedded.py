"""The embedded set: minutes on two cores, without a download."""

from __future__ import annotations

from dataclasses import replace

from lewel.config import Data, Encoder, Heads, Method
from lewel.presets.cifar10 import CIFAR10_MOCO
from lewel.presets.preset import BYOL, LEWEL_B, MOCO_V2, MOCO_VIEWS, Preset

# Hue says nothing and small steps are many: so shape is learnt in hundreds of steps.
EMBEDDED_VIEWS = replace(
    MOCO_VIEWS, crop_scale=(0.6, 1.0), flip=0.0, jitter=(0.4, 0.4, 0.4, 0.5), gray=0.5, blur=(0.0, 0.0)
)
EMBEDDED_MOCO_V2 = replace(MOCO_V2, queue=1024, split_bn=2, temperature=0.1)
# tau = 0.1: with 0.3 the maps stay nearly uniform here, and kNN is five points lower after as many steps.
EMBEDDED = replace(
    CIFAR10_MOCO,
    data=Data(name="embedded", image_size=64, batch_size=64, embedded_train=4096, augmentation=EMBEDDED_VIEWS),
    encoder=Encoder("tiny", stem="small2", last_stride=1),
    heads=Heads(hidden=512, num_maps=64, num_groups=8, tau=0.1),
    epochs=12,
    knn_every=2,
)


def _preset(method: Method, expected: str, source: str) -> Preset:
    return Preset(replace(EMBEDDED, method=method), EMBEDDED.data.embedded_train, expected, source)


PRESETS = {
    "embedded/moco_v2": _preset(EMBEDDED_MOCO_V2, "collapses", "measured: std of z 0.01"),
    "embedded/lewel_m": _preset(replace(EMBEDDED_MOCO_V2, w_aligned=0.5), "kNN-200 45", "measured: untrained 12"),
    "embedded/byol": _preset(BYOL, "kNN-200 11", "untuned: after 6 epochs"),
    "embedded/lewel_b": _preset(LEWEL_B, "kNN-200 13", "untuned: after 6 epochs"),
}
