"""How much memory is free, and whether decoded images have room in it."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from lewel import meeting
from lewel.errors import LewelError

GIB = 2**30
MEMINFO, CGROUPS, OWN = Path("/proc/meminfo"), Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
FROM_FILES = "--data.storage files reads them as they are needed"


def needed(images: int, size: int) -> int:
    """Bytes of so many images (3, size, size) uint8."""
    return 3 * images * size**2


def empty(images: int, size: int, place: torch.device) -> torch.Tensor:
    """Memory for images (images, 3, size, size) uint8 on place. Raises LewelError where there is none."""
    try:
        return torch.empty(images, 3, size, size, dtype=torch.uint8, device=place)
    except RuntimeError:  # of a limit that free does not know
        raise LewelError(f"{_taken(images, size, 1)}, which this process does not get; {FROM_FILES}") from None


def check(images: int, size: int, place: torch.device, remedy: str = FROM_FILES) -> None:
    """Raises LewelError where so many images of size x size pixels have no room on place, for any process here."""
    room, processes = free(place), meeting.processes_here() if place.type == "cpu" else 1
    if room is not None and processes * needed(images, size) > room:
        raise LewelError(f"{_taken(images, size, processes)}, {room / GIB:,.1f} GiB are free; {remedy}")


def free(place: torch.device) -> int | None:
    """Bytes that are free on place, or can be made free; None where that cannot be told."""
    if place.type == "cuda":
        return torch.cuda.mem_get_info(place)[0]
    told = re.search(r"^MemAvailable: *(\d+) kB", _text(MEMINFO), re.MULTILINE) if place.type == "cpu" else None
    return min([1024 * int(told[1]), *_of_groups()]) if told else None


def _taken(images: int, size: int, processes: int) -> str:
    each = f" in each of {processes} processes" if processes > 1 else ""
    return f"{images:,} images of {size} pixels take {needed(images, size) / GIB:,.1f} GiB of memory{each}"


def _of_groups() -> list[int]:
    """What the control groups of this process, of either version, still let it have; files in the cache count as free.

    A container often sees its own group alone, at the top.
    """
    left = []
    for controllers, path in re.findall(r"^\d+:(.*?):(.*)$", _text(OWN), re.MULTILINE):
        top = CGROUPS / "memory" if controllers else CGROUPS
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        own = top / path.lstrip("/")
        for group in (own, *own.parents) if "memory" in controllers or not controllers else ():
            limit, used = (_text(group / name).strip() for name in names)
            if limit.isdigit() and used.isdigit():
                kept = rf"^{'total_' * bool(controllers)}(?:in)?active_file (\d+)$"
                cached = sum(map(int, re.findall(kept, _text(group / "memory.stat"), re.MULTILINE)))
                left.append(max(0, int(limit) - int(used) + cached))
            if group == top:
                break
    return left


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
