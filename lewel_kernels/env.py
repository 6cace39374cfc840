"""The environment variables of the package; `make docs` writes docs/environment.md from this table."""

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

CACHE_DIR = Variable(
    "LEWEL_CACHE_DIR",
    "lewel in XDG_CACHE_HOME, or ~/.cache/lewel",
    "Folder that keeps the compiled kernels, one build per version of the sources, torch, Python, compiler and "
    "processor. It may be shared by machines, filled ahead of time by `python -m lewel_kernels.build`, and read-only "
    "once it is filled, but must not be mounted noexec.",
)

CPU_ISA = Variable(
    "LEWEL_CPU_ISA",
    "native",
    "Instruction set the cpu kernels are compiled for: a value of the compiler's -march, such as x86-64-v3 for every "
    "processor with AVX2, or native for the machine that compiles. CXX names the compiler and MAX_JOBS bounds its "
    "processes.",
)

VARIABLES = (BACKEND, CACHE_DIR, CPU_ISA)
