"""From the configuration to the three sets that a run needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from lewel.config import Data


@dataclass(frozen=True)
class Datasets:
    """What build returns. Sets have a length; train goes to TrainLoader, bank and test go to eval_batches."""

    train: Any  # two views an image
    bank: Any  # the training split, evaluation transform
    test: Any  # the test split, evaluation transform
    image_size: int
    num_classes: int
    class_names: tuple[str, ...]
    test_boxes: torch.Tensor | None = None  # embedded: (N, 4) float32, x0 y0 x1 y1 in pixels, half open
    test_masks: torch.Tensor | None = None  # embedded: (N, S, S) bool, the digit's own pixels


def build(config: Data, seed: int) -> Datasets:
    """The sets of config; seed fixes the embedded images, the order and the augmentation."""
    raise ValueError("not yet")
