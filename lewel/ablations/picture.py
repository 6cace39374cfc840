"""Fig. 3 of the paper: accuracy against a setting, with the spread over seeds, and the paper's known points."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib import style
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from lewel.ablations.results import Numbers, Result
from lewel.ablations.tables import Table
from lewel.results.figures import FAINT, STYLE, save

LABELS = {"fig3a": "weight of the aligned loss, w", "fig3b": "width of the aligned embeddings"}
PAPER = "#b3541e"
POINTS = "paper, ImageNet-100 (right axis)"


def draw(path: Path, table: Table, results: Sequence[Result], data: str, protocol: str) -> None:
    """Draws linear and kNN accuracy against the rows' x, mean and deviation as bars and every seed as a faint point.

    The paper's points have an axis of their own, on the right. Raises LewelError where path cannot be written.
    """
    shown = [result for result in results if result.row.x is not None]
    places = [float(result.row.x or 0) for result in shown]
    with style.context(["default", STYLE]):
        figure = Figure(figsize=(6.4, 5.6), layout="constrained")
        linear, neighbours = figure.subplots(2, 1, sharex=True)
        legend = _curve(linear, places, [result.linear for result in shown], "C0")
        _curve(neighbours, places, [result.knn for result in shown], "C2")
        legend.append(_paper(linear, [(x, r.row.accuracy) for x, r in zip(places, shown, strict=True)]))
        linear.set_title(f"{table.title}, on {data}", loc="left", fontweight="bold", pad=22)
        linear.legend(handles=legend, loc="lower left", bbox_to_anchor=(-0.02, 0.98), ncols=3, columnspacing=1.2)
        linear.set_ylabel(f"linear accuracy ({protocol}), %")
        neighbours.set_ylabel("kNN-200 accuracy, %")
        neighbours.set_xlabel(LABELS[table.name])
        if table.name == "fig3b":
            neighbours.set_xscale("log", base=2)
            neighbours.xaxis.set_minor_locator(NullLocator())
        neighbours.xaxis.set_major_locator(FixedLocator(places))
        neighbours.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        save(figure, path)


def _curve(axis: Axes, places: Sequence[float], numbers: Sequence[Numbers], colour: str) -> list[Artist]:
    """Draws what there is of one accuracy, and gives its entries of the legend."""
    found = [(x, each.mean, each) for x, each in zip(places, numbers, strict=True) if each.mean is not None]
    if not found:
        axis.text(0.5, 0.5, "no row is done yet", color=FAINT, ha="center", transform=axis.transAxes)
        return []
    line = axis.errorbar(
        [x for x, _, _ in found],
        [mean for _, mean, _ in found],
        yerr=[each.std or 0.0 for _, _, each in found],
        color=colour, marker="o", markersize=4, capsize=3, elinewidth=1, label="mean ± deviation",
    )  # fmt: skip
    seeds = [(x, value) for x, _, each in found for value in each.values]
    (points,) = axis.plot(*zip(*seeds, strict=True), ".", color=colour, alpha=0.35, zorder=1, label="a seed each")
    return [line, points]  # type: ignore[list-item]


def _paper(axis: Axes, points: Sequence[tuple[float, float | None]]) -> Artist:
    """Draws the accuracies that the paper tells, against an axis on the right; its entry of the legend."""
    right = axis.twinx()
    known = [(x, y) for x, y in points if y is not None]
    (line,) = right.plot(*zip(*known, strict=True), "D", color=PAPER, markersize=5, label=POINTS)
    right.set_ylim(min(y for _, y in known) - 1, max(y for _, y in known) + 1)
    right.yaxis.set_major_locator(MaxNLocator(integer=True))
    right.tick_params(axis="y", colors=PAPER)
    right.grid(visible=False)
    right.spines["right"].set_visible(True)
    return line
