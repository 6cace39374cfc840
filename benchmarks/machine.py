"""The machine under the benchmark: what it is called, how large its cache is, what it reaches, who else uses it."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

ROOT = Path(__file__).parent
PACKAGES = ("torch", "triton")


def device_name(device: str) -> str:
    """The name of the accelerator, or of the processor."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.M) if cpuinfo.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def slug(name: str) -> str:
    """A device name as the name of a folder."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def cache_bytes(device: str) -> int:
    """Bytes of the last-level cache: a GPU's L2, or all L3 of the processor; 64 MiB where the system does not tell."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    caches = {}
    for folder in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cache/index3"):
        caches[(folder / "shared_cpu_list").read_text()] = int((folder / "size").read_text().strip()[:-1]) << 10
    return sum(caches.values()) or 64 << 20


def synchronise(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def native_bf16(device: str) -> bool:
    """Whether bfloat16 is more than emulated: a V100 answers that it supports it, and converts."""
    return torch.device(device).type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def busy_cores(seconds: float = 0.5) -> float | None:
    """How many cores other processes keep busy while this one sleeps, or None where the system does not tell."""

    def ticks() -> int:
        # user nice system idle iowait irq softirq ...; guest time, further right, is already part of user time.
        fields = [int(x) for x in stat.read_text().split("\n", 1)[0].split()[1:8]]
        return sum(fields) - fields[3] - fields[4]

    if not (stat := Path("/proc/stat")).exists():
        return None
    start = ticks()
    time.sleep(seconds)
    return (ticks() - start) / os.sysconf("SC_CLK_TCK") / seconds


_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # of glibc's malloc.h
_mapped_from = 128 << 10  # bytes from which on a block has a mapping of its own; glibc's default


def _mallopt(*settings: tuple[int, int]) -> bool:
    """Sets options of the C library's heap; whether it has them."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    return all(mallopt(name, value) for name, value in settings)


def keep_heap() -> bool:
    """Have the C library keep what calls free, as the heap of a long training run does; whether it could be told.

    Otherwise the history of the process decides which provider pays for fresh pages: up to half of a large backward.
    """
    global _mapped_from
    _mapped_from = 1 << 30
    return _mallopt((_MMAP_THRESHOLD, _mapped_from), (_TRIM_THRESHOLD, (1 << 31) - 1))


@contextmanager
def blocks_apart() -> Iterator[bool]:
    """Every larger block in a mapping of its own, gone as soon as it is freed; whether the C library could be told."""
    try:
        yield _mallopt((_MMAP_THRESHOLD, 64 << 10))
    finally:
        _mallopt((_MMAP_THRESHOLD, _mapped_from))


def trim_heap() -> bool:
    """Have it return every free page to the system, so that using one again shows; whether it could be told."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except AttributeError:
        return False
    trim(0)
    return True


def provenance(device: str, *, busy: float | None, heap_kept: bool) -> dict[str, object]:
    """What a reader needs to judge or repeat a row; ``busy`` is the number of cores others used when the run began,
    ``heap_kept`` is what `keep_heap` returned."""
    versions: dict[str, str] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    on_gpu = torch.device(device).type == "cuda"
    status = _output("git", "status", "--porcelain", "--", ".", "../lewel_kernels", "../lewel", "../csrc",
                     ":(exclude)results")  # fmt: skip
    return {
        "device": device_name(device),
        "driver": _driver() if on_gpu else None,
        "cuda": torch.version.cuda if on_gpu else None,
        "instructions": None if on_gpu else torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "busy_cores": busy,
        "heap_kept": heap_kept,
        "versions": versions,
        "commit": _output("git", "rev-parse", "HEAD"),
        "dirty": bool(status) if status is not None else None,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _driver() -> str | None:
    found = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return found.splitlines()[0] if found else None


def _output(*command: str) -> str | None:
    """What a command prints, or None where it is missing or fails."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
