"""The places that data.root and data.eval name, and what to say of one that is not there."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from lewel.data.walk import ending, few, shown
from lewel.errors import LewelError

ARCHIVES = (".zip", ".tar", ".tgz", ".tbz", ".txz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar")


def existing(root: str, expected: str, setting: str = "data.root") -> Path:
    """The folder that setting names; a LewelError says what was expected there."""
    place = named(root, expected, setting)
    if place.is_file():
        raise LewelError(f"{setting} {shown(root)} is a file, not a folder. Expected {expected}")
    return place


def named(root: str, expected: str, setting: str = "data.root") -> Path:
    """The folder or file that setting names; a LewelError for one that is not there, and for an archive."""
    if not root:
        raise LewelError(f"{setting} is empty; --{setting} must name {expected}")
    place = os.path.expanduser(root)
    if os.path.isfile(place) and ending(place) in ARCHIVES:
        raise LewelError(f"{setting} {shown(place)} is a file; unpack it and name the folder. Expected {expected}")
    if not os.path.isfile(place) and not os.path.isdir(place):
        raise LewelError(f"{setting} {shown(place)} is not a folder; {_nearby(place)} Expected {expected}")
    return Path(place)


def contents(folder: Path) -> str:
    """What folder holds, as a clause for an error message that says what is missing from it."""
    try:
        names = sorted(entry.name + "/" * entry.is_dir() for entry in os.scandir(folder))
    except OSError as error:
        return f"it cannot be listed ({error.strerror})"
    packed = [shown(name) for name in names if ending(name) in ARCHIVES]
    unpack = f"; unpack {few(packed)} and name the folder" if packed else ""
    return f"it holds {few([shown(name) for name in names])}{unpack}" if names else "it is empty"


def _nearby(place: str) -> str:
    """Why a path is no folder, as a clause for an error message: its first missing part, and a similar name there."""
    parent, missing = os.path.abspath(place), ""
    while not os.path.isdir(parent):
        parent, missing = os.path.split(parent)
    try:
        names = os.listdir(parent)
    except OSError as error:
        return f"{shown(parent)} cannot be listed ({error.strerror})."
    if missing in names:
        return f"{shown(missing)} in {shown(parent)} leads nowhere, or may not be read."
    close = difflib.get_close_matches(missing, names, n=1)
    return f"there is no {shown(missing)} in {shown(parent)}" + (f", did you mean {shown(close[0])}?" if close else ".")
