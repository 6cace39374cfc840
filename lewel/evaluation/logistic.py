"""A logistic regression of scikit-learn on cached features, the cheapest linear classifier: `lewel eval logistic`."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from lewel import distributed
from lewel.errors import LewelError
from lewel.evaluation import cache, held_out
from lewel.evaluation.cache import Features
from lewel.evaluation.features import Tell
from lewel.evaluation.kinds import Kind
from lewel.evaluation.subject import Subject

SHARE = 0.1  # of the training images of each class, by which C is chosen


@dataclass(frozen=True)
class Settings:
    """Of the regression."""

    c: tuple[float, ...] = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0)
    """strengths to choose among on held-out training images; a larger one means less regularisation"""
    iterations: int = 1000
    """of lbfgs at most"""
    seed: int = 0
    """fixes which training images are held out for the choice"""


def resolved(subject: Subject, settings: Settings) -> dict[str, Any]:
    """The settings as they are written. Raises LewelError for bad ones."""
    if not settings.c or not all(0 < c < math.inf for c in settings.c):
        raise LewelError(f"c must be positive numbers, got {' '.join(map(str, settings.c)) or 'none'}")
    if settings.iterations < 1:
        raise LewelError(f"iterations must be positive, got {settings.iterations}")
    if not 0 <= settings.seed < 2**63:
        raise LewelError(f"seed must be 0 or more, and below 2**63, got {settings.seed}")
    return {"c": sorted(settings.c), "iterations": settings.iterations, "seed": settings.seed, "held_out": SHARE}


def evaluate(subject: Subject, settings: Settings, tell: Tell | None = None) -> dict[str, Any]:
    """Top-1 and top-5 of the test images in percent, by a regression on all training images.

    Its C is the one with most right answers on a tenth of the training images, which the regressions that are compared
    are not fitted to. Features are divided by their root mean square over all training images, one number, so that C
    means the same for every encoder. The first process computes it; every process calls it.
    """
    train, test = cache.features_of(subject, "train", tell), cache.features_of(subject, "test", tell)
    used = resolved(subject, settings)
    return distributed.from_leader(lambda: _fitted(subject, train, test, used))


def _fitted(subject: Subject, train: Features, test: Features, used: dict[str, Any]) -> dict[str, Any]:
    rows, known = _arrays(train)
    tests, truth = _arrays(test)
    scale = math.sqrt(float(np.mean(np.square(rows), dtype=np.float64))) or 1.0
    rows /= scale
    tests *= test.scale / train.scale / scale  # of rows without their scales, whose squares may be no numbers with them
    kept, held = (part.numpy() for part in held_out.split(torch.from_numpy(known), SHARE, used["seed"]))
    grid, best, start, unsure = {}, used["c"][0], None, []
    for c in used["c"] if len(used["c"]) > 1 and len(held) else []:
        start, told = _fit(rows[kept], known[kept], c, used["iterations"], start)
        unsure += [c] * told
        grid[c] = _right(start, rows[held], known[held], 1)
    if grid:
        best = max(grid, key=lambda c: (grid[c], -c))  # of equal ones the strongest regularisation
    fitted, told = _fit(rows, known, best, used["iterations"], None)
    if unsure or told:
        print(f"lbfgs did not converge in {used['iterations']} iterations for c {' '.join(map(str, unsure or [best]))}")
    if len(grid) > 1 and best == used["c"][-1]:
        print(f"the largest c, {best:g}, was best on held-out training images; a larger one may be better: --c")
    top1, top5 = (_right(fitted, tests, truth, k) for k in (1, 5))
    return {
        "accuracy": top1, "top1": top1, "top5": top5, "c": best, "converged": not told,
        "held_out": {f"{c:g}": accuracy for c, accuracy in grid.items()},
    }  # fmt: skip


def _arrays(features: Features) -> tuple[np.ndarray, np.ndarray]:
    return features.rows.cpu().float().numpy(), features.labels.cpu().numpy()


def _fit(
    rows: np.ndarray, labels: np.ndarray, c: float, iterations: int, start: LogisticRegression | None
) -> tuple[LogisticRegression, bool]:
    """A regression, from the weights of start on where there is one, and whether it did not converge."""
    if len(np.unique(labels)) < 2:
        raise LewelError("a logistic regression needs training images of two classes at least, and all are of one")
    model = start or LogisticRegression(solver="lbfgs", warm_start=True)
    model.set_params(C=c, max_iter=iterations)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(rows, labels)
    return model, any(issubclass(each.category, ConvergenceWarning) for each in said)


def _right(model: LogisticRegression, rows: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Percent of rows whose class is among the k most probable ones."""
    scores = model.decision_function(rows)
    if scores.ndim == 1:  # of two classes
        scores = np.stack([-scores, scores], axis=1)
    k = min(k, scores.shape[1])
    best = model.classes_[np.argpartition(-scores, k - 1, axis=1)[:, :k]]
    return 100 * float((best == labels[:, None]).any(1).mean())


def said(values: dict[str, Any]) -> str:
    return f"logistic regression {values['top1']:.2f} % (top-5 {values['top5']:.2f} %), C {values['c']:g}"


KIND = Kind(Settings, evaluate, said, lambda settings: "logistic", resolved)
