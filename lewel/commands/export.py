"""lewel export RUN --to LIBRARY: the encoder as a file for another library."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from lewel.results.export import Library, Which, export
from lewel.run import folders


@dataclass(frozen=True)
class ExportCommand:
    """Writes the encoder of a run's newest checkpoint for another library, and prints the lines that load it there."""

    run: tyro.conf.Positional[Path]
    """run folder"""
    to: Library
    """torchvision, timm: a state dict; detectron2: a .pkl for MODEL.WEIGHTS; mmseg: the backbone alone, for
    init_cfg=dict(type="Pretrained", checkpoint=...) without prefix; safetensors: any encoder"""
    out: str = ""
    """the file to write; empty means in the run folder"""
    network: Which = "online"
    """online: the trained encoder; target: the momentum network's, which is not the one to transfer"""


def run(arguments: list[str]) -> None:
    """Writes the file and says how to load it."""
    command = tyro.cli(ExportCommand, args=arguments, prog="lewel export")
    out = folders.expanded(command.out) if command.out else None
    print(export(folders.expanded(command.run), command.to, out, command.network))
