"""Sets whose images stay in their files: the workers decode and augment a sample at a time, by torchvision."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from PIL import Image

from lewel.data import per_sample
from lewel.data.loader import CPU, BatchKey, Views
from lewel.errors import LewelError
from lewel.recipe.schema import Augmentation


class Split(Protocol):
    """Images by number: Folder, or a data set of one's own."""

    @property
    def labels(self) -> np.ndarray: ...  # (N,) int64, -1 where an image has none

    def __len__(self) -> int: ...

    def load(self, index: int) -> tuple[Image.Image, int]: ...

    def check(self) -> None: ...  # raises LewelError where too many of those loaded were replaced by others


def all_labelled(lowest: int, count: int) -> None:
    """Raises LewelError where an image without a label stands for one of count that have labels, by the lowest label.

    It only does where none of these can be read.
    """
    if lowest < 0:
        raise LewelError(
            f"none of the {count} images with labels, which kNN compares, can be read; repair or restore them, or name "
            "others by --data.eval"
        )


class Labelled:
    """The first count images of a split, those that have labels."""

    def __init__(self, split: Split, count: int) -> None:
        self.split, self.count = split, count

    @property
    def labels(self) -> np.ndarray:
        return self.split.labels[: self.count]

    def __len__(self) -> int:
        return self.count

    def load(self, index: int) -> tuple[Image.Image, int]:
        image, label = self.split.load(index)
        all_labelled(label, self.count)
        return image, label

    def check(self) -> None:
        self.split.check()


class FolderViews:
    """Views of images read from files; labelled says whether their labels are those of the test images' classes."""

    device = CPU

    def __init__(self, split: Split, augmentation: Augmentation, size: int, seed: int, labelled: bool = False) -> None:
        self.split, self.seed, self.labelled = split, seed, labelled
        self.views = tuple(per_sample.View(augmentation, size, view) for view in (0, 1))

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: BatchKey) -> Views:
        loaded = [(*self.split.load(i), i) for i in key.indices.tolist()]
        first, second = (
            torch.stack([view(image, self.seed, key.epoch, i) for image, _, i in loaded]) for view in self.views
        )
        labels = torch.tensor([label for _, label, _ in loaded]) if self.labelled else None
        return Views(first, second, torch.from_numpy(key.indices), labels)


class FolderImages:
    """Images for evaluation, read from files: their centre, size x size pixels, normalised, and their labels."""

    def __init__(self, split: Split, size: int) -> None:
        self.split, self.size = split, size

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        pairs = [self.split.load(int(i)) for i in indices]
        self.split.check()
        images = torch.stack([per_sample.to_tensor(per_sample.fit(image, self.size)) for image, _ in pairs])
        return images, torch.tensor([label for _, label in pairs])
