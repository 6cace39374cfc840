"""Weights that a run starts from, and pictures of its maps."""

from __future__ import annotations

import argparse
import os
import zipfile
from collections import defaultdict
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import safetensors.torch
import torch
from fault import Ended, Fault, pictures
from PIL import Image
from saved_runs import saved
from tiny_runs import TINY
from torch import Tensor

from lewel.methods import encoders
from lewel.recipe import plain
from lewel.recipe.schema import EncoderSettings

SMALL = replace(TINY, epochs=1, encoder=EncoderSettings("tiny", "imagenet"))
START = "train --config small.yaml --out run --data.image-size 64"
NOTHING = ("Traceback", "step 1")


def weights(stem: str = "imagenet", name: str = "tiny") -> dict[str, Tensor]:
    """Of an encoder and a classifier behind it."""
    state = encoders.build(EncoderSettings(name, stem)).state_dict()  # type: ignore[arg-type]
    return {**state, "fc.weight": torch.ones(1000, 8), "fc.bias": torch.ones(1000)}


def recipe(folder: Path) -> None:
    (folder / "small.yaml").write_text(plain.to_yaml(SMALL))


def moco(folder: Path) -> None:
    """As its authors' script writes it, with the options of the command line."""
    recipe(folder)
    state = weights()
    named = {f"module.encoder_q.{name}": value for name, value in state.items()}
    named |= {f"module.encoder_k.{name}": value * 2 for name, value in state.items()}
    content = {"state_dict": {**named, "module.queue": torch.ones(3)}, "args": argparse.Namespace(arch="resnet50")}
    torch.save(content, folder / "w.pth")


def small_stem(folder: Path) -> None:
    recipe(folder)
    torch.save(weights("small"), folder / "w.pth")


def not_finite(folder: Path) -> None:
    recipe(folder)
    state = weights()
    state["layer1.0.conv1.weight"].fill_(torch.nan)
    torch.save(state, folder / "w.pth")


def web_page(folder: Path) -> None:
    recipe(folder)
    (folder / "w.pth").write_text("<!DOCTYPE html><title>Not found</title>")


def whole_module(folder: Path) -> None:
    recipe(folder)
    torch.save(encoders.build(EncoderSettings("tiny", "imagenet")), folder / "w.pth")


def with_a_path(folder: Path) -> None:
    """As torchvision's references, MAE and DINO keep their options, with a counter and a state beside."""
    recipe(folder)
    beside = {"args": argparse.Namespace(out=Path("out")), "when": datetime.now(), "seen": defaultdict(int, a=1)}
    torch.save({"model": weights(), **beside}, folder / "w.pth")


def module_in_a_table(folder: Path) -> None:
    recipe(folder)
    torch.save({"model": encoders.build(EncoderSettings("tiny", "imagenet")), "epoch": 3}, folder / "w.pth")


def snapshot(folder: Path) -> None:
    """As the Hugging Face hub has it on disk."""
    recipe(folder)
    (folder / "hub").mkdir()
    (folder / "hub" / "config.json").write_text("{}")
    safetensors.torch.save_file(weights(), folder / "hub" / "model.safetensors")


def zipped(folder: Path) -> None:
    recipe(folder)
    with zipfile.ZipFile(folder / "w.zip", "w") as archive:
        archive.writestr("w.pth", b"weights")


def cut_off(folder: Path) -> None:
    recipe(folder)
    torch.save(weights(), folder / "w.pth")
    os.truncate(folder / "w.pth", 4000)


def with_spare_tensors(*names: str):
    def arrange(folder: Path) -> None:
        recipe(folder)
        torch.save({**weights(), **{name: torch.ones(1) for name in names}}, folder / "w.pth")

    return arrange


def sparse(folder: Path) -> None:
    recipe(folder)
    state = weights()
    torch.save({**state, "conv1.weight": state["conv1.weight"].to_sparse()}, folder / "w.pth")


def run_of_the_small_stem(folder: Path) -> None:
    saved(folder / "first", EncoderSettings("tiny", "small"))
    recipe(folder)


