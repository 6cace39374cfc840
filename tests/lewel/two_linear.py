"""What test_linear_processes.py looks at: run by torchrun in two gloo processes, each writes rank-R.pt to a folder."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from linear_heads_cases import stack
from saved_runs import fill
from tiny_runs import TINY

from lewel import distributed
from lewel.evaluation import cache, linear, subject
from lewel.evaluation.linear import Settings
from lewel.run.session import prepare

CASES = {
    name: Settings(name, rates=(0.1, 1.0), seeds=2, epochs=3, held_out=0.3, batch_size=size)  # type: ignore[arg-type]
    for name, size in (("cached", 15), ("a", 16), ("b", 16))
}


def evaluated(folder: Path, name: str) -> dict[str, Any]:
    """The values of a case, with features in float64, where sums in another order change no class."""
    session = prepare(replace(TINY, data=replace(TINY.data, embedded_train=44)), folder)
    fill(session.method, 0)
    made = subject.of_session(session)
    features, cached = subject.Subject.features, cache.features_of
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subject.Subject, "features", lambda made, images: features(made, images).double())

        def in_double(*arguments: Any) -> cache.Features:
            found = cached(*arguments)
            return replace(found, rows=found.rows.double())

        patch.setattr(linear, "features_of", in_double)
        return linear.evaluate(made, CASES[name])


def main(folder: Path) -> None:
    distributed.join()
    found: dict[str, Any] = {name: evaluated(folder / name, name) for name in CASES}
    found["heads"] = {larc: stack(larc=larc).weights for larc in (False, True)}
    torch.save(found, folder / f"rank-{distributed.rank()}.pt")
    distributed.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
