from __future__ import annotations

import functools

import pytest
from tiny_runs import TINY, run_in

from lewel.methods import encoders
from lewel.run.session import Session


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Session:
    return run_in(tmp_path_factory.mktemp("runs") / "finished", TINY)


@pytest.fixture
def narrow(monkeypatch) -> None:
    """A quarter of the width of the tiny encoder, for runs that would else write or compute for long."""
    monkeypatch.setattr(encoders, "_tiny", functools.partial(encoders._tiny, 8))
