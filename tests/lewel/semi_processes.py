"""What test_semi_processes.py looks at: run by torchrun in two gloo processes, each writes rank-R.pt into a folder."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import TINY
from torch import nn

from lewel import data, distributed
from lewel.evaluation import offline, semi
from lewel.evaluation.semi import Settings
from lewel.evaluation.subject import Asked, Subject
from lewel.evaluation.tuning import Tuning
from lewel.methods import encoders
from lewel.recipe import plain

# One batch is all that is labelled: of two processes a last one of two images would be left out, of one it would not.
SETTINGS = Settings(labels=10, epochs=3, batch_size=10, lr=10.0, fc_lr=10.0)
RUN = replace(TINY, data=replace(TINY.data, embedded_test=15, workers=1))  # the first process tests one more


class WithoutBN(nn.Sequential):
    """What one process makes of a batch is what two make of its halves."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 16, 5, stride=4), nn.ReLU())


def subject_of(encoder: nn.Module, folder: Path) -> Subject:
    sets = data.build(RUN.data, RUN.seed)
    return Subject(RUN, folder, "weights", encoder.eval(), sets, distributed.join(), None, None, "")


def tuned(encoder: nn.Module, folder: Path, settings: Settings = SETTINGS) -> dict[str, Any]:
    """What a fine-tuning finds, and the weights that this process ends with."""
    subject, weights, leave = subject_of(encoder, folder), [], Tuning.__exit__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tuning, "__exit__", lambda self, *e: weights.append(self.tuned.state_dict()) or leave(self, *e))
        values = semi.evaluate(subject, settings)
    return {"by_epoch": values["by_epoch"], "weights": weights[0]}


def encoder(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return WithoutBN() if kind == "without-bn" else encoders.build(TINY.encoder)


def resumed(folder: Path) -> dict[str, Any]:
    """As tuned, stopped in all processes once two epochs are saved."""
    epoch = Tuning.epoch

    def stop(self: Tuning, loader: Any, number: int, rates: Any) -> float:
        if number == 2:
            raise KeyboardInterrupt
        return epoch(self, loader, number, rates)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tuning, "epoch", stop)
        with pytest.raises(KeyboardInterrupt):
            tuned(encoder("with-bn"), folder)
    return tuned(encoder("with-bn"), folder, replace(SETTINGS, resume="auto"))


def commanded(folder: Path) -> dict[str, Any]:
    """As `lewel eval semi` does it, whose first process writes."""
    torch.save(encoder("with-bn").state_dict(), folder / f"w{distributed.rank()}.pth")
    (folder / f"recipe{distributed.rank()}.yaml").write_text(plain.to_yaml(RUN))
    asked = Asked(weights=str(folder / "w0.pth"), config=str(folder / "recipe0.yaml"), out=str(folder), kind="semi")
    result = offline.run(asked, SETTINGS)
    return {"by_epoch": result.values["by_epoch"], "path": str(result.path)}


def main(folder: Path) -> None:
    distributed.join()
    found = {kind: tuned(encoder(kind), folder / kind) for kind in ("without-bn", "with-bn")}
    found["resumed"] = resumed(folder / "resumed")
    found["commanded"] = commanded(folder)
    torch.save(found, folder / f"rank-{distributed.rank()}.pt")
    distributed.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
