"""The only schema: nested frozen dataclasses, which command line, run folder and checkpoints follow."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any, Literal

from lewel.recipe import feature_maps, objectives

__all__ = ["Augmentation", "Data", "EncoderSettings", "Heads", "MethodSettings", "Optim", "Train"]


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


def _text(given: Any) -> Any:
    """Paths as strings, lists of them as tuples; anything else as it is."""
    if isinstance(given, (list, tuple)):
        return tuple(map(_text, given))
    return os.fspath(given) if isinstance(given, os.PathLike) else given


@dataclass(frozen=True)
class Data:
    """Which images, at which size."""

    name: Literal["embedded", "folder", "cifar10", "cifar100", "stl10", "imagenette", "custom"] = "embedded"
    """embedded: digits among clutter, made in seconds; folder: image files (ImageNet, or your own); custom: data sets
    that were given in Python"""
    root: str | tuple[str, ...] = ""
    """folder: where the images are: one folder or several, with or without train/ and class folders, or a file that
    lists images; a set by name: the folder that holds its unpacked archive"""
    eval: str = ""
    """folder: labelled images for kNN, where those of root have no labels: class folders, with or without train/ and
    test|val/ around them"""
    download: bool = False
    """a set by name: fetch it into root if it is not there"""
    classes: str = ""
    """folder: a file with one class folder a line, the only ones used (ImageNet-100)"""
    train_list: str = ""
    """folder: a file with one training image a line, the only ones used (the 1 % and 10 % lists)"""
    exif_rotate: bool = False
    """folder: whether an image is turned as its EXIF orientation says; torchvision does not"""
    max_pixels: int = 178_956_970
    """folder: images of more pixels are not read: while one is, it takes 3 bytes a pixel and more"""
    max_unreadable: float = 0.25
    """folder: a run ends when more than this share of the images cannot be read; fewer are replaced by others"""
    image_size: int = 64
    """side of the square images that the network sees, in pixels"""
    storage: Literal["auto", "files", "memory", "device"] = "auto"
    """files: torchvision decodes and augments each sample; memory: the centres of all images are decoded once, and the
    workers augment batches of them; device: the same on the training device, without workers; auto: files for folder,
    imagenette and custom (which can have no other), else device on a GPU without workers, or memory"""
    embedded_train: int = 6000
    """embedded: number of training images"""
    embedded_test: int = 1000
    """embedded: number of test images"""
    batch_size: int = 256
    """images of one optimizer step, in all processes together"""
    workers: int = 0
    """processes that prepare batches; the run is the same for any number"""
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        for name in ("root", "eval", "classes", "train_list"):  # paths from Python: a recipe is written as text
            object.__setattr__(self, name, _text(getattr(self, name)))

    @property
    def roots(self) -> tuple[str, ...]:
        """The places that root names; none where it is empty."""
        given = (self.root,) if isinstance(self.root, str) else self.root
        return tuple(root for root in given if root)


@dataclass(frozen=True)
class EncoderSettings:
    """A network cut before global average pooling."""

    name: str = "tiny"
    """tiny: one BasicBlock of width 32, 64, 128 and 256 each; torchvision's resnet18, 34, 50, 101 or 152,
    wide_resnet50_2 or 101_2, resnext50_32x4d, resnext101_32x8d or 64x4d; timm/NAME: any model of timm that makes a
    feature map, vision transformers among them (pip install "lewel[timm]"); custom: a module given in Python"""
    stem: Literal["imagenet", "small", "small2"] = "small"
    """imagenet: 7x7 stride 2 and max pooling, or what a timm model has; small: 3x3 stride 1; small2: 3x3 stride 2"""
    last_stride: Literal[1, 2] = 2
    """stride of the last stage; 1 doubles the side of the map"""
    zero_init_residual: bool = False
    """whether the last BN of each residual block starts with weight 0, so that the block is an identity"""

    @property
    def from_timm(self) -> bool:
        """Whether it is a model of timm, which stem and last_stride say nothing about."""
        return self.name.startswith("timm/")

    @property
    def stride(self) -> int:
        """Side of one position of the map in pixels of the image; for ResNets only."""
        return {"imagenet": 4, "small": 1, "small2": 2}[self.stem] * 4 * self.last_stride


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
    projector: str = "auto"
    """of the global embedding. mlp: with BN, as in the paper; moco: MoCo v2's, without; simsiam: three layers, BN on
    each; simsiam2: two of them; auto: the method's own, mlp with the aligned branch and for byol; or one of an
    objective of your own"""
    coupling: Literal["coupled", "separate"] = "coupled"
    """coupled: the projector of the global embedding is read per position; separate: maps have an MLP of their own"""
    maps: Literal["learned", "random", "uniform"] = "learned"
    """random: softmax of normalised noise, drawn anew for every image and step; uniform: every map is GAP"""
    semantic_projector: Literal["separate", "shared"] = "separate"
    """shared: the projector of the global embedding also projects the aligned representations"""
    aligned_width: int = 0
    """width of the aligned embeddings; 0 means num_maps"""

    @property
    def aligned_out(self) -> int:
        """Width of the aligned embeddings."""
        return self.aligned_width or self.num_maps


@dataclass(frozen=True)
class MethodSettings:
    """The three switches (loss, target, w_aligned) and their settings: moco_v2, lewel_m, byol, lewel_b and so on."""

    loss: str = "infonce"
    """infonce: contrast with a queue of keys; byol: predict the target, no negatives; simsiam: predict the other view's
    embedding, no momentum network; or the name of an objective of your own"""
    target: Literal["parameters", "eman"] = "parameters"
    """what the momentum network averages: parameters (and it runs in train mode), or BN statistics too (eval mode)"""
    w_aligned: float = 0.5
    """weight of the aligned loss, the global loss has 1 - w_aligned; 0 switches the aligned branch off, 1 the other"""
    momentum: float = 0.99
    """m of the momentum network at the start"""
    momentum_schedule: Literal["constant", "cosine"] = "constant"
    """cosine: m rises towards 1, which it would reach one step after the last"""
    temperature: float = 0.2
    """infonce: temperature of both losses"""
    queue: int = 4096
    """infonce: number of keys kept as negatives of the global loss"""
    symmetric: bool = False
    """infonce: both views query, and the two directions are summed (byol always does)"""
    batch_norm: Literal["local", "sync"] = "local"
    """which images BN takes its statistics over: those of one process, or of all"""
    key_bn: Literal["auto", "shuffle", "split", "plain"] = "auto"
    """infonce: shuffle: keys are shuffled among the processes; split: a process's images are split_bn groups; plain: as
    queries; auto: plain with batch_norm sync or target eman, else shuffle among several processes and split on one"""
    split_bn: int = 8
    """infonce: virtual groups of a process's images that keys take their BN statistics over"""
    gather_negatives: bool = False
    """infonce: negatives of the aligned loss from all processes, not only from the query's own"""

    def key_bn_among(self, processes: int) -> Literal["shuffle", "split", "plain"]:
        """infonce: key_bn in so many processes, "auto" resolved; with EMAN no image depends on those beside it."""
        if self.key_bn != "auto":
            return self.key_bn
        if self.batch_norm == "sync" or self.target == "eman":
            return "plain"
        return "shuffle" if processes > 1 else "split"

    @property
    def aligned(self) -> bool:
        """Whether there are maps and an aligned loss."""
        return self.w_aligned > 0

    @property
    def name(self) -> str:
        """The name of the method, such as lewel_m. Raises LewelError where there is no such loss."""
        return objectives.find(self.loss).names[self.aligned]


