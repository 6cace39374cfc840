"""What is evaluated: an encoder with its weights, of a run or of a file, and the labelled images it is shown."""

from __future__ import annotations

import contextlib
import hashlib
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lewel import data, distributed
from lewel.data import one_view, own
from lewel.data.files import FolderImages
from lewel.data.in_memory import MemoryImages, Progress
from lewel.errors import LewelError
from lewel.evaluation import opening
from lewel.evaluation.opening import Asked
from lewel.methods.method import autocast, encoder_of
from lewel.recipe.schema import Train
from lewel.run.session import Session, from_python, precision_on

__all__ = ["Asked", "Split", "Subject", "find", "of_session"]

Split = Literal["train", "test"]
NEEDS = {
    "knn": "kNN compares labels",
    "linear": "a linear classifier learns labels",
    "logistic": "a logistic regression learns labels",
    "semi": "fine-tuning on a share of the labels needs some",
}


@dataclass
class Subject:
    """An encoder with its weights, and the labelled images that say what they are worth."""

    run: Train
    """recipe of encoder and data, with the places of now and without "auto" as precision"""
    folder: Path
    """folder/eval/ gets the results"""
    name: str
    """of the checkpoint, such as step-00000768, or the stem of a file of weights"""
    encoder: nn.Module
    """images (N, 3, S, S) -> map (N, C, h, w); on world.device, in eval mode"""
    sets: data.Datasets
    """bank: the labelled training images as they are evaluated (centre crop); test: the test images"""
    world: distributed.World
    epoch: int | None
    step: int | None
    """of the checkpoint; None for weights that are none of ours"""
    said: str
    """a clause about the weights, for people"""
    loaded: bool = True
    """False in a dry run that would have to download the weights"""
    own: bool = True
    """whether these are weights of the run in folder, on the images of its recipe"""
    since: float = field(default_factory=time.monotonic)
    kept: dict[str, Any] = field(default_factory=dict, repr=False)
    """what is asked for several times: labels, and features that no file keeps"""

    def autocast(self) -> contextlib.AbstractContextManager[None] | torch.autocast:
        """The context of the recipe's precision."""
        return autocast(self.run.precision, self.world.device)

    def to_device(self, images: Tensor) -> Tensor:
        layout = torch.channels_last if self.run.channels_last else torch.contiguous_format
        return images.to(device=self.world.device, memory_format=layout, non_blocking=True)

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """GAP of the map of images (n, 3, S, S), normalised: (n, C) float32 on the device, without gradient."""
        # Of a compiled encoder each odd batch would be compiled anew.
        eager = torch.compiler.set_stance("force_eager") if self.run.compile else contextlib.nullcontext()
        with self.autocast(), eager:
            return self.encoder(self.to_device(images)).mean((2, 3), dtype=torch.float32)

    @property
    def digest(self) -> str:
        """A hash of names, types, shapes and bytes of every tensor of the encoder, buffers included."""
        whole = hashlib.blake2b(digest_size=16)
        for name, value in (*self.encoder.named_parameters(), *self.encoder.named_buffers()):
            whole.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            whole.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return whole.hexdigest()

    def images(self, split: Split) -> data.Images:
        return self.sets.bank if split == "train" else self.sets.test

    def labels(self, split: Split) -> Tensor:
        """(N,) int64 on the CPU: the labels of the images of a split, also of those that cannot be read."""
        if split not in self.kept:
            images = self.images(split)
            labels = _labels(images)
            if labels is None:
                labels = torch.cat([truth for _, truth in data.eval_batches(images, 256, self.run.data.workers)])
            self.kept[split] = labels
        return self.kept[split]

    def unreadable(self, split: Split) -> int:
        """How many images of a split cannot be read and are left out, as far as is known.

        That is of all where features were computed, and otherwise of those that this process has tried to read.
        """
        name = f"unreadable-{split}"
        if name in self.kept:
            return self.kept[name]
        seen = one_view.unreadable(self.images(split))
        return 0 if seen is None else int(seen.sum())

    def check_several(self) -> None:
        """Raises LewelError where all training images are of one class: no classifier learns anything from them."""
        if self.sets.one_class:
            raise LewelError(
                "all training images are of one class, and a classifier learns to tell classes apart; --data-eval ROOT "
                "(in Python data_eval) names labelled images of several"
            )

    def check_classes(self) -> str:
        """Raises LewelError where the test images are of a class that no training image is of.

        No classifier could name it; nor learn anything where there is one class. Returns a line about classes without
        test images, which no accuracy tells of, or "".
        """
        self.check_several()
        train, test = (torch.bincount(self.labels(s), minlength=self.sets.num_classes) > 0 for s in ("train", "test"))
        if missing := (test & ~train).nonzero().flatten().tolist():
            raise LewelError(
                f"there are test images of {_classes(missing)} but no training images of it, so that no classifier "
                "can learn it; give some, or take these test images away"
            )
        without = (train & ~test).nonzero().flatten().tolist()
        return f"no test images of {_classes(without)}: the accuracy says nothing about it" if without else ""


