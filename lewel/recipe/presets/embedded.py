"""The embedded set: minutes on two cores, without a download. A pair of methods differs in the aligned branch alone."""

from __future__ import annotations

from dataclasses import replace

from lewel.recipe.presets.cifar10 import CIFAR10_MOCO
from lewel.recipe.presets.preset import BYOL, MOCO_V2, MOCO_VIEWS, SIMSIAM, Preset, aligned
from lewel.recipe.schema import Data, EncoderSettings, Heads, Optim, Train

# Hue says nothing and small steps are many: so shape is learnt in hundreds of steps.
VIEWS = replace(MOCO_VIEWS, crop_scale=(0.6, 1.0), flip=0.0, jitter=(0.4, 0.4, 0.4, 0.5), gray=0.5, blur=(0.0, 0.0))
# tau = 0.1: with 0.3 the maps stay nearly uniform here, and kNN is five points lower after as many steps.
# MoCo v2's own head, without BN, collapses.
EMBEDDED_MOCO = replace(
    CIFAR10_MOCO,
    data=Data(name="embedded", image_size=64, batch_size=64, embedded_train=4096, augmentation=VIEWS),
    encoder=EncoderSettings("tiny", stem="small2", last_stride=1),
    heads=Heads(hidden=512, num_maps=64, num_groups=8, tau=0.1, projector="mlp"),
    method=replace(MOCO_V2, queue=1024, split_bn=2, temperature=0.1),
    epochs=12,
    knn_every=2,
    linear_at_end=True,
)
# No negative takes the jittered colours out of z, where nothing predicts them: there are fewer of them, and LARS. One
# aligned vector (L = 1), since of several "which one" can be told without the image, and is all that is learnt.
EMBEDDED_BYOL = replace(
    EMBEDDED_MOCO,
    data=replace(EMBEDDED_MOCO.data, augmentation=replace(VIEWS, jitter=(0.2, 0.2, 0.4, 0.5), gray=0.9)),
    heads=replace(EMBEDDED_MOCO.heads, num_groups=64, tau=0.05),
    method=replace(BYOL, momentum=0.98),
    optim=Optim("lars", lr=10, weight_decay=1e-4, decay_all=False, warmup_epochs=0.5),
)
# The views of the BYOL type, for the same reason. Seen once, of 8 epochs: kNN 21, 23 and 24 after 2, 4 and 6 (untrained
# 12), std of z .89 to .99. lewel_s, whose z has no BN after it: kNN 13, std .6 after 2 epochs.
EMBEDDED_SIMSIAM = replace(
    EMBEDDED_BYOL,
    heads=replace(EMBEDDED_BYOL.heads, projector="auto"),
    method=SIMSIAM,
    optim=Optim(lr=0.25, weight_decay=5e-4, warmup_epochs=0),
)


def _preset(run: Train, knn: str = "") -> Preset:
    known = (f"kNN-200 {knn}", "measured: untrained 12") if knn else ()
    return Preset(run, EMBEDDED_MOCO.data.embedded_train, *known)


# 768 steps of 64 images; means of three seeds, one core of an AMD EPYC.
PRESETS = {
    # A rate of its own: with 0.12 and 0.25 it starts too late (0.25: kNN 24 after as many steps), with 1 not at all.
    "embedded/moco_v2": _preset(replace(EMBEDDED_MOCO, optim=replace(EMBEDDED_MOCO.optim, lr=0.5)), "25"),
    "embedded/lewel_m": _preset(aligned(EMBEDDED_MOCO), "40"),
    "embedded/byol": _preset(EMBEDDED_BYOL, "19"),
    "embedded/lewel_b": _preset(aligned(EMBEDDED_BYOL), "23"),
    "embedded/simsiam": _preset(EMBEDDED_SIMSIAM),
    "embedded/lewel_s": _preset(aligned(EMBEDDED_SIMSIAM)),
}
