"""Fig. 3 of the paper: accuracy against a setting, with the spread over seeds, and the paper's known points."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from lewel.ablations.results import Numbers, Result
from lewel.ablations.tables import Table
from lewel.results.figures import INK, STYLE, save

LABELS = {"fig3a": "weight of the aligned loss, w", "fig3b": "width of the aligned embeddings"}
PAPER = "#b3541e"


def draw(path: Path, table: Table, results: Sequence[Result], data: str, protocol: str) -> None:
    """Draws linear and kNN accuracy against the rows' x, mean and deviation as bars and every seed as a faint point.

    The paper's points have an axis of their own, on the right. Raises LewelError where path cannot be written.
    """
    with style.context(["default", STYLE]):
        figure = Figure(figsize=(6.4, 4), layout="constrained")
        axis = figure.subplots()
        legend = [
            _curve(axis, results, f"linear ({protocol})", "C0", [(r.row.x, r.linear) for r in results]),
            _curve(axis, results, "kNN-200", "C2", [(r.row.x, r.knn) for r in results]),
        ]
        known = [(r.row.x, r.row.accuracy) for r in results if r.row.accuracy is not None]
        right = axis.twinx()
        right.plot(*zip(*known, strict=True), marker="D", linestyle="", color=PAPER, markersize=5, clip_on=False)
        right.set_ylabel("paper: linear accuracy on ImageNet-100, %", color=PAPER)
        right.tick_params(axis="y", colors=PAPER)
        right.grid(visible=False)
        right.spines["right"].set_visible(True)
        low, high = min(y for _, y in known), max(y for _, y in known)
        right.set_ylim(low - 1.5, high + 1.0)
        legend.append(Line2D([], [], marker="D", linestyle="", color=PAPER, label="paper (right axis)"))
        places = [r.row.x for r in results]
        if table.name == "fig3b":
            axis.set_xscale("log", base=2)
            axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_locator(FixedLocator([float(x) for x in places if x is not None]))
        axis.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        axis.set_xlabel(LABELS[table.name])
        axis.set_ylabel(f"accuracy on {data}, %")
        axis.set_title(table.title, loc="left", fontweight="bold", pad=22, color=INK)
        axis.legend(handles=[h for h in legend if h], loc="lower left", bbox_to_anchor=(-0.02, 0.99), ncols=3)
        save(figure, path)


def _curve(
    axis: Axes, results: Sequence[Result], name: str, colour: str, points: Sequence[tuple[float | None, Numbers]]
) -> Line2D | None:
    """Draws what there is of one accuracy, and gives its entry of the legend, None where there is nothing."""
    found = [(x, n.mean, n) for x, n in points if x is not None and n.mean is not None]
    if not found:
        return None
    axis.errorbar(
        [x for x, _, _ in found],
        [mean for _, mean, _ in found],
        yerr=[numbers.std or 0.0 for _, _, numbers in found],
        color=colour, marker="o", markersize=4, capsize=3, elinewidth=1,
    )  # fmt: skip
    for x, _, numbers in found:
        axis.plot([x] * len(numbers.values), numbers.values, ".", color=colour, alpha=0.35, markersize=6, zorder=1)
    return Line2D([], [], color=colour, marker="o", markersize=4, label=f"{name}, mean ± deviation")
