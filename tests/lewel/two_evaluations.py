"""What test_eval_processes.py looks at: run by torchrun in two gloo processes, each writes rank-R.pt into a folder."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from lewel import data, distributed
from lewel.errors import LewelError
from lewel.evaluation import cache, neighbours, parts, subject
from lewel.evaluation.neighbours import Settings
from lewel.evaluation.subject import Asked


def main(run: Path, out: Path) -> None:
    distributed.join()
    parts.PART = cache.PART = 10  # of 48 images, so that each process has some
    cache.BATCH = 5
    found = {}
    for name, given in (("files", None), ("memory", data.build(subject.find(Asked(run=run)).run.data, 0))):
        what = subject.find(Asked(run=run, out=str(out), data=given))
        features = [cache.features_of(what, split) for split in ("train", "test")]
        found[name] = {
            "features": [(each.rows, each.labels) for each in features],
            "knn": neighbours.evaluate(what, Settings(k=(5, 40), bank=41)),
        }
    hidden = subject.find(Asked(run=run, out=str(out / "apart")))
    if distributed.rank():  # as on a machine with a disk of its own
        hidden.folder = out / "elsewhere"
    cache.PATIENCE = 0.0
    try:
        cache.features_of(hidden, "train")
    except LewelError as error:
        found["apart"] = f"{type(error).__name__}: {error}"
    torch.save(found, out / f"rank-{distributed.rank()}.pt")
    distributed.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
