"""Pictures that would be shown wrong, files that cannot be read, and how often either is said."""

from __future__ import annotations

from fault import Fault

ROWS: tuple[Fault, ...] = ()
