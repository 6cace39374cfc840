"""What `pytest benchmarks` needs besides the tests' own configuration."""

from __future__ import annotations

import argparse
import contextlib

import pytest
import torch

from benchmarks import options
from benchmarks.heap import keep_heap
from benchmarks.op.providers import PROVIDERS, prepare_compiler


def pytest_addoption(parser: pytest.Parser) -> None:
    with contextlib.suppress(ValueError):  # tests/ has the same option, where both folders are asked for
        parser.addoption("--device", default="cpu", help="the device that is timed: cpu, cuda or cuda:N")


def pytest_configure(config: pytest.Config) -> None:
    try:
        options.device(config.getoption("--device"))
    except argparse.ArgumentTypeError as error:
        raise pytest.UsageError(f"--device: {error}") from error


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    """The device that is timed, ready for it."""
    name = options.device(request.config.getoption("--device"))
    if torch.device(name).type == "cuda":
        torch.cuda.set_device(name)
        torch.backends.cudnn.allow_tf32 = False
    keep_heap()
    prepare_compiler(PROVIDERS, name)
    return name
