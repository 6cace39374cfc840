"""Recipes by name. Each says what is known of it and where from."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace

from lewel.config import Augmentation, Data, Encoder, Heads, Method, Optim, Train
from lewel.errors import LewelError


@dataclass(frozen=True)
class Preset:
    """A recipe and what to expect of it."""

    run: Train
    known: str


MOCO_V2 = Method(loss="infonce", w_aligned=0.0)
LEWEL_M = replace(MOCO_V2, w_aligned=0.5)
BYOL = Method(loss="byol", w_aligned=0.0, momentum_schedule="cosine")
LEWEL_B = replace(BYOL, w_aligned=0.5)

MOCO_VIEWS = Augmentation(jitter=(0.4, 0.4, 0.4, 0.1), blur=(0.0, 0.0), solarize=(0.0, 0.0))
BYOL_VIEWS = Augmentation(jitter=(0.4, 0.4, 0.2, 0.1), blur=(0.0, 0.0), solarize=(0.0, 0.2))

CIFAR10_MOCO = Train(
    data=Data(name="folder", image_size=32, storage="memory", augmentation=MOCO_VIEWS),
    encoder=Encoder("tiny", stem="small"),
    heads=Heads(hidden=512, num_maps=64, num_groups=8),
    optim=Optim(lr=0.12, weight_decay=5e-4, warmup_epochs=0.5),
    epochs=4,
    precision="auto",
)
CIFAR10_BYOL = replace(
    CIFAR10_MOCO,
    data=replace(CIFAR10_MOCO.data, augmentation=BYOL_VIEWS),
    optim=replace(CIFAR10_MOCO.optim, lr=0.2),
)
# Hue says nothing and small steps are many: so shape is learnt in hundreds of steps.
EMBEDDED_VIEWS = replace(MOCO_VIEWS, crop_scale=(0.6, 1.0), flip=0.0, jitter=(0.4, 0.4, 0.4, 0.5), gray=0.5)
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

_PRESETS = {
    "embedded/moco_v2": Preset(replace(EMBEDDED, method=EMBEDDED_MOCO_V2), "collapses: std of z 0.01"),
    "embedded/lewel_m": Preset(
        replace(EMBEDDED, method=replace(EMBEDDED_MOCO_V2, w_aligned=0.5)), "kNN-200 45 (untrained 12)"
    ),
    "embedded/byol": Preset(replace(EMBEDDED, method=BYOL), "not tuned: kNN-200 11 after 6 epochs"),
    "embedded/lewel_b": Preset(replace(EMBEDDED, method=LEWEL_B), "not tuned: kNN-200 13 after 6 epochs"),
    "cifar10/moco_v2": Preset(replace(CIFAR10_MOCO, method=MOCO_V2), "kNN-200 49.1 (prototype, 50,000 images)"),
    "cifar10/lewel_m": Preset(replace(CIFAR10_MOCO, method=LEWEL_M), "kNN-200 49.7 (prototype, 50,000 images)"),
    "cifar10/byol": Preset(replace(CIFAR10_BYOL, method=BYOL), "kNN-200 41.2 (prototype, 50,000 images)"),
    "cifar10/lewel_b": Preset(replace(CIFAR10_BYOL, method=LEWEL_B), "kNN-200 40.5 (prototype, 50,000 images)"),
}
PRESETS = {name: replace(preset, run=replace(preset.run, preset=name)) for name, preset in _PRESETS.items()}


def get(name: str) -> Train:
    """The recipe of a preset, or an error that names the nearest one."""
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0.0)[0]
        raise LewelError(f"there is no preset {name!r}; did you mean {near}? `lewel presets` lists all")
    return PRESETS[name].run


def table() -> str:
    """All presets, one a line."""
    rows = [("preset", "method", "encoder", "epochs", "known")]
    for name, preset in PRESETS.items():
        run = preset.run
        encoder = f"{run.encoder.name}, {run.encoder.stem} stem"
        rows.append((name, run.method.name, encoder, str(run.epochs), preset.known))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
