"""Every environment variable the package reads; `make docs` writes docs/environment.md from this table."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Variable:
    """One environment variable: its name, what an unset value means, and its documentation."""

    name: str
    default: str
    doc: str

    def get(self) -> str | None:
        """The value, or None when the variable is unset or empty."""
        return os.environ.get(self.name) or None


BACKEND = Variable(
    "LEWEL_BACKEND",
    "chosen automatically",
    "Backend that runs the op unless the call or `use_backend` names one. It is a demand, not a hint: "
    "a backend that cannot run the request raises the reason.",
)

VARIABLES = (BACKEND,)
