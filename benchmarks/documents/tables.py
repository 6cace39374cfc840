"""Tables of measurements, in Markdown, from the last full run of a suite."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import chain, groupby

from benchmarks.op import results
from benchmarks.op.measure import BASES, Row
from benchmarks.op.overhead import SINGLE_OPS
from benchmarks.op.report import MIB, mean_speedup
from benchmarks.op.results import Record
from lewel_kernels import BACKENDS

STAR = "\\*"
OUTSIDE = f"{STAR} outside the error budget of `docs/backends.md`: no speed-up of its own."
KERNELS = [name for name in BACKENDS if name != "reference"]


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def circumstances(records: Sequence[Record]) -> str:
    """Machine, versions and date of a run, as the beginning of a sentence."""
    r = records[0]
    on_cpu = r["instructions"] is not None
    details = f" with {r['instructions']}, {r['threads']} threads" if on_cpu else f", driver {r['driver']}"
    state = f"commit {r['commit'][:7]}" + (" with changes" if r["dirty"] else "") if r["commit"] else "no commit known"
    about = f"{r['device']}{details}, torch {r['versions']['torch'].split('+')[0]}, {r['date'][:10]}, {state}"
    if "repetitions" in r:
        about += f", medians over {r['repetitions']} runs"
    return about + (f", while others kept {r['busy_cores']:.1f} cores busy" if results.disturbed(r) else "")


def of_suite(device: str, suite: str) -> tuple[list[Record], list[Row]]:
    """The records and rows of the last full run, without CUDA-graph replays.

    Raises:
        ValueError: nothing was recorded.
    """
    records = results.latest(device, suite)
    if not records:
        raise ValueError(f"there are no results of suite {suite} on {device}; known devices: {results.devices()}")
    return records, [row for row in results.rows(records) if row.launch == "plain"]


def speed(device: str, suite: str, mode: str) -> str:
    """Milliseconds of every provider, and what our kernels gain; means, and the rows that lose."""
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
    for record in chain.from_iterable(results.runs(device, suite)):
        if record["mode"] == mode and record["launch"] == "plain" and record["provider"] in names:
            for base, ratio in record["speedups"].items():
                found[results.identity(record), base].append(ratio)
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
    records = results.latest(device, "overhead")
    if not records:
        raise ValueError(f"there are no results of overhead on {device}")
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
    records = results.latest(device, "prologue")
    if not records:
        raise ValueError(f"there are no results of prologue on {device}")
    found = {(results.identity(r, ("case", "mode", "launch")), r["provider"]): r for r in records}
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


def step(device: str) -> str:
    """Milliseconds of a training step of each method, what its aligned branch costs and what the fused op saves."""
    records = results.latest(device, "step")
    if not records:
        raise ValueError(f"there are no results of step on {device}")
    lines = []
    for r in records:
        cost = "" if r["overhead"] is None else f"{r['overhead']:+.1f} %"
        speedup = "" if r["speedup"] is None else f"{r['speedup']:.2f}"
        peak = "" if r["peak_bytes"] is None else f"{r['peak_bytes'] / MIB:.0f}"
        op = r["variant"] + (f" ({r['backend']})" if r["backend"] else "") + f" {STAR}" * bool(r.get("problem"))
        case, rate = r["case"], f"{r['images_per_second']:.0f}"
        lines.append(
            [r["method"], case["precision"], str(case["batch"]), op, f"{r['p50']:.1f}", rate, peak, cost, speedup]
        )
    c = records[0]["case"]
    header = ["method", "precision", "batch", "aligned op", "ms", "images/s", "peak MiB", "aligned branch costs",
              "step x eager"]  # fmt: skip
    about = f"{c['encoder']} at {c['image_size']}. {circumstances(records)}."
    table = f"{about}\n\n" + markdown(header, lines)
    return table + (f"\n{OUTSIDE}\n" if any(r.get("problem") for r in records) else "")


def right(device: str, backend: str) -> str:
    """How many calls of a backend were checked in each dtype, how far they were from the truth, and every problem."""
    records = results.latest(device, f"right-{backend}")
    if not records:
        raise ValueError(f"there are no results of right-{backend} on {device}")
    lines = []
    for dtype in dict.fromkeys(r["case"]["dtype"] for r in records):
        mine = [r for r in records if r["case"]["dtype"] == dtype]
        wrong, repeats = sum(bool(r["problem"]) for r in mine), min(r["repeats"] for r in mine)
        worst = max(r["worst"] for r in mine)
        lines.append([dtype, str(len(mine)), str(wrong), f"{100 * worst:.0f} %", str(repeats)])
    header = ["dtype", "calls", "with a problem", "largest error, of what is allowed", "repeats of each bit by bit"]
    told = "".join(f"\n- {r['call']}: {r['problem']}" for r in records if r["problem"])
    return f"{circumstances(records)}.\n\n" + markdown(header, lines) + (f"{told}\n" if told else "")


def parts(device: str) -> str:
    """Where the time of training runs goes, in percent of a step."""
    records = results.latest(device, "parts")
    if not records:
        raise ValueError(f"there are no results of parts on {device}")
    names = list(records[0]["shares"])
    lines = []
    for r in records:
        case, shares = r["case"], r["shares"]
        about = [case["run"], f"{case['encoder']} at {case['image_size']}", str(case["batch"]), case["precision"]]
        lines.append([*about, f"{r['p50']:.0f}", *(f"{shares[name]:.2f}" for name in names)])
    header = ["run", "encoder", "batch", "precision", "ms", *names]
    return f"Percent of a step. {circumstances(records)}.\n\n" + markdown(header, lines)
