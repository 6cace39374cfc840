"""Exported encoders: loaded by the very lines that are printed, they give the same features."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from foreign_resnets import Detectron2ResNet, MmsegResNet
from full_disk import refusal
from saved_runs import saved
from tiny_runs import TINY, assert_equal
from torch import Tensor, nn

import lewel.methods.encoders
import lewel.recipe.schema
from lewel import cli
from lewel.errors import LewelError
from lewel.methods.matching import detectron2_name
from lewel.recipe.schema import EncoderSettings
from lewel.results.export import Trained, export, how_to_load

RESNETS = ("resnet18", "resnet34", "resnet50", "resnext50_32x4d")
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=RESNETS)
def resnet(request, tmp_path_factory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp(request.param)
    method = saved(folder, EncoderSettings(request.param, stem="imagenet"))
    return SimpleNamespace(name=request.param, folder=folder, features=features(method.online.encoder))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("tiny")
    return SimpleNamespace(folder=folder, method=saved(folder, EncoderSettings("tiny", stem="small2", last_stride=1)))


@torch.no_grad()
def features(module: nn.Module) -> Tensor:
    maps = module.eval()(IMAGES)
    assert maps.isfinite().all()
    assert maps.std() > 0
    return maps


def run_lines(told: str, **names: Any) -> dict[str, Any]:
    """Runs the Python that export prints after its second line, and returns what it defined."""
    exec(told.split("\n\n")[1], names)
    return names


def test_torchvision_loads_all_but_the_classifier(resnet):
    model = run_lines(export(resnet.folder, "torchvision"), torch=torch, torchvision=torchvision)["model"]
    weights = torch.load(resnet.folder / f"{resnet.name}-online-torchvision.pth")
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert (missing, unexpected) == (["fc.weight", "fc.bias"], [])
    assert torch.equal(features(nn.Sequential(*list(model.children())[:-2])), resnet.features)


def test_timm_loads_strictly(resnet):
    model = run_lines(export(resnet.folder, "timm"), torch=torch, timm=timm)["model"].eval()
    with torch.no_grad():
        assert torch.equal(model.forward_features(IMAGES), resnet.features)
        torch.testing.assert_close(model(IMAGES), resnet.features.mean((2, 3)))


def test_detectron2_loads_by_its_own_names(resnet):
    settings: dict[str, Any] = {}

    def merge(pairs: list[Any]) -> None:
        settings.update(zip(pairs[::2], pairs[1::2], strict=True))

    run_lines(export(resnet.folder, "detectron2"), cfg=SimpleNamespace(merge_from_list=merge))
    content = pickle.loads(Path(settings.pop("MODEL.WEIGHTS")).read_bytes())
    assert all(type(value) is np.ndarray for value in content["model"].values())
    groups = {"MODEL.RESNETS.NUM_GROUPS": 32, "MODEL.RESNETS.WIDTH_PER_GROUP": 4} if "next" in resnet.name else {}
    assert groups.items() <= settings.items()
    model = Detectron2ResNet(settings["MODEL.RESNETS.DEPTH"], *groups.values())
    model.load_state_dict({name: torch.from_numpy(value) for name, value in content.pop("model").items()})
    assert torch.equal(features(model), resnet.features)
    assert content == {"__author__": "lewel", "matching_heuristics": True}
    assert settings == groups | {
        "MODEL.RESNETS.DEPTH": int(resnet.name.split("_")[0][-2:]),
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 256 if "50" in resnet.name else 64,
        "MODEL.RESNETS.STRIDE_IN_1X1": False,
        "INPUT.FORMAT": "RGB",
        "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
        "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    }


def test_mmseg_loads_a_backbone_without_prefix(resnet):
    config = run_lines(export(resnet.folder, "mmseg"))["model"]
    assert config["pretrained"] is None
    backbone = config["backbone"]
    grouped = {key: backbone[key] for key in ("groups", "base_width") if key in backbone}
    assert grouped == ({"groups": 32, "base_width": 4} if "next" in resnet.name else {})
    assert (backbone["type"], backbone["init_cfg"]["type"]) == ("ResNeXt" if grouped else "ResNet", "Pretrained")
    model = MmsegResNet(backbone["depth"], **grouped)
    model.load_state_dict(torch.load(backbone["init_cfg"]["checkpoint"]))
    assert torch.equal(features(model), resnet.features)


@pytest.mark.parametrize(
    "encoder",
    [
        EncoderSettings("tiny", "small2", 1),
        EncoderSettings("resnet18", "small"),
        EncoderSettings("resnet18", "imagenet", 1),
    ],
    ids=["tiny", "resnet18-small", "last_stride"],
)
def test_safetensors_keeps_every_encoder(encoder, tmp_path):
    method = saved(tmp_path, encoder)
    loaded = run_lines(export(tmp_path, "safetensors"), lewel=lewel, safetensors=safetensors)["encoder"]
    assert not loaded.training
    assert torch.equal(features(loaded), features(method.online.encoder))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "convnext_atto"])
@pytest.mark.parametrize("to", ["timm", "safetensors"])
def test_a_timm_model_goes_back_to_timm_at_the_size_it_was_trained_at(name, to, tmp_path):
    method = saved(tmp_path, EncoderSettings(f"timm/{name}", "imagenet"))
    lines = export(tmp_path, to)
    assert (tmp_path / f"timm-{name}-online-{to}{'.pth' if to == 'timm' else '.safetensors'}").exists()
    if to == "timm":
        loaded = run_lines(lines, torch=torch, timm=timm)["model"].eval()
        maps = loaded.forward_features(IMAGES)
        maps = maps[:, 1:].transpose(1, 2).unflatten(2, (4, 4)) if maps.ndim == 3 else maps
    else:
        maps = run_lines(lines, lewel=lewel, safetensors=safetensors)["encoder"](IMAGES)
    assert torch.equal(maps, features(method.online.encoder))


def test_wide_resnets_tell_detectron2_their_width(tiny, tmp_path):
    run = replace(TINY, encoder=EncoderSettings("wide_resnet50_2", "imagenet"))
    encoder = lewel.methods.encoders.build(run.encoder)
    told = how_to_load(Trained(encoder, run, "online", 1, 1), "detectron2", tmp_path / "a.pkl")
    assert '"MODEL.RESNETS.DEPTH", 50' in told
    assert '"MODEL.RESNETS.NUM_GROUPS", 1, "MODEL.RESNETS.WIDTH_PER_GROUP", 128]' in told
    model = Detectron2ResNet(50, 1, 128)
    assert {detectron2_name(k): v.shape for k, v in encoder.state_dict().items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }


def test_safetensors_says_where_the_weights_come_from(tiny, tmp_path):
    export(tiny.folder, "safetensors", tmp_path / "a.safetensors")
    with safetensors.safe_open(tmp_path / "a.safetensors", "pt") as file:
        known = file.metadata()
    assert {key: known[key] for key in ("format", "method", "network", "epochs", "steps", "preset")} == {
        "format": "pt",
        "method": "lewel_b",
        "network": "online",
        "epochs": "2",
        "steps": "8",
        "preset": "custom",
    }
    assert json.loads(known["encoder"]) == ["tiny", "small2", 1]
    assert (json.loads(known["mean"]), json.loads(known["std"])) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def test_the_target_network_is_exported_only_on_request(tiny, tmp_path):
    for network, told in (("online", {}), ("target", {"network": "target"})):
        out = tmp_path / f"{network}.safetensors"
        assert f"the {network} encoder of lewel_b after 2 epochs, 8 steps" in export(
            tiny.folder, "safetensors", out, **told
        )
        assert_equal(getattr(tiny.method, network).encoder.state_dict(), safetensors.torch.load_file(out))


@pytest.mark.parametrize("to", ["torchvision", "timm", "detectron2", "mmseg"])
@pytest.mark.parametrize(
    ("encoder", "sentence"),
    [
        pytest.param(
            EncoderSettings("tiny", "imagenet"),
            "no such encoder as tiny, only lewel has; export it --to safe",
            id="tiny",
        ),
        pytest.param(EncoderSettings("resnet18", "small"), "the small stem is a 3x3 convolution", id="small"),
        pytest.param(EncoderSettings("resnet18", "small2"), "the small2 stem is a 3x3 convolution", id="small2"),
        pytest.param(EncoderSettings("resnet18", "imagenet", 1), "the last stage has stride 1", id="last_stride"),
    ],
)
def test_an_encoder_that_the_library_does_not_have_is_a_sentence(encoder, sentence, to, tiny, monkeypatch):
    path, run = tiny.folder, replace(TINY, encoder=encoder)
    monkeypatch.setattr("lewel.run.folders.newest", lambda folder: (path, {}, run))
    with pytest.raises(LewelError, match=sentence):
        export(tiny.folder, to)


@pytest.mark.parametrize(
    ("name", "to", "sentence"),
    [
        (
            "timm/vit_tiny_patch16_224",
            "torchvision",
            "has no timm/vit_tiny_patch16_224; export it --to timm",
        ),
        ("timm/vit_tiny_patch16_224", "mmseg", "mmseg has no timm/vit_tiny_patch16_224"),
        ("wide_resnet50_2", "mmseg", "its ResNets have one width; export it --to safetensors"),
    ],
)
def test_an_encoder_that_only_some_libraries_have_is_a_sentence_for_the_others(name, to, sentence, tiny, monkeypatch):
    path, run = tiny.folder, replace(TINY, encoder=EncoderSettings(name, "imagenet"))
    monkeypatch.setattr("lewel.run.folders.newest", lambda folder: (path, {}, run))
    with pytest.raises(LewelError, match=sentence):
        export(tiny.folder, to)


def test_a_pickle_for_detectron2_is_readable_beside_numpy_1(resnet, tmp_path):
    """numpy 1.26 knows numpy._core.multiarray, but not the numpy._core.numeric of later pickles."""
    export(resnet.folder, "detectron2", tmp_path / "a.pkl")
    assert b"numpy._core.numeric" not in (tmp_path / "a.pkl").read_bytes()


@pytest.mark.parametrize("out", ["a.pth", "safetensors"])
def test_another_ending_is_refused(out, tiny, tmp_path):
    with pytest.raises(LewelError, match=r"must end in \.safetensors, got --out .*" + out):
        export(tiny.folder, "safetensors", tmp_path / out)


class TestWriting:
    @pytest.mark.parametrize("room", [0, 100_000], ids=["nothing-fits", "a-beginning-fits"])
    def test_a_full_disk_is_a_sentence_and_leaves_the_file_of_before(self, room, tiny, tmp_path):
        out = tmp_path / "a.safetensors"
        out.write_text("before")
        sentence = refusal(lambda: export(tiny.folder, "safetensors", out), room)
        assert sentence == f"could not write {out}: File too large; choose another --out"
        assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]

    def test_nothing_half_written_stays_when_interrupted(self, tiny, tmp_path, monkeypatch):
        def stop(descriptor: int) -> None:
            assert not (tmp_path / "a.safetensors").exists()
            raise KeyboardInterrupt

        monkeypatch.setattr("os.fsync", stop)
        with pytest.raises(KeyboardInterrupt):
            export(tiny.folder, "safetensors", tmp_path / "a.safetensors")
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("place", "reason"),
        [("none/a", "No such file or directory"), ("file/a", "Not a directory")],
        ids=["none", "file"],
    )
    def test_a_place_that_is_none_is_a_sentence(self, place, reason, tiny, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(LewelError, match=f"could not write .*: {reason}; choose another --out"):
            export(tiny.folder, "safetensors", tmp_path / f"{place}.safetensors")


class TestCommand:
    @staticmethod
    def call(*arguments: str) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", ["lewel", "export", *arguments])
            cli.main()

    def test_says_where_it_wrote_and_how_to_load_it(self, tiny, capsys):
        out = tiny.folder / "tiny-online-safetensors.safetensors"
        self.call(str(tiny.folder), "--to", "safetensors")
        printed = capsys.readouterr().out
        assert printed.startswith(
            f"wrote {out}: the online encoder of lewel_b after 2 epochs, 8 steps\nsafetensors loads it with\n"
        )
        assert f'encoder.load_state_dict(safetensors.torch.load_file("{out}"))' in printed
        assert out.exists()

    def test_writes_a_trained_run_to_the_place_and_of_the_network_that_are_named(self, finished, tmp_path, capsys):
        out = str(tmp_path / "a.safetensors")
        self.call(str(finished.folder), "--to", "safetensors", "--out", out, "--network", "target")
        assert capsys.readouterr().out.startswith(f"wrote {out}: the target encoder of lewel_m after 3 epochs, 9 steps")
        weights = finished.method.target.encoder.state_dict()
        assert_equal(safetensors.torch.load_file(out), weights)

    def test_an_error_is_a_sentence_with_status_2(self, tiny, capsys):
        with pytest.raises(SystemExit, match="2"):
            self.call(str(tiny.folder), "--to", "timm")
        assert "lewel: timm has no such encoder as tiny" in capsys.readouterr().err
