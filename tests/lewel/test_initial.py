"""The weights that an encoder starts from, wherever they come from."""

from __future__ import annotations

import argparse
import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from saved_runs import fill, filled, saved
from test_official import official
from tiny_runs import METHODS, TINY, assert_equal
from torch import Tensor, nn

import lewel
from lewel.errors import LewelError
from lewel.methods import encoders, matching
from lewel.recipe import feature_maps
from lewel.recipe.schema import EncoderSettings
from lewel.results.export import export
from lewel.run import initial, weight_files
from lewel.run.session import Session, prepare

RESNET = EncoderSettings("resnet18", stem="imagenet")
RUN = replace(TINY, encoder=RESNET, data=replace(TINY.data, image_size=64))
SMALL = replace(RUN, encoder=EncoderSettings("tiny", stem="imagenet"))


def weights(name: str = "tiny") -> dict[str, Tensor]:
    """Of a ResNet with a classifier; no two values are alike."""
    model = encoders.build(EncoderSettings(name, "imagenet"))
    model.fc = nn.Linear(model.channels, 10)
    fill(model, seed=0)  # type: ignore[arg-type]
    return dict(model.state_dict())


def under(prefix: str, state: dict[str, Tensor], scale: float = 1.0) -> dict[str, Tensor]:
    return {prefix + name: value if value.ndim < 1 else value * scale for name, value in state.items()}


def begun(init: str | Path, folder: Path, run=SMALL, encoder: nn.Module | None = None) -> Session:
    session = prepare(replace(run, init=str(init)), folder, encoder=encoder)
    initial.begin(session)
    return session


def encoder_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if not name.startswith("fc.")}


FORMS = {
    "plain": lambda w: w,
    "moco": lambda w: {
        "state_dict": under("module.encoder_k.", w, 2)
        | under("module.encoder_q.", w)
        | {"module.queue": torch.ones(2)},
        "optimizer": {"state": {0: {"conv1.weight": torch.ones(1)}}},
    },
    "byol": lambda w: {"state_dict": under("backbone_momentum.", w, 2) | under("backbone.", w)},
    "dino": lambda w: {
        "teacher": under("backbone.", w, 2) | {"head.mlp.0.weight": torch.ones(1)},
        "student": under("module.backbone.", w) | {"module.head.mlp.0.weight": torch.ones(1)},
        "args": argparse.Namespace(arch="resnet18", lr=np.float64(0.1)),
    },
    "swav": lambda w: under("module.", w) | {"module.prototypes.weight": torch.ones(1)},
    "compiled": lambda w: {"model": under("_orig_mod.", encoder_of(w))},
    "without counts": lambda w: {name: value for name, value in w.items() if "num_batches" not in name},
    "numbered": lambda w: {"state_dict": under("backbone.", {matching.numbered_name(name): w[name] for name in w})},
    "held twice": lambda w: under("net.", w) | under("online_encoder.net.", w) | under("target_encoder.", w, 2),
    "in a tuple": lambda w: (w, {"epoch": 3}),
    "half": lambda w: {name: value.half() if value.is_floating_point() else value for name, value in w.items()},
}


@pytest.mark.parametrize(("form", "method"), [*((form, "lewel_m") for form in FORMS), ("plain", "lewel_b-eman")])
def test_a_file_goes_into_both_networks_and_heads_stay_fresh(form, method, tmp_path, capsys):
    given = weights()
    torch.save(FORMS[form](given), tmp_path / "w.pth")
    run = replace(SMALL, method=METHODS[method])
    fresh, session = prepare(run, tmp_path).method.state_dict(), begun(tmp_path / "w.pth", tmp_path, run)
    for network in ("online", "target"):
        state = session.method.get_submodule(network).encoder.state_dict()
        for name, value in encoder_of(given).items():
            if "num_batches" not in name:
                rounded = value.half().float() if form == "half" and value.is_floating_point() else value
                assert torch.equal(state[name], rounded), name
    rest = {name: value for name, value in session.method.state_dict().items() if ".encoder." not in name}
    assert_equal(rest, fresh)
    told = capsys.readouterr().out
    assert "the encoder begins with " in told
    assert "w.pth" in told
    assert ("left aside: " in told) == (form != "compiled")


