"""Writes the generated documents, or with ``--check`` fails where one is out of date: ``python docs/generate.py``."""

from __future__ import annotations

import sys
from pathlib import Path

from lewel_kernels import env

DOCS = Path(__file__).parent


def environment() -> str:
    rows = "".join(f"| `{v.name}` | {v.default} | {v.doc} |\n" for v in env.VARIABLES)
    return (
        "# Environment variables\n\n"
        "Generated from `lewel_kernels/env.py` by `make docs`.\n\n"
        f"| variable | unset | meaning |\n|---|---|---|\n{rows}"
    )


def main() -> int:
    documents = {DOCS / "environment.md": environment()}
    if "--check" not in sys.argv[1:]:
        for path, text in documents.items():
            path.write_text(text)
        return 0
    stale = [path for path, text in documents.items() if not path.exists() or path.read_text() != text]
    for path in stale:
        print(f"{path} is out of date; run `make docs`", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
