"""The checks of a recipe that need no data; each raises LewelError with a sentence."""

from __future__ import annotations

import difflib
import math

from lewel.errors import LewelError
from lewel.recipe import objectives
from lewel.recipe.feature_maps import CUSTOM, RESNETS
from lewel.recipe.schema import Data, EncoderSettings, Optim, Train
from lewel_kernels import BACKENDS

SHARPEST = 1e-3  # temperature: below, a softmax is a choice of the largest value, and its gradient is zero


def check(run: Train, processes: int = 1) -> None:
    """Raises LewelError for a recipe that cannot run in so many processes; fit to encoder and data is checked later."""
    objective = objectives.find(run.method.loss)
    _check_numbers(run)
    check_knn(run)
    _check_augmentation(run.data)
    _check_data(run.data)
    _check_encoder(run.encoder)
    _check_heads(run)
    _check_ablations(run)
    _check_passes(run, processes)
    objective.check(run, processes)
    _check_optim(run.optim)
    if run.precision == "ambient":
        raise LewelError(
            "precision ambient is that of the autocast around a Method in a loop of your own, and lewel train has "
            "none; choose fp32, fp16, bf16 or auto"
        )
    if run.backend is not None and run.backend not in BACKENDS:
        raise LewelError(f"backend must be one of {', '.join(BACKENDS)}, got {run.backend!r}")


def _check_numbers(run: Train) -> None:
    heads, method, data, optim = run.heads, run.method, run.data, run.optim
    for name, value in (
        ("heads.hidden", heads.hidden),
        ("heads.num_maps", heads.num_maps),
        ("heads.num_groups", heads.num_groups),
        ("heads.tau", heads.tau),
        ("method.temperature", method.temperature),
        ("method.queue", method.queue),
        ("method.split_bn", method.split_bn),
        ("data.image_size", data.image_size),
        ("data.embedded_train", data.embedded_train),
        ("data.batch_size", data.batch_size),
        ("data.max_pixels", data.max_pixels),
        ("optim.lr", optim.lr),
        ("epochs", run.epochs),
        ("accumulate", run.accumulate),
        ("log_every", run.log_every),
        ("keep", run.keep),
    ):
        if not 0 < value < math.inf:
            raise LewelError(f"{name} must be positive, got {value}")
    for name, value, low, high in (
        ("method.w_aligned", method.w_aligned, 0, 1),
        ("method.momentum", method.momentum, 0, 1),
        ("optim.weight_decay", optim.weight_decay, 0, 1),
        ("optim.warmup_epochs", optim.warmup_epochs, 0, run.epochs),
        ("data.workers", data.workers, 0, 1024),
        ("data.max_unreadable", data.max_unreadable, 0, 1),
        ("heads.aligned_width", heads.aligned_width, 0, math.inf),
        ("save_every", run.save_every, 0, math.inf),
        ("knn_every", run.knn_every, 0, math.inf),
        ("keep_every", run.keep_every, 0, math.inf),
        ("seed", run.seed, 0, 2**63 - 1),
    ):
        _check_between(name, value, low, high)


def check_knn(run: Train) -> None:
    """Raises LewelError for bad kNN settings, which `lewel eval knn` may change too."""
    if not run.knn_k or len(set(run.knn_k)) < len(run.knn_k) or min(run.knn_k) < 1:
        given = " ".join(map(str, run.knn_k)) or "none"
        raise LewelError(f"knn_k must be one number of neighbours or several different ones, got {given}")
    if not 0.01 <= run.knn_temperature < math.inf:  # exp(1 / 0.01) is the last that float32 holds
        raise LewelError(f"knn_temperature must be at least 0.01, got {run.knn_temperature}")
    _check_between("knn_bank", run.knn_bank, 0, math.inf)


