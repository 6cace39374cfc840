"""lewel from Python: the names of the command line, encoders and data sets from outside, a Method in one's loop."""

from __future__ import annotations

import ast
import copy
import inspect
import os
import re
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tiny_runs import METHODS, TINY, assert_same, losses_of, run_in
from torch import nn
from torch.utils.data import ConcatDataset, Subset, TensorDataset

import lewel
from lewel import cli, data
from lewel.data import own
from lewel.errors import LewelError
from lewel.installed import TRAIN
from lewel.methods import losses
from lewel.methods.method import Method as Model
from lewel.recipe import plain, presets
from lewel.recipe.schema import EncoderSettings, Heads, Optim, Train
from lewel.run.session import prepare

ONE = TensorDataset(torch.zeros(2, 1))


class TestPackage:
    def test_train_is_the_function_whatever_was_imported(self):
        import lewel.train
        from lewel import train

        assert train is lewel.train is lewel.api.train
        assert list(inspect.signature(lewel.train).parameters)[:3] == ["out", "data", "preset"]

    @pytest.mark.parametrize("missing", ["tyro", "matplotlib", "torchvision"])
    def test_importing_it_needs_little(self, missing):
        """What the command line alone needs, and what the op's benchmarks do without where they import lewel.errors."""
        code = (
            f"import sys; sys.modules[{missing!r}] = None; import lewel, lewel.errors; print(sorted(lewel.OBJECTIVES))"
        )
        told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        assert told == "['byol', 'infonce', 'simsiam']\n"

    def test_training_needs_no_tyro(self):
        code = (
            "import sys; sys.modules['tyro'] = None; import lewel; print(lewel.train.__name__, lewel.Method.__name__)"
        )
        told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        assert told == "train Method\n"

    @pytest.mark.parametrize("use", ["lewel.train", "lewel.Method", "lewel.data"])
    def test_what_is_not_installed_is_a_sentence(self, use):
        code = f"""if True:
            import sys; sys.modules["torchvision"] = None; import lewel
            try: {use}
            except lewel.LewelError as error: print(error)"""
        told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        assert told == f'{use} needs torchvision, which is not installed: pip install "lewel[train]"\n'

    def test_scikit_learn_is_needed_by_the_embedded_set_and_by_no_other(self):
        code = """if True:
            import sys; sys.modules["sklearn"] = None; import lewel
            try: lewel.data.build(lewel.config.Data(name="embedded"), 0)
            except lewel.LewelError as error: print(error)"""
        told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        said = 'the embedded set needs scikit-learn, which is not installed: pip install "lewel[train]"'
        assert told == f"{said}\n"

    @pytest.mark.parametrize("command", ["runs", "show", "presets"])
    def test_commands_that_look_at_files_import_no_data_and_no_torchvision(self, command):
        """Three seconds, that is."""
        code = f"""if True:
            import sys, lewel.commands.{command}
            print({{"torchvision", "sklearn", "lewel.data"}} & {{*sys.modules}})"""
        told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        assert told == "set()\n"

    def test_what_may_not_be_installed_is_the_extra_and_pillow_with_torchvision(self):
        text = Path(__file__).parents[2].joinpath("pyproject.toml").read_text()
        extra = re.search(r"^train = (\[.*\])$", text, re.MULTILINE)
        assert {re.split("[<>=]", part)[0] for part in ast.literal_eval(extra[1])} | {"pillow"} == set(TRAIN.values())

    def test_every_name_is_there_and_no_other(self):
        assert all(hasattr(lewel, name) for name in lewel.__all__)
        assert lewel.build_encoder(EncoderSettings("tiny")).channels == 256
        assert lewel.config.Train is Train
        with pytest.raises(AttributeError, match="no attribute 'trian'"):
            lewel.trian  # noqa: B018