def another_run(folder: Path) -> None:
    saved(folder / "first", EncoderSettings("tiny", "imagenet"))
    recipe(folder)


def both_networks_begin_there(ended: Ended) -> None:
    given = torch.load(ended.folder / "w.pth", weights_only=False)["state_dict"]
    state = torch.load(ended.folder / "run" / "checkpoints" / "step-00000003.pt", weights_only=True)["method"]
    for network in ("online", "target"):  # with a learning rate and a momentum at which nothing moves
        assert torch.equal(state[f"{network}.encoder.conv1.weight"], given["module.encoder_q.conv1.weight"]), network


def nothing_is_written(ended: Ended) -> None:
    assert not list(ended.folder.glob("run/*"))


def of_maps(count: int):
    def arrange(folder: Path) -> None:
        saved(folder / "run", EncoderSettings("tiny", "imagenet"))
        pictures(folder / "shown", count)

    return arrange


def heights(folder: Path) -> list[int]:
    return [Image.open(path).height for path in sorted(folder.glob("maps*.png"))]


def one_picture_of_all(ended: Ended) -> None:
    (height,) = heights(ended.folder)
    assert height > 80 * 100


def three_pictures_of_all(ended: Ended) -> None:
    assert len(heights(ended.folder)) == 3
    assert sum(heights(ended.folder)) > 230 * 100


def no_picture(ended: Ended) -> None:
    assert not heights(ended.folder)


def broken_picture(folder: Path) -> None:
    of_maps(2)(folder)
    (folder / "shown" / "000.png").write_bytes(b"no image")


