"""Tables of measurements of the op, in Markdown, from the run of a suite that `recording.latest` gives."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import chain, groupby

from benchmarks import recording
from benchmarks.gpu.roofline import GPU
from benchmarks.heap import MIB
from benchmarks.op.measure import BASES, Row, rows_of
from benchmarks.op.overhead import SINGLE_OPS
from benchmarks.op.providers import KERNELS
from benchmarks.op.report import markdown, mean_speedup
from benchmarks.recording import Record, circumstances

STAR = "\\*"
NOT_RUN = "not yet run"
OUTSIDE = f"{STAR} outside the error budget of `docs/backends.md`: no speed-up of its own."


def latest(device: str, suite: str) -> list[Record]:
    """The records of a suite on a device, from the run that counts (`recording.latest`).

    Raises:
        ValueError: nothing was recorded.
    """
    if not (found := recording.latest(device, suite)):
        raise ValueError(f"there are no results of suite {suite} on {device}; known devices: {recording.devices()}")
    return found


def found_on(gpu: GPU, suites: tuple[str, ...], tell: Callable[[list[Record]], str]) -> str:
    """``tell`` of the records of the first suite on such a GPU for which it is not empty, else NOT_RUN."""
    devices = filter(gpu.owns, recording.devices())
    runs = (recording.latest(device, suite) for device in devices for suite in suites)
    return next(filter(None, map(tell, runs)), NOT_RUN)


def of_suite(device: str, suite: str) -> tuple[list[Record], list[Row]]:
    """The records of the run that counts, and their rows without CUDA-graph replays."""
    records = latest(device, suite)
    return records, [row for row in rows_of(records) if row.launch == "plain"]


def speed(device: str, suite: str, mode: str) -> str:
    """Table of milliseconds of every provider and what our kernels gain, their means, and the rows that lose."""
    records, all_rows = of_suite(device, suite)
    rows = [row for row in all_rows if row.mode == mode]
    present = list(dict.fromkeys(row.provider for row in rows))
    bases = [name for name in BASES if name in present]
    ours = [name for name in KERNELS if any(row.samples for row in rows if row.provider == name)]
    header = ["shape", "layout", "dtype", *(f"{name} ms" for name in (*bases, *ours)), "floor ms"]
    header += [f"{name}{' of floor' if base is None else f' x {base}'}" for name in ours for base in (*bases, None)]
    lines = []
    for case, group in groupby(rows, key=lambda row: row.case):
        by_name = {row.provider: row for row in group}  # not all of them where the run was killed
        s, floor = case.shape, next(iter(by_name.values())).floor
        line = [f"N={s.N} C={s.C} D={s.D} K={s.K} {s.H}x{s.W}", case.layout, case.dtype]
        line += [_time(by_name.get(name)) for name in (*bases, *ours)] + [f"{floor:.2f}"]
        for row in map(by_name.get, ours):
            line += [_ratio(row.speedups.get(base) if row else None) for base in bases]
            line.append("" if row is None or row.percent_of_floor is None else f"{row.percent_of_floor:.0f} %")
        lines.append(line)
    for dtype in dict.fromkeys(row.case.dtype for row in rows):
        line = ["**geometric mean**", "", dtype, *([""] * (len(bases) + len(ours) + 1))]
        count = len({row.case for row in rows if row.case.dtype == dtype})
        for name in ours:
            mine = [row for row in rows if (row.provider, row.case.dtype) == (name, dtype)]
            means = [mean_speedup(mine, base) if len(mine) == count else None for base in bases]
            line += [f"**{_ratio(mean)}**" for mean in means] + [""]
        lines.append(line)
    note = f"{mode}: {circumstances(records)}; medians of interleaved samples.\n\n" + markdown(header, lines) + "\n"
    if any(row.problem and row.samples for row in rows):
        note += OUTSIDE + " "
    note += _losses([row for row in rows if row.provider in ours])
    spread = _spread(device, suite, mode, ours)
    return note + (f" From run to run a ratio differed by up to {spread:.0f} %." if spread else "") + "\n"


def _spread(device: str, suite: str, mode: str, names: Sequence[str]) -> float:
    """Percent by which the largest ratio of any row is above its smallest, over the repetitions of a run."""
    found: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    for record in chain.from_iterable(recording.runs(device, suite)):
        if record["mode"] == mode and record["launch"] == "plain" and record["provider"] in names:
            for base, ratio in record["speedups"].items():
                found[recording.identity(record), base].append(ratio)
    return max((100 * (max(ratios) / min(ratios) - 1) for ratios in found.values()), default=0.0)


def _losses(rows: Sequence[Row]) -> str:
    lost = [
        f"{row.provider} at {row.case.shape.name} {row.case.layout} {row.case.dtype}, {ratio:.2f} x {base}"
        for row in rows
        for base, ratio in row.speedups.items()
        if ratio < 1
    ]
    return f"Rows that lose: {'; '.join(lost)}." if lost else "No row loses."


def _time(row: Row | None) -> str:
    if row is None:
        return ""
    return f"{row.p50:.2f}{f' {STAR}' if row.problem else ''}" if row.samples else "cannot run"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def memory(device: str, suite: str) -> str:
    """What forward + backward keeps in between, and the most it needs at once, in MiB."""
    records, all_rows = of_suite(device, suite)
    rows = [row for row in all_rows if row.mode == "forward+backward" and row.samples]
    names = [name for name in ("eager", "compile", *KERNELS) if any(row.provider == name for row in rows)]
    lines = []
    for case, group in groupby(rows, key=lambda row: row.case):
        by_name = {row.provider: row for row in group}
        line = [str(case.shape), case.layout, case.dtype]
        for kind in ("saved_bytes", "peak_bytes"):
            values = [getattr(by_name[name], kind) if name in by_name else None for name in names]
            line += ["" if value is None else f"{value / MIB:.1f}" for value in values]
        lines.append(line)
    header = ["shape", "layout", "dtype", *(f"saved, {n}" for n in names), *(f"peak, {n}" for n in names)]
    return f"MiB; {circumstances(records)}.\n\n" + markdown(header, lines)


def overhead(device: str) -> str:
    """Microseconds of a call where the arithmetic is next to nothing, and at one image of LEWEL_M's width."""
    records = latest(device, "overhead")
    shapes = list(dict.fromkeys(r["case"]["shape"]["name"] for r in records))
    found: defaultdict[tuple[str, str, str], str] = defaultdict(str)
    found |= {(r["case"]["shape"]["name"], r["call"], r["mode"]): f"{r['p50']:.0f}" for r in records}
    modes = ("forward", "forward+backward")
    header = ["us a call", *(f"{shape}, {mode}" for shape in shapes for mode in modes)]
    whole = dict.fromkeys(r["call"] for r in records if r["mode"] != SINGLE_OPS)
    single = list(dict.fromkeys(r["call"] for r in records if r["mode"] == SINGLE_OPS))
    lines = [[name, *(found[shape, name, mode] for shape in shapes for mode in modes)] for name in whole]
    for name in single:
        lines.append([f"eager's {name}", *(x for shape in shapes for x in (found[shape, name, SINGLE_OPS], ""))])
    ops = [r for r in records if r["mode"] == SINGLE_OPS]
    total = {shape: sum(r["p50"] for r in ops if r["case"]["shape"]["name"] == shape) for shape in shapes}
    lines.append(["sum of eager's operators", *(x for shape in shapes for x in (f"{total[shape]:.0f}", ""))])
    sizes = {r["case"]["shape"]["name"]: r["case"]["shape"] for r in records}
    about = "; ".join(f"{n}: N={s['N']} C={s['C']} D={s['D']} K={s['K']} {s['H']}x{s['W']}" for n, s in sizes.items())
    return f"{about}. {circumstances(records)}.\n\n" + markdown(header, lines)


