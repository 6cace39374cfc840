"""The only schema: nested frozen dataclasses, which command line, run folder and checkpoints follow."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from lewel.errors import LewelError
from lewel_kernels import BACKENDS


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
    batch_size: int = 256
    """images of one optimizer step"""
    workers: int = 0
    """processes that prepare batches; the run is the same for any number"""
    augmentation: Augmentation = field(default_factory=Augmentation)


@dataclass(frozen=True)
class Encoder:
    """A ResNet cut before global average pooling."""

    name: Literal["resnet18", "resnet34", "resnet50", "tiny"] = "tiny"
    """tiny: one BasicBlock of width 32, 64, 128 and 256 each; the others are torchvision's"""
    stem: Literal["imagenet", "small", "small2"] = "small"
    """imagenet: 7x7 stride 2 and max pooling; small: 3x3 stride 1; small2: 3x3 stride 2"""
    last_stride: Literal[1, 2] = 2
    """stride of the last stage; 1 doubles the side of the map"""


@dataclass(frozen=True)
class Heads:
    """Widths of projectors and predictors, and how the alignment maps are read."""

    hidden: int = 512
    """D, hidden width of every MLP"""
    num_maps: int = 64
    """K, number of alignment maps and width of the global embedding"""
    num_groups: int = 8
    """G, channel groups; an image has K / G aligned vectors"""
    tau: float = 1.0
    """temperature of the softmax over positions (E3)"""


@dataclass(frozen=True)
class Method:
    """The three switches (loss, target, w_aligned) and their settings: moco_v2, lewel_m, byol or lewel_b."""

    loss: Literal["infonce", "byol"] = "infonce"
    """infonce: contrast with a queue of keys; byol: predict the target, no negatives"""
    target: Literal["parameters", "eman"] = "parameters"
    """what the momentum network averages: parameters (and it runs in train mode), or BN statistics too (eval mode)"""
    w_aligned: float = 0.5
    """weight of the aligned loss, the global loss has 1 - w_aligned; 0 switches the aligned branch off"""
    momentum: float = 0.99
    """m of the momentum network at the start"""
    momentum_schedule: Literal["constant", "cosine"] = "constant"
    """cosine: m rises to 1 at the last step"""
    temperature: float = 0.2
    """infonce: temperature of both losses"""
    queue: int = 4096
    """infonce: number of keys kept as negatives of the global loss"""
    symmetric: bool = False
    """infonce: both views query, and the two directions are summed (byol always does)"""
    split_bn: int = 8
    """infonce: virtual groups of the batch that keys take their BN statistics over"""

    @property
    def aligned(self) -> bool:
        """Whether there are maps and an aligned loss."""
        return self.w_aligned > 0

    @property
    def name(self) -> str:
        """The method that the switches make."""
        return {"infonce": ("moco_v2", "lewel_m"), "byol": ("byol", "lewel_b")}[self.loss][self.aligned]


@dataclass(frozen=True)
class Optim:
    """The optimizer and its schedule: linear warm-up per step, then half a cosine to zero."""

    name: Literal["sgd", "lars"] = "sgd"
    lr: float = 0.12
    """learning rate per 256 images; the effective one is lr * data.batch_size / 256"""
    momentum: float = 0.9
    weight_decay: float = 5e-4
    decay_all: bool = True
    """whether biases and BN parameters decay too; lars allows only False, and leaves them out of its scaling as well"""
    warmup_epochs: float = 0.5


@dataclass(frozen=True)
class Train:
    """One run, complete: what is written to the run folder and into every checkpoint."""

    preset: str = "custom"
    """name of the preset that this recipe started from"""
    data: Data = field(default_factory=Data)
    encoder: Encoder = field(default_factory=Encoder)
    heads: Heads = field(default_factory=Heads)
    method: Method = field(default_factory=Method)
    optim: Optim = field(default_factory=Optim)
    epochs: int = 20
    seed: int = 0
    """fixes initial weights, order, augmentation and the embedded images"""
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    """bf16: autocast, with norms, alignment maps and losses in fp32; auto: bf16 where the device has it"""
    backend: str | None = None
    """backend of the aligned pooling, one of lewel_kernels'; None chooses"""
    knn_every: int = 1
    """online kNN after every so many epochs, and after the last"""
    log_every: int = 10
    """steps between two lines of the log"""
    keep: int = 2
    """checkpoints that are kept, the newest ones"""
    out: str = ""
    """run folder; empty means runs/<preset>, with a number if that is taken"""


def check(config: Train) -> None:
    """Everything that can be refused before any data is read; each refusal is a sentence."""
    heads, method, data, optim = config.heads, config.method, config.data, config.optim
    for name, value in (
        ("heads.hidden", heads.hidden),
        ("heads.num_maps", heads.num_maps),
        ("heads.num_groups", heads.num_groups),
        ("heads.tau", heads.tau),
        ("method.temperature", method.temperature),
        ("method.queue", method.queue),
        ("method.split_bn", method.split_bn),
        ("data.image_size", data.image_size),
        ("data.batch_size", data.batch_size),
        ("optim.lr", optim.lr),
        ("epochs", config.epochs),
        ("knn_every", config.knn_every),
        ("log_every", config.log_every),
        ("keep", config.keep),
    ):
        if not 0 < value < math.inf:
            raise LewelError(f"{name} must be positive, got {value}")
    for name, value, low, high in (
        ("method.w_aligned", method.w_aligned, 0, 1),
        ("method.momentum", method.momentum, 0, 1),
        ("optim.momentum", optim.momentum, 0, 1),
        ("optim.weight_decay", optim.weight_decay, 0, 1),
        ("optim.warmup_epochs", optim.warmup_epochs, 0, config.epochs),
        ("data.workers", data.workers, 0, 1024),
    ):
        if not low <= value <= high:
            raise LewelError(f"{name} must lie between {low} and {high}, got {value}")
    if heads.num_maps % heads.num_groups:
        raise LewelError(
            "heads.num_maps must be divisible by heads.num_groups, "
            f"got {heads.num_maps} maps and {heads.num_groups} groups"
        )
    if method.loss == "infonce":
        keys = data.batch_size * (2 if method.symmetric else 1)
        if method.queue % keys:
            raise LewelError(
                f"method.queue must be a multiple of the {keys} keys that a step adds, got {method.queue}; "
                f"try {max(keys, method.queue // keys * keys)}"
            )
        if data.batch_size % method.split_bn:
            raise LewelError(
                "data.batch_size must be divisible by method.split_bn, "
                f"got {data.batch_size} images in {method.split_bn} groups"
            )
    if optim.name == "lars" and optim.decay_all:
        raise LewelError("lars never decays biases and BN parameters; add --optim.no-decay-all or use --optim.name sgd")
    if config.backend is not None and config.backend not in BACKENDS:
        raise LewelError(f"backend must be one of {', '.join(BACKENDS)}, got {config.backend!r}")