def find(asked: Asked, *, dry: bool = False, tell: Progress | None = None) -> Subject:
    """Opens what is asked for; every process calls it, and the first one reads the weights.

    dry: nothing is downloaded, and no image is composed or read from a folder; tell hears how many are otherwise.

    Raises LewelError where there are no such weights or recipe, where they are not all of the encoder's, and for images
    that are not there or have no labels.
    """
    world = distributed.join()
    given = asked.data if isinstance(asked.data, data.Datasets) else None
    opened, put = opening.open_(asked, world)
    run = replace(opened.run, precision=precision_on(world.device)) if opened.run.precision == "auto" else opened.run
    if asked.data is not None and given is None:
        train, test = asked.data
        given = own.build(train, test, run.data, run.seed)
    run = from_python(run, asked.encoder, given)
    with torch.random.fork_rng(devices=[]):  # of weights that are overwritten
        encoder = encoder_of(run, asked.encoder).to(world.device)
    if run.channels_last:
        encoder = encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    torch.backends.cudnn.benchmark = True  # images have one size
    said, loaded = put(encoder, run, dry)
    encoder.eval().requires_grad_(False)
    if given is not None:
        sets = given
    elif dry:
        sets = data.described(run.data, run.seed, world.device)
    else:
        sets = data.build(run.data, run.seed, world.device, fill=False)
    if not sets.num_classes:
        whose = ", ".join(asked.data_root) or opened.folder
        why = f" ({sets.found.why_none})" if sets.found is not None and sets.found.why_none else ""
        raise LewelError(
            f"{NEEDS.get(asked.kind, f'eval {asked.kind} needs labels')}, and the images of {whose} have none to learn "
            f"and to test by{why}; --data-eval ROOT (in Python data_eval) names labelled images, in a folder for each "
            "class"
        )
    if not dry:
        sets.fill(tell or (lambda what, done, total: None))
    of_the_run = opened.own and run.data.name == opened.run.data.name
    return Subject(
        run, opened.folder, opened.name, encoder, sets, world, opened.epoch, opened.step, said, loaded, of_the_run
    )


def of_session(session: Session) -> Subject:
    """The online encoder of a session as it is now, which is put into eval mode; its caller puts it back.

    All processes take BN's statistics of the first, which are those of the checkpoint.
    """
    distributed.share(session.method.online.encoder.buffers())
    return as_it_is(session)


def as_it_is(session: Session) -> Subject:
    """The same without the exchange between processes, for the first one alone."""
    encoder = session.method.online.encoder
    step, epoch = session.steps_done, session.epochs_done
    said = f"the encoder after epoch {epoch} (step {step})"
    name = f"step-{step:08d}"
    return Subject(session.run, session.folder, name, encoder.eval(), session.sets, session.world, epoch, step, said)


def _labels(images: Any) -> Tensor | None:
    """The labels of images for evaluation, where they are known without reading all of these."""
    if isinstance(images, (MemoryImages, FolderImages)):
        return torch.from_numpy(one_view.labels_of(images).copy())
    labels = getattr(images, "labels", None)
    return labels.cpu() if isinstance(labels, Tensor) and len(labels) == len(images) else None


def _classes(numbers: list[int]) -> str:
    more = len(numbers) - 5
    named = ", ".join(map(str, numbers[:5])) + (f" and {more} more" if more > 0 else "")
    return f"class {named}" if len(numbers) == 1 else f"classes {named}"
