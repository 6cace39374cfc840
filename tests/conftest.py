"""Fixtures of the op's tests: every generic test runs once per backend that can run on this machine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from lewel_kernels import dispatch


@pytest.fixture(params=dispatch.BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """The name of a backend; skips, with the backend's own sentence, where it cannot run."""
    name: str = request.param
    if sentence := dispatch.refusal(name, dispatch.Request(device_of(name), torch.float32)):
        pytest.skip(f"{name}: {sentence}")
    return name


@pytest.fixture
def device(backend: str) -> torch.device:
    """Where the tensors of a test for ``backend`` live."""
    return device_of(backend)


def device_of(backend: str) -> torch.device:
    return torch.device(dispatch.load(backend).device_type or "cpu")


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Every torch.empty is filled with NaN, so that reading what nobody wrote cannot go unnoticed."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def _no_demand_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A LEWEL_BACKEND in the caller's shell must not decide what a test tests."""
    monkeypatch.delenv("LEWEL_BACKEND", raising=False)
