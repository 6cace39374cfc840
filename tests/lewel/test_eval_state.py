"""The state of an evaluation that was stopped: whole or not at all, and only continued with the same settings."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import fault
import pytest
import torch
from PIL import Image

from lewel import data
from lewel.data import own
from lewel.errors import LewelError
from lewel.evaluation import linear, semi, state
from lewel.evaluation.subject import Asked, Subject, find

SETTINGS = {"kind": "semi-1", "epochs": 50, "rates": (1e-4, 1.0), "data": {"images": 40}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "eval" / "semi-1.state"
    state.save(path, {"settings": SETTINGS, "epoch": 7, "weights": {"w": torch.tensor([0.1, -2])}, "best": 1.5})
    return path


def test_what_was_saved_is_loaded(path):
    loaded = state.load(path, SETTINGS)
    assert loaded is not None
    assert torch.equal(loaded.pop("weights")["w"], torch.tensor([0.1, -2]))
    assert loaded == {"settings": SETTINGS, "epoch": 7, "best": 1.5}
    assert [file.name for file in path.parent.iterdir()] == ["semi-1.state"]


def test_there_is_none_before_the_first_and_after_the_last(path):
    state.remove(path)
    state.remove(path)
    assert state.load(path, SETTINGS) is None
    assert state.load(path, SETTINGS, "") is None


def test_one_is_not_passed_over_without_resume(path):
    with pytest.raises(LewelError, match=r"stopped after epoch 7; continue it by --resume auto, or remove .*semi-1"):
        state.load(path, SETTINGS, "")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param({"epochs": 20}, r"\(epochs: 50 -> 20\)", id="number"),
        pytest.param({"rates": (1e-4, 2.0)}, r"\(rates: \[0.0001, 1.0\] -> \[0.0001, 2.0\]\)", id="list"),
        pytest.param({"data": {"images": 41}, "seed": 1}, r"\(data.images: 40 -> 41; seed: None -> 1\)", id="two"),
    ],
)
def test_other_settings_are_named(path, change, said):
    with pytest.raises(LewelError, match=f"with other settings {said}; undo the change, or remove"):
        state.load(path, SETTINGS | change)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"no state", id="text"),
        pytest.param(None, id="cut-off"),
        pytest.param({"format": "lewel checkpoint 4"}, id="of-another-kind"),
        pytest.param([1, 2], id="list"),
        pytest.param({"format": state.FORMAT, "settings": SETTINGS}, id="without-epoch"),
        pytest.param({"format": state.FORMAT, "settings": Path("acts")}, id="with-an-object"),
    ],
)
def test_a_broken_file_is_a_sentence(path, content):
    if content is None:
        path.write_bytes(path.read_bytes()[:-100])
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(LewelError, match="remove it, and the evaluation begins anew"):
        state.load(path, SETTINGS)


def test_a_full_disk_leaves_the_state_of_before(path, monkeypatch):
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(LewelError, match=r"could not write .*semi-1.state, with which .*: No space left on device"):
        state.save(path, {"settings": SETTINGS, "epoch": 8})
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["semi-1.state"]


class Coloured:
    """Twenty images from Python, of two classes."""

    classes = ("dark", "light")

    def __init__(self, first: int = 0, colour: int = 60) -> None:
        self.first, self.colour = first, colour

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int):
        return Image.new("RGB", (40, 40), (self.colour + index,) * 3), (index + self.first) % 2


@pytest.fixture
def subject(finished, tmp_path) -> Subject:
    return find(Asked(run=finished.folder, out=str(tmp_path / "out"), kind="semi"))


def on_folder(subject: Subject, root: Path) -> Subject:
    config = replace(fault.OF_FILES.data, root=str(root), batch_size=4)
    sets = data.build(config, 0, subject.world.device)
    return replace(subject, run=replace(subject.run, data=config), sets=sets, kept={})


def on_python(subject: Subject, train: Coloured, test: Coloured) -> Subject:
    config = replace(subject.run.data, name="custom")
    sets = own.build(train, test, config, 0)
    return replace(subject, run=replace(subject.run, data=config), sets=sets, kept={})


FEW = {
    "linear": (linear, linear.Settings("a", rates=(0.1, 1.0), seeds=1, epochs=3, held_out=0.3)),
    "semi": (semi, semi.Settings(labels=10, epochs=3)),
}


def stop(what: Subject, kind: str, monkeypatch) -> None:
    """Stops an evaluation after its first epoch."""
    module, settings = FEW[kind]
    save = state.save

    def save_then_stop(path: Path, content: dict) -> None:
        save(path, content)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(state, "save", save_then_stop)
        with pytest.raises(KeyboardInterrupt):
            module.evaluate(what, settings)


@pytest.mark.parametrize("kind", FEW)
@pytest.mark.parametrize("split", ["train", "test"])
def test_an_evaluation_goes_on_only_with_the_images_it_began_with(subject, tmp_path, monkeypatch, kind, split):
    """As many of them, of the same names and classes; but wherever they lie now."""
    for name in ("one", "other", "moved"):
        fault.labelled(tmp_path / name)
    fault.picture(tmp_path / "other" / split / "ant" / "000.png", colour=3)
    module, settings = FEW[kind]
    stop(on_folder(subject, tmp_path / "one"), kind, monkeypatch)
    resumed = replace(settings, resume="auto")
    with pytest.raises(LewelError, match=r"with other settings \(images.folders"):
        module.evaluate(on_folder(subject, tmp_path / "other"), resumed)
    assert "goes on after epoch 1" in module.KIND.planned(on_folder(subject, tmp_path / "moved"), resumed)
    assert "accuracy" in module.evaluate(on_folder(subject, tmp_path / "moved"), resumed)


@pytest.mark.parametrize("kind", FEW)
def test_of_images_from_python_the_labels_are_compared(subject, monkeypatch, kind):
    module, settings = FEW[kind]
    stop(on_python(subject, Coloured(), Coloured()), kind, monkeypatch)
    resumed = replace(settings, resume="auto")
    with pytest.raises(LewelError, match=r"with other settings \(images.train_labels: \w+ -> \w+"):
        module.evaluate(on_python(subject, Coloured(1), Coloured()), resumed)
    with pytest.raises(LewelError, match=r"with other settings \(images.test_labels: \w+ -> \w+"):
        module.evaluate(on_python(subject, Coloured(), Coloured(1)), resumed)
    assert "accuracy" in module.evaluate(on_python(subject, Coloured(colour=90), Coloured()), resumed)  # on trust
