"""How measurements of the op are printed: a block for each case, means over cases, tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import geometric_mean

from benchmarks.heap import MIB
from benchmarks.op.measure import BASES, Row


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def print_case(rows: list[Row]) -> None:
    """The case, its floors, and a line for each provider and mode."""
    first = rows[0]
    floors = " and ".join(f"{floor:.3g}" for floor in dict.fromkeys(row.floor for row in rows))
    print(
        f"\n{first.case}\n  floor {floors} ms, forward and forward+backward"
        f"   (copy {first.copy_rate / 1e9:.0f} GB/s, matmul {first.matmul_rate / 1e9:,.0f} GFLOP/s)\n"
        f"  {'provider':<12}{'mode':<17}{'ms p50':>10} [{'p20':>9} {'p80':>9}]  floor"
        + "".join(f" {'x ' + base:>13}" for base in BASES)
        + "  saved MiB   peak MiB  launches  compile s"
    )
    for row in rows:
        mode = row.mode if row.launch == "plain" else f"{row.mode} {row.launch}"
        times = f"{row.p50:10.3f} [{row.p20:9.3f} {row.p80:9.3f}]" if row.samples else " " * 32
        percent = f"{row.percent_of_floor:5.0f} %" if row.percent_of_floor else f"{'':7}"
        ratios = "".join(f" {_number(row.speedups.get(base), '.2f'):>13}" for base in BASES)
        if row.problem:
            ratios = f" {'no speed-up':>13}".ljust(14 * len(BASES))
        saved, peak = (_number(None if x is None else x / MIB, ".1f") for x in (row.saved_bytes, row.peak_bytes))
        print(
            f"  {row.provider:<12}{mode:<17}{times}{percent}{ratios}{saved:>11}{peak:>11}"
            f"{_number(row.launches, 'd'):>10}{_number(row.compile_seconds, '.1f'):>11}".rstrip()
        )
    for row in {(row.provider, row.problem): row for row in rows if row.problem}.values():
        print(f"  {row.provider}: {row.problem}")


def print_means(rows: list[Row]) -> None:
    """Geometric mean of the ratios of each provider over the cases of a dtype, withheld where a case has none."""
    print("\nGeometric means")
    for dtype in dict.fromkeys(row.case.dtype for row in rows):
        for provider, mode, launch in dict.fromkeys((row.provider, row.mode, row.launch) for row in rows):
            mine = [r for r in rows if (r.case.dtype, r.provider, r.mode, r.launch) == (dtype, provider, mode, launch)]
            if not mine:
                continue
            line = f"  {dtype} {provider:<12}{mode if launch == 'plain' else f'{mode} {launch}':<24}"
            if bad := [r for r in mine if r.problem]:
                print(f"{line} none: {len(bad)} of {len(mine)} cases have no speed-up")
                continue
            print(line + "".join(f"{mean:6.2f} x {base}" for base in BASES if (mean := mean_speedup(mine, base))))


def mean_speedup(rows: list[Row], base: str) -> float | None:
    """Geometric mean against a base, or None unless every row has a ratio."""
    ratios = [row.speedups.get(base) for row in rows]
    return geometric_mean(r for r in ratios if r) if ratios and all(ratios) else None


def _number(value: float | None, spec: str) -> str:
    return "" if value is None else format(value, spec)
