"""Documents that quote measurements: the text between two markers is made from the data and checked against it.

<!-- generated: speed device=amd-epyc suite=quick mode=forward -->
<!-- end of generated -->
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path

from benchmarks.documents import gpus, performance, plot, tables, training

ROOT = Path(__file__).parents[2]
DOCUMENTS: dict[str, tuple[str, ...]] = {  # with the generators of the blocks that each must have
    "README.md": ("speed",),
    "docs/performance.md": (
        "predictions", "speed", "overhead", "step", "passes", "prologue", "saved", "memory", "growth", "dense",
        "branch", "infonce", "parts", "gpus", "head-affine", "projector",
    ),
}  # fmt: skip
PICTURES = "docs/benchmarks"
BLOCK = re.compile(r"(<!-- generated: (\S+)((?: \S+=\S+)*) -->\n)(.*?)(<!-- end of generated -->)", re.S)
LINK = re.compile(r"\]\((?!\w+:)([^)\s]+\.png)\b")

GENERATORS: dict[str, Callable[..., str]] = {
    "speed": tables.speed,
    "memory": tables.memory,
    "overhead": tables.overhead,
    "step": training.step,
    "parts": training.parts,
    "predictions": performance.predictions,
    "passes": performance.passes,
    "prologue": performance.prologue,
    "saved": performance.saved,
    "branch": training.branch,
    "growth": performance.growth,
    "dense": performance.dense,
    "infonce": training.infonce,
    "gpus": gpus.gpus,
    "head-affine": training.head_affine,
    "projector": training.projector,
}


def regenerate(text: str) -> str:
    """The text of a document with every block made anew. Raises ValueError for an unknown block."""

    def block(found: re.Match[str]) -> str:
        opening, name, options, _, closing = found.groups()
        if name not in GENERATORS:
            raise ValueError(f"there is no generator {name!r} for {opening.strip()}; known: {', '.join(GENERATORS)}")
        return opening + GENERATORS[name](**dict(option.split("=", 1) for option in options.split())) + closing

    return BLOCK.sub(block, text)


def made(name: str, root: Path) -> tuple[str, str]:
    """The text of a document as it is and as it should be.

    Raises:
        ValueError: it lacks a block, or there are no results for one.
    """
    text = (root / name).read_text()
    # Whole blocks: one that has lost its end runs on to the end of the next, which is missing then.
    if missing := Counter(DOCUMENTS[name]) - Counter(found[2] for found in BLOCK.finditer(text)):
        raise ValueError(f"{name} lacks a whole block <!-- generated: ... --> of {', '.join(missing.elements())}")
    return text, regenerate(text)


def stale(root: Path = ROOT) -> list[Path]:
    """The documents that disagree with the data, lack a block or show a missing picture; and pictures without data.

    Prints the reasons to stderr.
    """
    found = []
    for name in DOCUMENTS:
        path, sentences = root / name, []
        try:
            text, wanted = made(name, root)
        except ValueError as error:
            text = wanted = path.read_text()
            sentences.append(f"{path}: {error}")
        for link in LINK.findall(text):
            if not (path.parent / link).exists():
                sentences.append(f"{path}: the picture {link} does not exist")
        if text != wanted:
            sentences.append(f"{path}: {_difference(text, wanted)}")
        if sentences:
            found.append(path)
        for sentence in sentences:
            print(sentence, file=sys.stderr)
    for path in (orphans := plot.orphans(root / PICTURES)):
        print(f"{path}: no results stand behind this picture; delete it", file=sys.stderr)
    return found + orphans


def _difference(text: str, wanted: str) -> str:
    """A sentence: the first line in which a document disagrees with its data, and what the data say."""
    pairs = zip_longest(text.split("\n"), wanted.split("\n"), fillvalue="(the end)")
    number, (is_, should) = next((i, pair) for i, pair in enumerate(pairs, 1) if pair[0] != pair[1])
    return f"line {number} is\n  {is_}\nand the data say\n  {should}"


def write(root: Path = ROOT) -> None:
    """Writes every document with its blocks made anew.

    Raises:
        ValueError: a document lacks a block, or there are no results for one; nothing is written.
    """
    for name, (_, wanted) in {name: made(name, root) for name in DOCUMENTS}.items():
        (root / name).write_text(wanted)
