"""kNN of a checkpoint by its cached features: `lewel eval knn`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lewel import data, distributed
from lewel.errors import LewelError
from lewel.evaluation import cache, knn
from lewel.evaluation.cache import Features
from lewel.evaluation.features import Tell
from lewel.evaluation.kinds import Kind
from lewel.evaluation.subject import Subject
from lewel.recipe import checks, plain
from lewel.recipe.schema import Train


@dataclass(frozen=True)
class Settings:
    """Of the classifier; None means the recipe's."""

    k: tuple[int, ...] | None = None
    """numbers of neighbours that vote; without it those of the recipe, and so for the two below"""
    temperature: float | None = None
    """a neighbour of cosine similarity s has exp(s / temperature) votes"""
    bank: int | None = None
    """training images in the bank, at equal distances; 0 means all"""


def changed(run: Train, settings: Settings) -> Train:
    """run with the settings as its own. Raises LewelError for bad ones."""
    k = (settings.k,) if isinstance(settings.k, int) else settings.k  # from Python
    given = {"knn_k": k, "knn_temperature": settings.temperature, "knn_bank": settings.bank}
    run = plain.changed(run, {name: value for name, value in given.items() if value is not None}, source="lewel.eval")
    try:
        checks.check_knn(run)
    except LewelError as error:  # the recipe's own names for what is given here
        raise LewelError(str(error).removeprefix("knn_")) from None
    return run


def resolved(subject: Subject, settings: Settings) -> dict[str, Any]:
    """The settings as numbers. Raises LewelError for a k that is given and larger than the bank."""
    run = changed(subject.run, settings)
    count = bank_of(subject, run)
    if settings.k is not None and max(run.knn_k) > count:
        raise LewelError(
            f"k is {max(run.knn_k)} but there are only {count} images in the bank, of which at most all vote; choose a "
            "smaller --k" + (", or a larger --bank" if run.knn_bank and count < len(subject.sets.bank) else "")
        )
    return {"k": list(run.knn_k), "temperature": run.knn_temperature, "bank": count}


def planned(subject: Subject, settings: Settings) -> str:
    """A line about a bank that is given and larger than there are images, else ""."""
    images = len(subject.sets.bank)
    if settings.bank is None or settings.bank <= images:
        return ""
    return f"there are only {images:,} training images, so that the bank has {images:,} and not {settings.bank:,}"


def bank_of(subject: Subject, run: Train) -> int:
    """Number of images in the bank."""
    return min(run.knn_bank or len(subject.sets.bank), len(subject.sets.bank))


def evaluate(subject: Subject, settings: Settings, tell: Tell | None = None) -> dict[str, Any]:
    """kNN accuracy in percent for each k, by cosines of the cached features in float32.

    Every process compares its share of the test images with the whole bank.
    """
    used = resolved(subject, settings)
    if subject.world.leads and max(used["k"]) > used["bank"]:
        print(f"the recipe's k {max(used['k'])} is more than the bank's {used['bank']} images: all of them vote")
    found = accuracies(
        subject, cache.features_of(subject, "train", tell), cache.features_of(subject, "test", tell),
        used["k"], used["temperature"], used["bank"],
    )  # fmt: skip
    first = knn.USUAL if knn.USUAL in found else used["k"][0]
    return {"accuracy": found[first], "knn": {str(k): accuracy for k, accuracy in found.items()}}


def accuracies(
    subject: Subject, train: Features, test: Features, k: list[int], temperature: float, count: int
) -> dict[int, float]:
    """Percent for each k, of a bank of count of the training images, at equal distances; every process calls it."""
    world = subject.world
    rows = test.rows[world.rank :: world.size].float()
    labels = test.labels[world.rank :: world.size]
    chosen = torch.from_numpy(data.spaced(subject.sets.bank, count)).to(train.rows.device)
    chosen = torch.isin(train.indices, chosen).nonzero().flatten()  # rows of those of them that can be read
    count = len(chosen)
    right = [0] * len(k)
    if len(rows):
        bank = knn.blocks(_chosen(train, chosen), count)
        nearest = knn.nearest(bank, rows, min(max(k), count))
        right = knn.correct(nearest, labels, subject.sets.num_classes, k=k, temperature=temperature)
    counts = distributed.gather_objects(right)
    return {each: 100 * sum(c[i] for c in counts) / len(test.rows) for i, each in enumerate(k)}


def _chosen(features: Features, chosen: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows in float32 and labels of the rows chosen, some at a time; their scale changes no cosine."""
    for some in chosen.split(knn.ROWS):
        yield features.rows[some].float(), features.labels[some]


def said(values: dict[str, Any]) -> str:
    return ", ".join(f"kNN-{k} {accuracy:.2f} %" for k, accuracy in values["knn"].items())


def answer(values: dict[str, Any]) -> dict[int, float]:
    return {int(k): accuracy for k, accuracy in values["knn"].items()}


KIND = Kind(
    Settings, evaluate, said, lambda settings: "knn", resolved, planned=planned, answer=answer, classifies=False
)