def test_safetensors_and_exports_of_every_kind_are_read(tmp_path):
    """What lewel export writes for each library."""
    method = saved(tmp_path / "run", RESNET)
    for library in ("torchvision", "timm", "detectron2", "mmseg", "safetensors"):
        export(tmp_path / "run", library)
    expected = method.online.encoder.state_dict()
    files = [path for path in (tmp_path / "run").iterdir() if path.name.startswith("resnet18")]
    assert len(files) == 5
    places = [*files, tmp_path / "run", next((tmp_path / "run" / "checkpoints").iterdir())]
    for place in places:
        session = begun(place, tmp_path / "new", RUN)
        assert_equal(session.method.online.encoder.state_dict(), expected)
        assert_equal(session.method.target.encoder.state_dict(), expected)


def test_the_first_bytes_tell_what_a_file_is(tmp_path):
    given = weights()
    safetensors.torch.save_file(given, tmp_path / "s.pth")
    torch.save(given, tmp_path / "t.safetensors")
    torch.save(given, tmp_path / "old.pkl", _use_new_zipfile_serialization=False)
    for name in ("s.pth", "t.safetensors", "old.pkl"):
        assert_equal(weight_files.read(tmp_path / name), given)


def test_a_program_of_torchscript_is_refused_with_the_line_that_saves_its_weights(tmp_path, recwarn):
    torch.jit.script(nn.Linear(2, 3)).save(tmp_path / "w.pt")
    with pytest.raises(LewelError, match=r"it is a TorchScript program; .*torch\.jit\.load\(FILE\)\.state_dict"):
        weight_files.read(tmp_path / "w.pt")
    assert not [each for each in recwarn if "jit.load" in str(each.message)]


@pytest.mark.parametrize(
    ("init", "sentence"),
    [
        ("official:", "downloaded by hand"),
        ("https://x.y/z.pth", "init https://x.y/z.pth is an address"),
        ("~nobodyatall/w.pth", "~nobodyatall/w.pth names no folder"),
    ],
)
def test_what_names_no_file_is_a_sentence(init, sentence):
    with pytest.raises(LewelError, match=sentence):
        initial.source(replace(SMALL, init=init))


def test_the_authors_file_is_known_by_its_names(tmp_path, capsys):
    run = replace(TINY, method=METHODS["lewel_b-eman"])
    source = filled(run, seed=1)
    torch.save({"state_dict": official(source)}, tmp_path / "lewel_b.pth")
    for init in (f"official:{tmp_path}/lewel_b.pth", tmp_path / "lewel_b.pth"):
        session = begun(init, tmp_path, TINY)  # of another method
        assert_equal(session.method.online.encoder.state_dict(), source.online.encoder.state_dict())
        assert "the authors' LEWEL_B" in capsys.readouterr().out
    torch.save(source.online.encoder.state_dict(), tmp_path / "other.pth")
    with pytest.raises(LewelError, match="is none of the authors' files"):
        begun(f"official:{tmp_path}/other.pth", tmp_path, TINY)


def test_torchvision_s_weights_are_those_of_its_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    given = weights("resnet18")
    (tmp_path / "checkpoints").mkdir()
    assert "would be downloaded" in initial.plan(replace(RUN, init="torchvision"))
    torch.save(given, tmp_path / "checkpoints" / "resnet18-f37072fd.pth")
    session = begun("torchvision", tmp_path, RUN)
    assert_equal(session.method.online.encoder.state_dict(), encoder_of(given))
    assert "122 tensors" not in initial.plan(replace(RUN, init="torchvision"))


def test_timm_s_weights_fit_torchvision_s_resnets(tmp_path, monkeypatch):
    given = weights("resnet18")
    made = SimpleNamespace(state_dict=lambda: encoder_of(given))
    monkeypatch.setattr(feature_maps, "timm_model", lambda name, size, pretrained: made)
    session = begun("timm", tmp_path, RUN)
    assert_equal(session.method.online.encoder.state_dict(), encoder_of(given))


def test_a_model_of_timm_begins_with_a_file_of_timm(tmp_path, capsys):
    run = replace(RUN, encoder=EncoderSettings("timm/test_vit", "imagenet"), channels_last=False)
    import timm

    model = timm.create_model("test_vit", img_size=64)
    torch.save(model.state_dict(), tmp_path / "vit.pth")
    session = begun(tmp_path / "vit.pth", tmp_path, run)
    assert torch.equal(session.method.target.encoder.model.pos_embed, model.pos_embed)
    torch.save(timm.create_model("test_vit", img_size=96).state_dict(), tmp_path / "vit.pth")
    with pytest.raises(LewelError, match=r"shapes differ: pos_embed is .* its positions are for another --data.image"):
        begun(tmp_path / "vit.pth", tmp_path, run)


