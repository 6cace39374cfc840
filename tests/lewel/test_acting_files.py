"""No door of the trainer lets a file act: what a pickle would have done when it was opened has not happened."""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from small_sets import write_cifar
from tiny_runs import TINY
from torchvision import datasets

from lewel import cli
from lewel.data import build
from lewel.errors import LewelError
from lewel.methods.method import Method
from lewel.methods.official import load_official
from lewel.recipe import presets
from lewel.recipe.schema import Data

RUNS = Path(__file__).parents[2] / "docs" / "runs.md"


class Act:
    """Unpickled, it makes the folder at path, and is None."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def made(tmp_path) -> Path:
    """The folder that the files would make, and do make where nobody takes care."""
    path = tmp_path / "made"
    pickle.loads(pickle.dumps(Act(path)))
    path.rmdir()
    return path


def torch_file(state: object, path: Path) -> None:
    torch.save(state, path)


def plain_pickle(state: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(state, protocol=2))


@pytest.fixture(params=[torch_file, plain_pickle], ids=lambda write: write.__name__)
def run(request, tmp_path, finished, made) -> Path:
    """A run folder whose newest checkpoint is whole, and acts."""
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    newest = folder / "checkpoints" / "step-00000009.pt"
    request.param(torch.load(newest) | {"note": Act(made)}, newest)
    Image.new("RGB", (40, 40), "red").save(tmp_path / "red.png")
    return folder


DOORS = {
    "train --resume FILE": lambda run: ["train", "--resume", f"{run}/checkpoints/step-00000009.pt"],
    "train --resume auto": lambda run: ["train", "--resume", "auto", "--out", str(run)],
    "eval knn": lambda run: ["eval", "knn", str(run)],
    "maps": lambda run: ["maps", str(run), str(run.parent / "red.png"), "--out", str(run.parent / "maps.png")],
    "export": lambda run: ["export", str(run), "--to", "safetensors"],
}


@pytest.mark.parametrize("door", DOORS)
def test_a_checkpoint_does_not_act(door, run, made, monkeypatch, capsys):
    recipe_file = ["--config", str(run / "config.yaml")] if door.startswith("train") else []
    monkeypatch.setattr("sys.argv", ["lewel", *DOORS[door](run), *recipe_file])
    named = door == "train --resume FILE"  # else the one before is taken
    with pytest.raises(SystemExit, match="2") if named else contextlib.nullcontext():
        cli.main()
    assert not made.exists()
    said = "".join(capsys.readouterr())
    before = f"{run}/checkpoints/step-00000006.pt"
    assert "step-00000009.pt is truncated or no checkpoint at all" in said
    assert (f"--resume {before}" if named else f"{before}, the one before, is taken instead") in said


@pytest.mark.parametrize("write", [torch_file, plain_pickle], ids=lambda write: write.__name__)
def test_the_documented_line_that_loads_the_official_weights_does_not_act(write, made, tmp_path, monkeypatch):
    (load,) = (line for line in RUNS.read_text().splitlines() if line.startswith("load_official("))
    write({"state_dict": {}, "note": Act(made)}, tmp_path / "lewel_b.pth")
    monkeypatch.chdir(tmp_path)
    model = Method(TINY)
    with pytest.raises(pickle.UnpicklingError):
        exec(load, {"model": model, "load_official": load_official, "torch": torch})
    assert not made.exists()


def test_a_recipe_does_not_act(made, tmp_path):
    (tmp_path / "recipe.yaml").write_text(f"epochs: !!python/object/apply:os.mkdir ['{made}']\n")
    with pytest.raises(LewelError, match="cannot read the recipe"):
        presets.load(tmp_path / "recipe.yaml")
    assert not made.exists()


def test_a_batch_of_cifar_that_was_not_published_does_not_act(made, tmp_path, monkeypatch):
    """torchvision compares checksums before it opens the pickles."""
    write_cifar(datasets.CIFAR10, tmp_path, monkeypatch)
    batch = tmp_path / "cifar-10-batches-py" / "data_batch_1"
    content = pickle.loads(batch.read_bytes())
    batch.write_bytes(pickle.dumps(content | {"note": Act(made)}))
    with pytest.raises(LewelError, match="1 files, the first data_batch_1, are missing or damaged"):
        build(Data(name="cifar10", root=str(tmp_path), image_size=32), seed=0)
    assert not made.exists()
