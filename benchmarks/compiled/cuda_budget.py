"""What no CUDA kernel may do, and what each may take: registers, shared memory, tensor cores.

`python -m benchmarks.compiled.cuda_budget` compiles all kernels without a GPU, prints a table, and checks it against
the committed budget.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.compiled.cuda_reports import SHARED_LIMITS, Report, compile_all, unavailable

BUDGET = Path("tests/cuda_budget.json")
WRITE = "python -m benchmarks.compiled.cuda_budget --write"
COMPILERS = "compilers"
# Kernels that multiply no matrices. Any other one in 16 bits needs tensor cores.
WITHOUT_PRODUCTS = {"softmax_kernel", "maps_kernel", "maps_bwd_kernel", "sum_kernel"}


def faults(report: Report) -> list[str]:
    """What no kernel may do, whatever its budget, as sentences."""
    if report.error:
        return [f"{report} {report.error}"]
    sentences = []
    if report.stack or report.spill_stores or report.spill_loads:
        sentences.append(
            f"{report} spills registers: {report.spill_stores} bytes stored, {report.spill_loads} loaded, a stack of "
            f"{report.stack}; allowed: 0"
        )
    limit = SHARED_LIMITS[report.capability]
    if report.shared > limit:
        sentences.append(f"{report} takes {report.shared} bytes of shared memory; a block may have {limit}")
    if report.is_16_bit and report.template not in WITHOUT_PRODUCTS and not report.tensor_cores:
        sentences.append(f"{report} multiplies matrices without tensor cores; expected: HMMA")
    return sentences


def budget_of(reports: Iterable[Report]) -> dict[str, Any]:
    """The least budget that the reports keep, by architecture and kernel.

    Registers are counted in steps of 8, in which the hardware hands them to threads. Of instructions of the tensor
    cores there may not be fewer: a product that has lost them in part is hard to see in another way.
    """
    archs: dict[str, dict[str, dict[str, int]]] = defaultdict(dict)
    compilers = {}
    for report in reports:
        compilers[report.arch] = report.compiler
        if not report.error:
            archs[report.arch][report.kernel] = {
                "registers": min(-(-report.registers // 8) * 8, 255),
                "shared": report.shared,
                "tensor_cores": sum(report.tensor_cores.values()),
            }
    return {COMPILERS: compilers, **{arch: dict(sorted(archs[arch].items())) for arch in sorted(archs)}}


def merged(budget: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """A budget, with the architectures of a new one instead of its own."""
    compilers = dict(sorted({**budget.get(COMPILERS, {}), **new[COMPILERS]}.items()))
    entries = {arch: entry for arch, entry in sorted({**budget, **new}.items()) if arch != COMPILERS}
    return {COMPILERS: compilers, **entries}


def to_text(budget: dict[str, Any]) -> str:
    """JSON with a line for each entry."""

    def block(entries: dict[str, Any]) -> str:
        return (
            "{\n" + ",\n".join(f"  {json.dumps(key)}: {json.dumps(entry)}" for key, entry in entries.items()) + "\n }"
        )

    return "{\n" + ",\n".join(f" {json.dumps(key)}: {block(entries)}" for key, entries in budget.items()) + "\n}\n"


def excesses(reports: Sequence[Report], budget: dict[str, Any]) -> list[str]:
    """Where kernels and budget disagree, as sentences. The numbers are those of the budget's compilers."""
    sentences = []
    for report in reports:
        if report.error:
            continue
        allowed = budget.get(report.arch, {}).get(report.kernel)
        if allowed is None:
            sentences.append(f"{report} has no budget; {WRITE} gives it one")
            continue
        for name in ("registers", "shared"):
            if (found := getattr(report, name)) > allowed[name]:
                sentences.append(f"{report} has {name}: {found}; allowed: {allowed[name]}")
        if (cores := sum(report.tensor_cores.values())) < allowed["tensor_cores"]:
            sentences.append(
                f"{report} has instructions of the tensor cores: {cores}; expected: {allowed['tensor_cores']}"
            )
    compiled = {(report.arch, report.kernel) for report in reports}
    for arch in sorted({report.arch for report in reports}):
        for kernel in budget.get(arch, {}):
            if (arch, kernel) not in compiled:
                sentences.append(f"the budget of {kernel} on {arch} is nobody's; {WRITE} removes it")
    return sentences


def table(reports: Iterable[Report]) -> str:
    """A line for each report."""
    rows = [["kernel", "arch", "compiler", "registers", "shared", "stack", "spills", "tensor cores"]]
    for r in reports:
        cores = ", ".join(f"{count} {name}" for name, count in r.tensor_cores.items()) or "-"
        numbers = r.registers, r.shared, r.stack, max(r.spill_stores, r.spill_loads)
        rows.append([r.kernel, r.arch, r.compiler, *map(str, numbers), "error" if r.error else cores])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def main() -> int:
    every = {f"sm_{capability}": capability for capability in sorted(SHARED_LIMITS)}
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compiled.cuda_budget", description=__doc__)
    parser.add_argument("--arch", nargs="+", choices=every, default=list(every))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--budget", type=Path, default=BUDGET)
    parser.add_argument("--write", action="store_true", help="write the budget instead of checking it")
    options = parser.parse_args()
    reasons = {arch: unavailable(every[arch]) for arch in options.arch}
    if missing := [f"{arch} cannot be compiled for: {reason}" for arch, reason in reasons.items() if reason]:
        print(*missing, sep="\n", file=sys.stderr)
        return 2
    reports = compile_all([every[arch] for arch in options.arch], options.processes)
    print(table(reports), end="\n\n")
    budget = json.loads(options.budget.read_text()) if options.budget.exists() else {}
    new = budget_of(reports)
    if options.write:
        budget = merged(budget, new)
        options.budget.write_text(to_text(budget))
    sentences = [sentence for report in reports for sentence in faults(report)] + excesses(reports, budget)
    for arch, compiler in new[COMPILERS].items():
        if (other := budget.get(COMPILERS, {}).get(arch)) and other != compiler:
            sentences.append(f"the budget of {arch} is of {other}, and this is {compiler}; {WRITE} makes a new one")
    print(*sentences or ["All is in order."], sep="\n")
    return 1 if sentences else 0


if __name__ == "__main__":
    sys.exit(main())
