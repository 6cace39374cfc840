"""Sets by name with a handful of images each, on disk in their real format."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

PER_FILE = 4


def marked(first: int, count: int, side: int) -> np.ndarray:
    """Images (count, 3, side, side) uint8: red is the image's number, green twice the row, blue the column."""
    number = np.broadcast_to(np.arange(first, first + count)[:, None, None], (count, side, side))
    row, column = (np.broadcast_to(place, (count, side, side)) for place in np.ogrid[:side, :side])
    return np.stack([number, 2 * row, column], axis=1).astype(np.uint8)


def checksum(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def write_cifar(kind: type[datasets.CIFAR10], root: Path, patch: pytest.MonkeyPatch) -> None:
    """PER_FILE images in each of the set's files, image i of class i % 7, and the checksums that go with them."""
    folder, fine = root / kind.base_folder, kind is datasets.CIFAR100
    folder.mkdir(parents=True)
    number = 0
    for files in (kind.train_list, kind.test_list):
        for name, _ in files:
            labels = [i % 7 for i in range(number, number + PER_FILE)]
            content = {"data": marked(number, PER_FILE, 32).reshape(PER_FILE, -1)}
            content |= {"fine_labels": labels, "coarse_labels": [0] * PER_FILE} if fine else {"labels": labels}
            (folder / name).write_bytes(pickle.dumps(content, protocol=2))
            number += PER_FILE
    meta = folder / kind.meta["filename"]
    meta.write_bytes(pickle.dumps({kind.meta["key"]: [str(i) for i in range(10)]}, protocol=2))
    for attribute in ("train_list", "test_list"):
        files = getattr(kind, attribute)
        patch.setattr(kind, attribute, [[name, checksum(folder / name)] for name, _ in files])
    patch.setattr(kind, "meta", kind.meta | {"md5": checksum(meta)})


def write_stl10(root: Path, patch: pytest.MonkeyPatch) -> None:
    """3 labelled, 5 unlabelled and 2 test images: columns before rows, classes from 1."""
    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    for split, first, count in (("train", 0, 3), ("unlabeled", 3, 5), ("test", 8, 2)):
        marked(first, count, 96).transpose(0, 1, 3, 2).tofile(folder / f"{split}_X.bin")
        if split != "unlabeled":
            np.arange(first + 1, first + 1 + count, dtype=np.uint8).tofile(folder / f"{split}_y.bin")
    for attribute in ("train_list", "test_list"):
        files = getattr(datasets.STL10, attribute)
        patch.setattr(datasets.STL10, attribute, [[name, checksum(folder / name)] for name, _ in files])


def write_imagenette(folder: Path, side: int = 160) -> Path:
    """One training and one validation image of every class; of class i the former is 10 i, the latter 10 i + 5 red."""
    for split, more in (("train", 0), ("val", 5)):
        for label, wnid in enumerate(datasets.Imagenette._WNID_TO_CLASS):
            path = folder / split / wnid / f"{wnid}_1.JPEG"
            path.parent.mkdir(parents=True)
            Image.new("RGB", (side, side), (10 * label + more, 99, 0)).save(path, quality=100)
    return folder
