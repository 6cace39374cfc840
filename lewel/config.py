"""The only schema: nested frozen dataclasses, which command line, run folder and checkpoints follow."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Augmentation:
    """How one view is made from an image. Pairs are (first view, second view)."""

    crop_scale: tuple[float, float] = (0.2, 1.0)
    """share of the image's area that a crop keeps, lowest and highest; the aspect ratio is 3/4 to 4/3"""
    flip: float = 0.5
    """probability of a horizontal flip"""
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    """strength of brightness, contrast, saturation and hue, in a random order"""
    jitter_p: float = 0.8
    """probability of the colour jitter"""
    gray: float = 0.2
    """probability of a gray image"""
    blur: tuple[float, float] = (1.0, 0.1)
    """probability of a Gaussian blur; sigma ~ U(0.1, 2.0) pixels at 224, in proportion to the image size"""
    solarize: tuple[float, float] = (0.0, 0.2)
    """probability of inverting every value of 128 and above"""


@dataclass(frozen=True)
class Data:
    """Which images, at which size."""

    name: Literal["embedded", "folder"] = "embedded"
    """embedded: digits among clutter, made in seconds; folder: train/ and test|val/ with a folder per class"""
    root: str = ""
    """the folder that holds train/ and test/ (or val/)"""
    image_size: int = 64
    """side of the square images that the network sees, in pixels"""
    in_memory: bool = False
    """folder: decode every image once, to image_size, and augment whole batches (for sets of small images)"""
    embedded_train: int = 6000
    """embedded: number of training images"""
    embedded_test: int = 1000
    """embedded: number of test images"""
    augmentation: Augmentation = field(default_factory=Augmentation)