class TestSettings:
    def test_top_level_dotted_nested_and_whole(self):
        changes = {
            "epochs": 2,
            "optim.lr": 0.25,
            "heads": {"tau": 0.5},
            "data.augmentation.flip": 0,
            "encoder": EncoderSettings(),
        }
        run = plain.changed(presets.get("embedded/moco_v2"), changes | {"encoder": EncoderSettings()}, source="x")
        before = presets.get("embedded/moco_v2")
        flat = replace(before.data.augmentation, flip=0.0)
        assert run == replace(
            before,
            epochs=2,
            optim=replace(before.optim, lr=0.25),
            heads=replace(before.heads, tau=0.5),
            data=replace(before.data, augmentation=flat),
            encoder=EncoderSettings(),
        )

    def test_numbers_of_numpy_and_torch_are_numbers(self):
        given = {
            "epochs": np.int64(3),
            "optim": {"lr": np.float32(0.5)},
            "compile": np.bool_(True),
            "preset": np.str_("a"),
            "knn_k": np.array([5, 10]),
            "data.augmentation.blur": (torch.tensor(0.5), 0),
            "seed": torch.tensor(7),
        }
        run = plain.changed(TINY, given, source="x")
        assert (run.epochs, run.optim.lr, run.compile, run.knn_k, run.seed) == (3, 0.5, True, (5, 10), 7)
        assert run.data.augmentation.blur == (0.5, 0)
        assert yaml.safe_load(plain.to_yaml(run))["preset"] == "a"

    def test_places_alone_are_folders(self):
        assert plain.changed(TINY, {"data": {"root": "a"}}, source="x").data.name == "folder"
        assert plain.changed(TINY, {"data.root": "a", "data.name": "embedded"}, source="x").data.name == "embedded"

    def test_a_table_is_a_recipe(self, tmp_path):
        run = lewel.train(config=plain.to_plain(replace(TINY, epochs=2)), out=tmp_path / "run", epochs=np.int64(1))
        assert run.config == replace(TINY, epochs=1, out=str(tmp_path / "run"))

    def test_paths_are_places(self):
        assert plain.changed(TINY, {"data.root": [Path("a"), "b"]}, source="x").data.roots == ("a", "b")

    @pytest.mark.parametrize(
        ("settings", "sentence"),
        [
            ({"epoch": 3}, "lewel.train: there is no epoch; did you mean epochs?"),
            ({"optim.learning_rte": 1}, "lewel.train: there is no optim.learning_rte; there are name, lr"),
            ({"optm.lr": 1}, "lewel.train: there is no optm; did you mean optim?"),
            ({"optim": {"momentun": 1}}, "there is no optim.momentun; did you mean optim.momentum?"),
            ({"epochs.x": 1}, "epochs must be a whole number, got {'x': 1}"),
            ({"epochs": "two"}, "epochs must be a whole number, got 'two'"),
            ({"optim": 3}, "optim must be a table of keys, got 3"),
            ({"optim.lr": None}, "optim.lr must be a number, got None"),
            ({"optim": {"lr": "1e-3"}}, "optim.lr must be a number (without quotes), got '1e-3'"),
            ({"optim": {"lr": 1}, "optim.lr": 2}, "optim.lr is given twice, dotted and in its table"),
            ({"dry_run": True}, "dry_run is no part of a recipe; it is a flag of the command"),
            ({"config": {"epoch": 1}}, "there is no epoch; did you mean epochs?"),
            ({"config": 3}, "config is a path, got 3"),
            ({"preset": 3}, "preset is the name of a recipe, got 3"),
            ({"preset": "embedded/lewel"}, "did you mean embedded/lewel_"),
            ({"preset": "embedded/lewel_m", "config": "a.yaml"}, "preset and config both name a recipe"),
            ({"encoder": "resnet18"}, "encoder is a torch.nn.Module or a table of settings"),
            ({"data": 3}, "data is a folder or several, two data sets"),
            pytest.param({"data": ONE}, "data is two data sets, to train on and to test by, and Tens", id="one set"),
            pytest.param({"data": (ONE, None)}, "TensorDataset is one; hold some of it back", id="one set and None"),
            ({"data": ["a", None]}, "a table of settings, got ['a', None]"),
            ({"data": ""}, "a table of settings, got ''"),
            ({"data": ["a", ""]}, "data.root has an empty place among 2"),
            ({"method": {"loss": "triplet"}}, "method.loss must be one of infonce, byol, simsiam"),
        ],
        ids=str,
    )
    def test_a_wrong_one_is_a_sentence_and_nothing_is_written(self, settings, sentence, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(LewelError) as error:
            lewel.train(**settings)
        assert sentence in str(error.value)
        assert not list(tmp_path.iterdir())


def test_a_run_from_python_is_that_of_the_command_line(tmp_path, monkeypatch, capsys):
    """The same weights, and what is returned is what lies in the folder."""
    file = tmp_path / "recipe.yaml"
    file.write_text(plain.to_yaml(TINY))
    run = lewel.train(out=tmp_path / "python", config=TINY, epochs=1, optim={"lr": 0.3})
    monkeypatch.setattr(
        "sys.argv",
        [
            "lewel",
            "train",
            "--config",
            str(file),
            "--epochs",
            "1",
            "--optim.lr",
            "0.3",
            "--out",
            str(tmp_path / "line"),
        ],
    )
    cli.main()
    names = sorted(path.name for path in (tmp_path / "line").iterdir() if not path.name.startswith("events"))
    assert names == sorted(path.name for path in run.folder.iterdir() if not path.name.startswith("events"))
    states = [
        torch.load(folder / "checkpoints" / "step-00000003.pt", weights_only=True)["method"]
        for folder in (run.folder, tmp_path / "line")
    ]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0] if "extra" not in key)
    assert torch.equal(run.encoder.conv1.weight, states[0]["online.encoder.conv1.weight"])
    assert run.finished
    assert [record["kind"] for record in run.log] == ["baselines", "step", "step", "step", "epoch"]
    assert run.config == presets.load(run.folder / "config.yaml")
    capsys.readouterr()
    accuracy = lewel.eval("knn", run.folder)
    assert accuracy == pytest.approx({200: run.log[-1]["knn"], 20: run.log[-1]["knn_20"]})
    with pytest.raises(LewelError, match=r"lewel\.eval knows knn, .*, got 'magic'"):
        lewel.eval("magic", run.folder)


