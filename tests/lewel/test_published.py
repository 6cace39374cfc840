"""The published value beside a result: only where recipe, epochs and protocol are those it was measured with."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lewel.evaluation.published import SIMCLR, line
from lewel.recipe import presets

# The paper's Table 1 (100, 200 and 400 epochs), IN-100 of Tables 5 and 7, and SimSiam's own; protocol; Table 2.
VALUES = {
    "imagenet/moco_v2_100": ("MoCo v2", 64.5, "b", None),
    "imagenet/moco_v2_200": ("MoCo v2", 67.5, "b", (43.8, 61.9)),
    "imagenet/lewel_m_100": ("LEWEL_M", 66.1, "b", None),
    "imagenet/lewel_m_200": ("LEWEL_M", 68.4, "b", (45.1, 62.5)),
    "imagenet/byol_eman_100": ("BYOL", 70.6, "a", None),
    "imagenet/byol_eman_200": ("BYOL", 71.9, "a", (54.8, 68.0)),
    "imagenet/byol_sync_400": ("BYOL", 73.2, "b", None),
    "imagenet/lewel_b_eman_100": ("LEWEL_B", 71.9, "a", None),
    "imagenet/lewel_b_eman_200": ("LEWEL_B", 72.8, "a", (56.1, 68.7)),
    "imagenet/lewel_b_sync_400": ("LEWEL_B", 73.8, "a", (59.8, 70.4)),
    "imagenet/lewel_b_paper_100": ("LEWEL_B", 71.9, "a", None),
    "imagenet/lewel_b_paper_200": ("LEWEL_B", 72.8, "a", (56.1, 68.7)),
    "imagenet/lewel_b_paper_400": ("LEWEL_B", 73.8, "a", (59.8, 70.4)),
    "imagenet/simsiam_100": ("SimSiam", 68.1, "b", None),
    "imagenet100/moco_v2": ("MoCo v2", 79.5, "b", None),
    "imagenet100/lewel_m": ("LEWEL_M", 82.1, "b", None),
    "imagenet100/byol": ("BYOL", 81.4, "a", None),
    "imagenet100/lewel_b": ("LEWEL_B", 83.3, "a", None),
}
B_200 = presets.get("imagenet/lewel_b_eman_200")


@pytest.mark.parametrize("name", VALUES)
def test_a_preset_has_the_values_of_the_paper(name):
    who, linear, by, semi = VALUES[name]
    run = presets.get(name)
    assert line(run, "linear", by) == f"published: {who}, {run.epochs} epochs, protocol {by}: {linear}"
    for place, share in enumerate((1, 10)):
        said = line(run, f"semi-{share}", SIMCLR)
        if semi is None:
            assert said.startswith("no published value for")
        else:
            assert said == f"published: {who}, {run.epochs} epochs, SimCLR's {share} % list: {semi[place]}"


def test_no_other_preset_has_one():
    for name, preset in presets.PRESETS.items():
        assert bool(preset.linear_by) == (preset.linear is not None)
        if name not in VALUES:
            for kind, protocol in (("linear", "a"), ("linear", "b"), ("semi-1", SIMCLR), ("knn", "")):
                assert line(preset.run, kind, protocol) == "no published value for this recipe"


def test_places_logs_and_seeds_are_no_part_of_a_recipe():
    moved = replace(
        B_200, preset="custom", out="there", seed=3, knn_every=0, log_every=1, accumulate=4, compile=True,
        data=replace(B_200.data, root="/data/imagenet", workers=2),
    )  # fmt: skip
    assert line(moved, "linear-a", "a", images=1_281_167, epoch=200).endswith("protocol a: 72.8")


def test_the_list_of_imagenet_100_is_the_user_s_and_of_imagenet_there_is_none():
    for name, found in (("imagenet100/lewel_m", True), ("imagenet/lewel_m_100", False)):
        run = presets.get(name)
        run = replace(run, data=replace(run.data, classes="in100.txt"))
        assert line(run, "linear", "b").startswith("published") == found


@pytest.mark.parametrize(
    ("change", "settings", "said"),
    [
        pytest.param(
            {"optim": replace(B_200.optim, lr=0.5)}, {},
            "no published value for this recipe, which differs from imagenet/lewel_b_eman_200 (optim.lr: 0.9 -> 0.5)",
            id="another-rate",
        ),
        pytest.param(
            {"epochs": 50}, {},
            "no published value for 50 epochs; LEWEL_B has 71.9 by protocol a after 100 epochs, 72.8 by protocol a "
            "after 200 epochs",
            id="other-epochs",
        ),
        pytest.param(
            {}, {"epoch": 120},
            "no published value for 120 of 200 epochs; LEWEL_B has 72.8 by protocol a after all",
            id="unfinished",
        ),
        pytest.param(
            {}, {"images": 9_469},
            "no published value for these 9,469 training images: LEWEL_B was evaluated on 1,281,167",
            id="other-images",
        ),
        pytest.param(
            {}, {"protocol": "cached"},
            "no published value by this protocol; LEWEL_B, 200 epochs, has 72.8 by protocol a",
            id="another-protocol",
        ),
        pytest.param(
            {}, {"kind": "semi-10", "protocol": "own"},
            "no published value for these settings; LEWEL_B, 200 epochs, has 68.7 by SimCLR's 10 % list",
            id="another-list",
        ),
        pytest.param(
            {"init": "torchvision"}, {},
            "no published value for these weights: they are of torchvision, and are not of this recipe alone",
            id="weights-of-others",
        ),
        pytest.param(
            {"init": "official:lewel_b.pth"}, {"trained": True},
            "no published value for these weights: they began with official:lewel_b.pth, and are not of this recipe "
            "alone",
            id="begun-with-weights",
        ),
    ],
)  # fmt: skip
def test_what_differs_is_said(change, settings, said):
    assert line(replace(B_200, **change), **{"kind": "linear", "protocol": "a", **settings}) == said


def test_the_authors_own_weights_have_the_published_value():
    assert line(replace(B_200, init="official:lewel_b.pth"), "linear", "a").endswith("protocol a: 72.8")