SHOWN = " ".join(f"shown/{i:03}.png" for i in range(230))
STILL = "--optim.lr 1e-30 --optim.weight-decay 0 --knn-every 0"
ROWS = (
    Fault("init-of-moco", moco, f"{START} --init w.pth {STILL}",
          says=("begins with 72 tensors of w.pth, under state_dict.module.encoder_q", "left aside: fc.weight, fc.bias"),
          left=both_networks_begin_there),
    Fault("init-of-another-stem", small_stem, f"{START} --init w.pth", status=2, left=nothing_is_written, never=NOTHING,
          says=("w.pth does not fit the encoder: shapes differ: conv1.weight is (32, 3, 3, 3), the encoder's "
                "(32, 3, 7, 7); it fits --encoder.name tiny --encoder.stem small",)),
    Fault("init-that-is-not-finite", not_finite, f"{START} --init w.pth", status=2, left=nothing_is_written,
          never=NOTHING, says=("w.pth has weights that are not finite (layer1.0.conv1.weight)",)),
    Fault("init-that-is-a-web-page", web_page, f"{START} --init w.pth", status=2, left=nothing_is_written,
          says=("w.pth cannot be read as a file of weights: it is text, which begins with '<!DOCTYPE html>",)),
    Fault("init-of-a-whole-module", whole_module, f"{START} --init w.pth", status=2, left=nothing_is_written,
          says=("it holds objects of ", "save its weights alone: torch.save(")),
    Fault("init-of-a-module-in-a-table", module_in_a_table, f"{START} --init w.pth", status=2, left=nothing_is_written,
          says=('torch.save(torch.load(FILE, weights_only=False)["model"].state_dict(), "weights.pth")',)),
    Fault("init-with-objects-beside", with_a_path, f"{START} --init w.pth --dry-run",
          says=("begins with 72 tensors of w.pth, under model",)),
    Fault("init-of-a-snapshot-of-the-hub", snapshot, f"{START} --init hub", status=2, left=nothing_is_written,
          says=("hub is no run folder with checkpoints in it", "name the file: --init hub/model.safetensors")),
    Fault("init-of-a-folder-of-checkpoints", another_run, f"{START} --init first/checkpoints", status=2,
          left=nothing_is_written, says=("name the file: --init first/checkpoints/step-00000008.pt",)),
    Fault("init-of-the-hub", recipe, f"{START} --init timm/resnet50.a1_in1k", status=2, left=nothing_is_written,
          says=("if it is a name of the Hugging Face hub, download its file", "--init timm")),
    Fault("init-of-a-zip-file", zipped, f"{START} --init w.zip", status=2, left=nothing_is_written,
          says=("it is a zip archive of w.pth; unpack it",)),
    Fault("init-that-is-cut-off", cut_off, f"{START} --init w.pth", status=2, left=nothing_is_written,
          says=("it is cut off; copy or download it again: it has 4,000 bytes",)),
    Fault("init-with-other-heads", with_spare_tensors("mask_token", "decoder_pred.bias", "mlp.0.bias"),
          f"{START} --init w.pth --dry-run", says=("begins with 72 tensors of w.pth; left aside: fc.weight",)),
    Fault("init-with-spare-tensors", with_spare_tensors("other.bias"), f"{START} --init w.pth", status=2,
          says=("the encoder has no other.bias; where the map does not need that, save the file without it: ",
                "if not n.startswith(('other.',))}"), left=nothing_is_written),
    Fault("init-that-is-sparse", sparse, f"{START} --init w.pth", status=2, left=nothing_is_written, never=NOTHING,
          says=("it lacks conv1.weight; conv1.weight cannot be taken, being sparse", "save plain tensors")),
    Fault("init-of-a-checkpoint-of-another-stem", run_of_the_small_stem,
          f"{START} --encoder.stem small2 --init first/checkpoints/step-00000008.pt --dry-run",
          says=("(its encoder.stem is small, this run's small2)",)),
    Fault("init-that-is-not-there", recipe, f"{START} --init torchvison", status=2, left=nothing_is_written,
          says=("there is no file or run folder torchvison", "did you mean torchvision?")),
    Fault("init-of-torchvision-with-tiny", recipe, f"{START} --init torchvision", status=2, left=nothing_is_written,
          says=("torchvision has no encoder tiny",)),
    Fault("init-of-torchvision-offline", recipe, f"{START} --init torchvision --encoder.name resnet18", status=2,
          env={"TORCH_HOME": "empty", "https_proxy": "http://127.0.0.1:9"}, left=nothing_is_written,
          says=("could not be downloaded from https://download.pytorch.org/models/resnet18-", "path to --init")),
    Fault("init-that-is-downloaded-is-told-of", recipe, f"{START} --init torchvision --encoder.name resnet18 --dry-run",
          env={"TORCH_HOME": "empty"}, says=("resnet18-f37072fd.pth would be downloaded",)),
    Fault("init-of-a-file-is-tried-by-a-dry-run", small_stem, f"{START} --init w.pth --dry-run", status=2,
          says=("w.pth does not fit the encoder",)),
    Fault("init-of-the-authors-by-name", recipe, f"{START} --init official", status=2, left=nothing_is_written,
          says=("downloaded by hand", "--init official:lewel_b.pth")),
    Fault("init-of-a-run", another_run, f"{START} --init first {STILL}",
          says=("begins with 72 tensors of first/checkpoints/step-00000008.pt, under method.online.encoder",)),
    Fault("knn-is-planned", recipe, f"{START} --dry-run --data.embedded-train 100000 --data.embedded-test 9000",
          says=("online kNN of 9,000 test images, a bank of 100,000 in blocks, needs beside the weights",
                "MiB for raw pixels")),
    Fault("maps-of-80-images", of_maps(80), f"maps run {SHOWN[: 80 * 14]}", says=("wrote maps.png\n",),
          left=one_picture_of_all),
    Fault("maps-of-more-than-a-picture-holds", of_maps(230), f"maps run {SHOWN}",
          says=("wrote maps.png, maps-2.png, maps-3.png",), left=three_pictures_of_all),
    Fault("maps-of-a-broken-image", broken_picture, "maps run shown/001.png shown/000.png", status=2,
          says=("cannot read shown/000.png as an image",), left=no_picture),
)  # fmt: skip
