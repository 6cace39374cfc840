"""What no kernel may do, and what each may take: registers, shared memory, narrow loads, waits between products.

`python -m benchmarks.compiled.triton_budget` compiles all that is shipped without a GPU, prints a table, and checks it
against the committed budget.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import triton

from benchmarks.compiled.triton_reports import SHARED_LIMITS, SHIPPED, Report, compile_all

BUDGET = Path("tests/triton_budget.json")
WRITE = "python -m benchmarks.compiled.triton_budget --write"


def faults(report: Report) -> list[str]:
    """What no kernel may do, whatever its budget, as sentences."""
    if report.error:
        return [f"{report} does not compile: {report.error}"]
    sentences = []
    if report.stack or report.spill_stores or report.spill_loads:
        sentences.append(
            f"{report} spills registers: {report.spill_stores} bytes stored, {report.spill_loads} loaded, a stack of "
            f"{report.stack}; allowed: 0"
        )
    limit = SHARED_LIMITS[report.capability]
    if report.shared > limit:
        sentences.append(f"{report} takes {report.shared} bytes of shared memory; a block may have {limit}")
    words = report.key.split()
    is_tf32 = report.precision == "tf32"
    if (is_tf32 or (report.precision and ("bf16" in words or "fp16" in words))) and not report.tensor_cores:
        sentences.append(f"{report} multiplies matrices without tensor cores; expected: mma.sync or wgmma")
    for there, least in report.buffers:
        if there < least:
            sentences.append(
                f"{report} races with itself: it overwrites what products still read, for an operand of theirs has "
                f"buffers: {there}; needed: {least}"
            )
    # What TF32 multiplies may have to be transposed on its way to shared memory, number by number.
    if "rows" in words and report.wide_share < 0.5 and not is_tf32:
        found = ", ".join(f"{count} of {size} bytes" for size, count in report.loads.items())
        sentences.append(f"{report} loads rows by {found}; expected: the most of it 16 bytes at a time")
    return sentences


def budget_of(reports: Iterable[Report]) -> dict[str, Any]:
    """The least budget that the reports keep, by architecture and key.

    Registers are counted in steps of 8, in which the hardware hands them to threads.
    """
    archs: dict[str, dict[str, dict[str, int]]] = defaultdict(dict)
    for report in reports:
        found = {
            "registers": min(-(-report.registers // 8) * 8, 255),
            "shared": report.shared,
            "narrow_loads": report.narrow_loads,
            "serialized": report.serialized,
        }
        entry = archs[report.arch].setdefault(report.key, found)
        entry.update({name: max(entry[name], number) for name, number in found.items()})
    return {"triton": triton.__version__, **{arch: dict(sorted(archs[arch].items())) for arch in sorted(archs)}}


def to_text(budget: dict[str, Any]) -> str:
    """JSON with a line for each entry."""

    def block(entries: dict[str, Any]) -> str:
        return (
            "{\n" + ",\n".join(f"  {json.dumps(key)}: {json.dumps(entry)}" for key, entry in entries.items()) + "\n }"
        )

    parts = (f" {json.dumps(k)}: {block(x) if isinstance(x, dict) else json.dumps(x)}" for k, x in budget.items())
    return "{\n" + ",\n".join(parts) + "\n}\n"


def excesses(reports: Sequence[Report], budget: dict[str, Any]) -> list[str]:
    """Where kernels and budget disagree, as sentences. The numbers are those of the budget's version of Triton."""
    sentences = []
    for report in reports:
        allowed = budget.get(report.arch, {}).get(report.key)
        if allowed is None:
            sentences.append(f"{report} has no budget; {WRITE} gives it one")
            continue
        for name, number in allowed.items():
            if (found := getattr(report, name)) > number:
                sentences.append(f"{report} has {name.replace('_', ' ')}: {found}; allowed: {number}")
    compiled = {(report.arch, report.key) for report in reports}
    for arch in sorted({report.arch for report in reports}):
        for key in budget.get(arch, {}):
            if (arch, key) not in compiled:
                sentences.append(f"the budget of {key} on {arch} is nobody's; {WRITE} removes it")
    return sentences


def table(reports: Iterable[Report]) -> str:
    """A line for each report. Loads and stores of global memory are instructions x bytes."""
    rows = [["key", "arch", "request", "config", "registers", "shared", "spills", "tensor cores", "loads", "stores"]]
    for r in reports:
        cores = ", ".join(f"{count} {name}" for name, count in r.tensor_cores.items()) or "-"
        cores += ", serialized" if r.serialized else ""
        loads, stores = (", ".join(f"{n}x{size}" for size, n in sizes.items()) for sizes in (r.loads, r.stores))
        numbers = r.registers, r.shared, max(r.spill_stores, r.spill_loads)
        rows.append([r.key, r.arch, r.request, r.config, *map(str, numbers), cores, loads, stores])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def main() -> int:
    every = sorted(SHARED_LIMITS)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compiled.triton_budget", description=__doc__)
    parser.add_argument("--capability", type=int, nargs="+", choices=every, default=every)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--budget", type=Path, default=BUDGET)
    parser.add_argument("--write", action="store_true", help="write the budget instead of checking it")
    options = parser.parse_args()
    reports = compile_all(SHIPPED, options.capability, options.processes)
    print(table(reports), end="\n\n")
    budget = json.loads(options.budget.read_text()) if options.budget.exists() else {}
    if options.write:
        budget |= budget_of(reports)
        options.budget.write_text(to_text(budget))
    sentences = [sentence for report in reports for sentence in faults(report)] + excesses(reports, budget)
    print(*sentences or ["All is in order."], sep="\n")
    return 1 if sentences else 0


if __name__ == "__main__":
    sys.exit(main())
