"""What is given to a command, and what it needs: options, recipes in YAML, parts that are not installed."""

from __future__ import annotations

from pathlib import Path

from fault import TRAIN, Ended, Fault


def without(module: str):
    """As where module is not installed: what lies in the current folder is imported before what is."""

    def arrange(folder: Path) -> None:
        (folder / f"{module}.py").write_text(f"raise ModuleNotFoundError('No module named {module}', name='{module}')")

    return arrange


def nothing_is_written(ended: Ended) -> None:
    assert not list(ended.folder.glob("run*"))


ROWS = (
    Fault("train-without-tyro", without("tyro"), f"{TRAIN} --out run", alone=True, status=2, left=nothing_is_written,
          says=('lewel: lewel train needs tyro, which is not installed: pip install "lewel[train]"\n',)),
    Fault("train-without-torchvision", without("torchvision"), f"{TRAIN} --out run", alone=True, slow=True, status=2,
          says=("lewel: lewel train needs torchvision, which is not installed",)),
    Fault("show-without-numpy", without("numpy"), "show run", alone=True, slow=True, status=2,
          says=("lewel: lewel show needs numpy, which is not installed",)),
)  # fmt: skip
