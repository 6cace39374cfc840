"""ImageNet-1K: the paper's recipes, and those of the official release where it differs.

The paper's tables disagree: Table 1, which is followed here, has LEWEL_M at 66.1 after 100 epochs and 68.4 after 200;
Table 8 says 68.1 after 200; Table 9 heads its column "200 epochs" over the numbers that Table 1 gives for 100, beside
71.5 for LEWEL_B, which no other table has.
"""

from __future__ import annotations

from dataclasses import replace

from lewel.recipe.presets.preset import BYOL, BYOL_VIEWS, MOCO_V2, MOCO_VIEWS, SIMSIAM, Preset, aligned
from lewel.recipe.schema import Data, EncoderSettings, Heads, Optim, Train

MOCO = Train(
    data=Data("folder", image_size=224, batch_size=256, workers=8, augmentation=MOCO_VIEWS),
    encoder=EncoderSettings("resnet50", stem="imagenet"),
    heads=Heads(hidden=2048, num_maps=128, num_groups=4),
    method=replace(MOCO_V2, momentum=0.999, queue=65536),
    # MoCo v2's own rate. LEWEL_M's is twice that, over half the weight of the global loss.
    optim=Optim(lr=0.03, weight_decay=1e-4, warmup_epochs=0),
    precision="fp16",
    knn_every=10,
    knn_bank=100_000,
    log_every=100,
)
LEWEL_MOCO = replace(aligned(MOCO), optim=replace(MOCO.optim, lr=0.06))
BYOL_EMAN = replace(
    MOCO,
    data=replace(MOCO.data, batch_size=1024, augmentation=BYOL_VIEWS),
    heads=Heads(hidden=4096, num_maps=256, num_groups=4),
    method=replace(BYOL, target="eman", momentum=0.98),
    # The script's weight decay; the published log of the same run says 1e-6.
    optim=Optim("lars", lr=0.9, weight_decay=1.5e-6, decay_all=False, warmup_epochs=10),
)
BYOL_SYNC = replace(
    BYOL_EMAN,
    data=replace(BYOL_EMAN.data, batch_size=4096),
    method=replace(BYOL, batch_norm="sync", momentum=0.996),
    optim=replace(BYOL_EMAN.optim, lr=0.45, weight_decay=1e-6),
    epochs=400,
)
# To the letter. That SGD is given LARS's rate of the official script suggests that LARS is meant.
BYOL_PAPER = replace(
    BYOL_EMAN,
    data=replace(BYOL_EMAN.data, batch_size=512),
    optim=Optim("sgd", lr=0.9, weight_decay=1e-6, decay_all=False, warmup_epochs=0),
)
# Chen & He 2021: MoCo v2's views, everything decays, no warm-up, and the predictor keeps its rate.
SIMSIAM_PAPER = replace(
    MOCO,
    data=replace(MOCO.data, batch_size=512),
    encoder=replace(MOCO.encoder, zero_init_residual=True),
    heads=Heads(hidden=2048, num_maps=2048),
    method=replace(SIMSIAM, batch_norm="sync"),
    optim=Optim(lr=0.05, weight_decay=1e-4, warmup_epochs=0),
)
# With the heads of LEWEL_B, which are its projector too.
LEWEL_SIMSIAM = replace(aligned(SIMSIAM_PAPER), heads=BYOL_EMAN.heads)
BYOL_PAPER_SYNC = replace(BYOL_PAPER, method=replace(BYOL, batch_norm="sync", momentum=0.98))
LEWEL_B_200, LEWEL_B_400 = (56.1, 68.7), (59.8, 70.4)  # semi-supervised


def _preset(
    run: Train,
    epochs: int,
    linear: float | None = None,
    source: str = "untuned",
    seconds: int | None = None,
    *,
    by: str = "",
    semi: tuple[float, float] | None = None,
) -> Preset:
    cost = f"{seconds} s, 8 V100" if seconds else ""
    expected = f"linear {linear}" if linear else ""
    return Preset(replace(run, epochs=epochs), 1_281_167, expected, source, cost, linear_by=by, semi=semi)


# Protocols: the paper's 4.1 gives that of LEWEL_M, which is SimSiam's (b), and that of LEWEL_B, which is EMAN's (a).
# That its reproductions of MoCo v2 and BYOL were evaluated as the LEWEL beside them is taken, not said. BYOL of 400
# epochs is cited from SimSiam (b). Semi-supervised: Table 2.
PRESETS = {
    "imagenet/moco_v2_100": _preset(MOCO, 100, 64.5, "MoCo's script; Table 1", 1213, by="b"),
    "imagenet/moco_v2_200": _preset(MOCO, 200, 67.5, "MoCo's script; Table 1", 1213, by="b", semi=(43.8, 61.9)),
    "imagenet/lewel_m_100": _preset(LEWEL_MOCO, 100, 66.1, "paper, Table 1", 1222, by="b"),
    "imagenet/lewel_m_200": _preset(LEWEL_MOCO, 200, 68.4, "paper, Table 1", 1222, by="b", semi=(45.1, 62.5)),
    "imagenet/byol_eman_100": _preset(BYOL_EMAN, 100, 70.6, "official script; Table 1", 1141, by="a"),
    "imagenet/byol_eman_200": _preset(
        BYOL_EMAN, 200, 71.9, "official script; Table 1", 1141, by="a", semi=(54.8, 68.0)
    ),
    "imagenet/byol_sync_400": _preset(BYOL_SYNC, 400, 73.2, "SimSiam's reproduction", by="b"),
    "imagenet/lewel_b_eman_100": _preset(aligned(BYOL_EMAN), 100, 71.9, "official script; Table 1", 1191, by="a"),
    "imagenet/lewel_b_eman_200": _preset(
        aligned(BYOL_EMAN), 200, 72.8, "official script; Table 1", 1191, by="a", semi=LEWEL_B_200
    ),
    "imagenet/lewel_b_sync_400": _preset(
        aligned(BYOL_SYNC), 400, 73.8, "official script; Table 1", by="a", semi=LEWEL_B_400
    ),
    "imagenet/lewel_b_paper_100": _preset(aligned(BYOL_PAPER), 100, 71.9, "paper, 3.3 and Table 1", 1191, by="a"),
    "imagenet/lewel_b_paper_200": _preset(
        aligned(BYOL_PAPER), 200, 72.8, "paper, 3.3 and Table 1", 1191, by="a", semi=LEWEL_B_200
    ),
    "imagenet/lewel_b_paper_400": _preset(
        aligned(BYOL_PAPER_SYNC), 400, 73.8, "paper, 3.3 and Table 1", by="a", semi=LEWEL_B_400
    ),
    "imagenet/simsiam_100": _preset(SIMSIAM_PAPER, 100, 68.1, "SimSiam, Table 1", by="b"),
    "imagenet/lewel_s_100": _preset(LEWEL_SIMSIAM, 100),
}
