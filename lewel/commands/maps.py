"""lewel maps RUN IMAGES...: alignment maps over your own images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from lewel.results import maps


@dataclass(frozen=True)
class MapsCommand:
    """Draws the alignment maps of a run over images."""

    run: tyro.conf.Positional[Path]
    """run folder"""
    images: tyro.conf.Positional[tuple[Path, ...]]
    """image files"""
    out: Path = Path("maps.png")
    """the picture to write"""


def run(arguments: list[str]) -> None:
    """Writes the picture and says where."""
    command = tyro.cli(MapsCommand, args=arguments, prog="lewel maps")
    written = maps.over_files(command.run, list(command.images), command.out)
    print(f"wrote {', '.join(map(str, written))}")
