from __future__ import annotations

import functools
import signal

import pytest
from tiny_runs import TINY, run_in

from lewel.methods import encoders
from lewel.run.session import Session

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # of a shell's background job: what tests send would be lost
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Session:
    return run_in(tmp_path_factory.mktemp("runs") / "finished", TINY)


@pytest.fixture
def narrow(monkeypatch) -> None:
    """A quarter of the width of the tiny encoder, for runs that would else write or compute for long."""
    monkeypatch.setattr(encoders, "_tiny", functools.partial(encoders._tiny, 8))
