"""Runs of a few steps on the embedded set, whole or killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lewel.recipe.schema import Data, EncoderSettings, Heads, MethodSettings, Optim, Train
from lewel.run import checkpoint, optim
from lewel.run.session import Session, prepare
from lewel.train import train
from lewel.watching import log

TINY = Train(
    data=Data(image_size=32, embedded_train=48, embedded_test=16, batch_size=16),
    encoder=EncoderSettings("tiny", stem="small2"),
    heads=Heads(hidden=16, num_maps=8, num_groups=2),
    method=MethodSettings(queue=32, split_bn=2),
    optim=Optim(lr=0.5, warmup_epochs=1),
    epochs=3,
    log_every=1,
    backend="reference",
)
METHODS = {
    "lewel_m": TINY.method,
    "lewel_b-eman": MethodSettings(loss="byol", target="eman", momentum_schedule="cosine"),
}


def run_in(folder: Path, run: Train, *, epochs: int | None = None, resume: Path | None = None) -> Session:
    """Trains run in folder, killed after epochs where given."""
    session = prepare(run, folder)
    if epochs is None:
        train(session, resume)
        return session
    save, done = checkpoint.save, []

    def save_then_die(*arguments, **keywords):
        path = save(*arguments, **keywords)
        done.append(path)
        if len(done) == epochs:
            raise KeyboardInterrupt
        return path

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save", save_then_die)
        with pytest.raises(KeyboardInterrupt):
            train(session, resume)
    return session


def in_double(session: Session) -> Session:
    """session in float64, where sums taken in another order differ by nothing that training could enlarge."""
    session.method.double()
    if session.probe is not None:
        session.probe.double()
    session.optimizer = optim.build(session.run.optim, session.method.named_parameters())
    session.to_device = lambda images: images.double()  # type: ignore[method-assign]
    return session


def weights(session: Session) -> dict[str, torch.Tensor]:
    return session.method.state_dict()


def assert_same(first: Session, second: Session) -> None:
    assert_equal(weights(first), weights(second))


def assert_equal(state: dict[str, Any], other: dict[str, Any]) -> None:
    """Bitwise, for what state_dict gives."""
    for key, value in state.items():
        assert torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key], key


def losses_of(session: Session) -> list[float]:
    return [record["loss"] for record in log.read(session.folder / "log.jsonl") if record["kind"] == "step"]
