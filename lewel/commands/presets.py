"""lewel presets: the recipes by name."""

from __future__ import annotations

from dataclasses import dataclass

import tyro

from lewel.recipe import presets


@dataclass(frozen=True)
class PresetsCommand:
    """Lists the presets, or prints one of them as a recipe for lewel train --config."""

    name: tyro.conf.Positional[str] = ""
    """a preset; without it, a line about each"""


def run(arguments: list[str]) -> None:
    """Prints the table of presets, or one recipe as YAML."""
    name = tyro.cli(PresetsCommand, args=arguments, prog="lewel presets").name
    print(presets.describe(name) if name else presets.table())
