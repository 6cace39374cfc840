"""Weights that a run starts from, and pictures of its maps."""

from __future__ import annotations

from fault import Fault

ROWS: tuple[Fault, ...] = ()