def small_encoder() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.BatchNorm2d(8), nn.ReLU())


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda run: lewel.train(resume=True), 'resume is a checkpoint to continue from, or "auto", got True'),
        (lambda run: lewel.export(run, to="onnx"), "to must be one of torchvision, .* got 'onnx'"),
        (
            lambda run: lewel.export(run, "safetensors", network="momentum"),
            "network must be one of online, target, got",
        ),
        (lambda run: lewel.export(None, "safetensors"), "run is a path, got None"),
        (lambda run: lewel.maps(run, "none.png"), "cannot read none.png as an image"),
        (lambda run: lewel.maps(run, None), "an image is a path, got None"),
        (lambda run: lewel.maps(run, ()), "no images were given"),
        (lambda run: lewel.maps(run, (name for name in ["none.png"])), "cannot read none.png as an image"),
        (lambda run: lewel.maps(run, []), "no images were given"),
        (lambda run: lewel.maps(run, "a.png", out=None), "out is a path, got None"),
        (lambda run: lewel.eval("knn", None), "run is a path, got None"),
        (lambda run: lewel.eval("knn", run, k="5"), "lewel.eval: k must be a list of numbers, got '5'"),
        (lambda run: lewel.eval("knn", run, k=2.5), "lewel.eval: k must be a whole number, got 2.5"),
        (lambda run: lewel.eval("knn", run, temperature="0.1"), "temperature must be a number .without quotes."),
        (lambda run: lewel.eval("knn", run, bank=10.0), "lewel.eval: bank must be a whole number, got 10.0"),
        (lambda run: lewel.eval("knn", run, data_eval=3), "data_eval is a path, got 3"),
        (lambda run: lewel.eval("knn", run, out=3), "out is a path, got 3"),
        (lambda run: lewel.eval("knn", run, workers="2"), "workers is a whole number, or None .* got '2'"),
        (lambda run: lewel.eval("knn", run, workers=True), "workers is a whole number, or None .* got True"),
        (lambda run: lewel.eval("knn", run, data_root=5), "data_root is a path or several, got 5"),
        (lambda run: lewel.eval("knn", run, data_root=["a", 5]), "data_root is a path or several, got .'a', 5"),
        (lambda run: lewel.eval("knn", run, preset=1), "preset is the name of a recipe, got 1"),
        (lambda run: lewel.eval("knn", run, config={}), "config is a path, got {}"),
        (lambda run: lewel.eval("knn", None, weights=3), "weights is a path, got 3"),
        (lambda run: lewel.eval(["knn"], run), "lewel.eval knows knn, .* got .'knn'."),
        (lambda run: lewel.eval("logistic", run, c="0.1"), "lewel.eval: c must be a list of numbers, got '0.1'"),
        (lambda run: lewel.eval("logistic", run, seed=0.5), "lewel.eval: seed must be a whole number, got 0.5"),
        (lambda run: lewel.eval("semi", run, labels="1"), "lewel.eval: labels must be one of 1, 10, got '1'"),
        (lambda run: lewel.eval("semi", run, lr="a"), "lewel.eval: lr must be a number, got 'a'"),
    ],
)
def test_what_has_another_type_is_a_sentence(call, sentence, finished):
    with pytest.raises(LewelError, match=sentence):
        call(finished.folder)


