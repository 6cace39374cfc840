"""The features of all images by one encoder, computed once and kept in 16 bits: folder/eval/features-KEY/.

A split lies there in parts of PART images: train-0000.npy (n, C) float16 and train-0000-labels.npy (n,) int64. A part
has its name once it is whole, so that a cache that was interrupted goes on with the parts that are missing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lewel import data, distributed
from lewel.errors import LewelError, ToldError
from lewel.evaluation import parts
from lewel.evaluation.features import BATCH, Tell
from lewel.evaluation.key import key_of
from lewel.evaluation.outcome import FOLDER
from lewel.evaluation.parts import PART, Part
from lewel.evaluation.subject import Split, Subject

PATIENCE = 10.0  # seconds until a file that another machine has written is to be seen here
NAMES = {"train": "the training images", "test": "the test images"}


@dataclass(frozen=True)
class Features:
    """What an encoder makes of the images of a split, on the device."""

    rows: Tensor
    """(N, C) float16, in the order of the images; those that could not be read are left out"""
    labels: Tensor
    """(N,) int64"""
    indices: Tensor
    """(N,) int64, which images of the split these are"""
    scale: float = 1.0
    """what rows are to be multiplied by"""

    def floats(self, rows: Tensor) -> Tensor:
        """Some of the rows in float32."""
        return rows.float() * self.scale


def features_of(subject: Subject, split: Split, tell: Tell | None = None) -> Features:
    """The features of subject.sets.bank ("train") or .test ("test"); what is missing of them is computed.

    Every process calls it, and gets all of them; each computes every world-th part. tell hears of how many images. Of
    data sets from Python, which cannot be known again, they are kept in memory alone.

    Raises LewelError for features that 16 bits cannot hold, and where the parts cannot be written or read.
    """
    name = f"features-{split}"
    if name not in subject.kept:
        folder = place(subject)
        if folder is not None:
            return _of_files(subject, split, folder, tell)
        subject.kept[name] = _in_memory(subject, split, tell)
    return subject.kept[name]


def place(subject: Subject) -> Path | None:
    """The folder of the features; None where the images came from Python, which cannot be known again."""
    if "features-key" not in subject.kept:
        subject.kept["features-key"] = distributed.from_leader(lambda: key_of(subject))
    key = subject.kept["features-key"]
    return subject.folder / FOLDER / f"features-{key.name}" if key is not None else None


def there(subject: Subject, split: Split) -> tuple[int, int]:
    """How many parts of a split are there, by their names, and how many it has."""
    folder, images = place(subject), len(subject.images(split))
    every = parts.of(folder or Path(), split, images)
    return sum(part.is_there for part in every) if folder is not None else 0, len(every)


def kept(subject: Subject) -> str:
    """A clause about the features that are there, for whom an evaluation is interrupted; "" where there are none."""
    folder = subject.folder / FOLDER
    key = subject.kept.get("features-key")
    if key is None or not (count := sum(there(subject, split)[0] for split in ("train", "test"))):
        return ""
    return (
        f"{count} parts of the features are kept in {folder / f'features-{key.name}'}, and need not be computed again"
    )


def _of_files(subject: Subject, split: Split, folder: Path, tell: Tell | None) -> Features:
    world, images = subject.world, len(subject.images(split))
    every = parts.of(folder, split, images)
    distributed.from_leader(lambda: parts.prepare(folder, subject.kept["features-key"]))
    parts.make(folder)  # on a machine of its own too
    states = {part.number: part.state(subject.sets.num_classes) for part in every if part.of(world)}
    found = {number: state for some in distributed.gather_objects(states) for number, state in some.items()}
    missing = [part for part in every if found[part.number] is not None]
    if world.leads:
        for said in filter(None, found.values()):
            print(f"{said}; this part is computed anew", flush=True)
        if len(missing) < len(every):
            whole = len(every) - len(missing)
            print(f"features of {NAMES[split]}: {whole} of {len(every)} parts are in {folder}", flush=True)
    mine = [part for part in missing if part.of(world)]
    for part, rows, labels in _computed(subject, split, mine, sum(part.count for part in missing), tell):
        part.write(rows.cpu().numpy(), labels.numpy())
    distributed.gather_objects(None)  # all have written
    _check_seen(every, world)
    return _read(subject, every, images)


def _check_seen(every: list[Part], world: distributed.World) -> None:
    """Raises LewelError in all processes where one does not see what the others have written."""
    until = time.monotonic() + PATIENCE  # a file system of the network may take some seconds
    while (unseen := [part for part in every if not part.is_there]) and time.monotonic() < until:
        time.sleep(0.2)
    for process, part in enumerate(distributed.gather_objects(unseen[0] if unseen else None)):
        if part is not None:
            raise (LewelError if world.leads else ToldError)(
                f"process {process} does not see {part.path}, which process {part.number % world.size} has written: "
                "all machines need a folder that they share for RUN/eval (--out FOLDER), or take one machine"
            )


def _computed(
    subject: Subject, split: Split, mine: list[Part], total: int, tell: Tell | None
) -> Iterator[tuple[Part, Tensor, Tensor]]:
    """The features (n, C) float16 on the device and the labels (n,) of parts, computed in the order given.

    total is the number of images that all processes compute, as if they were equally fast.
    """
    tell, done, what = tell or (lambda *_: None), 0, f"features of {NAMES[split]}"
    if total:
        tell(what, 0, total)
    if not mine:
        return
    images, left = subject.images(split), iter(mine)
    indices = np.concatenate([np.arange(part.start, part.start + part.count) for part in mine])
    part = next(left)
    rows, labels = torch.empty(0), torch.empty(part.count, dtype=torch.int64)
    filled = 0
    for batch, truth in data.eval_batches(images, BATCH, subject.run.data.workers, indices=indices):
        features = subject.features(batch)
        if not filled:
            rows = features.new_empty(part.count, features.shape[1], dtype=torch.float16)
            labels = torch.empty(part.count, dtype=torch.int64)
        rows[filled : filled + len(truth)], labels[filled : filled + len(truth)] = features, truth
        filled, done = filled + len(truth), done + len(truth)
        tell(what, min(total, done * subject.world.size), total)
        if filled == part.count:
            _check_finite(rows, part, subject)
            yield part, rows, labels
            filled = 0
            part = next(left, part)


def _check_finite(rows: Tensor, part: Part, subject: Subject) -> None:
    if not rows.isfinite().all():
        place = int((~rows.isfinite().all(1)).nonzero()[0])
        raise LewelError(
            f"the features of image {part.start + place:,} of {NAMES[part.split]} (counted from 0) are not finite in "
            f"16 bits, which hold up to {torch.finfo(torch.float16).max:,.0f}; {subject.said} cannot be evaluated so"
        )


def _read(subject: Subject, every: list[Part], images: int) -> Features:
    """All parts in one tensor on the device, one of them at a time."""
    rows, labels = torch.empty(0), torch.empty(images, dtype=torch.int64)
    for part in every:
        values, truth = part.read()
        if part is every[0]:
            rows = torch.empty(images, values.shape[1], dtype=torch.float16, device=subject.world.device)
        if values.shape[1:] != rows.shape[1:]:
            raise LewelError(f"{part.path} has features of another width than {every[0].path}; remove both")
        rows[part.start : part.start + part.count].copy_(torch.from_numpy(values))
        labels[part.start : part.start + part.count] = torch.from_numpy(truth)
    return Features(rows, labels.to(subject.world.device), torch.arange(images, device=subject.world.device))


def _in_memory(subject: Subject, split: Split, tell: Tell | None) -> Features:
    """The features without files: in each round every process computes a part, and all get what all have."""
    world, images = subject.world, len(subject.images(split))
    if world.leads and not subject.kept.setdefault("features-told", False):
        print("the images came from Python and cannot be known again, so their features are not kept", flush=True)
        subject.kept["features-told"] = True
    every = parts.of(Path(), split, images)
    mine = _computed(subject, split, every[world.rank :: world.size], images, tell)
    rows, labels = torch.empty(0), torch.empty(images, dtype=torch.int64, device=world.device)
    for first in range(0, len(every), world.size):
        found = next(mine, None)  # the last round may have none for this process
        width = max(distributed.gather_objects(found[1].shape[1] if found is not None else 0))
        own_rows = torch.zeros(PART, width, dtype=torch.float16, device=world.device)
        own_labels = torch.zeros(PART, dtype=torch.int64, device=world.device)
        if found is not None:
            own_rows[: found[0].count], own_labels[: found[0].count] = found[1], found[2].to(world.device)
        if not first:
            rows = torch.empty(images, width, dtype=torch.float16, device=world.device)
        start, stop = first * PART, min(images, (first + world.size) * PART)
        rows[start:stop] = distributed.gather(own_rows)[: stop - start]
        labels[start:stop] = distributed.gather(own_labels)[: stop - start]
    return Features(rows, labels, torch.arange(images, device=world.device))
