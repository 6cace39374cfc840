"""Presets: what was published is what comes out."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from lewel import config, presets, recipe
from lewel.config import Augmentation
from lewel.errors import LewelError
from lewel.session import check_size
from lewel.step import rates

B_HEADS, M_HEADS = (4096, 256, 4), (2048, 128, 4)  # hidden, maps, groups
STEPS = 1251  # an epoch of ImageNet at batch 1024

# Families are regular expressions of whole names.
MOCO, BYOL = "(moco_v2|lewel_m)", "(byol|lewel_b)"
SWITCHES = {  # target, batch_norm, symmetric, decay_all, precision, key_bn, momentum_schedule, optimizer
    f"(embedded|cifar10)/{MOCO}": ("parameters", "local", False, True, "auto", "auto", "constant", "sgd"),
    f"embedded/{BYOL}": ("parameters", "local", False, False, "auto", "auto", "cosine", "lars"),
    f"cifar10/{BYOL}": ("parameters", "local", False, True, "auto", "auto", "cosine", "sgd"),
    f"cifar10/({MOCO}|{BYOL})_200": ("parameters", "local", False, True, "auto", "auto", "constant", "sgd"),
    f"stl10/({MOCO}|{BYOL})": ("parameters", "local", False, True, "auto", "auto", "constant", "sgd"),
    f"imagenette/{MOCO}": ("parameters", "local", True, True, "auto", "auto", "constant", "sgd"),
    f"imagenette/{BYOL}": ("parameters", "local", False, True, "auto", "auto", "constant", "sgd"),
    f"imagenet100/{MOCO}|imagenet/{MOCO}_.*": ("parameters", "local", False, True, "fp16", "auto", "constant", "sgd"),
    f"imagenet100/{BYOL}|imagenet/{BYOL}_eman_.*": ("eman", "local", False, False, "fp16", "auto", "cosine", "lars"),
    f"imagenet/{BYOL}_sync_400": ("parameters", "sync", False, False, "fp16", "auto", "cosine", "lars"),
    "imagenet/lewel_b_paper_[12]00": ("eman", "local", False, False, "fp16", "auto", "cosine", "sgd"),
    "imagenet/lewel_b_paper_400": ("parameters", "sync", False, False, "fp16", "auto", "cosine", "sgd"),
}
FROM_20_PERCENT, FROM_8_PERCENT, NEVER = (0.2, 1.0), (0.08, 1.0), (0.0, 0.0)
MOCO_JITTER, BYOL_JITTER = (0.4, 0.4, 0.4, 0.1), (0.4, 0.4, 0.2, 0.1)
VIEWS = {  # crop_scale, flip, jitter, jitter_p, gray, blur, solarize
    f"embedded/{MOCO}": Augmentation((0.6, 1.0), 0.0, (0.4, 0.4, 0.4, 0.5), 0.8, 0.5, NEVER, NEVER),
    f"embedded/{BYOL}": Augmentation((0.6, 1.0), 0.0, (0.2, 0.2, 0.4, 0.5), 0.8, 0.9, NEVER, NEVER),
    f"cifar10/{MOCO}": Augmentation(FROM_20_PERCENT, 0.5, MOCO_JITTER, 0.8, 0.2, NEVER, NEVER),
    f"cifar10/{BYOL}": Augmentation(FROM_20_PERCENT, 0.5, BYOL_JITTER, 0.8, 0.2, NEVER, (0.0, 0.2)),
    f"cifar10/({MOCO}|{BYOL})_200": Augmentation(FROM_8_PERCENT, 0.5, MOCO_JITTER, 0.8, 0.2, NEVER, NEVER),
    f"(stl10|imagenette)/({MOCO}|{BYOL})": Augmentation(FROM_8_PERCENT, 0.5, MOCO_JITTER, 0.8, 0.2, (0.5, 0.5), NEVER),
    f"imagenet(100)?/{MOCO}(_.*)?": Augmentation(FROM_20_PERCENT, 0.5, MOCO_JITTER, 0.8, 0.2, (0.5, 0.5), NEVER),
    f"imagenet(100)?/{BYOL}(_.*)?|custom": Augmentation(
        FROM_20_PERCENT, 0.5, BYOL_JITTER, 0.8, 0.2, (1.0, 0.1), (0.0, 0.2)
    ),
}


def of_its_family(table, name):
    """The only row of table whose family name belongs to."""
    (row,) = (row for family, row in table.items() if re.fullmatch(family, name))
    return row


@pytest.mark.parametrize("name", presets.PRESETS)
def test_every_preset_passes_its_checks_and_survives_yaml(name, tmp_path):
    preset = presets.PRESETS[name]
    config.check(preset.run)
    check_size(preset.run, preset.images)
    assert preset.run.preset == name
    assert f"/{preset.run.method.name}" in name
    (tmp_path / "recipe.yaml").write_text(presets.describe(name))
    assert recipe.load(tmp_path / "recipe.yaml") == preset.run


@pytest.mark.parametrize(
    ("name", "optimizer", "lr", "batch", "decay", "momentum", "warmup", "epochs", "heads"),
    [
        ("imagenet/moco_v2_100", "sgd", 0.03, 256, 1e-4, 0.999, 0, 100, M_HEADS),
        ("imagenet/lewel_m_200", "sgd", 0.06, 256, 1e-4, 0.999, 0, 200, M_HEADS),
        ("imagenet/byol_eman_100", "lars", 3.6, 1024, 1.5e-6, 0.98, 10, 100, B_HEADS),
        ("imagenet/lewel_b_eman_200", "lars", 3.6, 1024, 1.5e-6, 0.98, 10, 200, B_HEADS),
        ("imagenet/lewel_b_sync_400", "lars", 7.2, 4096, 1e-6, 0.996, 10, 400, B_HEADS),
        ("imagenet/lewel_b_paper_100", "sgd", 1.8, 512, 1e-6, 0.98, 0, 100, B_HEADS),
        ("imagenet/lewel_b_paper_400", "sgd", 1.8, 512, 1e-6, 0.98, 0, 400, B_HEADS),
        ("imagenet100/lewel_m", "sgd", 0.12, 256, 1e-4, 0.999, 0, 240, M_HEADS),
        ("imagenet100/lewel_b", "lars", 3.6, 512, 1e-6, 0.98, 10, 240, B_HEADS),
        ("cifar10/moco_v2_200", "sgd", 0.06, 512, 5e-4, 0.99, 0, 200, M_HEADS),
        ("cifar10/byol_200", "sgd", 0.06 / 4, 128, 4 * 5e-4, 0.99, 0, 200, (1024, 256, 4)),
        ("imagenette/moco_v2", "sgd", 0.06 / 2, 256, 2 * 5e-4, 0.99, 0, 200, M_HEADS),
    ],
)
def test_the_published_numbers_come_out(name, optimizer, lr, batch, decay, momentum, warmup, epochs, heads):
    run = presets.get(name)
    steps = presets.PRESETS[name].images // batch
    assert (run.optim.name, run.data.batch_size, run.epochs) == (optimizer, batch, epochs)
    assert rates(run, warmup * steps, steps)[0] == pytest.approx(lr)  # where warm-up has ended
    assert rates(run, 0, steps)[1] == momentum
    assert (run.optim.weight_decay, run.optim.warmup_epochs) == (decay, warmup)
    assert (run.heads.hidden, run.heads.num_maps, run.heads.num_groups) == heads


@pytest.mark.parametrize("name", presets.PRESETS)
def test_the_switches_of_a_preset_are_those_of_its_source(name):
    run = presets.get(name)
    method, optim = run.method, run.optim
    assert (
        method.target, method.batch_norm, method.symmetric, optim.decay_all,
        run.precision, method.key_bn, method.momentum_schedule, optim.name,
    ) == of_its_family(SWITCHES, name)  # fmt: skip


@pytest.mark.parametrize(
    "run", [config.Train(), *(p.run for p in presets.PRESETS.values())], ids=lambda run: run.preset
)
def test_the_views_of_a_preset_are_those_of_its_source(run):
    """The default ones are those of LEWEL's official release for its BYOL type."""
    assert run.data.augmentation == of_its_family(VIEWS, run.preset)


