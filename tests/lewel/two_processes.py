"""What test_distributed.py looks at: run by torchrun in two gloo processes, each writes rank-R.pt into a folder."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from neighbours import compared
from tiny_runs import TINY, in_double, losses_of
from torch import Tensor

from lewel import distributed
from lewel.errors import LewelError
from lewel.evaluation import features
from lewel.methods import encoders
from lewel.methods.momentum import shuffle_bn
from lewel.methods.objectives import OBJECTIVES, SimSiam
from lewel.methods.objectives.base import Terms
from lewel.recipe.schema import MethodSettings, Train
from lewel.run import checkpoint, initial
from lewel.run.session import Session, build, in_parallel, prepare
from lewel.run.step import Stepper
from lewel.train import train
from lewel.watching.log import RunLog

# The first process describes one image of the bank more than the second.
ODD = replace(TINY, knn_bank=47, epochs=2, knn_every=2)
SYNCED = {
    "lewel_b": replace(ODD, method=MethodSettings(loss="byol", batch_norm="sync", momentum_schedule="cosine")),
    "lewel_m": replace(ODD, method=replace(TINY.method, batch_norm="sync", gather_negatives=True)),
    "moco_v2-symmetric": replace(ODD, method=replace(TINY.method, batch_norm="sync", w_aligned=0.0, symmetric=True)),
    "simsiam": replace(ODD, method=MethodSettings(loss="simsiam", batch_norm="sync", w_aligned=0.0)),
    "accumulate": replace(ODD, method=MethodSettings(loss="byol", batch_norm="sync", w_aligned=0.0), accumulate=2),
}
SYNCED_16 = replace(SYNCED["lewel_b"], precision="bf16")
LOCAL = {  # each process has BN statistics of its own
    "shuffled": replace(ODD, method=replace(TINY.method, key_bn="shuffle")),
    "eman": replace(ODD, method=MethodSettings(loss="byol", target="eman", momentum_schedule="cosine")),
}
RUNS = SYNCED | LOCAL
MOVED = replace(ODD, knn_every=0, epochs=2, method=MethodSettings(loss="byol", momentum_schedule="cosine"))
PASSES = {
    f"{key_bn}-{'gathered' if gathered else 'own'}": replace(
        TINY, seed=3, method=replace(TINY.method, key_bn=key_bn, gather_negatives=gathered, symmetric=True, queue=64)
    )
    for key_bn in ("shuffle", "split", "plain")
    for gathered in (False, True)
}
NOISE = torch.randn(2, 16, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def trained(run: Train, folder: Path, resume: Path | None = None) -> Session:
    session = in_double(prepare(run, folder))
    train(session, resume)
    return session


def online_knn(session: Session) -> dict[str, Any]:
    """Online kNN, and the features that it was decided on: of this process's share of the bank, and of all tests."""
    with pytest.MonkeyPatch.context() as patch:
        calls = compared(patch)
        accuracy = features.knn_accuracy(session)
    return {"accuracy": accuracy, "bank": calls[0].bank, "bank_labels": calls[0].labels, "test": calls[0].test}


def random_maps(folder: Path) -> dict[str, Tensor]:
    """Of a step that takes the same images in both processes: the online z, and R, which random maps pool."""
    session, seen = prepare(replace(TINY, heads=replace(TINY.heads, maps="random")), folder), []
    session.method.online.head.register_forward_hook(lambda *call: seen.append(call[-1]))
    stepper = Stepper(session.method, in_parallel(session.method), session.optimizer, session.scaler)
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    stepper.take([(images, images)], 1, step=0, lr=0.0, momentum=1.0)
    return {"z": seen[0][0].detach(), "R": seen[0][1].detach()}


def shuffling() -> dict[str, Any]:
    """ShuffleBN of a network that says which images came, and how many of them came in one batch with it."""
    images = 10.0 * distributed.rank() + torch.arange(4.0)[:, None]  # rank 0 has 0 to 3, rank 1 has 10 to 13

    seen: list[Tensor] = []

    def network(batch: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(batch)
        return batch + 0.5, batch[:, None].expand(-1, 3, -1) * torch.tensor([1.0, 2.0, 3.0])[:, None]

    exchanged, exchange = [], distributed.exchange
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "exchange", lambda x, *counts: exchanged.append(counts) or exchange(x, *counts))
        z, aligned = shuffle_bn(network, images, (0, 1))
    again = shuffle_bn(network, images, (0, 2))
    found = {"seen": seen[0], "z": z, "aligned": aligned, "seen_next": seen[1], "z_next": again[0]}
    return {**found, "exchanged": exchanged[0]}


def passes() -> dict[str, Any]:
    """Of a first pass over other images in each process: its losses, and the keys of all."""
    found = {}
    for name, run in PASSES.items():
        method = build(run, torch.device("cpu"))[0].double()
        first, second = (x.chunk(2)[distributed.rank()] for x in NOISE)
        step = method(first, second, 0.5, draw=7)
        found[name] = {"parts": {part: loss.detach() for part, loss in step.parts.items()}, "keys": step.keys}
    return found


def in_16_bits() -> dict[str, Tensor]:
    """Of SYNCED_16 after a pass over other images in each process: the BN buffers of what is over aligned vectors."""
    method = build(SYNCED_16, torch.device("cpu"))[0].double()
    first, second = (x.chunk(distributed.size())[distributed.rank()] for x in NOISE)
    method(first, second, 0.5).loss.backward()
    return {name: value for name, value in method.named_buffers() if "aligned_" in name}


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


def begun(folder: Path) -> dict[str, Any]:
    """A session whose initial weights the first process alone can read, and what both say of a file that is none."""
    path = folder / "initial.pth"
    if distributed.rank() == 0:
        torch.manual_seed(7)
        torch.save(encoders.build(TINY.encoder).state_dict(), path)
    session = prepare(replace(TINY, init=str(path)), folder)
    with pytest.MonkeyPatch.context() as patch:
        if distributed.rank():
            patch.setattr(initial, "source", None)
        initial.begin(session)
    session.run = replace(session.run, init=str(folder / "nowhere.pth"))
    with pytest.raises(LewelError) as error:
        initial.begin(session)
    return {"state": session.method.state_dict(), "error": str(error.value)}


def unshown(folder: Path) -> dict[str, Any]:
    """What is left of the probe of a run whose objective shows the first view in the first process alone."""

    class Own(SimSiam):
        def forward(self, online: Any, target: Any, first: Tensor, *others: Any) -> Terms:
            return super().forward(online, target, first + distributed.rank(), *others)

    run = replace(TINY, epochs=1, accumulate=2, method=MethodSettings(loss="simsiam", w_aligned=0.0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(OBJECTIVES, "simsiam", Own)
        session = trained(run, folder)
    return {"probe": session.probe, "steps": session.steps_done}


def main(folder: Path) -> None:
    distributed.join()
    found: dict[str, Any] = {
        "shuffling": shuffling(),
        "random_maps": random_maps(folder),
        "passes": passes(),
        "in_16_bits": in_16_bits(),
        "preempted": preempted(folder / "preempted"),
        "begun": begun(folder),
        "unshown": unshown(folder / "unshown"),
    }
    for name, run in RUNS.items():
        session = trained(run, folder / name)
        probe = session.probe.state_dict()  # type: ignore[union-attr]
        found[name] = {"state": session.method.state_dict(), "knn": online_knn(session), "probe": dict(probe)}
        found[name]["measured"] = features.measured(session)._asdict()
    found["moved"] = {"state": trained(MOVED, folder / "moved").method.state_dict()}
    for name, run in LOCAL.items():
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
