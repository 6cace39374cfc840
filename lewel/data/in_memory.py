"""Sets whose images all lie decoded in memory, or on the training device, where whole batches are augmented."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from lewel.data import batched, per_sample, room
from lewel.data.folder import Folder
from lewel.data.loader import BatchKey, Views
from lewel.recipe.schema import Augmentation

Progress = Callable[[str, int, int], None]  # is told of what so many of all images are done; at first none are


class Pixels(NamedTuple):
    """A decoded split. The labels are those of the first M images: most of STL-10's training images have none."""

    images: torch.Tensor  # (N, 3, S, S) uint8
    labels: torch.Tensor  # (M,) int64


class Filling:
    """Splits whose images are to lie in memory, or on the training device: their place first, then their pixels."""

    def __init__(self, size: int, place: torch.device) -> None:
        self.size, self.place = size, place
        self._empty: list[tuple[Folder, Pixels]] = []

    def hold(self, split: Folder) -> Pixels:
        """Where the pixels of split will be. Raises LewelError where there is no memory for them."""
        pixels = Pixels(room.empty(len(split), self.size, self.place), torch.empty(len(split), dtype=torch.int64))
        self._empty.append((split, pixels))
        return pixels

    def __call__(self, progress: Progress) -> None:
        """Reads every image once, its centre at size x size pixels, with its label; progress is told how many.

        Raises LewelError where too many cannot be read.
        """
        done, total = 0, sum(len(split) for split, _ in self._empty)
        for split, pixels in self._empty:
            for i in range(len(split)):
                progress("reading into memory", done, total)
                image, label = split.load(i)
                pixels.images[i] = torch.from_numpy(np.array(per_sample.fit(image, self.size))).permute(2, 0, 1)
                pixels.labels[i] = label
                split.check()
                done += 1
        if total:
            progress("reading into memory", total, total)
        self._empty.clear()


@dataclass(frozen=True)
class MemoryViews:
    """Views of images (N, 3, S, S) uint8, augmented a batch at a time on the images' device.

    labels (M,) int64, -1 for none, are those of the first M images, the others have none; None: no batch has labels.
    """

    images: torch.Tensor
    augmentation: Augmentation
    seed: int
    labels: torch.Tensor | None = None

    @property
    def labelled(self) -> bool:
        return self.labels is not None

    @property
    def device(self) -> torch.device:
        return self.images.device

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: BatchKey) -> Views:
        images = rows(self.images, key.indices)
        first, second = (
            batched.apply(images, batched.draw(self.augmentation, images.shape[-1], view, self.seed, *key))
            for view in (0, 1)
        )
        indices = torch.from_numpy(key.indices)
        return Views(first, second, indices, self._labels_of(indices))

    def _labels_of(self, indices: torch.Tensor) -> torch.Tensor | None:
        if self.labels is None:
            return None
        if not len(self.labels):
            return torch.full_like(indices, -1)
        known = self.labels[indices.clamp(max=len(self.labels) - 1)]
        return torch.where(indices < len(self.labels), known, -1)


@dataclass(frozen=True)
class MemoryImages:
    """Images (N, 3, S, S) uint8 and labels (N,) int64 for evaluation.

    A batch is normalised and not augmented; its labels are on the CPU.
    """

    images: torch.Tensor
    labels: torch.Tensor
    source: Folder | None = None
    """the files that they were read from, which knows those that could not be read"""

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        return batched.normalise(rows(self.images, indices).float() / 255), self.labels[indices]


def rows(images: torch.Tensor, indices: np.ndarray) -> torch.Tensor:
    """The images at indices (B,) int64, a copy on their device, which nothing on the CPU waits for."""
    (rows,) = batched.upload(images.device, indices)
    return images[rows.long()]
