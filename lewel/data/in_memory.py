"""Sets whose images all lie decoded in memory, or on the training device, where whole batches are augmented."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from lewel.data import batched, per_sample
from lewel.data.folder import Folder
from lewel.data.loader import BatchKey, Views
from lewel.recipe.schema import Augmentation


class Pixels(NamedTuple):
    """A decoded split. The labels are those of the first M images: most of STL-10's training images have none."""

    images: torch.Tensor  # (N, 3, S, S) uint8
    labels: torch.Tensor  # (M,) int64


def decode(split: Folder, size: int) -> Pixels:
    """Reads every image of a split once, its centre at size x size pixels, with its label.

    Raises LewelError where too many cannot be read.
    """
    images, labels = np.empty((len(split), size, size, 3), dtype=np.uint8), []
    for i in range(len(split)):
        image, label = split.load(i)
        images[i] = np.asarray(per_sample.fit(image, size))
        labels.append(label)
        split.check()
    return Pixels(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels))


@dataclass(frozen=True)
class MemoryViews:
    """Views of images (N, 3, S, S) uint8, augmented a batch at a time on the images' device."""

    images: torch.Tensor
    augmentation: Augmentation
    seed: int

    @property
    def device(self) -> torch.device:
        return self.images.device

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: BatchKey) -> Views:
        images = _rows(self.images, key.indices)
        first, second = (
            batched.apply(images, batched.draw(self.augmentation, images.shape[-1], view, self.seed, *key))
            for view in (0, 1)
        )
        return Views(first, second, torch.from_numpy(key.indices))


@dataclass(frozen=True)
class MemoryImages:
    """Images (N, 3, S, S) uint8 and labels (N,) int64 for evaluation.

    A batch is normalised and not augmented; its labels are on the CPU.
    """

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        return batched.normalise(_rows(self.images, indices).float() / 255), self.labels[indices]


def _rows(images: torch.Tensor, indices: np.ndarray) -> torch.Tensor:
    (rows,) = batched.upload(images.device, indices)
    return images[rows.long()]
