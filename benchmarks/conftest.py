"""What `pytest benchmarks` needs besides the tests' own configuration."""

from __future__ import annotations

import contextlib

import pytest
import torch

from .machine import keep_heap
from .providers import PROVIDERS, prepare_compiler


def pytest_addoption(parser: pytest.Parser) -> None:
    with contextlib.suppress(ValueError):  # tests/ has the same option, where both folders are asked for
        parser.addoption("--device", default="cpu", help="the device that is timed: cpu, cuda or cuda:N")


@pytest.fixture(scope="session", autouse=True)
def _ready(request: pytest.FixtureRequest) -> None:
    device = request.config.getoption("--device")
    if torch.device(device).type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.allow_tf32 = False
    keep_heap()
    prepare_compiler(PROVIDERS, device)
