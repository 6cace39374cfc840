"""Rows as data (JSON lines, one file per device and suite) and as a table."""

from __future__ import annotations

import json
import platform
import re
import subprocess
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import geometric_mean

import torch

from .measure import MODES, Row

ROOT = Path(__file__).parent
PACKAGES = ("torch", "triton")


def _git(*arguments: str) -> str | None:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def device_name(device: str) -> str:
    """The name of the accelerator, or of the processor."""
    if device != "cpu":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.M) if cpuinfo.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def provenance(device: str, busy: float | None, heap_kept: bool) -> dict[str, object]:
    """What a reader needs to judge or repeat a row; ``busy`` is the number of cores others used when the run began,
    ``heap_kept`` is what `keep_heap` returned."""
    versions: dict[str, str] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    status = _git("status", "--porcelain", "--", ".", "../lewel_kernels", "../csrc", ":(exclude)results")
    return {
        "device": device_name(device),
        "instructions": torch.backends.cpu.get_cpu_capability() if device == "cpu" else None,
        "threads": torch.get_num_threads(),
        "busy_cores": busy,
        "heap_kept": heap_kept,
        "versions": versions,
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(status) if status is not None else None,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def append(rows: list[Row], suite: str, device: str, busy: float | None, heap_kept: bool) -> Path:
    """Append one line per row to ``results/<device>/<suite>.jsonl`` and return that path."""
    slug = re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")
    path = ROOT / "results" / slug / f"{suite}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    context = provenance(device, busy, heap_kept)
    with path.open("a") as file:
        for row in rows:
            file.write(json.dumps({"suite": suite, **context, **asdict(row)}) + "\n")
    return path


def print_case(rows: list[Row]) -> None:
    """One table line per provider and mode."""
    print(f"\n{rows[0].case}")
    for row in rows:
        times = f"{row.p50:9.3f} ms  [{row.p20:9.3f} {row.p80:9.3f}]" if row.samples else ""
        ratios = _against("eager", row.vs_eager) + _against("compile", row.vs_compile)
        print(f"  {row.provider:<10} {row.mode:<17}{times}{ratios}{'   no speed-up' if row.problem else ''}")
    for provider, problem in {row.provider: row.problem for row in rows if row.problem}.items():
        print(f"  {provider}: {problem}")


def _against(base: str, ratio: float | None) -> str:
    return f"   {ratio:5.2f} x {base}" if ratio is not None else ""


def print_means(rows: list[Row]) -> None:
    """Geometric mean of the ratios of each provider over the cases of a dtype, withheld where a case has none."""
    print("\nGeometric means")
    for dtype in dict.fromkeys(row.case.dtype for row in rows):
        for provider in dict.fromkeys(row.provider for row in rows):
            for mode in MODES:
                mine = [r for r in rows if (r.case.dtype, r.provider, r.mode) == (dtype, provider, mode)]
                line = f"  {dtype} {provider:<10} {mode:<17}"
                if bad := [r for r in mine if r.problem]:
                    print(f"{line} none: {len(bad)} of {len(mine)} cases have no speed-up")
                    continue
                for base, ratios in (("eager", [r.vs_eager for r in mine]), ("compile", [r.vs_compile for r in mine])):
                    if all(ratios):
                        line += _against(base, geometric_mean(r for r in ratios if r))
                print(line)
