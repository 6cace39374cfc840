"""Recipes: YAML there and back, and a sentence for everything that is wrong with one."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import pytest

from lewel.commands.train import TrainCommand, parse
from lewel.errors import LewelError
from lewel.recipe import checks, plain, presets
from lewel.recipe.schema import Augmentation, Data, Heads, MethodSettings, Optim, Train
from lewel.run.session import check_size


def augmented(**changes: Any) -> Train:
    return Train(data=Data(augmentation=Augmentation(**changes)))


@pytest.mark.parametrize(
    ("yaml", "sentence"),
    [
        pytest.param("epoch: 3", "there is no epoch; did you mean epochs?", id="key"),
        pytest.param(
            "optim: {momentun: 1}", "there is no optim.momentun; did you mean optim.momentum", id="nested-key"
        ),
        pytest.param("epochs: many", "epochs must be a whole number, got 'many'", id="type"),
        pytest.param("epochs: 2.5", "epochs must be a whole number, got 2.5", id="fraction"),
        pytest.param("method: {target: ema}", "method.target must be one of parameters, eman, got 'ema'", id="choice"),
        pytest.param("data: {augmentation: {blur: [1]}}", "data.augmentation.blur must be 2 numbers", id="length"),
        pytest.param("data: {augmentation: {blur: [1, 0, 0]}}", "blur must be 2 numbers, got [1, 0, 0]", id="too-many"),
        pytest.param("data: {augmentation: {blur: 1}}", "blur must be 2 numbers, got 1", id="number-for-a-pair"),
        pytest.param("data: {augmentation: {blur: [1, much]}}", "blur must be a number, got 'much'", id="in-a-pair"),
        pytest.param("epochs: true", "epochs must be a whole number, got True", id="truth-for-a-whole-number"),
        pytest.param("optim: {lr: true}", "optim.lr must be a number, got True", id="truth-for-a-number"),
        pytest.param("compile: 1", "compile must be true or false, got 1", id="number-for-truth"),
        pytest.param("out: 3", "out must be a string, got 3", id="number-for-a-string"),
        pytest.param("out: null", "out must be a string, got None", id="nothing-for-a-string"),
        pytest.param("data: {root: null}", "data.root must be a string or a list of strings, got None", id="no-root"),
        pytest.param("data: {root: [[a], b]}", "must be a string or a list of strings, got [['a'], 'b']", id="roots"),
        pytest.param("optim: 3", "optim must be a table of keys, got 3", id="table"),
        pytest.param("encoder: {last_stride: 2.0}", "last_stride must be one of 1, 2, got 2.0", id="choice-fraction"),
        pytest.param("encoder: {last_stride: true}", "last_stride must be one of 1, 2, got True", id="choice-truth"),
        pytest.param("knn_k: 20", "knn_k must be a list of numbers, got 20", id="no-list"),
        pytest.param("knn_k: [200, 2.5]", "knn_k must be a whole number, got 2.5", id="list-of-fractions"),
        pytest.param("optim: {lr: 1e-3}", "lr must be a number .write 1.0e-3, .* got '1e-3'", id="exponent"),
        pytest.param("optim: {lr: 2.5E3}", "write 2.5e.3,", id="exponent-without-sign"),
        pytest.param("[1, 2", "cannot read the recipe .*line 1: while .*, expected", id="not-yaml"),
        pytest.param("epochs: 1\nseed: 1\nepochs: 2", "line 3: epochs is in line 1 already; write it", id="twice"),
        pytest.param("optim: {lr: 1, lr: 2}", "line 1: lr is in line 1 already", id="twice-in-a-line"),
        pytest.param("optim: {lr: 1}\noptim: {momentum: 0}", "line 2: optim is in line 1 already", id="section-twice"),
        pytest.param("optim.lr: 1\noptim: {lr: 2}", "optim.lr is given twice, dotted and in its", id="dotted-twice"),
        pytest.param("epochs: 1\n---\nseed: 1", "line 2: expected a single document .*, but found another", id="two"),
        pytest.param("epochs: !!int x", "cannot read the recipe .*: invalid literal", id="tag"),
        pytest.param("epochs: &a [*a]", "recipe .* has a part that holds itself", id="circle"),
        pytest.param("[" * 3000, "cannot read the recipe .*: maximum recursion depth", id="brackets"),
        pytest.param("method: infoNCE", "got 'infoNCE'; did you mean method.loss infonce?", id="loss-as-a-word"),
        pytest.param("seed: 010", "line 1: YAML takes 010 for 8; write that number, or quotes", id="octal"),
        pytest.param("epochs: 1:30", "line 1: YAML takes 1:30 for 90; write that", id="sixty"),
        pytest.param("optim: {lr: 1:30.5}", "line 1: YAML takes 1:30.5 for 90.5", id="sixty-with-a-fraction"),
        pytest.param('optim: {lr: "0.1"}', "lr must be a number .without quotes., got '0.1'", id="quoted-number"),
        pytest.param("seed: 08", "seed must be a whole number, got '08'", id="no-octal"),
        pytest.param('epochs: "3"', "a whole number .without quotes., got '3'", id="quoted-whole-number"),
        pytest.param('compile: "true"', "true or false .without quotes., got 'true'", id="quoted-truth"),
        pytest.param("resume: auto", "resume is no part of a recipe; .* lewel train --resume$", id="flag"),
        pytest.param("dry_run: true", "dry_run is no part of a recipe; .* lewel train --dry-run$", id="long-flag"),
        pytest.param("encoder: resnet18", "got 'resnet18'; write encoder: {name: resnet18}", id="encoder-as-a-word"),
        pytest.param("data: cifar10", "got 'cifar10'; write data: {name: cifar10}", id="set-as-a-word"),
        pytest.param("data: SET", "got 'SET'; write data: {root: SET}", id="place-as-a-word"),
        pytest.param("method: lewel_m", "lewel_m is method.loss infonce with method.w_aligned above 0", id="method"),
        pytest.param(
            "preset: cifar10/lewel", "yaml: there is no preset 'cifar10/lewel'; did you mean cifar10/", id="preset"
        ),
        pytest.param("preset: 3", "preset must be a string, got 3", id="preset-of-a-number"),
    ],
)
def test_a_wrong_yaml_recipe_is_a_sentence(yaml, sentence, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml)
    with pytest.raises(LewelError, match=sentence.replace("[", r"\[").replace("?", r"\?")):
        presets.load(path)


@pytest.mark.parametrize(
    ("run", "sentence"),
    [
        pytest.param(
            Train(method=MethodSettings(loss="triplet")),
            "loss must be one of infonce, byol, simsiam.*, got 'triplet'; an objective of your own",
            id="loss",
        ),
        pytest.param(
            Train(method=MethodSettings(loss="moco")),
            "got 'moco'; moco_v2 is method.loss infonce with method.w_aligned 0",
            id="method-for-a-loss",
        ),
        pytest.param(Train(precision="ambient"), "precision ambient is that of the autocast around", id="ambient"),
        pytest.param(Train(heads=Heads(num_maps=64, num_groups=5)), "64 maps and 5 groups", id="groups"),
        pytest.param(Train(method=MethodSettings(queue=255)), "at least the 256 keys .* got 255", id="queue"),
        pytest.param(Train(method=MethodSettings(queue=511, symmetric=True)), "at least the 512 keys", id="symmetric"),
        pytest.param(Train(knn_k=()), "knn_k must be one number .* got none", id="no-neighbours"),
        pytest.param(Train(knn_k=(20, 20)), "knn_k must be .* different ones, got 20 20", id="same-neighbours"),
        pytest.param(Train(knn_k=(20, 0)), "knn_k must be .* got 20 0", id="nobody"),
        pytest.param(Train(knn_temperature=0.001), "knn_temperature must be at least 0.01", id="knn-temperature"),
        pytest.param(Train(method=MethodSettings(split_bn=3)), "got 256 in 3 groups", id="split-bn"),
        pytest.param(
            Train(method=MethodSettings(w_aligned=1.5)), "method.w_aligned must lie between 0 and 1", id="weight"
        ),
        pytest.param(Train(optim=Optim(name="lars")), "lars never decays biases", id="lars"),
        pytest.param(Train(epochs=0), "epochs must be positive, got 0", id="epochs"),
        pytest.param(Train(heads=Heads(num_groups=0)), "heads.num_groups must be positive, got 0", id="no-groups"),
        pytest.param(
            Train(method=MethodSettings(split_bn=0)), "method.split_bn must be positive, got 0", id="no-split"
        ),
        pytest.param(Train(method=MethodSettings(queue=0)), "method.queue must be positive, got 0", id="no-queue"),
        pytest.param(Train(data=Data(batch_size=0)), "data.batch_size must be positive, got 0", id="no-batch"),
        pytest.param(Train(log_every=0), "log_every must be positive, got 0", id="log-every"),
        pytest.param(Train(optim=Optim(lr=math.nan)), "optim.lr must be positive, got nan", id="nan"),
        pytest.param(Train(heads=Heads(tau=math.inf)), "heads.tau must be positive, got inf", id="inf"),
        pytest.param(
            Train(optim=Optim(warmup_epochs=21)), "optim.warmup_epochs must lie between 0 and 20, got 21", id="warm-up"
        ),
        pytest.param(Train(data=Data(workers=-1)), "data.workers must lie between 0", id="workers"),
        pytest.param(augmented(crop_scale=(-1, 1)), "crop_scale must be .* got -1 and 1", id="crop-negative"),
        pytest.param(augmented(crop_scale=(1, 0.2)), "crop_scale must be .* got 1 and 0.2", id="crop-order"),
        pytest.param(augmented(crop_scale=(0.2, 3)), "crop_scale must be .* got 0.2 and 3", id="crop-large"),
        pytest.param(augmented(crop_scale=(0, 1)), "crop_scale must be .* got 0 and 1", id="crop-zero"),
        pytest.param(augmented(flip=7), "flip must lie between 0 and 1, got 7", id="flip"),
        pytest.param(augmented(flip=math.nan), "flip must lie between 0 and 1, got nan", id="flip-nan"),
        pytest.param(augmented(jitter_p=-1), "jitter_p must lie", id="jitter-p"),
        pytest.param(augmented(gray=2), "gray must lie", id="gray"),
        pytest.param(augmented(blur=(0.5, 3)), "blur must lie", id="blur"),
        pytest.param(augmented(solarize=(-0.1, 0)), "solarize must lie", id="solarize"),
        pytest.param(
            augmented(jitter=(-0.4, 0, 0, 0)), "strength of brightness must be 0 or a positive", id="brightness"
        ),
        pytest.param(
            augmented(jitter=(0, 0, math.inf, 0)), "strength of saturation must be .* got inf", id="saturation"
        ),
        pytest.param(augmented(jitter=(0, math.nan, 0, 0)), "strength of contrast must be .* got nan", id="contrast"),
        pytest.param(augmented(jitter=(0, 0, 0, 0.6)), "strength of hue must be between 0 and 0.5, got 0.6", id="hue"),
        pytest.param(Train(seed=-1), "seed must lie between 0 and", id="seed-negative"),
        pytest.param(Train(seed=2**63), "seed must lie between 0 and", id="seed-large"),
        pytest.param(Train(data=Data(embedded_train=0)), "embedded_train must be positive", id="no-train"),
        pytest.param(Train(data=Data(embedded_test=1)), "embedded_test must be at least 2, got 1", id="no-test"),
        pytest.param(
            Train(data=Data(batch_size=1), method=MethodSettings(loss="byol")),
            "batch_size must be at least 2",
            id="one-image",
        ),
        pytest.param(
            Train(data=Data(image_size=1), method=MethodSettings(w_aligned=0)), "image_size must be at", id="pixel"
        ),
        pytest.param(Train(data=Data(storage="files")), "the embedded images are in no files", id="files"),
        pytest.param(
            Train(method=MethodSettings(split_bn=256), heads=Heads(num_groups=64)),
            "256 images in 256 groups; choose at most 128",
            id="one-row",
        ),
        pytest.param(
            Train(method=MethodSettings(split_bn=256, w_aligned=0), data=Data(image_size=8)),
            "256 images in 256 groups",
            id="one-pixel",
        ),
        pytest.param(
            Train(data=Data(image_size=8)), "at data.image_size 8 .* one position.* at least 9", id="one-position"
        ),
        pytest.param(Train(heads=Heads(tau=1e-6)), "heads.tau must be at least 0.001, got 1e-06", id="tau"),
        pytest.param(
            Train(method=MethodSettings(temperature=1e-12)),
            "method.temperature must be at least 0.001",
            id="temperature",
        ),
        pytest.param(
            Train(optim=Optim(momentum=1)), "optim.momentum must be at least 0 and below 1, got 1", id="momentum"
        ),
        pytest.param(Train(optim=Optim("adamw")), "adamw never decays biases .* --optim.no-decay-all", id="adamw"),
        pytest.param(
            Train(backend="gpu"), "backend must be one of cpu, triton, cuda, reference, got 'gpu'", id="backend"
        ),
    ],
)
def test_a_recipe_that_cannot_run_is_refused_with_a_sentence(run, sentence):
    with pytest.raises(LewelError, match=sentence):
        checks.check(run)


def changed(run: Train, key: str, value: Any) -> Train:
    """run with the setting that a key like "data.augmentation.flip" names."""
    values = table = plain.to_plain(run)
    *parts, last = key.split(".")
    for part in parts:
        table = table[part]
    assert last in table
    table[last] = value
    return plain.from_plain(values, source="test")


@pytest.mark.parametrize("value", [0, -1])
@pytest.mark.parametrize(
    "key",
    ["epochs", "accumulate", "log_every", "keep", "optim.lr"]
    + [f"heads.{name}" for name in ("hidden", "num_maps", "num_groups", "tau")]
    + [f"method.{name}" for name in ("temperature", "queue", "split_bn")]
    + [f"data.{name}" for name in ("image_size", "embedded_train", "batch_size")],
)
def test_what_must_be_positive_is_refused_at_zero_and_below(key, value):
    with pytest.raises(LewelError, match=f"^{key} must be positive, got {value}"):
        checks.check(changed(Train(), key, value))


@pytest.mark.parametrize(
    ("key", "lowest", "highest", "unit"),
    [
        ("method.w_aligned", 0, 1, 1e-6),
        ("method.momentum", 0, 1, 1e-6),
        ("optim.weight_decay", 0, 1, 1e-6),
        ("optim.warmup_epochs", 0, 20, 0.01),
        ("data.workers", 0, 1024, 1),
        ("heads.aligned_width", 0, 10**9, 1),
        ("save_every", 0, 10**9, 1),
        ("keep_every", 0, 10**9, 1),
        ("knn_every", 0, 10**9, 1),
        ("knn_bank", 0, 10**9, 1),
    ],
)
def test_what_has_a_range_is_accepted_at_its_ends_and_refused_beyond(key, lowest, highest, unit):
    for value in (lowest, highest):
        checks.check(changed(Train(), key, value))
    for value in (lowest - unit, *([highest + unit] if highest < 10**9 else [])):
        with pytest.raises(LewelError, match=f"^{key} must (lie between {lowest} and|be {lowest} or more)"):
            checks.check(changed(Train(), key, value))


@pytest.mark.parametrize(
    ("run", "images", "sentence"),
    [
        pytest.param(Train(), 4000, "queue holds 4096 keys .* only 3840, .* choose at most 3840", id="queue"),
        pytest.param(
            Train(method=MethodSettings(symmetric=True)),
            2047,
            "holds 4096 keys .* 2047 images makes only 3584",
            id="symmetric",
        ),
        pytest.param(Train(), 100, "batch_size is 256 but there are only 100", id="batch"),
    ],
)
def test_a_data_set_that_is_too_small_is_refused_with_a_sentence(run, images, sentence):
    with pytest.raises(LewelError, match=sentence):
        check_size(run, images)


def test_both_views_of_a_symmetric_step_fill_the_queue():
    check_size(Train(method=MethodSettings(symmetric=True)), 2048)


@pytest.mark.parametrize(
    "run",
    [
        pytest.param(augmented(crop_scale=(1, 1), jitter=(2, 3, 4, 0.5), blur=(0, 1), solarize=(1, 0)), id="extremes"),
        pytest.param(Train(seed=2**63 - 1), id="seed"),
        pytest.param(Train(data=Data(image_size=9)), id="four-positions"),
        pytest.param(Train(data=Data(image_size=8), method=MethodSettings(w_aligned=0)), id="no-maps"),
        pytest.param(Train(method=MethodSettings(split_bn=256)), id="rows-are-aligned-vectors"),
        pytest.param(Train(method=MethodSettings(split_bn=256, target="eman"), heads=Heads(num_groups=64)), id="eman"),
        pytest.param(Train(heads=Heads(tau=1e-3), optim=Optim(momentum=0)), id="limits"),
        pytest.param(Train(method=MethodSettings(temperature=1e-3), data=Data(embedded_test=2)), id="more-limits"),
        pytest.param(Train(data=Data(image_size=2), method=MethodSettings(w_aligned=0)), id="two-pixels"),
        pytest.param(Train(method=MethodSettings(split_bn=128), heads=Heads(num_groups=64)), id="two-rows"),
        pytest.param(Train(method=MethodSettings(split_bn=3, key_bn="plain")), id="no-groups"),
        pytest.param(Train(method=MethodSettings(split_bn=3, batch_norm="sync")), id="no-groups-with-sync"),
        pytest.param(Train(method=MethodSettings(split_bn=3, target="eman")), id="no-groups-with-eman"),
        pytest.param(Train(method=MethodSettings(queue=1000)), id="a-queue-that-the-batch-does-not-divide"),
        pytest.param(Train(method=MethodSettings(loss="byol", split_bn=3, queue=3)), id="no-keys"),
        pytest.param(Train(data=Data(batch_size=2), method=MethodSettings(loss="byol")), id="two-images"),
    ],
)
def test_what_can_run_is_accepted(run):
    checks.check(run)


def test_groups_of_keys_are_asked_for_of_one_process_only():
    """Several shuffle theirs, unless they are told to split."""
    checks.check(Train(method=MethodSettings(split_bn=3)), processes=2)
    with pytest.raises(LewelError, match="got 128 in 3 groups"):
        checks.check(Train(method=MethodSettings(split_bn=3, key_bn="split")), processes=2)
    with pytest.raises(LewelError, match="shuffle needs several processes"):
        checks.check(Train(method=MethodSettings(key_bn="shuffle")))
    checks.check(Train(method=MethodSettings(key_bn="shuffle")), processes=2)


@pytest.mark.parametrize(
    ("key", "value"),
    [("coupling", "separate"), ("maps", "random"), ("semantic_projector", "shared"), ("aligned_width", 32)],
)
def test_settings_of_the_aligned_branch_are_refused_without_it(key, value):
    run = changed(Train(), f"heads.{key}", value)
    checks.check(replace(run, heads=replace(run.heads, num_maps=32 if key == "aligned_width" else 64)))
    with pytest.raises(LewelError, match=f"^heads.{key} {value} says nothing without the aligned branch"):
        checks.check(replace(run, method=MethodSettings(w_aligned=0)))


@pytest.mark.parametrize("method", [{"symmetric": True}, {"key_bn": "plain"}, {"key_bn": "split"}], ids=str)
def test_settings_of_infonce_are_refused_with_byol(method):
    checks.check(Train(method=MethodSettings(**method)))
    ((name, value),) = method.items()
    with pytest.raises(LewelError, match=f"^method.{name} {value} says nothing where method.loss is byol"):
        checks.check(Train(method=MethodSettings(loss="byol", **method)))


SETS = ("embedded", "folder", "cifar10", "cifar100", "stl10", "imagenette", "custom")


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize(
    ("setting", "value", "fits"),
    [
        ("classes", "file", ("folder",)),
        ("train_list", "file", ("folder",)),
        ("download", True, ("cifar10", "cifar100", "stl10", "imagenette")),
        ("storage", "auto", SETS),
        ("storage", "files", ("folder", "imagenette", "custom")),
        ("storage", "memory", SETS[:-1]),
        ("storage", "device", SETS[:-1]),
        ("root", "x", SETS[1:]),  # of custom it is left out of the recipe
    ],
)
def test_settings_of_data_are_accepted_where_something_reads_them(setting, value, fits, name):
    run = Train(data=Data(name=name, **{setting: value}))
    if name in fits:
        checks.check(run)
    else:
        with pytest.raises(LewelError):
            checks.check(run)


def test_command_line_changes_a_preset():
    run = parse(["--preset", "cifar10/lewel_b", "--optim.lr", "0.5", "--data.root", "there"]).run
    preset = presets.get("cifar10/lewel_b")
    expected = replace(preset, optim=replace(preset.optim, lr=0.5), data=replace(preset.data, root="there"))
    assert run == expected


def test_command_line_changes_a_yaml_recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(plain.to_yaml(Train(epochs=7, data=Data(workers=3))))
    run = parse([f"--config={path}", "--seed", "4"]).run
    assert run == Train(epochs=7, data=Data(workers=3), seed=4)


def test_unknown_option_names_the_nearest(capsys):
    with pytest.raises(SystemExit) as stop:
        parse(["--preset", "cifar10/lewel_m", "--optim.lrr", "1"])
    assert stop.value.code == 2
    assert "--optim.lr" in capsys.readouterr().err.replace("--optim.lrr", "")


def test_unknown_preset_names_the_nearest():
    with pytest.raises(LewelError, match="did you mean embedded/lewel_m"):
        parse(["--preset", "embeded/lewel_m"])


def test_preset_and_config_together_are_refused():
    with pytest.raises(LewelError, match="give one of them"):
        parse(["--preset", "cifar10/lewel_m", "--config", "x.yaml"])


def test_a_recipe_in_part_begins_with_the_preset_that_it_names(tmp_path):
    (tmp_path / "part.yaml").write_text("preset: cifar10/lewel_m\nepochs: 3\noptim.lr: 0.5\noptim: {momentum: 0.5}\n")
    preset = presets.get("cifar10/lewel_m")
    expected = replace(preset, epochs=3, optim=replace(preset.optim, lr=0.5, momentum=0.5))
    assert presets.load(tmp_path / "part.yaml") == expected


def test_a_few_settings_of_every_section_begin_with_the_preset_too(tmp_path):
    sections = "data: {workers: 1}\nencoder: {}\nheads: {}\nmethod: {}\noptim: {lr: 0.5}\n"
    (tmp_path / "part.yaml").write_text("preset: cifar10/byol_200\n" + sections)
    assert presets.load(tmp_path / "part.yaml").method.loss == "byol"


def test_a_whole_recipe_is_what_it_says_whatever_it_began_with(tmp_path):
    for preset in ("cifar10/lewel_m", "none/such"):
        (tmp_path / "config.yaml").write_text(plain.to_yaml(Train(preset=preset)))
        assert presets.load(tmp_path / "config.yaml") == Train(preset=preset)


def test_places_without_a_name_are_folders_in_a_recipe_too(tmp_path):
    (tmp_path / "recipe.yaml").write_text("data: {root: SET}")
    assert presets.load(tmp_path / "recipe.yaml").data == Data(name="folder", root="SET")
    (tmp_path / "recipe.yaml").write_text("data: {root: SET, name: embedded}")
    with pytest.raises(LewelError, match="says nothing about the embedded images"):
        checks.check(presets.load(tmp_path / "recipe.yaml"))


def test_what_is_merged_is_not_there_twice(tmp_path):
    (tmp_path / "recipe.yaml").write_text("<<: {epochs: 2, seed: 1}\nepochs: 3")
    assert presets.load(tmp_path / "recipe.yaml") == Train(epochs=3, seed=1)
    (tmp_path / "recipe.yaml").write_text("<<: {epochs: 2}\n<<: {seed: 1}")
    assert presets.load(tmp_path / "recipe.yaml") == Train(epochs=2, seed=1)


def test_a_date_is_text(tmp_path):
    (tmp_path / "recipe.yaml").write_text("out: 2026-01-31")
    assert presets.load(tmp_path / "recipe.yaml").out == "2026-01-31"


def test_a_recipe_may_be_utf_16(tmp_path):
    (tmp_path / "recipe.yaml").write_text("epochs: 3", encoding="utf-16")
    assert presets.load(tmp_path / "recipe.yaml") == Train(epochs=3)


def test_flags_that_are_no_part_of_a_recipe_are_known_as_such():
    assert set(plain.FLAGS) == {field.name for field in fields(TrainCommand)} - {"run"}


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("run", None, "the recipe run is a folder; its run's is run/config.yaml"),
        ("other", None, "the recipe other is a folder; name a YAML file"),
        ("step.pt", b"PK\x03\x04\0", "is no YAML text; a checkpoint is continued by --resume step.pt"),
        ("a.png", b"\x89PNG\0", "the recipe a.png is no YAML text"),
        ("a.yaml", "wandb: caf\xe9".encode("latin-1"), "cannot read the recipe a.yaml as UTF-8: "),
        ("cifar10/lewel_m", None, "no file cifar10/lewel_m, but a preset of that name: --preset cifar10/lewel_m"),
        ("none.yaml", None, "cannot read the recipe none.yaml: No such file"),
    ],
)
def test_what_is_no_recipe_is_told_from_one(name, content, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("run", "other"):
        (tmp_path / folder).mkdir()
    (tmp_path / "run" / "config.yaml").touch()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(LewelError, match=sentence):
        presets.load(name)


@pytest.mark.parametrize("text", ["", "# nothing yet\n"])
def test_an_empty_recipe_is_not_taken_for_the_default_one(text, tmp_path):
    (tmp_path / "empty.yaml").write_text(text)
    with pytest.raises(LewelError, match=r"the recipe .*empty\.yaml is empty"):
        presets.load(tmp_path / "empty.yaml")
