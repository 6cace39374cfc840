"""The reference augmentation: torchvision.transforms.v2, one sample at a time."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2

from lewel.data import opening
from lewel.data.batched import ASPECT, MEAN, STD, blur_radius, blur_sigma, hashed
from lewel.recipe.schema import Augmentation

LONGEST = 8  # short sides: what is further from the middle of an image is no part of its centre


class View:
    """One view (0 or 1) of an image: crop, flip, jitter, gray, blur, solarize, in this order."""

    def __init__(self, config: Augmentation, size: int, view: int) -> None:
        self.view = view
        self.transform = v2.Compose(
            [
                v2.RandomResizedCrop(size, scale=config.crop_scale, ratio=ASPECT),
                v2.RandomHorizontalFlip(config.flip),
                v2.RandomApply([v2.ColorJitter(*config.jitter)], p=config.jitter_p),
                v2.RandomGrayscale(config.gray),
                v2.RandomApply([v2.GaussianBlur(2 * blur_radius(size) + 1, blur_sigma(size))], p=config.blur[view]),
                v2.RandomSolarize(128, p=config.solarize[view]),
                *_TO_TENSOR,
            ]
        )

    def __call__(self, image: Image.Image, seed: int, epoch: int, index: int) -> torch.Tensor:
        """(3, S, S) float32, normalised, the same for the same (seed, epoch, index)."""
        draw = hashed(seed, epoch, np.array([index]), self.view, 1)[0, 0]
        with torch.random.fork_rng(devices=[]), opening.unlimited():
            torch.manual_seed(int(draw >> np.uint64(1)))
            return self.transform(image)


_TO_TENSOR = (v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD))
to_tensor = v2.Compose(list(_TO_TENSOR))


def fit(image: Image.Image, size: int) -> Image.Image:
    """The centre of an image, size x size pixels.

    The image is first resized so that its short side is 8/7 of size (256 for 224, as in ImageNet's evaluation); to size
    itself if the short side is smaller than that, so that nothing of a small image is cut away along it. Of a long
    strip only the middle is resized, for the whole of it may take more memory than there is.
    """
    longest = LONGEST * min(image.size)
    if max(image.size) > longest:
        image = _middle(image, min(image.width, longest), min(image.height, longest))
    wide = round(size * 8 / 7)
    short = wide if min(image.size) >= wide else size
    if min(image.size) != short:
        scale = short / min(image.size)
        sides = (max(size, round(image.width * scale)), max(size, round(image.height * scale)))
        image = image.resize(sides, Image.Resampling.BILINEAR)
    return _middle(image, size, size)


def _middle(image: Image.Image, width: int, height: int) -> Image.Image:
    left, top = (image.width - width) // 2, (image.height - height) // 2
    with opening.unlimited():
        return image.crop((left, top, left + width, top + height))
