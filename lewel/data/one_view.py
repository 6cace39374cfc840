"""Labelled training images in one augmented view, for heads and networks that are trained by labels."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from lewel.data import batched, files, per_sample
from lewel.data.files import FolderImages
from lewel.data.folder import Folder
from lewel.data.in_memory import MemoryImages, rows
from lewel.data.loader import CPU, BatchKey, Images, TrainSet
from lewel.errors import LewelError
from lewel.recipe.schema import Augmentation, Train

CROPS = (0.08, 1.0)  # of the area, as in every protocol on ImageNet
VIEW = 0  # the first of the two views that training draws


class Labelled(NamedTuple):
    """One batch: one normalised view of labelled images."""

    images: torch.Tensor  # (B, 3, S, S) float32
    labels: torch.Tensor  # (B,) int64 on the CPU; -1 for an image that could not be read, for which another stands in
    indices: torch.Tensor  # (B,) int64 on the CPU, position in the bank


def augmentation(run: Train) -> Augmentation:
    """What linear and semi-supervised training do to an image: RandomResizedCrop(0.08, 1) and a flip, nothing else.

    The probability of the flip is the recipe's own: 0.5, or 0 where a mirror image is another thing, as of digits.
    """
    return replace(
        run.data.augmentation, crop_scale=CROPS, jitter_p=0.0, gray=0.0, blur=(0.0, 0.0), solarize=(0.0, 0.0)
    )


def one_view(
    images: Images, augmentation: Augmentation, seed: int, chosen: np.ndarray | None = None
) -> TrainSet[Labelled]:
    """The set for TrainLoader with one view of images, those at chosen (M,) or all.

    images is the bank of a Datasets, of any kind but one of somebody's own class, for which a LewelError says why not.
    seed fixes order and augmentation. The view of an image is what training draws for its first view by the same
    augmentation and seed, and does not depend on which images are chosen beside it.
    """
    chosen = np.arange(len(images)) if chosen is None else np.asarray(chosen, dtype=np.int64)
    if isinstance(images, MemoryImages):
        return _InMemory(images, augmentation, seed, chosen)
    if isinstance(images, FolderImages):
        return _InFiles(images, augmentation, seed, chosen)
    raise LewelError(
        f"the labelled training images are a {type(images).__name__}, which gives them cropped and normalised, and "
        "training by labels augments them; use lewel.data.files.FolderImages or lewel.data.in_memory.MemoryImages as "
        "the bank of your Datasets, or give two data sets, data=(train, test)"
    )


def labels_of(images: Images) -> np.ndarray:
    """The labels (N,) int64 of a bank or test set, without a look into files; items from Python are read one by one.

    Raises LewelError for a set of somebody's own class that has no attribute labels.
    """
    if isinstance(images, MemoryImages):
        if images.source is not None:  # of an image that could not be read images.labels has the label of another
            return images.source.labels[: len(images)]
        return images.labels.numpy()
    if isinstance(images, FolderImages):
        return images.split.labels
    labels = getattr(images, "labels", None)
    if labels is None:
        raise LewelError(
            f"the labels of a {type(images).__name__} are not known; give it an attribute labels, an array (N,) int64"
        )
    return np.asarray(labels, dtype=np.int64)


def unreadable(images: Images) -> np.ndarray | None:
    """(N,) bool: which images could not be read so far, in this process and its workers, so that another stands in.

    None for images that are not read from files, or by code of somebody's own.
    """
    split = images.source if isinstance(images, MemoryImages) else getattr(images, "split", None)
    if isinstance(split, files.Labelled):
        split = split.split
    return split.unreadable.numpy()[: len(images)] > 0 if isinstance(split, Folder) else None


def _known(images: Images, labels: torch.Tensor, indices: np.ndarray) -> torch.Tensor:
    out = unreadable(images)
    return labels if out is None else labels.masked_fill(torch.from_numpy(out[indices]), -1)


class _InMemory:
    """Views of images in memory or on the training device, a batch at a time."""

    def __init__(self, images: MemoryImages, augmentation: Augmentation, seed: int, chosen: np.ndarray) -> None:
        self.images, self.augmentation, self.seed, self.chosen = images, augmentation, seed, chosen

    @property
    def device(self) -> torch.device:
        return self.images.images.device

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, key: BatchKey) -> Labelled:
        indices, images = self.chosen[key.indices], self.images.images
        draws = batched.draw(self.augmentation, images.shape[-1], VIEW, self.seed, key.epoch, indices)
        views = batched.apply(rows(images, indices), draws)
        return Labelled(views, _known(self.images, self.images.labels[indices], indices), torch.from_numpy(indices))


class _InFiles:
    """Views of images that are read from files, or given by a data set from Python, a sample at a time."""

    device = CPU

    def __init__(self, images: FolderImages, augmentation: Augmentation, seed: int, chosen: np.ndarray) -> None:
        self.images, self.split, self.seed, self.chosen = images, images.split, seed, chosen
        self.view = per_sample.View(augmentation, images.size, VIEW)

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, key: BatchKey) -> Labelled:
        indices = self.chosen[key.indices]
        views, labels = [], []
        for index in indices.tolist():
            image, label = self.split.load(index)  # of an unreadable file the image and the label of another
            views.append(self.view(image, self.seed, key.epoch, index))
            labels.append(label)
        self.split.check()
        known = _known(self.images, torch.tensor(labels), indices)
        return Labelled(torch.stack(views), known, torch.from_numpy(indices))
