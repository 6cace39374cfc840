"""Sets by name, where torchvision knows them: CIFAR-10, CIFAR-100 and STL-10 as pixels, Imagenette as a folder."""

from __future__ import annotations

import http.client
import os
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torchvision import datasets
from torchvision.datasets.utils import check_integrity
from torchvision.transforms.v2 import functional as tv

from lewel.data import room
from lewel.data.in_memory import Pixels
from lewel.data.places import contents, existing
from lewel.errors import LewelError
from lewel.recipe.schema import Data

PIXELS = ("cifar10", "cifar100", "stl10")
IMAGENETTE = ("imagenette2-160", "imagenette2-320", "imagenette2")  # the first is what a download fetches
BROKEN_DOWNLOAD = (OSError, RuntimeError, EOFError, http.client.HTTPException, tarfile.TarError, zlib.error)


def pixels(config: Data) -> tuple[Pixels, Pixels, int]:
    """(training split, test split, number of classes) of one of PIXELS.

    STL-10 is trained on its 5,000 labelled and 100,000 unlabelled images, in this order: 2.9 GB at 96 pixels, and twice
    as much while it is read. Raises LewelError where the set is not whole, or cannot be downloaded.
    """
    if config.name == "stl10":
        train, test = (_open(datasets.STL10, config, split=split) for split in ("train+unlabeled", "test"))
        labelled = train.labels[train.labels >= 0]
        size = config.image_size
        return _resized(train.data, labelled, size), _resized(test.data, test.labels, size), 10
    kind, classes = (datasets.CIFAR10, 10) if config.name == "cifar10" else (datasets.CIFAR100, 100)
    train, test = (
        _resized(split.data.transpose(0, 3, 1, 2), split.targets, config.image_size)
        for split in (_open(kind, config, train=True), _open(kind, config, train=False))
    )
    return train, test, classes


def imagenette(config: Data) -> Path:
    """The folder with Imagenette's train/ and val/: data.root, or the first of IMAGENETTE in it.

    A download fetches the one whose short side is 160 pixels: 99 MB instead of 1.5 GB, and enough for images of 128,
    the size of the published recipes. For larger images name or unpack a larger one.
    """
    root = _root(config, IMAGENETTE[0])
    places = [root, *(root / name for name in IMAGENETTE)]
    found = next((place for place in places if (place / "train").is_dir() and (place / "val").is_dir()), None)
    if found is None and not config.download:
        raise LewelError(
            f"there is no Imagenette in data.root {root}, neither train/ and val/ nor a folder {', '.join(IMAGENETTE)} "
            f"with both; {contents(root)}. --data.download fetches {IMAGENETTE[0]}"
        )
    return found or _fetch_imagenette(root)


def _fetch_imagenette(root: Path) -> Path:
    place = root / IMAGENETTE[0]
    with _downloading("imagenette", root):
        if not place.exists():  # another process may have been first
            with TemporaryDirectory(dir=root) as part:  # renamed when whole: half of an archive looks like a set
                datasets.Imagenette(part, size="160px", download=True)
                os.rename(Path(part) / place.name, place)
    return place


def _open(kind: Any, config: Data, **split: Any) -> Any:
    """One split by torchvision, which compares the files with their published checksums."""
    root = _root(config, kind.base_folder)
    try:
        return kind(root, **split)
    except RuntimeError:  # not there, or not whole
        if not config.download:
            raise LewelError(_what_is_wrong(kind, config.name, root)) from None
    with _downloading(config.name, root):
        return kind(root, **split, download=True)


def _what_is_wrong(kind: Any, name: str, root: Path) -> str:
    folder = root / kind.base_folder
    if not folder.is_dir():
        wrong, remedy = f"{name} is not in data.root {root}: there is no folder {folder.name}, {contents(root)}", ""
    else:
        files = [*kind.train_list, *kind.test_list]
        damaged = [file for file, checksum in files if not check_integrity(folder / file, checksum)]
        which = f"{len(damaged)} files, the first {damaged[0]}, are" if damaged else "its list of classes is"
        wrong, remedy = f"{folder} is not the whole of {name}: {which} missing or damaged", "remove it; "
    return f"{wrong}; {remedy}--data.download fetches it, or unpack {kind.url} there"


def _root(config: Data, holds: str) -> Path:
    """data.root, or its parent where data.root is the unpacked folder `holds` itself."""
    if len(config.roots) > 1:
        raise LewelError(
            f"{config.name} is one set, got {len(config.roots)} places in data.root; name the one it is in"
        )
    given = config.roots[0] if config.roots else ""
    if given and config.download:
        root = Path(given).expanduser()
    else:
        root = existing(given, f"the folder that holds {holds}, or will hold it after --data.download")
    return root.parent if root.name == holds and config.name in PIXELS else root


@contextmanager
def _downloading(name: str, root: Path) -> Iterator[None]:
    """Inside the block this process alone downloads, so that others of a distributed run find what it has fetched.

    Raises LewelError for a download that fails.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{name}.lock"):
            yield
    except BROKEN_DOWNLOAD as error:
        raise LewelError(
            f"cannot download {name} into {root}: {error}. Try again, or unpack its archive there by other means"
        ) from error


def _resized(images: np.ndarray, labels: Sequence[int] | np.ndarray, size: int) -> Pixels:
    """Images (N, 3, s, s) uint8 resized to size x size without cropping, and their labels (M,)."""
    room.check(len(images), size, torch.device("cpu"), "choose a smaller --data.image-size")
    whole = torch.from_numpy(images)
    if whole.shape[-1] != size:  # a part at a time: it may be held in float32
        whole = torch.cat([tv.resize(part, [size, size]) for part in whole.split(1000)])
    return Pixels(whole.contiguous(), torch.tensor(np.asarray(labels, dtype=np.int64)))
