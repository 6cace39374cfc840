"""Fig. 3 of the paper: accuracy against a setting, with the spread over seeds, and the paper's known points."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

from matplotlib import style
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from lewel.ablations.results import Numbers, Result, apart, notes
from lewel.ablations.tables import Table
from lewel.results.figures import FAINT, STYLE, save

LABELS = {"fig3a": "weight of the aligned loss, w", "fig3b": "width of the aligned embeddings"}
PAPER = "#b3541e"
SHARED = "imagenet100"  # the paper's own images, on whose axis its points lie
WRAPPED = 80  # letters of a line of the picture
COLUMNS = 2  # of the legend


def draw(path: Path, table: Table, results: Sequence[Result], data: str, protocol: str) -> None:
    """Draws linear and kNN accuracy against the rows' x: means, deviations as bars, and every seed as a faint point.

    A row without a number breaks the line, and one of another recipe (results.apart) stands beside it. The paper's
    points have an axis of their own unless they are of the same images; a single one is told in words. Raises
    LewelError where path cannot be written.
    """
    shown = [result for result in results if result.row.x is not None]
    places = [float(result.row.x or 0) for result in shown]
    alone = apart(table, results)
    joined = [result.row.name != alone.name if alone else True for result in shown]
    with style.context(["default", STYLE]):
        figure = Figure(figsize=(6.4, 5.8), layout="constrained")
        linear, neighbours = figure.subplots(2, 1, sharex=True)
        legend = _curve(linear, places, [result.linear for result in shown], joined, "C0")
        _curve(neighbours, places, [result.knn for result in shown], joined, "C2")
        known = [(x, r.row.accuracy) for x, r in zip(places, shown, strict=True) if r.row.accuracy is not None]
        told = notes(table, results)
        if len(known) == 1 and data != SHARED:  # an axis of one point says nothing
            told = [
                *told,
                f"paper, ImageNet-100: {known[0][1]:g} % at K (here {known[0][0]:g}); no other value is known",
            ]
        else:
            legend.append(_paper(linear, known, data == SHARED))
        rows = -(-len(legend) // COLUMNS)
        linear.set_title(f"{table.title}, on {data}", loc="left", fontweight="bold", pad=8 + 14 * rows)
        linear.legend(handles=legend, loc="lower left", bbox_to_anchor=(-0.02, 0.98), ncols=COLUMNS)
        linear.set_ylabel(f"linear accuracy ({protocol}), %")
        neighbours.set_ylabel("kNN-200 accuracy, %")
        wrapped = [textwrap.fill(note, WRAPPED) for note in told]
        neighbours.set_xlabel("\n".join([LABELS[table.name], *wrapped]))
        if table.name == "fig3b":
            neighbours.set_xscale("log", base=2)
            neighbours.xaxis.set_minor_locator(NullLocator())
        neighbours.xaxis.set_major_locator(FixedLocator(places))
        neighbours.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        save(figure, path)


def _curve(
    axis: Axes, places: Sequence[float], numbers: Sequence[Numbers], joined: Sequence[bool], colour: str
) -> list[Artist]:
    """Draws what there is of one accuracy, and gives its entries of the legend. joined: points that a line may join."""
    if all(each.mean is None for each in numbers):
        axis.text(0.5, 0.5, "no row is done yet", color=FAINT, ha="center", transform=axis.transAxes)
        return []
    means = [math.nan if each.mean is None else each.mean for each in numbers]
    on, beside = ([mean if here == with_line else math.nan for mean, here in zip(means, joined, strict=True)]
                  for with_line in (True, False))  # fmt: skip
    (line,) = axis.plot(places, on, "-o", color=colour, markersize=4, label=f"mean{_of(numbers)}")
    axis.plot(places, beside, "o", color=colour, markersize=5, markerfacecolor="white")
    spread = [(x, each.mean, each.std) for x, each in zip(places, numbers, strict=True) if each.std is not None]
    if spread:
        at, middle, deviations = zip(*spread, strict=True)
        axis.errorbar(at, middle, yerr=deviations, fmt="none", ecolor=colour, capsize=3, elinewidth=1)
    seeds = [
        (x, value) for x, each in zip(places, numbers, strict=True) for value in each.values if each.std is not None
    ]
    if not seeds:
        return [line]
    (points,) = axis.plot(*zip(*seeds, strict=True), ".", color=colour, alpha=0.35, zorder=1, label="a seed each")
    return [line, points]


def _of(numbers: Sequence[Numbers]) -> str:
    """Of how many seeds the means are: " ± deviation, 2 to 3 seeds"."""
    counts = sorted({len(each.values) for each in numbers} - {0})
    deviation = " ± deviation" if counts[-1] > 1 else ""
    least = f"{counts[0]} to " if counts[0] < counts[-1] else ""
    return f"{deviation}, {least}{counts[-1]} seed{'s' if counts[-1] > 1 else ''}"


def _paper(axis: Axes, known: Sequence[tuple[float, float]], shared: bool) -> Artist:
    """Draws what the paper tells, against an axis on the right unless shared; its entry in the legend."""
    own = axis if shared else axis.twinx()
    label = "paper" if shared else "paper, ImageNet-100 (right axis)"
    (line,) = own.plot(*zip(*known, strict=True), "D", color=PAPER, markersize=5, label=label)
    if not shared:
        own.set_ylim(min(y for _, y in known) - 1, max(y for _, y in known) + 1)
        own.yaxis.set_major_locator(MaxNLocator(integer=True))
        own.tick_params(axis="y", colors=PAPER)
        own.grid(visible=False)
        own.spines["right"].set_visible(True)
    return line
