"""What is given to a command, and what it needs: options, recipes in YAML, parts that are not installed."""

from __future__ import annotations

from pathlib import Path

import faults_weights
from fault import TRAIN, Ended, Fault, picture
from PIL import Image


def without(module: str):
    """As where module is not installed: what lies in the current folder is imported before what is."""

    def arrange(folder: Path) -> None:
        (folder / f"{module}.py").write_text(f"raise ModuleNotFoundError('No module named {module}', name='{module}')")

    return arrange


def photographed(name: str, more: int = 0):
    """A run in a home folder, and an image beside more others."""

    def arrange(folder: Path) -> None:
        (folder / "home").mkdir()
        faults_weights.of_maps(more)(folder / "home")
        picture(folder / name)

    return arrange


def kept(name: str):
    def left(ended: Ended) -> None:
        assert [path.name for path in ended.folder.glob("*.png")] == [name]
        assert Image.open(ended.folder / name).size == (40, 32)

    return left


def there(name: str):
    def left(ended: Ended) -> None:
        assert (ended.folder / "home" / name).exists()
        assert not (ended.folder / "~").exists()

    return left


def nothing_is_written(ended: Ended) -> None:
    assert not list(ended.folder.glob("run*"))


HOME = {"HOME": "home"}
SHOWN = " ".join(f"home/shown/{i:03}.png" for i in range(100))
ROWS = (
    Fault("maps-over-the-image", photographed("a.png"), "maps home/run a.png --out ./a.png", status=2,
          left=kept("a.png"), says=("a.png is one of the images, and the picture would replace it; choose",)),
    Fault("maps-over-the-image-in-part", photographed("a-2.png", 100), f"maps home/run a-2.png {SHOWN} --out a.png",
          status=2, left=kept("a-2.png"), says=("a-2.png is one of the images",)),
    Fault("maps-from-and-to-home", photographed("home/a.png"), "maps '~/run' '~/a.png' --out '~/b.png'", env=HOME,
          left=there("b.png")),
    Fault("export-to-home", photographed("a.png"), "export '~/run' --to safetensors --out '~/b.safetensors'", env=HOME,
          left=there("b.safetensors")),
    Fault("show-of-home", photographed("a.png"), "show '~/run'", env=HOME, status=2,
          says=("home/run is no run folder: it has no log.jsonl",)),
    Fault("eval-of-home", photographed("a.png"), "eval knn '~/run' --k 5", env=HOME, slow=True, says=("kNN-5",)),
    Fault("train-without-tyro", without("tyro"), f"{TRAIN} --out run", alone=True, status=2, left=nothing_is_written,
          says=('lewel: lewel train needs tyro, which is not installed: pip install "lewel[train]"\n',)),
    Fault("train-without-torchvision", without("torchvision"), f"{TRAIN} --out run", alone=True, slow=True, status=2,
          says=("lewel: lewel train needs torchvision, which is not installed",)),
    Fault("show-without-numpy", without("numpy"), "show run", alone=True, slow=True, status=2,
          says=("lewel: lewel show needs numpy, which is not installed",)),
)  # fmt: skip
