from __future__ import annotations

import pytest
from tiny_runs import TINY, run_in

from lewel.session import Session


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Session:
    return run_in(tmp_path_factory.mktemp("runs") / "finished", TINY)