def prologue(device: str) -> str:
    """Milliseconds of each way to run a batch normalisation, its ReLU and the op, and what it gains on eager."""
    records = latest(device, "prologue")
    found = {(recording.identity(r, ("case", "mode", "launch")), r["provider"]): r for r in records}
    names = list(dict.fromkeys(r["provider"] for r in records))
    lines = []
    for row, first in {key: r for (key, _), r in found.items()}.items():
        s, mode = first["case"]["shape"], first["mode"] + (" graph" if first["launch"] == "graph" else "")
        line = [f"{s['name']} (N={s['N']} D={s['D']} K={s['K']} {s['H']}x{s['W']})", first["case"]["dtype"], mode]
        for name in names:
            r = found.get((row, name), {})
            gain = f" (x {r['speedup']:.2f})" if r.get("speedup") and name != "eager" else ""
            line.append(f"{r['p50']:.3f}{gain}{f' {STAR}' * bool(r['problem'])}" if r.get("samples") else "")
        lines.append(line)
    table = f"Milliseconds. {circumstances(records)}.\n\n" + markdown(["shape", "dtype", "mode", *names], lines)
    return table + (f"\n{OUTSIDE}\n" if any(r["problem"] and r["samples"] for r in records) else "")


def right(device: str, backend: str) -> str:
    """How many calls of a backend were checked in each dtype, how far they were from the truth, and every problem."""
    records = latest(device, f"right-{backend}")
    lines = []
    for dtype in dict.fromkeys(r["case"]["dtype"] for r in records):
        mine = [r for r in records if r["case"]["dtype"] == dtype]
        wrong, repeats = sum(bool(r["problem"]) for r in mine), min(r["repeats"] for r in mine)
        worst = max(r["worst"] for r in mine)
        lines.append([dtype, str(len(mine)), str(wrong), f"{100 * worst:.0f} %", str(repeats)])
    header = ["dtype", "calls", "with a problem", "largest error, of what is allowed", "repeats of each bit by bit"]
    told = "".join(f"\n- {r['call']}: {r['problem']}" for r in records if r["problem"])
    return f"{circumstances(records)}.\n\n" + markdown(header, lines) + (f"{told}\n" if told else "")