@pytest.mark.parametrize(
    ("step", "lr"),
    [
        pytest.param(0, 2.878e-4, id="first-step"),
        pytest.param(STEPS - 1, 0.36, id="end-of-epoch-0"),
        pytest.param(19 * STEPS, 3.5119, id="epoch-19"),
        pytest.param(99 * STEPS, 1.09651e-3, id="epoch-99"),
    ],
)
def test_learning_rate_of_the_published_log(step, lr):
    assert rates(presets.get("imagenet/lewel_b_eman_100"), step, STEPS)[0] == pytest.approx(lr, rel=2e-4)


def test_momentum_of_the_published_log():
    momentum = rates(presets.get("imagenet/lewel_b_eman_100"), 9 * STEPS + 800, STEPS)[1]
    assert momentum == pytest.approx(0.98045505, abs=5e-9)


def test_the_published_log_has_the_preset_s_steps():
    assert presets.PRESETS["imagenet/lewel_b_eman_100"].images // 1024 == STEPS


@pytest.mark.parametrize("set_", ["imagenet", "imagenet100"])
def test_the_moco_type_s_queue_and_temperature_are_the_paper_s(set_):
    methods = [p.run.method for name, p in presets.PRESETS.items() if name.startswith(set_ + "/")]
    contrasts = [method for method in methods if method.loss == "infonce"]
    assert {(m.queue, m.temperature, m.momentum_schedule) for m in contrasts} == {(65536, 0.2, "constant")}
    assert len(contrasts) >= 2


