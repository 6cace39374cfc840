"""What test_distributed.py looks at: run by torchrun in two gloo processes, each writes rank-R.pt into a folder."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tiny_runs import TINY, in_double, losses_of
from torch import Tensor

from lewel import checkpoint, distributed, evaluate
from lewel.config import Method, Train
from lewel.log import RunLog
from lewel.momentum import shuffle_bn
from lewel.session import Session, prepare
from lewel.train import train

SYNCED = {
    "lewel_b": replace(TINY, method=Method(loss="byol", batch_norm="sync", momentum_schedule="cosine")),
    "lewel_m": replace(TINY, method=replace(TINY.method, batch_norm="sync", gather_negatives=True)),
    "moco_v2-symmetric": replace(TINY, method=replace(TINY.method, batch_norm="sync", w_aligned=0.0, symmetric=True)),
    "accumulate": replace(TINY, method=Method(loss="byol", batch_norm="sync", w_aligned=0.0), accumulate=2),
}
SHUFFLED = replace(TINY, method=replace(TINY.method, key_bn="shuffle"))
EMAN = replace(TINY, method=Method(loss="byol", target="eman", momentum_schedule="cosine"))


def trained(run: Train, folder: Path, resume: Path | None = None, double: bool = False) -> Session:
    session = prepare(run, folder)
    train(in_double(session) if double else session, resume)
    return session


def shuffling() -> dict[str, Any]:
    """ShuffleBN of a network that says which images came, and how many of them came in one batch with it."""
    images = 10.0 * distributed.rank() + torch.arange(4.0)[:, None]  # rank 0 has 0 to 3, rank 1 has 10 to 13

    seen: list[Tensor] = []

    def network(batch: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(batch)
        return batch + 0.5, batch[:, None].expand(-1, 3, -1) * torch.tensor([1.0, 2.0, 3.0])[:, None]

    z, aligned = shuffle_bn(network, images, (0, 1))
    again = shuffle_bn(network, images, (0, 2))
    return {"seen": seen[0], "z": z, "aligned": aligned, "seen_next": seen[1], "z_next": again[0]}


def preempted(folder: Path) -> dict[str, Any]:
    """A run of which only the last process gets SIGTERM, in its first step."""
    session, advance, steps = prepare(replace(TINY, epochs=50), folder), RunLog.advance, [0]

    def advance_and_stop(log: RunLog) -> None:
        advance(log)
        steps[0] += 1
        if steps[0] == 1 and distributed.rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    RunLog.advance = advance_and_stop  # type: ignore[method-assign]
    try:
        finished = train(session, None)
    finally:
        RunLog.advance = advance  # type: ignore[method-assign]
    return {"finished": finished, "steps": session.steps_done}


def main(folder: Path) -> None:
    distributed.join()
    found: dict[str, Any] = {"shuffling": shuffling(), "preempted": preempted(folder / "preempted")}
    for name, run in {**SYNCED, "shuffled": SHUFFLED, "eman": EMAN}.items():
        session = trained(run, folder / name, double=name in SYNCED)
        found[name] = {"state": session.method.state_dict(), "knn": evaluate.knn_accuracy(session)}
    for name, run in (("shuffled", SHUFFLED), ("eman", EMAN)):
        middle = checkpoint.found(folder / name / "checkpoints")[0]
        resumed = trained(replace(run, out="again"), folder / f"{name}-resumed", middle)
        found[f"{name}-resumed"] = {"state": resumed.method.state_dict()}
        if distributed.rank() == 0:
            found[f"{name}-resumed"]["losses"] = losses_of(resumed)
            found[name]["losses"] = losses_of(replace(resumed, folder=folder / name))
    torch.save(found, folder / f"rank-{distributed.rank()}.pt")
    distributed.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
