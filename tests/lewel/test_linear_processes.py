"""Two processes train linear classifiers as one does, and find the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from linear_heads_cases import stack
from two_linear import CASES, evaluated


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict[str, Any]]:
    """What each of two gloo processes found."""
    folder, script = tmp_path_factory.mktemp("two"), Path(__file__).with_name("two_linear.py")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    done = subprocess.run([*torchrun, str(script), str(folder)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"rank-{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("larc", [False, True], ids=["sgd", "larc"])
def test_heads_are_those_of_one_process(ranks, larc):
    first, second = (found["heads"][larc] for found in ranks)
    assert torch.equal(first, second)
    torch.testing.assert_close(first, stack(larc=larc).weights, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_values_are_those_of_one_process(ranks, name, tmp_path):
    """Of cached features the second process has one image of a batch less than the first."""
    assert ranks[0][name] == ranks[1][name] == evaluated(tmp_path, name)
