"""lewel presets: the recipes by name."""

from __future__ import annotations

import tyro

from lewel import presets


def run(arguments: list[str]) -> None:
    """Prints the table of presets."""
    print(tyro.cli(presets.table, args=arguments, prog="lewel presets"))
