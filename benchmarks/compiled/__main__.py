"""Compile the GPU kernels without a GPU, print what became of them, and check it against the committed budgets.

A kernel may not spill, nor take more than a block has; and it keeps its budget of registers, shared memory and
instructions, in benchmarks/compiled/budgets/.
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module

from benchmarks.compiled import budget, report

KINDS = {"cuda": "benchmarks.compiled.cuda_kernels", "triton": "benchmarks.compiled.triton_kernels"}


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 where all is in order, 1 where a kernel has a fault or exceeds its budget, 2 without the compilers."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compiled", description=__doc__)
    parser.add_argument("kind", nargs="?", choices=KINDS, help="of the kernels; both, if it is left out")
    parser.add_argument("--arch", nargs="+", metavar="sm_80", help="only these architectures")
    parser.add_argument("--processes", type=int, default=2, help="compilers that run at a time (default: 2)")
    parser.add_argument("--update", action="store_true", help="write the budgets instead of checking them")
    options = parser.parse_args(arguments)
    return max(check(kind, options) for kind in ([options.kind] if options.kind else KINDS))


def check(kind: str, options: argparse.Namespace) -> int:
    try:
        kernels = import_module(KINDS[kind])
    except ModuleNotFoundError as error:
        print(f"The {kind} kernels cannot be compiled: {error.name} is not installed.", file=sys.stderr)
        return 2
    known = {f"sm_{capability}": capability for capability in kernels.CAPABILITIES}
    archs = options.arch or list(known)
    if unknown := [arch for arch in archs if arch not in known]:
        print(f"--arch must name some of {', '.join(known)} for {kind}; got {', '.join(unknown)}", file=sys.stderr)
        return 2
    reasons = {arch: kernels.unavailable(known[arch]) for arch in archs}
    if missing := [f"{arch} cannot be compiled for: {reason}" for arch, reason in reasons.items() if reason]:
        print(*missing, sep="\n", file=sys.stderr)
        return 2
    reports = kernels.compile_all([known[arch] for arch in archs], options.processes)
    print(report.table(reports), end="\n\n")
    allowed = budget.read(kind)
    if options.update:
        allowed = budget.merged(allowed, budget.budget_of(reports))
        budget.write(kind, allowed)
    sentences = [fault for each in reports for fault in each.faults()]
    sentences += budget.excesses(reports, allowed) + budget.other_compilers(reports, allowed)
    print(*sentences or ["All is in order."], sep="\n")
    return 1 if sentences else 0


if __name__ == "__main__":
    sys.exit(main())