@pytest.mark.parametrize(
    ("baseline", "name"),
    [(name.replace("lewel_b", "byol"), name) for name in presets.PRESETS if "/lewel_b" in name and "paper" not in name]
    + [(name.replace("lewel_m", "moco_v2"), name) for name in presets.PRESETS if "/lewel_m" in name],
)
def test_a_baseline_differs_from_its_lewel_in_the_branch_alone(baseline, name):
    """And, for the paper's MoCo type and where each has the rate that is best for it, in the rate."""
    run = presets.get(name)
    plain = replace(run, preset=baseline, method=replace(run.method, w_aligned=0.0))
    differences = recipe.differences(presets.get(baseline), plain)
    own_rate = "/lewel_m" in name and name.split("/")[0] in ("embedded", "imagenet", "imagenet100")
    expected = ["optim.lr"] if own_rate else []
    assert [change.split(":")[0] for change in differences] == expected


@pytest.mark.parametrize(
    ("name", "linear"),
    [
        ("moco_v2_100", 64.5), ("moco_v2_200", 67.5), ("lewel_m_100", 66.1), ("lewel_m_200", 68.4),
        ("byol_eman_100", 70.6), ("byol_eman_200", 71.9), ("byol_sync_400", 73.2),
        ("lewel_b_eman_100", 71.9), ("lewel_b_eman_200", 72.8), ("lewel_b_sync_400", 73.8),
    ],
)  # fmt: skip
def test_expected_is_what_the_paper_s_first_table_says(name, linear):
    assert presets.PRESETS[f"imagenet/{name}"].expected == f"linear {linear}"


def test_the_table_has_a_line_for_each_and_fits_160_columns():
    lines = presets.table().splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(presets.PRESETS)
    assert max(map(len, lines)) <= 160
    line = next(line for line in lines if line.startswith("imagenet/lewel_b_eman_200"))
    for cell in (
        "1,281,167 at 224",
        "resnet50 imagenet",
        "1024",
        "lars 3.6",
        "linear 72.8",
        "1191 s, 8 V100",
        "Table 1",
    ):
        assert cell in line


def test_who_knows_nothing_says_untuned():
    for preset in presets.PRESETS.values():
        assert bool(preset.expected) != (preset.source == "untuned")


def test_a_described_preset_says_what_is_known_of_it():
    assert presets.describe("imagenet/lewel_m_200").startswith(
        "# reaches linear 68.4\n# from paper, Table 1\n# an epoch takes 1222 s, 8 V100\npreset: imagenet/lewel_m_200\n"
    )


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(LewelError, match="did you mean imagenet/lewel_m_100"):
        presets.describe("imagenet/lewel_m_10")


class TestPublishedImages:
    RUN = presets.get("imagenet100/lewel_m")

    def test_of_the_preset_s_set(self):
        assert presets.published_images(replace(self.RUN, epochs=1)) == 126_689

    @pytest.mark.parametrize(
        "run",
        [
            pytest.param(replace(RUN, preset="custom"), id="custom"),
            pytest.param(replace(RUN, data=replace(RUN.data, name="imagenette")), id="other-set"),
            pytest.param(replace(RUN, data=replace(RUN.data, train_list="one.txt")), id="part"),
        ],
    )
    def test_not_of_other_data(self, run):
        assert presets.published_images(run) is None
