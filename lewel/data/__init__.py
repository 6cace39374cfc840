"""Images for pre-training: a training set that gives two views, and a bank and a test set for online kNN."""

from __future__ import annotations

from lewel.data.datasets import Datasets, build, described
from lewel.data.folder import Unreadable
from lewel.data.loader import Images, TrainLoader, Views, eval_batches, spaced

__all__ = ["Datasets", "Images", "TrainLoader", "Unreadable", "Views", "build", "described", "eval_batches", "spaced"]
