"""An evaluation in two processes finds what one finds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lewel.evaluation import cache, neighbours, subject
from lewel.evaluation.neighbours import Settings
from lewel.evaluation.subject import Asked


@pytest.fixture(scope="module")
def ranks(finished, tmp_path_factory) -> list[dict[str, Any]]:
    out = tmp_path_factory.mktemp("two")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    script = Path(__file__).with_name("two_evaluations.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parents[2])}
    done = subprocess.run(
        [*torchrun, str(script), str(finished.folder), str(out)],
        env=environment, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return [torch.load(out / f"rank-{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("where", ["files", "memory"])
def test_they_have_the_features_and_neighbours_of_one(where, ranks, finished, tmp_path):
    alone = subject.find(Asked(run=finished.folder, out=str(tmp_path)))
    knn = neighbours.evaluate(alone, Settings((5, 40), bank=41))
    for found in ranks:
        assert found[where]["knn"] == knn
        for (rows, labels), split in zip(found[where]["features"], ("train", "test"), strict=True):
            expected = cache.features_of(alone, split)
            assert torch.equal(labels, expected.labels)
            # Batches of other sizes are summed in another order, before the rounding to 16 bits.
            torch.testing.assert_close(rows, expected.rows, rtol=2e-3, atol=1e-4)


def test_machines_without_a_common_folder_say_so_once(ranks):
    first, second = (found["apart"] for found in ranks)
    assert first.startswith("LewelError: process 0 does not see")
    assert "which process 1 has written: all machines need a folder that they share" in first
    assert second.startswith("ToldError: process 0 does not see")