def _check_between(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        wanted = f"lie between {low} and {high}" if high < math.inf else f"be {low} or more"
        raise LewelError(f"{name} must {wanted}, got {value}")


def _check_augmentation(data: Data) -> None:
    views = data.augmentation
    low, high = views.crop_scale
    if not 0 < low <= high <= 1:
        raise LewelError(
            f"data.augmentation.crop_scale must be a lowest and a highest share, above 0 and up to 1, "
            f"got {low} and {high}"
        )
    for name in ("flip", "jitter_p", "gray"):
        _check_between(f"data.augmentation.{name}", getattr(views, name), 0, 1)
    for pair in ("blur", "solarize"):
        for probability in getattr(views, pair):
            _check_between(f"data.augmentation.{pair}", probability, 0, 1)
    for name, strength, highest in zip(
        ("brightness", "contrast", "saturation", "hue"), views.jitter, (math.inf, math.inf, math.inf, 0.5), strict=True
    ):
        if not 0 <= strength <= highest or strength == math.inf:
            most = f"between 0 and {highest}" if highest < math.inf else "0 or a positive number"
            raise LewelError(f"data.augmentation.jitter: the strength of {name} must be {most}, got {strength}")


def _check_data(data: Data) -> None:
    if data.batch_size < 2:
        raise LewelError("data.batch_size must be at least 2: one image has nothing to contrast with, nor statistics")
    if data.image_size < 2:
        raise LewelError("data.image_size must be at least 2: an image of one pixel can be neither cropped nor blurred")
    if not isinstance(data.root, str) and "" in data.root:
        raise LewelError(f"data.root has an empty place among {len(data.root)}; name a folder, or leave it out")
    if data.name == "embedded":
        if data.embedded_test < 2:
            raise LewelError(
                f"data.embedded_test must be at least 2, got {data.embedded_test}: "
                "the best map is chosen on one half of the images and measured on the other"
            )
        if data.roots:
            raise LewelError(
                f"data.root {' '.join(data.roots)} says nothing about the embedded images; add --data.name folder or "
                "leave it out"
            )
    for setting, file in (("classes", data.classes), ("train_list", data.train_list)):
        if file and data.name != "folder":
            raise LewelError(
                f"data.{setting} {file} chooses from folders of images, but {data.name} is used as a whole; "
                "leave it out or choose --data.name folder"
            )
    check_eval(data)
    if data.exif_rotate and data.name not in ("folder", "imagenette"):
        raise LewelError(f"data.exif_rotate turns images of files, and {data.name} has none; leave it out")
    if data.download and data.name in ("embedded", "folder", CUSTOM):
        raise LewelError(f"data.download fetches sets like cifar10, and {data.name} is none; leave it out")
    if data.name == CUSTOM and data.storage not in ("auto", "files"):
        raise LewelError(
            f"data.storage {data.storage} says where lewel keeps images that it reads itself, and those given in "
            "Python are read one at a time from their data sets; choose --data.storage auto or files"
        )
    if data.storage == "files" and data.name not in ("folder", "imagenette", CUSTOM):
        raise LewelError(f"the {data.name} images are in no files; choose --data.storage memory, device or auto")
    if data.storage == "device" and data.workers:
        raise LewelError(
            f"data.storage device needs --data.workers 0, got {data.workers}: "
            "workers cannot reach images on a GPU; --data.storage memory lets them prepare batches"
        )


def check_eval(data: Data) -> None:
    """Raises LewelError for a data.eval that nothing would read, which `lewel eval knn` may give too."""
    if data.eval and data.name != "folder":
        raise LewelError(
            f"data.eval {data.eval} names labelled images beside those of --data.name folder, but {data.name} has its "
            "own labels; leave it out"
        )


def _check_encoder(encoder: EncoderSettings) -> None:
    if encoder.from_timm:
        for setting, value, only in (("stem", encoder.stem, "imagenet"), ("last_stride", encoder.last_stride, 2)):
            if value != only:
                flag = f"--encoder.{setting.replace('_', '-')}"
                raise LewelError(
                    f"encoder.{setting} {value} changes ResNets, and says nothing about {encoder.name}, which comes as "
                    f"it is in timm; add {flag} {only}"
                )
    elif encoder.name not in (*RESNETS, CUSTOM):
        near = difflib.get_close_matches(encoder.name, RESNETS, n=1)
        meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(RESNETS)} and timm/NAME"
        raise LewelError(f"there is no encoder.name {encoder.name}; {meant}")


def _check_heads(run: Train) -> None:
    heads, method = run.heads, run.method
    objectives.projector(heads.projector, method.loss)
    if heads.num_maps % heads.num_groups:
        raise LewelError(
            "heads.num_maps must be divisible by heads.num_groups, "
            f"got {heads.num_maps} maps and {heads.num_groups} groups"
        )
    for name, temperature in (("heads.tau", heads.tau), ("method.temperature", method.temperature)):
        if temperature < SHARPEST:
            raise LewelError(
                f"{name} must be at least {SHARPEST}, got {temperature}: "
                "a sharper softmax only picks the largest value, which has no gradient"
            )
    if not method.aligned or run.encoder.name == CUSTOM:  # of an encoder from Python the map is not known here
        return
    side = run.map_side  # of a timm model: after a look at it, which refuses what makes no map
    if side < 2:
        least = "a larger one" if run.encoder.from_timm else f"at least {run.encoder.stride + 1}"
        raise LewelError(
            f"at data.image_size {run.data.image_size} the feature map is one position, over which alignment maps "
            f"mean nothing; choose {least} with this encoder, or --method.w-aligned 0"
        )


def _check_ablations(run: Train) -> None:
    """Raises LewelError for settings of the aligned branch that contradict each other, or that nothing would read."""
    heads, default = run.heads, type(run.heads)()
    if not run.method.aligned:
        for name in ("coupling", "maps", "semantic_projector", "aligned_width"):
            if getattr(heads, name) != getattr(default, name):
                raise LewelError(
                    f"heads.{name} {getattr(heads, name)} says nothing without the aligned branch; "
                    "give it a weight (--method.w-aligned 0.5) or leave the setting out"
                )
    elif heads.projector not in ("auto", "mlp"):
        raise LewelError(
            f"heads.projector {heads.projector} has no alignment maps; choose mlp or auto, or --method.w-aligned 0"
        )
    if heads.maps != "learned" and heads.coupling == "separate":
        raise LewelError(f"heads.coupling separate says how maps are learned, but heads.maps is {heads.maps}")
    if heads.semantic_projector == "shared" and heads.aligned_out != heads.num_maps:
        raise LewelError(
            f"heads.semantic_projector shared makes aligned embeddings of width {heads.num_maps} (heads.num_maps), "
            f"but heads.aligned_width is {heads.aligned_width}; leave it out"
        )


def _check_passes(run: Train, processes: int) -> None:
    if run.data.batch_size % (processes * run.accumulate):
        raise LewelError(
            f"data.batch_size must be divisible by processes times accumulate, got {run.data.batch_size} images, "
            f"{processes} processes and {run.accumulate} passes"
        )
    if run.data.batch_size // (processes * run.accumulate) < 2:
        raise LewelError(
            f"{processes} processes and {run.accumulate} passes leave one of {run.data.batch_size} images to a pass, "
            "which has no batch statistics; choose a larger data.batch_size"
        )


def _check_optim(optim: Optim) -> None:
    if not 0 <= optim.momentum < 1:
        raise LewelError(f"optim.momentum must be at least 0 and below 1, got {optim.momentum}")
    if optim.name != "sgd" and optim.decay_all:
        raise LewelError(
            f"{optim.name} never decays biases and BN parameters; add --optim.no-decay-all or use --optim.name sgd"
        )
