"""Fine-tuning in two processes: one network, and that of one process where no image depends on those beside it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from semi_processes import encoder, tuned
from tiny_runs import assert_equal


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def ranks(folder) -> list[dict[str, Any]]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    script = Path(__file__).with_name("semi_processes.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parents[2])}
    done = subprocess.run(
        [*torchrun, str(script), str(folder)], env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return [torch.load(folder / f"rank-{rank}.pt") for rank in range(2)]


def test_without_bn_two_processes_train_as_one(ranks, tmp_path):
    alone, both = tuned(encoder("without-bn"), tmp_path), ranks[0]["without-bn"]
    for one, two in zip(alone["by_epoch"], both["by_epoch"], strict=True):
        assert two == pytest.approx(one, rel=1e-4)
    before = encoder("without-bn")[0].weight
    assert (alone["weights"]["encoder.0.weight"] - before).abs().max() > 1e-3
    for name, value in alone["weights"].items():
        torch.testing.assert_close(both["weights"][name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["without-bn", "with-bn", "resumed"])
def test_all_processes_end_with_one_network_and_one_result(name, ranks):
    """BN has the statistics of the first."""
    first, second = (rank[name] for rank in ranks)
    assert first["by_epoch"] == second["by_epoch"]
    assert_equal(first["weights"], second["weights"])


def test_one_that_was_stopped_goes_on_bitwise(ranks):
    assert ranks[0]["resumed"]["by_epoch"] == ranks[0]["with-bn"]["by_epoch"]
    assert_equal(ranks[0]["resumed"]["weights"], ranks[0]["with-bn"]["weights"])


def test_the_first_process_writes_the_result(ranks, folder):
    first, second = (rank["commanded"] for rank in ranks)
    assert first == second
    assert [path.name for path in (folder / "eval").iterdir()] == ["semi-10-w0.json"]
    assert first["by_epoch"] == ranks[0]["with-bn"]["by_epoch"]
