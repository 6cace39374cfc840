"""The curves of one run or several, from their logs, as one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D

from lewel.evaluation import knn
from lewel.evaluation.health import COLLAPSED
from lewel.results.figures import FAINT, INK, STYLE, save

Runs = Mapping[str, Sequence[dict[str, Any]]]  # the records of every log, by the name of its run
Limits = tuple[float | None, float | None]

POINTS = 300  # of a curve: a longer log is drawn as means over stretches
LINE = 45  # letters in a line of a legend
FEW = 15  # points that are marked each
DASHES: tuple[Any, ...] = ("-", (0, (3, 1)), (0, (1, 1)))
BASELINES: dict[str, tuple[str, Any]] = {"knn_untrained": ("untrained", "--"), "knn_pixels": ("raw pixels", ":")}


@dataclass(frozen=True)
class Panel:
    """One plot: the quantities that it draws against its left axis and against its right one.

    left and right map a key of the log's records to its name in the legend; limits are those of an axis, (lowest,
    highest), None for automatic.
    """

    title: str
    left: dict[str, str]
    right: dict[str, str] = field(default_factory=dict)
    limits: Limits = (None, None)
    right_limits: Limits = (None, None)
    log_from: float | None = None  # the left axis is logarithmic from here on, linear below


# Before its own quantities there is one of kNN for each k of the logs.
KNN = Panel("accuracy on the test images, %", {"probe": "linear probe"}, limits=(0, None))
PANELS = (
    Panel("loss", {"loss": "weighted sum", "loss_global": "global", "loss_aligned": "aligned"}),
    KNN,
    Panel(
        "spread of the embedding, and rank",
        {"z_std": "std of normalised z · √K"},
        {"rankme": "RankMe (right)"},
        limits=(0, 1.15),
        right_limits=(0, None),
    ),
    Panel(
        "distance of the maps from uniform ones",
        {"map_entropy": "1 − entropy / ln P", "map_spread": "|R − GAP| / |GAP|"},
        limits=(0, None),
        log_from=1e-4,
    ),
    Panel(
        "schedules",
        {"lr": "learning rate"},
        {"momentum": "momentum (right)"},
        limits=(0, None),
        right_limits=(None, 1.0005),
    ),
    Panel(
        "speed",
        {"images_per_s": "images/s"},
        {"data_wait": "share of waiting for data (right)"},
        limits=(0, None),
        right_limits=(0, 1),
    ),
)


def draw(path: Path, runs: Runs) -> None:
    """Draws PANELS for the runs into the picture path, with kNN's baselines and the limit of a collapse.

    What a log lacks is left out. With one run each quantity has a colour; with several each run has a colour
    and each quantity its dashes.
    """
    with style.context(["default", STYLE]):
        neighbours = knn.neighbours(record for records in runs.values() for record in records)
        figure = Figure(figsize=(13, 7.5), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.1))
        axes = figure.subplots(2, 3, sharex=True)
        for axis, panel in zip(axes.flat, PANELS, strict=True):
            _draw_panel(axis, panel, runs, neighbours if panel is KNN else [])
        for axis in axes[-1]:
            axis.set_xlabel("step")
        if len(runs) > 1:
            names = [
                Line2D([], [], color=_colour(index, runs, INK), linewidth=3, label=name)
                for index, name in enumerate(runs)
            ]
            figure.legend(handles=names, loc="outside upper left", ncols=6, fontsize=10)
        save(figure, path)


def thinned(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Mean, lowest and highest, (3, M), of M <= 300 stretches of nearly equal length, in the order of values."""
    stretches = np.array_split(np.asarray(values, dtype=float), min(len(values), POINTS))
    return np.array([(stretch.mean(), stretch.min(), stretch.max()) for stretch in stretches]).T


