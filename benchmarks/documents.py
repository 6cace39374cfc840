"""Documents that quote measurements: the text between two markers is made from the data and checked against it.

<!-- generated: speed device=amd-epyc suite=quick mode=forward -->
<!-- end of generated -->
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from . import performance, tables

ROOT = Path(__file__).parents[1]
DOCUMENTS = ("README.md", "docs/performance.md")
BLOCK = re.compile(r"(<!-- generated: (\S+)((?: \S+=\S+)*) -->\n)(.*?)(<!-- end of generated -->)", re.S)

GENERATORS: dict[str, Callable[..., str]] = {
    "speed": tables.speed,
    "memory": tables.memory,
    "overhead": tables.overhead,
    "step": tables.step,
    "predictions": performance.predictions,
    "passes": performance.passes,
    "saved": performance.saved,
    "branch": performance.branch,
    "growth": performance.growth,
    "dense": performance.dense,
    "infonce": performance.infonce,
}


def regenerate(text: str) -> str:
    """The same document with every block made anew."""

    def block(found: re.Match[str]) -> str:
        opening, name, options, _, closing = found.groups()
        if name not in GENERATORS:
            raise ValueError(f"there is no generator {name!r} for {opening.strip()}; known: {', '.join(GENERATORS)}")
        return opening + GENERATORS[name](**dict(option.split("=", 1) for option in options.split())) + closing

    return BLOCK.sub(block, text)


def stale(root: Path = ROOT) -> list[Path]:
    """The documents that disagree with the data."""
    return [path for name in DOCUMENTS if regenerate(text := (path := root / name).read_text()) != text]


def write(root: Path = ROOT) -> None:
    for name in DOCUMENTS:
        (root / name).write_text(regenerate((root / name).read_text()))
