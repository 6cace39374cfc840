"""Pictures of the measurements of a device: bars of a suite, curves of the sweep, memory. Each PNG says what it shows.

A picture carries the fingerprints of its data with this file and of its own pixels, so that one that is out of date or
was changed can be told without drawing it again: the same data give other bytes with another matplotlib.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # without pyplot: no display is needed and nothing global is changed
from PIL import Image, PngImagePlugin

from benchmarks import recording
from benchmarks.heap import MIB
from benchmarks.op.measure import Row, rows_of
from benchmarks.op.providers import KERNELS
from benchmarks.recording import Record, circumstances

FOLDER = Path(__file__).parents[2] / "docs" / "benchmarks"
KEY, PIXELS = "lewel-data", "lewel-pixels"
COLOURS = {
    "eager": "#8c8c8c", "compile": "#5b8db8", "compile-max": "#2f5d8a", "cpu": "#d1495b", "triton": "#d1495b",
    "cuda": "#edae49", "reference": "#cccccc",
}  # fmt: skip
STYLE: dict[Any, Any] = {
    "font.size": 9.0, "axes.titlesize": 9.5, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": "#ececec", "axes.axisbelow": True, "legend.frameon": False, "savefig.dpi": 110,
}  # fmt: skip
BOTH = "forward+backward"


def write(device: str, folder: Path = FOLDER) -> list[Path]:
    """Draws every picture that the results of a device allow."""
    done = []
    for name, (records, draw) in pictures(device).items():
        path = folder / f"{device}-{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        with matplotlib.rc_context(STYLE):
            figure = draw(records)
            figure.suptitle(circumstances(records), fontsize=8, color="#666666")
            figure.savefig(drawn := io.BytesIO())
        with Image.open(drawn) as image:
            metadata = PngImagePlugin.PngInfo()
            metadata.add_text(KEY, fingerprint(name, records))
            metadata.add_text(PIXELS, pixels(image))
            image.save(path, "png", pnginfo=metadata, dpi=image.info["dpi"])
        done.append(path)
    return done


def stale(device: str, folder: Path = FOLDER) -> list[Path]:
    """The pictures that are missing, cannot be read or show other data, or were drawn by other code or changed."""
    wanted = {folder / f"{device}-{n}.png": fingerprint(n, records) for n, (records, _) in pictures(device).items()}
    return [path for path, data in wanted.items() if not _fresh(path, data)]


def _fresh(path: Path, data: str) -> bool:
    try:
        with Image.open(path) as image:
            own = pixels(image)  # first: only decoding finds a file that was cut short
            return (image.info.get(KEY), image.info.get(PIXELS)) == (data, own)
    except (OSError, SyntaxError, ValueError):  # what Pillow raises for a missing and for a broken file
        return False


def orphans(folder: Path = FOLDER) -> list[Path]:
    """The pictures in the folder that no results stand behind."""
    known = {f"{device}-{name}.png" for device in recording.devices() for name in pictures(device)}
    return [path for path in sorted(folder.rglob("*.png")) if str(path.relative_to(folder)) not in known]


def pictures(device: str) -> dict[str, tuple[list[Record], Callable[[list[Record]], Figure]]]:
    """What there is to draw: a name, the records and how."""
    found: dict[str, tuple[list[Record], Callable[[list[Record]], Figure]]] = {}
    for suite in ("quick", "paper"):
        if records := recording.latest(device, suite):
            found[f"{suite}-speed"] = records, bars
            found[f"{suite}-memory"] = records, memory
    if records := recording.latest(device, "sweep"):
        found["scaling"] = records, scaling
    return found


def fingerprint(name: str, records: Sequence[Record]) -> str:
    """Of all that a picture shows: the data, the sentence about them, and how they are drawn."""
    data = json.dumps([name, records, circumstances(records)], sort_keys=True).encode()
    return hashlib.sha256(data + Path(__file__).read_bytes()).hexdigest()[:16]


def pixels(image: Image.Image) -> str:
    """The fingerprint of what is seen, which stays the same when the file is only packed more tightly."""
    return hashlib.sha256(f"{image.size}".encode() + image.convert("RGBA").tobytes()).hexdigest()[:16]


def _rows(records: Sequence[Record]) -> list[Row]:
    return [row for row in rows_of(records) if row.launch == "plain"]


def _label(row: Row) -> str:
    return f"{row.case.shape.name}\n{row.case.layout.replace('channels_last', 'nhwc')}\n{row.case.dtype}"


def _grouped(axis: Axes, rows: list[Row], names: Sequence[str], value: Callable[[Row], float | None]) -> None:
    """A group of bars for each case, one bar for each provider."""
    cases = list(dict.fromkeys(row.case for row in rows))
    width = 0.8 / max(1, len(names))  # eager may have run alone
    for i, name in enumerate(names):
        mine = {row.case: value(row) for row in rows if row.provider == name}
        heights = [mine.get(case) or 0.0 for case in cases]
        places = [x + (i - (len(names) - 1) / 2) * width for x in range(len(cases))]
        axis.bar(places, heights, width, color=COLOURS.get(name), label=name)
    labels = {row.case: _label(row) for row in rows}
    axis.set_xticks(range(len(cases)), [labels[case] for case in cases], fontsize=7)
    axis.grid(axis="x", visible=False)
    axis.margins(x=0.01)


def _present(rows: Sequence[Row], names: Sequence[str]) -> list[str]:
    return [name for name in names if any(row.provider == name and row.samples for row in rows)]


def bars(records: list[Record]) -> Figure:
    """Times as fast as eager, and percent of the floor, forward + backward. No bar: outside the error budget."""
    rows = [row for row in _rows(records) if row.mode == BOTH]
    figure = Figure(figsize=(max(7.5, 0.75 * len({row.case for row in rows})), 5.6), layout="constrained")
    above, below = figure.subplots(2, 1)
    names = _present(rows, ("compile", "compile-max", *KERNELS))
    _grouped(above, rows, names, lambda row: row.speedups.get("eager"))
    above.axhline(1, color=COLOURS["eager"], linewidth=1)
    above.set_title("forward + backward, times as fast as eager PyTorch (no bar: outside the error budget)")
    _grouped(below, rows, ["eager", *names], lambda row: row.percent_of_floor)
    below.axhline(100, color=COLOURS["eager"], linewidth=1)
    below.set_title("percent of the floor: least bytes at the speed of a copy, least flops at the speed of a product")
    below.legend(ncols=4, loc="upper left", fontsize=8)
    below.set_ylim(top=max(115.0, below.get_ylim()[1] * 1.15))
    return figure


def memory(records: list[Record]) -> Figure:
    """MiB saved for the backward, and peak MiB of forward + backward.

    A provider outside the error budget keeps its bars: what it stores is true however it rounds.
    """
    rows = [row for row in _rows(records) if row.mode == BOTH]
    figure = Figure(figsize=(max(7.5, 0.75 * len({row.case for row in rows})), 5.6), layout="constrained")
    names = _present(rows, ("eager", "compile", *KERNELS))
    for axis, kind, title in zip(
        figure.subplots(2, 1),
        ("saved_bytes", "peak_bytes"),
        ("MiB saved for the backward beyond the inputs", "MiB at the peak of forward + backward, gradients included"),
        strict=True,
    ):
        _grouped(axis, rows, names, lambda row, kind=kind: (getattr(row, kind) or 0) / MIB)  # type: ignore[misc]
        axis.set_title(title)
    axis.legend(ncols=4, fontsize=8)
    return figure


def scaling(records: list[Record]) -> Figure:
    """Milliseconds of forward + backward as one size grows, with the floor.

    A provider that left the error budget is dashed, hollow at the sizes where it did, and named so in the legend.
    """
    rows = [row for row in _rows(records) if row.mode == BOTH]
    outside = {row.provider for row in rows if row.problem and row.samples}
    axes_of = {"N": "images N", "P": "positions P", "K": "maps K", "D": "pixel channels D"}
    figure = Figure(figsize=(9.5, 6.8), layout="constrained")
    for axis, (size, title) in zip(figure.subplots(2, 2).flat, axes_of.items(), strict=True):
        mine = [row for row in rows if row.case.axis == size]
        if not mine:
            axis.set_axis_off()
            continue
        for name in _present(mine, ("eager", "compile", "compile-max", *KERNELS)):
            own = sorted((getattr(r.case.shape, size), r.p50, r.problem or "") for r in mine
                         if r.provider == name and r.samples)  # fmt: skip
            style: dict[str, Any] = {"marker": "o", "markersize": 3, "color": COLOURS.get(name)}
            label = name + " (hollow: outside the error budget)" * (name in outside)
            axis.plot(*zip(*((x, y) for x, y, _ in own), strict=True), label=label,
                      linestyle="--" if name in outside else "-", **style)  # fmt: skip
            if wrong := [(x, y) for x, y, problem in own if problem]:
                axis.plot(*zip(*wrong, strict=True), linestyle="none", markerfacecolor="white", **style)
        floors = sorted({(getattr(row.case.shape, size), row.floor) for row in mine})
        axis.plot(*zip(*floors, strict=True), color="black", linewidth=1, linestyle=":", label="floor")
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(ticks := [x for x, _ in floors], [str(x) for x in ticks], minor=False)
        s = mine[0].case.shape
        fixed = {"N": f"N={s.N}", "P": f"{s.H}x{s.W}", "K": f"K={s.K}", "D": f"D={s.D}", "C": f"C={s.C}"}
        axis.set_title(f"ms against {title}  ({' '.join(v for k, v in fixed.items() if k != size)})")
    # Of all curves: the first may lack a provider, or have none at all.
    shown = {label: line for axis in figure.axes for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.axes[0].legend(shown.values(), shown.keys(), fontsize=8)
    return figure