@dataclass(frozen=True)
class Optim:
    """The optimizer and its schedule: linear warm-up per step, then half a cosine to zero or a constant rate."""

    name: Literal["sgd", "lars", "adamw"] = "sgd"
    lr: float = 0.12
    """learning rate per 256 images; the effective one is lr * data.batch_size / 256"""
    momentum: float = 0.9
    """adamw: its first beta; the second is 0.999"""
    weight_decay: float = 5e-4
    decay_all: bool = True
    """whether biases, norms and tokens (class, register, positions) decay too; lars and adamw allow only False, and
    lars leaves them out of its scaling as well"""
    warmup_epochs: float = 0.5
    schedule: Literal["cosine", "constant"] = "cosine"
    """after the warm-up. constant: lr stays, so that a run may go on for more epochs than it began with"""


@dataclass(frozen=True)
class Train:
    """One run, complete: what is written to the run folder and into every checkpoint."""

    preset: str = "custom"
    """name of the preset that this recipe started from"""
    data: Data = field(default_factory=Data)
    encoder: EncoderSettings = field(default_factory=EncoderSettings)
    heads: Heads = field(default_factory=Heads)
    method: MethodSettings = field(default_factory=MethodSettings)
    optim: Optim = field(default_factory=Optim)
    init: str = ""
    """weights of the encoder to start from, in the online and the momentum network: torchvision, timm, a file of
    weights (the authors' too) or a run; empty means fresh ones. A run that is continued has its own"""
    epochs: int = 20
    seed: int = 0
    """fixes initial weights, order and augmentation; the embedded images are the same for every seed"""
    accumulate: int = 1
    """forward and backward passes of one optimizer step, each over data.batch_size / accumulate images"""
    precision: Literal["fp32", "fp16", "bf16", "auto", "ambient"] = "fp32"
    """bf16, fp16: autocast, with norms, alignment maps and losses in fp32, and for fp16 a gradient scaler; auto: bf16
    where the device has it; ambient: for a Method in a loop of your own, whose autocast it leaves alone"""
    channels_last: bool = True
    """memory format of images and convolutions"""
    compile: bool = False
    """torch.compile for the encoders"""
    backend: str | None = None
    """backend of the aligned pooling, one of lewel_kernels'; None chooses"""
    knn_every: int = 1
    """online kNN after every so many epochs, and after the last; 0 never, nor before training"""
    knn_k: tuple[int, ...] = (200, 20)
    """numbers of neighbours that vote, an accuracy each: 200 are too many for a bank of 100 images a class"""
    knn_temperature: float = 0.1
    """a neighbour of cosine similarity s has exp(s / knn_temperature) votes"""
    knn_bank: int = 0
    """training images that the bank of the online kNN holds, at equal distances; 0 means all"""
    linear_at_end: bool = False
    """after the last epoch a linear classifier on frozen features is trained and its accuracy told, as `lewel eval
    linear` does"""
    probe: bool = True
    """whether a linear classifier is trained beside the method, where images have labels; it changes nothing of it, and
    is evaluated when kNN is"""
    log_every: int = 10
    """steps between two lines of the log"""
    save_every: int = 0
    """a checkpoint after every so many steps too, not only after every epoch"""
    keep: int = 2
    """checkpoints that are kept, the newest ones"""
    keep_every: int = 0
    """the checkpoint of every so many epochs is kept too, however old"""
    wandb: str = ""
    """project of Weights & Biases that the run is also logged to (pip install "lewel[wandb]")"""
    out: str = ""
    """run folder; empty means runs/<preset>, with a number if that is taken"""

    @property
    def map_side(self) -> int:
        """Side of the feature map in positions. Raises LewelError for a timm model that makes none."""
        if self.encoder.from_timm:
            return feature_maps.of_timm(self.encoder.name, self.data.image_size).side
        return -(-self.data.image_size // self.encoder.stride)

    @property
    def keys_per_step(self) -> int:
        """infonce: keys that a step adds to the queue, those of both views where symmetric."""
        return self.data.batch_size * (2 if self.method.symmetric else 1)
