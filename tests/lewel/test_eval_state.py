"""The state of an evaluation that was stopped: whole or not at all, and only continued with the same settings."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch

from lewel.errors import LewelError
from lewel.evaluation import state

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
