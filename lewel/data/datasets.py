"""From the configuration to the three sets that a run needs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from lewel.config import Augmentation, Data
from lewel.data import augment, embedded, folder, reference
from lewel.data.loader import BatchKey, Images, TwoViews, Views


@dataclass(frozen=True)
class Datasets:
    """What build returns: train goes to TrainLoader, bank and test go to eval_batches; each has a length."""

    train: TwoViews
    bank: Images  # the training split as it is evaluated
    test: Images
    num_classes: int
    test_boxes: torch.Tensor | None = None  # embedded: (N, 4) float32, x0 y0 x1 y1 in pixels, half open


def build(config: Data, seed: int, device: torch.device | None = None) -> Datasets:
    """The sets of config. seed fixes order and augmentation; the embedded images are the same for every seed.

    Raises LewelError for a folder that is missing, empty or not laid out as folder.LAYOUT says.
    """
    if config.name == "embedded":
        train = embedded.compose("train", config.embedded_train, config.image_size, seed=0)
        test = embedded.compose("test", config.embedded_test, config.image_size, seed=0)
        return Datasets(
            MemoryViews(train.images, config.augmentation, seed),
            MemoryImages(train.images, train.labels),
            MemoryImages(test.images, test.labels),
            embedded.CLASSES,
            test.boxes,
        )
    train_split, test_split, names = folder.find(config.root)
    if config.storage in ("auto", "files"):
        return Datasets(
            FolderViews(train_split, config.augmentation, config.image_size, seed),
            FolderImages(train_split, config.image_size),
            FolderImages(test_split, config.image_size),
            len(names),
        )
    bank = _decoded(train_split, config.image_size)
    return Datasets(
        MemoryViews(bank.images, config.augmentation, seed),
        bank,
        _decoded(test_split, config.image_size),
        len(names),
    )


@dataclass(frozen=True)
class MemoryViews:
    """Views of images (N, 3, S, S) uint8, augmented a batch at a time."""

    images: torch.Tensor
    augmentation: Augmentation
    seed: int

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: BatchKey) -> Views:
        indices = torch.from_numpy(key.indices)
        images = self.images[indices]
        first, second = (
            augment.apply(images, augment.draw(self.augmentation, images.shape[-1], view, self.seed, *key))
            for view in (0, 1)
        )
        return Views(first, second, indices)


@dataclass(frozen=True)
class MemoryImages:
    """Images (N, 3, S, S) uint8 and labels (N,) int64 as they are."""

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        return augment.normalise(self.images[indices].float() / 255), self.labels[indices]


class FolderViews:
    """Views of images read from files, augmented a sample at a time by torchvision."""

    def __init__(self, split: folder.Folder, augmentation: Augmentation, size: int, seed: int) -> None:
        self.split, self.seed = split, seed
        self.views = tuple(reference.View(augmentation, size, view) for view in (0, 1))

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: BatchKey) -> Views:
        named = [(self.split.load(i)[0], i) for i in key.indices.tolist()]
        first, second = (
            torch.stack([view(image, self.seed, key.epoch, i) for image, i in named]) for view in self.views
        )
        return Views(first, second, torch.from_numpy(key.indices))


class FolderImages:
    """Images read from files, their centre at the evaluated size, and their labels."""

    def __init__(self, split: folder.Folder, size: int) -> None:
        self.split, self.size = split, size

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        pairs = [self.split.load(int(i)) for i in indices]
        images = torch.stack([reference.to_tensor(reference.fit(image, self.size)) for image, _ in pairs])
        return images, torch.tensor([label for _, label in pairs])


def _decoded(split: folder.Folder, size: int) -> MemoryImages:
    """A whole split, decoded once."""
    images, labels = np.empty((len(split), size, size, 3), dtype=np.uint8), []
    for i in range(len(split)):
        image, label = split.load(i)
        images[i] = np.asarray(reference.fit(image, size))
        labels.append(label)
    return MemoryImages(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels))
