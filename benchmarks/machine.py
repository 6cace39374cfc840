"""The machine under the benchmark: how large its cache is, what it has natively, and what a row says of it."""

from __future__ import annotations

import platform
import re
import subprocess
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from benchmarks import timing

ROOT = Path(__file__).parent
PACKAGES = ("torch", "triton")


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


def native_bf16(device: str) -> bool:
    """Whether bfloat16 is more than emulated: a V100 answers that it supports it, and converts."""
    return torch.device(device).type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


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
        "device": timing.device_name(device),
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