def _draw_panel(axis: Axes, panel: Panel, runs: Runs, neighbours: Sequence[int]) -> None:
    """Draws what panel names, after the kNN accuracies with so many neighbours, which have baselines."""
    accuracies = {knn.key("knn", k): knn.name(k) for k in neighbours}
    left = accuracies | panel.left
    legend = _draw_side(axis, left, runs, first=0)
    if any(key in record for key in panel.right for records in runs.values() for record in records):
        right = axis.twinx()
        legend += _draw_side(right, panel.right, runs, first=len(left))
        right.set_ylim(*panel.right_limits)
        right.grid(visible=False)
        right.spines["right"].set_visible(True)
    legend += _draw_baselines(axis, runs, neighbours)
    if not legend:
        axis.text(0.5, 0.5, "not in the log", color=FAINT, ha="center", transform=axis.transAxes)
    if "z_std" in panel.left:
        legend.append(axis.axhline(COLLAPSED, color=FAINT, linestyle=":", label="collapsed below"))
    if panel.log_from:
        axis.set_yscale("symlog", linthresh=panel.log_from)
        axis.update_datalim([(0, 1)], updatex=False)  # uniform maps, all zero, have no scale of their own
    axis.set_ylim(*panel.limits)
    # One column more, or longer names in three, would reach into the next panel.
    columns = 3 if len(legend) <= 3 and sum(len(str(line.get_label())) for line in legend) <= LINE else 2
    pad = 4 + 16 * max(1, -(-len(legend) // columns))
    axis.set_title(panel.title, loc="left", pad=pad, fontweight="bold")
    # Between the title and the axes a legend covers no curve.
    axis.legend(handles=legend, loc="lower left", bbox_to_anchor=(-0.02, 0.98), ncols=columns, handlelength=1.6)


def _draw_side(axis: Axes, quantities: dict[str, str], runs: Runs, *, first: int) -> list[Line2D]:
    """Draws the quantities, of which the panel has drawn `first` before, and gives their entries of the legend."""
    legend, single = [], len(runs) == 1
    for part, (key, name) in enumerate(quantities.items(), start=first):
        curves = {index: curve for index, log in enumerate(runs.values()) if (curve := _curve(log, key)).size}
        dashes = DASHES[0 if single else part % len(DASHES)]
        for index, (steps, mean, low, high) in curves.items():
            colour = _colour(index, runs, f"C{part}")
            few = "o" if len(steps) < FEW else ""
            axis.plot(steps, mean, color=colour, linestyle=dashes, marker=few, markersize=3, zorder=3 - 0.1 * part)
            if single and not few:
                axis.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
        if curves:
            legend.append(Line2D([], [], color=f"C{part}" if single else INK, linestyle=dashes, label=name))
    return legend


def _draw_baselines(axis: Axes, runs: Runs, neighbours: Sequence[int]) -> list[Line2D]:
    """Draws kNN before training and on raw pixels as lines, and returns their entries of the legend.

    With one run the entries give the numbers, and the lines have the colours of the curves with as many neighbours;
    with several they have the runs' colours.
    """
    legend, single = [], len(runs) == 1
    for baseline, (name, dashes) in BASELINES.items():
        found = [
            (index, part, record[key])
            for part, k in enumerate(neighbours)
            for index, log in enumerate(runs.values())
            for record in log
            if (key := knn.key(baseline, k)) in record
        ]
        for index, part, value in found:
            axis.axhline(value, color=_colour(index, runs, f"C{part}"), linestyle=dashes, linewidth=1)
        if found:
            label = f"{name} {', '.join(f'{value:.1f}' for _, _, value in found)}" if single else name
            legend.append(Line2D([], [], color=FAINT if single else INK, linestyle=dashes, lw=1, label=label))
    return legend


def _colour(index: int, runs: Runs, alone: str) -> Any:
    """The colour of run number index where there are several runs; where there is one, the colour `alone`."""
    count = max(10, len(runs))
    several = matplotlib.colormaps["tab10" if count == 10 else "turbo"].resampled(count)
    return several(index) if len(runs) > 1 else alone


def _curve(records: Sequence[dict[str, Any]], key: str) -> np.ndarray:
    """(4, M): steps, and the mean, lowest and highest value of key there; M = 0 if no record has the key."""
    found = [r for r in records if r["kind"] in ("step", "epoch") and key in r and np.isfinite(r[key])]
    if not found:
        return np.empty((4, 0))
    values = np.array([r[key] for r in found])
    values = 1 - values if key == "map_entropy" else values  # tells 0.999 from 0.99 on a log scale
    return np.vstack([thinned([r["step"] for r in found])[:1], thinned(values)])
