"""Data sets of one's own: what such a class must offer, and how its images become two views."""

from __future__ import annotations

import functools
import operator
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Subset
from torchvision.transforms.functional import to_pil_image

from lewel.data import pictures
from lewel.data.datasets import Datasets
from lewel.data.files import FolderImages, FolderViews
from lewel.errors import LewelError
from lewel.recipe.schema import Data

LOOKED_AT = 16  # items whose labels are compared with what a data set says of all


class DataSet(Protocol):
    """Labelled images by number, as torchvision's data sets without a transform are. Pictures, not tensors ready made.

    classes names the classes. d[i], for i from 0 to len(d) - 1, is an image and the number of its class; the image is a
    PIL image, a uint8 array (H, W, 3) or a uint8 tensor (3, H, W), of any size. It is read in worker processes where
    the recipe has data.workers, in any order, and must be the same every time.
    """

    classes: Any

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Any, int]: ...


class Pairs:
    """A DataSet as data.files reads one: load(i) gives an RGB image and its label, or a sentence about what it is."""

    def __init__(self, dataset: DataSet) -> None:
        self.dataset, self.classes = dataset, classes_of(dataset)

    def __len__(self) -> int:
        return len(self.dataset)

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """(N,) int64: the data set's targets or labels, as torchvision's have, where items at LOOKED_AT places have
        them too; else those of all items, which are read for it."""
        count, announced = len(self), _announced(self.dataset)
        if announced is not None and len(announced) == count:
            looked_at = np.unique(np.linspace(0, count - 1, LOOKED_AT).astype(int)).tolist()
            if all(self.load(index)[1] == announced[index] for index in looked_at):
                return announced
        return np.array([self.load(index)[1] for index in range(count)], dtype=np.int64)

    def load(self, index: int) -> tuple[Image.Image, int]:
        item, where = self.dataset[index], f"item {index} of {type(self.dataset).__name__}"
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            raise LewelError(
                f"a data set gives an image and its label, but {where} is a {type(item).__name__}; give (image, label)"
            )
        return _picture(item[0], where), _label(item[1], len(self.classes), where)

    def check(self) -> None:
        """Finds nothing: no image is replaced by another."""


def _picture(image: Any, where: str) -> Image.Image:
    if isinstance(image, Image.Image):
        return pictures.to_rgb(image)
    shape = tuple(getattr(image, "shape", ()))
    array = isinstance(image, np.ndarray) and image.dtype == np.uint8 and shape[2:] == (3,)
    tensor = isinstance(image, torch.Tensor) and image.dtype == torch.uint8 and len(shape) == 3 and shape[0] == 3
    if not array and not tensor:
        kind = " ".join(str(part) for part in (type(image).__name__, getattr(image, "dtype", ""), shape or "") if part)
        raise LewelError(
            "an image is a PIL image or uint8, (H, W, 3) as an array and (3, H, W) as a tensor, but that of "
            f"{where} is a {kind}; leave out its transform"
        )
    return to_pil_image(image)


def _label(label: Any, classes: int, where: str) -> int:
    try:
        number = operator.index(label)  # of a tensor of one integer too, and of no float
    except TypeError:
        number = -1
    if not 0 <= number < classes:
        raise LewelError(
            f"a label is the number of a class, 0 to {classes - 1} for the {classes} names in classes, "
            f"but that of {where} is {label!r}"
        )
    return number


def classes_of(dataset: Any) -> Any:
    """The names of a data set's classes, which a Subset has from the whole; None where they are not known."""
    if isinstance(dataset, Subset) and not hasattr(dataset, "classes"):
        return classes_of(dataset.dataset)
    return getattr(dataset, "classes", None)


def _announced(dataset: Any) -> np.ndarray | None:
    """(N,) int64, what a data set's attribute targets or labels says; a Subset's is part of the whole's."""
    if isinstance(dataset, Subset):
        whole = _announced(dataset.dataset)
        return None if whole is None else whole[np.asarray(dataset.indices, dtype=np.int64)]
    for name in ("targets", "labels"):
        try:
            said = np.asarray(getattr(dataset, name, None))
        except (TypeError, ValueError, RuntimeError):  # lists of other things than numbers
            continue
        if said.ndim == 1 and said.dtype.kind in "iu":
            return said.astype(np.int64)
    return None


def build(train: DataSet, test: DataSet, config: Data, seed: int) -> Datasets:
    """The sets of a run from two of one's own, decoded and augmented a sample at a time by config."""
    for name, dataset in (("training", train), ("test", test)):
        kind = type(dataset).__name__
        for part, what in (("__len__", "length"), ("__getitem__", "items (image, label) by number")):
            if not hasattr(dataset, part):
                raise LewelError(f"the {name} set, a {kind}, has no {what}; give it a method {part}")
        if classes_of(dataset) is None:
            raise LewelError(
                f"the {name} set, a {kind}, has no classes, the names of what its labels number; "
                'set them before, as in dataset.classes = ["cat", "dog"]'
            )
        if not len(dataset):
            raise LewelError(f"the {name} set, a {kind}, is empty")
        Pairs(dataset).load(0)  # what is wrong with all items is told before anything is written
    bank, tests = Pairs(train), Pairs(test)
    if list(bank.classes) != list(tests.classes):
        raise LewelError(
            f"training and test set must have the same classes, in the same order, got {_few(bank.classes)} and "
            f"{_few(tests.classes)}"
        )
    return Datasets(
        FolderViews(bank, config.augmentation, config.image_size, seed, labelled=True),
        FolderImages(bank, config.image_size),
        FolderImages(tests, config.image_size),
        len(bank.classes),
    )


def _few(classes: Any) -> str:
    names = [str(name) for name in classes]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