def test_eval_takes_numbers_of_numpy(finished):
    assert lewel.eval("knn", finished.folder, k=np.int64(5), data_eval=None).keys() == {5}
    assert lewel.eval("knn", finished.folder, k=range(4, 6)).keys() == {4, 5}


class Locked(nn.Sequential):
    """Holds what no copy can be made of."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 8, 4, stride=4))
        self.lock = threading.Lock()


class TestEncoder:
    def test_of_frozen_parameters_is_said_to_stay(self, tmp_path):
        encoder = small_encoder().requires_grad_(False)
        before = {name: value.clone() for name, value in encoder.named_parameters()}
        with pytest.warns(
            UserWarning, match="the encoder Sequential has no parameter with requires_grad, so the heads"
        ):
            lewel.train(out=tmp_path / "run", config=replace(TINY, epochs=1), encoder=encoder)
        assert all(torch.equal(before[name], value) for name, value in encoder.named_parameters())

    def test_that_cannot_be_copied_is_refused(self):
        run = replace(TINY, encoder=EncoderSettings("custom"))
        with pytest.raises(LewelError, match=r"copy\.deepcopy cannot copy Locked \(cannot pickle '_thread.lock'"):
            Model(run, Locked())

    def test_is_trained_in_place_and_named_custom(self, tmp_path, monkeypatch, capsys):
        encoder = small_encoder()
        before = copy.deepcopy(encoder.state_dict())
        run = lewel.train(out=tmp_path / "run", config=TINY, encoder=encoder)
        assert run.encoder is encoder
        assert not torch.equal(before["0.weight"], encoder[0].weight)
        assert run.session.method.target.encoder is not encoder
        assert presets.load(run.folder / "config.yaml").encoder.name == "custom"
        self.refused_without(run.folder, monkeypatch, capsys)
        run = lewel.train(out=tmp_path / "run", config=TINY, encoder=small_encoder(), resume="auto")
        assert torch.equal(run.encoder[0].weight, encoder[0].weight)  # the checkpoint's, at the end already

    def refused_without(self, folder, monkeypatch, capsys):
        for arguments in (
            ["eval", "knn", str(folder)],
            ["train", "--config", str(folder / "config.yaml"), "--resume", "auto"],
            ["export", str(folder), "--to", "safetensors"],
        ):
            monkeypatch.setattr("sys.argv", ["lewel", *arguments])
            with pytest.raises(SystemExit):
                cli.main()
            assert "lewel: the encoder of this run came from Python (encoder.name custom)" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("module", "sentence"),
        [
            (
                nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.Flatten()),
                r"Sequential makes \(1, 512\) of \(1, 3, 32, 32\)",
            ),
            (nn.Conv2d(3, 8, 32), "the feature map of Conv2d is one position"),
            (nn.Conv2d(1, 8, 4), r"Conv2d cannot take images \(1, 3, 32, 32\) \(RuntimeError"),
            (nn.Conv2d(3, 8, 4).double(), "trains in float32, and Conv2d has torch.float64"),
            (nn.Conv2d(3, 7, 4), "heads.num_groups must divide the 7 channels of custom, got 2"),
        ],
        ids=["flat", "one-position", "gray", "float64", "channels"],
    )
    def test_that_makes_no_map_is_refused(self, module, sentence):
        run = replace(TINY, encoder=EncoderSettings("custom"))
        with pytest.raises(LewelError, match=sentence):
            Model(run, module)

    def test_is_looked_at_without_a_trace(self):
        encoder = small_encoder()
        encoder[1].eval()
        before = copy.deepcopy(encoder.state_dict())
        Model(replace(TINY, heads=Heads(hidden=16, num_maps=8, num_groups=2)), encoder)
        assert all(torch.equal(before[key], value) for key, value in encoder.state_dict().items())
        assert [module.training for module in encoder] == [True, True, True]  # as Method leaves all of it


class Pictures:
    """Dark and light images of several widths, as PIL images, arrays or tensors."""

    classes = ("dark", "light")

    def __init__(self, count: int, kind: str = "pil") -> None:
        self.count, self.kind = count, kind

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int):
        pixels = np.random.default_rng(index).integers(
            100 * (index % 2), 150 + 100 * (index % 2), (40, 36 + index % 9, 3)
        )
        array = pixels.astype(np.uint8)
        kinds = {
            "pil": lambda: Image.fromarray(array),
            "array": lambda: array,
            "tensor": lambda: torch.from_numpy(array).permute(2, 0, 1),
            "float": lambda: torch.rand(3, 32, 32),
            "gray": lambda: array[..., 0],
            "planes": lambda: array.transpose(2, 0, 1),
            "alone": lambda: None,
        }
        image = kinds.get(self.kind, kinds["pil"])()
        labels = {"beyond": 2, "below": -1, "half": 0.5, "name": "dark", "tensor": torch.tensor(index % 2)}
        return image if self.kind == "alone" else (image, labels.get(self.kind, index % 2))


@pytest.mark.parametrize(
    "use",
    [
        pytest.param("import lewel; lewel.data.Datasets", id="data"),
        pytest.param("import builtins; from lewel import *; assert eval is builtins.eval; data.Datasets", id="star"),
    ],
)
def test_what_the_documents_name_is_there_before_anything_was_trained(use):
    subprocess.run(
        [sys.executable, "-c", use], env=os.environ | {"PYTHONPATH": str(Path(lewel.__file__).parents[1])}, check=True
    )


class TestData:
    def test_of_ones_own_trains_alike_from_each_kind_of_image_and_any_workers(self, tmp_path):
        one = replace(TINY, epochs=1, data=replace(TINY.data, batch_size=16))
        runs = [
            lewel.train(out=tmp_path / f"{kind}{workers}", config=one, data=(Pictures(32, kind), Pictures(8, kind)),
                        **{"data.workers": workers})
            for kind, workers in (("pil", 0), ("array", 0), ("tensor", 2))
        ]  # fmt: skip
        for run in runs[1:]:
            assert_same(runs[0].session, run.session)
        assert presets.load(runs[0].folder / "config.yaml").data.name == "custom"
        with pytest.raises(LewelError, match=r"the images of this run came from Python \(data.name custom\)"):
            lewel.eval("knn", runs[0].folder)
        accuracy = lewel.eval("knn", runs[0].folder, k=5, data=(Pictures(32), Pictures(8)))
        assert accuracy == {5: pytest.approx(100)}  # dark and light are told apart by any network

    def test_made_by_lewel_is_that_of_the_recipe(self, tmp_path):
        sets = data.build(TINY.data, TINY.seed)
        assert_same(prepare(TINY, tmp_path), prepare(TINY, tmp_path, sets=sets))
        given = lewel.train(out=tmp_path / "given", config=TINY, data=sets, epochs=1)
        assert losses_of(given.session) == losses_of(run_in(tmp_path / "own", replace(TINY, epochs=1)))

    def test_is_a_folder(self, tmp_path):
        for split in ("train", "test"):
            for label in ("a", "b"):
                (tmp_path / split / label).mkdir(parents=True)
                for i in range(16):
                    Pictures(1)[i][0].save(tmp_path / split / label / f"{i}.png")
        run = lewel.train(out=tmp_path / "run", config=TINY, data=tmp_path, epochs=1)
        assert (run.config.data.name, run.config.data.root) == ("folder", str(tmp_path))

    def test_is_several_folders(self, tmp_path):
        for place in ("here", "there"):
            (tmp_path / place).mkdir()
            for i in range(16):
                Pictures(1)[i][0].save(tmp_path / place / f"{i}.png")
        run = lewel.train(
            out=tmp_path / "run", config=TINY, data=[tmp_path / "here", str(tmp_path / "there")], epochs=1
        )
        assert (run.config.data.name, run.config.knn_every) == ("folder", 0)
        assert run.config.data.roots == (str(tmp_path / "here"), str(tmp_path / "there"))
        assert len(run.session.sets.train) == 32
        with pytest.raises(LewelError, match="kNN compares labels"):
            lewel.eval("knn", run.folder)
        assert lewel.eval("knn", run.folder, data_eval=self.known(tmp_path)) == {200: 50.0, 20: 50.0}

    def known(self, folder):
        """Ten images in each of two classes, all alike."""
        for label in ("a", "b"):
            (folder / "known" / label).mkdir(parents=True)
            for i in range(10):
                Pictures(1)[0][0].save(folder / "known" / label / f"{i}.png")
        return folder / "known"

    @pytest.mark.parametrize(
        ("train", "sentence"),
        [
            (Pictures(32, "float"), "leave out its transform"),
            (Pictures(32, "gray"), r"is a ndarray uint8 \(40, 36\)"),
            (Pictures(32, "planes"), r"is a ndarray uint8 \(3, 40, 36\)"),
            (Pictures(32, "beyond"), "0 to 1 for the 2 names in classes, but that of item 0 of Pictures is 2"),
            (Pictures(32, "below"), "item 0 of Pictures is -1"),
            (Pictures(32, "half"), r"item 0 of Pictures is 0\.5"),
            (Pictures(32, "name"), "item 0 of Pictures is 'dark'"),
            (Pictures(32, "alone"), r"give \(image, label\)"),
            (Pictures(0), "the training set, a Pictures, is empty"),
            ([1, 2], r"the training set, a list, has no classes, .* set them before, as in dataset.classes"),
            (3, "the training set, a int, has no length; give it a method __len__"),
            (ConcatDataset([Pictures(4)]), "the training set, a ConcatDataset, has no classes"),
        ],
        ids=[
            "float",
            "gray",
            "planes",
            "beyond",
            "below",
            "half",
            "name",
            "no-label",
            "empty",
            "list",
            "number",
            "joined",
        ],
    )
    def test_of_another_form_is_refused_before_anything_is_written(self, train, sentence, tmp_path):
        with pytest.raises(LewelError, match=sentence):
            lewel.train(out=tmp_path / "run", config=TINY, data=(train, Pictures(8)))
        assert not (tmp_path / "run").exists()

    def test_in_part_has_the_classes_of_the_whole(self):
        part = Subset(Subset(Pictures(32), range(20)), range(10))
        assert own.build(part, Pictures(8), TINY.data, 0).num_classes == 2

    def test_whose_classes_differ_is_refused(self, monkeypatch, tmp_path):
        other = Pictures(8)
        monkeypatch.setattr(other, "classes", ("light", "dark"), raising=False)
        with pytest.raises(LewelError, match=r"the same classes, .* got dark, light and light, dark"):
            lewel.train(out=tmp_path / "run", config=TINY, data=(Pictures(32), other))


class TestOwnLoop:
    VIEWS = torch.randn(2, 8, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def step(self, precision: str, name: str = "lewel_m", around: torch.dtype | None = None):
        torch.manual_seed(0)
        method = Model(replace(TINY, precision=precision, method=METHODS[name]))
        seen = []
        method.online.register_forward_hook(lambda module, inputs, out: seen.append(out.z.dtype))
        with torch.autocast("cpu", around or torch.bfloat16, enabled=around is not None):
            return method(*self.VIEWS, momentum=0.9), seen[0]

    @pytest.mark.parametrize("name", METHODS)
    def test_an_autocast_around_it_is_kept_by_ambient_alone(self, name):
        inner, _ = self.step("bf16", name)
        ambient, dtype = self.step("ambient", name, torch.bfloat16)
        assert dtype == torch.bfloat16
        assert ambient.loss.dtype == torch.float32
        assert torch.equal(ambient.loss, inner.loss)
        plain_, dtype = self.step("fp32", name)
        assert dtype == torch.float32
        for precision, around in (("fp32", torch.bfloat16), ("ambient", None)):
            step, dtype = self.step(precision, name, around)
            assert dtype == torch.float32
            assert torch.equal(step.loss, plain_.loss)

    @pytest.mark.parametrize(
        "loss",
        [
            pytest.param(lambda x: losses.info_nce(x, x.flip(1), losses.unit(x.flip(0)), 0.1), id="info_nce"),
            pytest.param(lambda x: losses.aligned_info_nce(x[:, None], x.flip(1)[:, None], 0.1), id="aligned_info_nce"),
            pytest.param(lambda x: losses.byol_distance(x, x.flip(1)), id="byol_distance"),
            pytest.param(lambda x: losses.cosine(x, x.flip(1)), id="cosine"),
        ],
    )
    def test_losses_are_in_float32_under_autocast(self, loss):
        x = torch.randn(16, 32, generator=torch.Generator().manual_seed(0))
        with torch.autocast("cpu", torch.bfloat16):
            found = loss(x)
        assert torch.equal(found, loss(x))


def test_an_optim_of_python_is_an_optim_of_the_command_line(tmp_path):
    run = plain.changed(TINY, {"optim": Optim("lars", decay_all=False), "out": Path(tmp_path)}, source="x")
    assert run.optim == Optim("lars", decay_all=False)
    assert run.out == str(tmp_path)
