"""Builds the three sets that a run needs from its configuration: training set, bank and test set."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch

from lewel import distributed
from lewel.data import embedded, layout, named, room
from lewel.data.files import FolderImages, FolderViews, Labelled, all_labelled
from lewel.data.folder import Folder
from lewel.data.found import Found
from lewel.data.in_memory import Filling, MemoryImages, MemoryViews, Pixels, Progress
from lewel.data.layout import Layout
from lewel.data.loader import CPU, Images, TwoViews
from lewel.errors import LewelError
from lewel.recipe.schema import Data


@dataclass(frozen=True)
class Datasets:
    """What build returns: train goes to TrainLoader, bank and test go to eval_batches; each has a length."""

    train: TwoViews
    bank: Images  # the training split as it is evaluated, where it has labels
    test: Images
    num_classes: int  # 0: nothing has labels, and bank and test are the training images
    test_boxes: torch.Tensor | None = None  # embedded: (N, 4) float32, x0 y0 x1 y1 in pixels, half open
    folders: tuple[Folder, ...] = ()
    found: Found | None = None  # of images in folders
    filling: Filling | None = None  # of images in files that are to lie in memory

    def fill(self, progress: Progress = lambda what, done, total: None) -> None:
        """Reads the images that are to lie in memory, unless that is done; before it they are of no use.

        Raises LewelError where too many cannot be read.
        """
        if self.filling is not None:
            self.filling(progress)
            if self.num_classes:
                all_labelled(int(self.bank.labels.min()), len(self.bank))  # type: ignore[attr-defined]

    @property
    def probed(self) -> bool:
        """Whether batches of train have labels of the classes that the test images have, so that a probe can learn."""
        return self.num_classes > 0 and getattr(self.train, "labelled", False)

    @property
    def one_class(self) -> bool:
        """Whether to compare labels means nothing: the labelled training images are all of one class."""
        return self.found.one_class if self.found is not None else self.num_classes == 1

    @property
    def replaced(self) -> int:
        """How many different files could not be read so far, in all splits and workers of this process."""
        return sum(split.replaced for split in self.folders)

    def tell(self, device: torch.device, *, compared: bool = True) -> int:
        """Has all processes, which call it together, know which files some of them could not read; returns how many.

        It is the same number in all of them, and so is the LewelError where too many of a split cannot be read. Where
        no images are compared it is of the training images only.
        """
        count = 0
        for split in filter(len, self.folders):
            marks = distributed.gather(split.unreadable.to(device)).view(-1, len(split)).amax(0).cpu()
            split.join(marks)
            if compared or split is self.folders[0]:
                split.check(int(marks.sum()))
            count += int(marks.sum())
        return count

    @property
    def known_by(self) -> Folder | None:
        """The training images, where a checkpoint must keep how to know them again; other sets the recipe fixes."""
        return next((split for split in self.folders[:1] if split.config.name == "folder"), None)


def build(config: Data, seed: int, device: torch.device = CPU, *, fill: bool = True) -> Datasets:
    """The sets of config. seed fixes order and augmentation; the embedded images are the same for every seed.

    device is where training runs: storage_for says whether the images lie there. Without fill, images of files that are
    to lie in memory are left for Datasets.fill. Raises LewelError for a set that is missing, empty, not laid out as it
    should be, that cannot be downloaded, or is larger than the memory.
    """
    if config.name == "custom":
        raise LewelError(
            "the images of this run came from Python (data.name custom) and are named nowhere; "
            "give them again: lewel.train(data=...)"
        )
    storage = storage_for(config, device)
    place = device if storage == "device" else CPU
    if config.name == "embedded":
        images = config.embedded_train + config.embedded_test
        room.check(images, config.image_size, CPU, "choose a smaller --data.image-size or --data.embedded-train")
        train, test = (
            embedded.compose(split, count, config.image_size, seed=0)
            for split, count in (("train", config.embedded_train), ("test", config.embedded_test))
        )
        splits = (Pixels(canvases.images, canvases.labels) for canvases in (train, test))
        return Datasets(*_held(config, seed, place, *splits), embedded.CLASSES, test.boxes)
    if config.name in named.PIXELS:
        train_pixels, test_pixels, num_classes = named.pixels(config)
        return Datasets(*_held(config, seed, place, train_pixels, test_pixels), num_classes)
    at = layout.find(config, config.roots if config.name == "folder" else [str(named.imagenette(config))])
    folders = tuple(split for split in (at.train, at.bank, at.test) if split is not None)
    if storage == "files":
        return Datasets(*_read(config, seed, at), at.num_classes, folders=folders, found=at.found)
    filling = Filling(config.image_size, place)
    sets = Datasets(
        *_in_memory(config, seed, filling, at), at.num_classes, folders=folders, found=at.found, filling=filling
    )
    if fill:
        sets.fill()
    return sets


def described(config: Data, seed: int, device: torch.device = CPU) -> Datasets:
    """The sets of config with their counts and labels, for who asks no more: their images are of no use.

    Nothing is downloaded, composed, or read from a folder. Raises the LewelErrors of build, as far as they show.
    """
    if config.name == "embedded":
        splits = (("train", config.embedded_train), ("test", config.embedded_test))
        one = torch.zeros((), dtype=torch.uint8)  # which stands for every pixel
        side = config.image_size
        pixels = (Pixels(one.expand(n, 3, side, side), embedded.labels(split, n, seed=0)) for split, n in splits)
        return Datasets(*_held(config, seed, CPU, *pixels), embedded.CLASSES)
    config = replace(config, download=False)
    if config.name in ("folder", "imagenette"):
        config = replace(config, storage="files")  # of which none is decoded before it is asked for
    return build(config, seed, device, fill=False)


def storage_for(config: Data, device: torch.device) -> Literal["files", "memory", "device"]:
    """Where the images of config lie for training on device: config.storage, or what "auto" stands for.

    Workers cannot reach images on a GPU, so with workers they stay in memory.
    """
    if config.storage != "auto":
        return config.storage
    if config.name in ("folder", "imagenette"):
        return "files"
    return "device" if device.type == "cuda" and config.workers == 0 else "memory"


def _held(
    config: Data, seed: int, place: torch.device, train: Pixels, test: Pixels
) -> tuple[MemoryViews, MemoryImages, MemoryImages]:
    images = train.images.to(place)
    return (
        MemoryViews(images, config.augmentation, seed, train.labels),
        MemoryImages(images[: len(train.labels)], train.labels),
        MemoryImages(test.images.to(place), test.labels),
    )


def _read(config: Data, seed: int, at: Layout) -> tuple[FolderViews, FolderImages, FolderImages]:
    size, bank = config.image_size, at.bank
    views = FolderViews(at.train, config.augmentation, size, seed, labelled=_has_own_labels(at))
    if at.test is None:
        return views, FolderImages(at.train, size), FolderImages(at.train, size)
    if bank is None and at.labelled < len(at.train):
        return views, FolderImages(Labelled(at.train, at.labelled), size), FolderImages(at.test, size)
    return views, FolderImages(bank if bank is not None else at.train, size), FolderImages(at.test, size)


def _in_memory(config: Data, seed: int, filling: Filling, at: Layout) -> tuple[MemoryViews, MemoryImages, MemoryImages]:
    splits = [split for split in (at.train, at.test, at.bank) if split is not None]
    room.check(sum(map(len, splits)), config.image_size, filling.place)
    train, *others = map(filling.hold, splits)
    views = MemoryViews(train.images, config.augmentation, seed, train.labels if _has_own_labels(at) else None)
    if at.test is None:
        return views, MemoryImages(*train), MemoryImages(*train)
    test, bank = others[0], others[1] if at.bank is not None else Pixels(*(part[: at.labelled] for part in train))
    return views, MemoryImages(*bank, at.bank or at.train), MemoryImages(*test, at.test)


def _has_own_labels(at: Layout) -> bool:
    """Whether the training images have the classes of the test images; data.eval has classes of its own."""
    return at.test is not None and at.bank is None
