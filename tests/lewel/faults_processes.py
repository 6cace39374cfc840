"""Processes that meet, die or are told to end, and the folders and terminals that they write to."""

from __future__ import annotations

from fault import Fault

ROWS: tuple[Fault, ...] = ()
