"""The features of all images by one encoder, computed once and kept in 16 bits: folder/eval/features-KEY/.

A split lies there in parts of PART images: train-0000.npy (n, C) float16, train-0000-scale.npy, what these are to be
multiplied by, and train-0000-labels.npy (n,) int64, -1 for an image that could not be read. A part has its name once it
is whole, so that a cache that was interrupted goes on with the parts that are missing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lewel import data, distributed
from lewel.data import one_view
from lewel.errors import LewelError, ToldError
from lewel.evaluation import parts
from lewel.evaluation.features import BATCH, Tell
from lewel.evaluation.key import key_of
from lewel.evaluation.outcome import FOLDER
from lewel.evaluation.parts import PART, Part
from lewel.evaluation.subject import Split, Subject

PATIENCE = 10.0  # seconds until a file that another machine has written is to be seen here
LOW, HIGH = 2.0**-6, 2.0**15  # features whose largest magnitude lies between need no scale
SHORT = {"train": "training images", "test": "test images"}
NAMES = {"train": "the training images", "test": "the test images"}


@dataclass(frozen=True)
class Features:
    """What an encoder makes of the images of a split, on the device."""

    rows: Tensor
    """(N, C) float16, in the order of the images; those that could not be read are left out"""
    labels: Tensor
    """(N,) int64"""
    indices: Tensor
    """(N,) int64, ascending: which images of the split these are"""
    scale: float = 1.0
    """a power of two, by which rows are to be multiplied; 1 for features of usual size"""

    def floats(self, rows: Tensor) -> Tensor:
        """The features in float32 of some of the rows."""
        return rows.float() * self.scale


def features_of(subject: Subject, split: Split, tell: Tell | None = None) -> Features:
    """The features of subject.sets.bank ("train") or .test ("test"); what is missing of them is computed.

    Every process calls it, and gets all of them; each computes every world-th part. tell hears of how many images. Of
    data sets from Python, which cannot be known again, they are kept in memory alone.

    Images that cannot be read are left out, and the first process says how many.

    Raises LewelError for features that are not finite, and where the parts cannot be written or read.
    """
    name = f"features-{split}"
    if name in subject.kept:
        return subject.kept[name]
    folder = place(subject)
    if folder is not None:
        found = _of_files(subject, split, folder, tell)
    else:
        found = subject.kept[name] = _in_memory(subject, split, tell)
    images = len(subject.images(split))
    left_out = images - len(found.rows)
    if left_out and subject.world.leads and f"unreadable-{split}" not in subject.kept:
        print(f"{left_out:,} of {images:,} {SHORT[split]} cannot be read and are left out", flush=True)
    subject.kept[f"unreadable-{split}"] = left_out
    return found


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
    for part, values, labels in _computed(subject, split, mine, sum(part.count for part in missing), tell):
        scale = _scale(float(values.abs().max()))
        part.write((values / scale).half().cpu().numpy(), labels.numpy(), scale)
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
    """The features (n, C) float32 on the device and the labels (n,) of parts, computed in the order given.

    Of an image that cannot be read, for which another stands in, the label is -1 and the features are zeros. total
    is the number of images that all processes compute, as if they were equally fast.
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
        seen = one_view.unreadable(images)
        if seen is not None:
            out = torch.from_numpy(seen[indices[done : done + len(truth)]])
            features[out.to(features.device)], truth = 0, truth.masked_fill(out, -1)
        if not filled:
            rows = features.new_empty(part.count, features.shape[1])
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
            f"the features of image {part.start + place:,} of {NAMES[part.split]} (counted from 0) are not finite; "
            f"{subject.said} cannot be evaluated so"
        )


def _scale(largest: float) -> float:
    """What features of this largest magnitude are divided by to be kept in 16 bits: 1, or a power of two that leaves
    them below HIGH and at least half of it, where they lose least."""
    if not largest or LOW <= largest < HIGH:
        return 1.0
    return 2.0 ** (math.frexp(largest)[1] - 15)


def _read(subject: Subject, every: list[Part], images: int) -> Features:
    """All parts under one scale in one tensor on the device, one of them at a time."""
    rows, labels, filled = torch.empty(0), torch.empty(images, dtype=torch.int64), 0
    usual = all(float(np.load(part.scale_path)[0]) == 1 for part in every)
    scale = 1.0 if usual else _common([_largest(part) for part in every])
    for part in every:
        values, truth, own = part.read()
        if part is every[0]:
            rows = torch.empty(images, values.shape[1], dtype=torch.float16, device=subject.world.device)
        if values.shape[1:] != rows.shape[1:]:
            raise LewelError(f"{part.path} has features of another width than {every[0].path}; remove both")
        labels[part.start : part.start + part.count] = torch.from_numpy(truth)
        there = torch.from_numpy(values[truth >= 0]).to(rows.device)
        rows[filled : filled + len(there)] = there if own == scale else (there.float() * (own / scale)).half()
        filled += len(there)
    return _whole(rows[:filled], labels.to(rows.device), scale)


def _whole(rows: Tensor, labels: Tensor, scale: float) -> Features:
    """rows (M, C) of the images that have a label, labels (N,) of all."""
    indices = (labels >= 0).nonzero().flatten()
    return Features(rows, labels[indices], indices, scale)


def _largest(part: Part) -> float:
    values, _, scale = part.read()
    return float(np.abs(values).max(initial=0)) * scale


def _common(largest: list[float]) -> float:
    """The scale of parts of these largest magnitudes together."""
    return _scale(max(largest, default=0.0))


def _in_memory(subject: Subject, split: Split, tell: Tell | None) -> Features:
    """The features without files: in each round every process computes a part, and all get what all have."""
    world, images = subject.world, len(subject.images(split))
    if world.leads and not subject.kept.setdefault("features-told", False):
        come = "images" if subject.run.data.name == "custom" else "encoder"
        print(f"the {come} came from Python and cannot be known again, so the features are not kept", flush=True)
        subject.kept["features-told"] = True
    every = parts.of(Path(), split, images)
    mine = _computed(subject, split, every[world.rank :: world.size], images, tell)
    found: list[tuple[Tensor, float]] = []  # of each part in 16 bits, and its scale
    labels = torch.empty(images, dtype=torch.int64, device=world.device)
    for first in range(0, len(every), world.size):
        own = next(mine, None)  # the last round may have none for this process
        scale = _scale(float(own[1].abs().max())) if own is not None else 1.0
        told = distributed.gather_objects((own[1].shape[1] if own is not None else 0, scale))
        own_rows = torch.zeros(PART, max(width for width, _ in told), dtype=torch.float16, device=world.device)
        own_labels = torch.zeros(PART, dtype=torch.int64, device=world.device)
        if own is not None:
            own_rows[: own[0].count], own_labels[: own[0].count] = (own[1] / scale).half(), own[2].to(world.device)
        start, stop = first * PART, min(images, (first + world.size) * PART)
        labels[start:stop] = distributed.gather(own_labels)[: stop - start]
        for rows, (_, each) in zip(distributed.gather(own_rows).split(PART), told, strict=True):
            found.append((rows, each))
    scale = _common([float(rows.abs().max()) * each for rows, each in found])
    together = (rows if each == scale else (rows.float() * (each / scale)).half() for rows, each in found)
    return _whole(torch.cat(list(together))[:images][labels >= 0], labels, scale)
