"""Every environment variable the package reads, in one place; ``docs/environment.md`` is generated from this table."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path


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


def document() -> str:
    """docs/environment.md."""
    rows = "".join(f"| `{v.name}` | {v.default} | {v.doc} |\n" for v in VARIABLES)
    return (
        "# Environment variables\n\n"
        "Generated from `lewel_kernels/env.py` by `make docs`. Other programs' variables are honoured where a row says so.\n\n"
        f"| variable | unset | meaning |\n|---|---|---|\n{rows}"
    )


def main(arguments: list[str]) -> int:
    """``PATH`` writes the document there; ``--check PATH`` fails when the file and this table disagree."""
    path = Path(arguments[-1])
    if arguments[0] == "--check":
        if not path.exists() or path.read_text() != document():
            print(f"{path} does not match lewel_kernels/env.py; run `make docs`", file=sys.stderr)
            return 1
        return 0
    path.write_text(document())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
