"""Run folders with a checkpoint of weights that nobody trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from tiny_runs import METHODS, TINY
from torch import Tensor

from lewel.methods.method import Method
from lewel.recipe import plain
from lewel.recipe.schema import EncoderSettings, Train
from lewel.run import checkpoint
from lewel.run.session import prepare


def filled(run: Train, seed: int) -> Method:
    method = Method(run)
    fill(method, seed)
    return method


def fill(method: Method, seed: int) -> None:
    """No two values are alike afterwards, statistics and the target network's included."""
    generator = torch.Generator().manual_seed(seed)
    for value in method.state_dict().values():
        if isinstance(value, Tensor):
            low, high = (1, 1000) if not value.is_floating_point() else (0.5, 1.5) if value.ndim < 2 else (-0.1, 0.1)
            value.copy_(torch.empty(value.shape).uniform_(low, high, generator=generator))


def saved(folder: Path, encoder: EncoderSettings) -> Method:
    """A run folder with one checkpoint, and what was saved."""
    run = replace(
        TINY,
        encoder=encoder,
        method=METHODS["lewel_b-eman"],
        data=replace(TINY.data, image_size=64),
        channels_last=False,  # its convolutions round differently
    )
    session = prepare(run, folder)
    fill(session.method, seed=0)
    session.steps_done = 8  # of 9, three an epoch
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(plain.to_yaml(run))
    checkpoint.save(session)
    return session.method