def test_an_encoder_from_python_has_its_own_names(tmp_path, capsys):
    own = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.BatchNorm2d(8), nn.ReLU())
    state = copy.deepcopy(own.state_dict())
    state["0.weight"] += 1
    torch.save({"net": under("module.", state)}, tmp_path / "own.pth")
    run = lewel.train(
        out=tmp_path / "run", config=replace(TINY, epochs=1), encoder=own, init=tmp_path / "own.pth", knn_every=0
    )
    assert "the encoder begins with 7 tensors" in capsys.readouterr().out
    assert torch.load(tmp_path / "run/checkpoints/step-00000003.pt")["config"]["init"] == str(tmp_path / "own.pth")
    for name in ("torchvision", "timm"):
        with pytest.raises(LewelError, match=f"{name} has no weights of an encoder that came from Python"):
            lewel.train(out=tmp_path / "no", config=TINY, encoder=own, init=name)
    assert run.encoder is own
    assert not (tmp_path / "no").exists()


def changed(state: dict[str, Tensor], **changes: Tensor) -> dict[str, Tensor]:
    return {**state, **{name.replace("__", "."): value for name, value in changes.items()}}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (lambda: {k: v for k, v in weights().items() if "layer4" not in k},
         "it lacks layer4.0.conv1.weight, .* and 12 more"),
        (lambda: weights("resnet18"), "the encoder has no layer1.1.conv1.weight.*; it fits --encoder.name resnet18"),
        (lambda: changed(weights(), conv1__weight=torch.ones(32, 3, 3, 3)),
         r"conv1.weight is \(32, 3, 3, 3\), the encoder's \(32, 3, 7, 7\); it fits .* --encoder.stem small"),
        (lambda: changed(weights(), bn1__weight=torch.full((32,), torch.nan)), r"not finite \(bn1.weight\)"),
        (lambda: changed(weights(), bn1__weight=torch.ones(32, dtype=torch.int8)), r"bn1.weight is \(32,\) int8"),
        (lambda: changed(weights(), bn1__weight=torch.full((32,), 1e300, dtype=torch.float64)), "not finite"),
        (lambda: under("a.", weights()) | under("b.", weights(), 2), r"several networks that fit \(a\.\*.*, b\.\*"),
        (lambda: {"epoch": 3, "x": torch.ones(3)}, "holds no weight of the encoder: there is x, and"),
        (lambda: {"epoch": 3}, "holds no weight of the encoder: there is no plain tensor at all"),
        (lambda: [torch.ones(3)], "there is 0, and"),
        (lambda: torchvision.models.resnet18(), "holds objects of torchvision.models.resnet.ResNet, which could run"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told_and_nothing_is_loaded(content, sentence, tmp_path):
    torch.save(content(), tmp_path / "w.pth")
    session = prepare(replace(SMALL, init=str(tmp_path / "w.pth")), tmp_path)
    before = copy.deepcopy(session.method.state_dict())
    with pytest.raises(LewelError, match=sentence):
        initial.begin(session)
    assert_equal(session.method.state_dict(), before)


@pytest.mark.parametrize(
    "kept", [b"", b"<html>404</html>", b"version https://git-lfs.github.com/spec/v1\n", b"\x02\x03\x04\xff\x01"]
)
@pytest.mark.parametrize("suffix", ["pth", "safetensors", "pkl"])
def test_a_file_of_something_else_is_a_sentence(kept, suffix, tmp_path):
    path = tmp_path / f"w.{suffix}"
    path.write_bytes(kept)
    reason = (
        "it is empty"
        if not kept
        else "it is text, which begins"
        if kept.isascii()
        else "none of the kinds that are read .*has 5 bytes"
    )
    with pytest.raises(LewelError, match=f"cannot be read as a file of weights: .*{reason}"):
        weight_files.read(path)


def test_the_names_of_every_resnet_are_known_to_the_remedy():
    given = encoders.build(EncoderSettings("resnext50_32x4d", "imagenet")).state_dict()
    with torch.device("meta"):
        own = encoders.build(EncoderSettings("tiny")).state_dict()
    with pytest.raises(LewelError, match=r"it fits --encoder.name resnext50_32x4d --encoder.stem imagenet; nothing"):
        matching.match(own, frozenset(), given, "it")
