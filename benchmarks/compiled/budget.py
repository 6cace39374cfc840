"""Budgets, that is, what kernels may take: read, written from reports, compared with them."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.compiled.report import Report

COMPILERS = "compilers"  # beside the architectures: which compiler each one's numbers are of
FOLDER = Path(__file__).parent / "budgets"


def update(kind: str) -> str:
    """The command that writes a budget."""
    return f"python -m benchmarks.compiled {kind} --update"


def read(kind: str) -> dict[str, Any]:
    """The committed budget: architecture -> entry -> bounds of numbers, and each architecture's compiler; or {}."""
    path = FOLDER / f"{kind}.json"
    budget: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return budget


def write(kind: str, budget: dict[str, Any]) -> None:
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{kind}.json").write_text(to_text(budget))


def budget_of(reports: Iterable[Report]) -> dict[str, Any]:
    """The tightest budget that the reports keep.

    Registers are counted in steps of 8, in which the hardware hands them to threads. Instructions of the tensor cores
    are bounded from below: a product that has lost some of them is hard to notice in another way.
    """
    archs: dict[str, dict[str, dict[str, int]]] = defaultdict(dict)
    compilers = {}
    for report in reports:
        compilers[report.arch] = report.compiler
        if report.error:
            continue
        entry = archs[report.arch].setdefault(report.entry, {})
        for name in report.bounded:
            number = getattr(report, name)
            rounded = min(-(-number // 8) * 8, 255) if name == "registers" else number
            entry[name] = max(entry.get(name, 0), rounded)
        for name in report.expected:
            entry[name] = min(entry.get(name, getattr(report, name)), getattr(report, name))
    return {COMPILERS: compilers, **{arch: dict(sorted(archs[arch].items())) for arch in sorted(archs)}}


def merged(budget: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """A budget in which a new one's architectures replace its own."""
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
    """Sentences: which kernels exceed their budget or have none, and which budgets belong to no kernel."""
    sentences = []
    for report in reports:
        if report.error:
            continue
        allowed = budget.get(report.arch, {}).get(report.entry)
        if allowed is None:
            sentences.append(f"{report} has no budget; {update(report.kind)} gives it one")
            continue
        for name in report.bounded:
            if (found := getattr(report, name)) > allowed[name]:
                sentences.append(f"{report} has {name.replace('_', ' ')}: {found}; allowed: {allowed[name]}")
        for name in report.expected:
            if (found := getattr(report, name)) < allowed[name]:
                sentences.append(f"{report} has {name.replace('_', ' ')}: {found}; expected: {allowed[name]}")
    compiled = {(report.arch, report.entry) for report in reports}
    for arch in sorted({report.arch for report in reports}):
        for entry in budget.get(arch, {}):
            if (arch, entry) not in compiled:
                sentences.append(f"the budget of {entry} on {arch} is nobody's; {update(reports[0].kind)} removes it")
    return sentences


def other_compilers(reports: Iterable[Report], budget: dict[str, Any]) -> list[str]:
    """Sentences: for which architectures the budget is of another compiler, so that numbers cannot be compared."""
    pairs = {report.arch: report for report in reports}
    return [
        f"the budget of {arch} is of {of}, and this is {report.compiler}; {update(report.kind)} makes a new one"
        for arch, report in sorted(pairs.items())
        if (of := budget.get(COMPILERS, {}).get(arch)) and of != report.compiler
    ]
