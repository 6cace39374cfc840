"""The curves of runs: what is drawn of which log."""

from __future__ import annotations

import math

import numpy as np
import pytest
from matplotlib import image as files
from matplotlib.figure import Figure

from lewel.results import curves


def log(steps: int = 3, *, aligned: bool = True, loss: float = 4.0) -> list[dict]:
    """Records as a run writes them, a kNN every ten steps."""
    step = {"kind": "step", "loss": loss, "loss_global": loss, "z_std": 0.9, "lr": 0.1, "momentum": 0.99}
    step |= {"images_per_s": 300.0, "data_wait": 0.1, "peak_memory_mib": 500.0}
    epoch = {"kind": "epoch", "knn": 40.0}
    if aligned:
        step, epoch = step | {"loss_aligned": 3.0}, epoch | {"map_entropy": 0.99, "map_spread": 0.02}
    records = [{"kind": "baselines", "step": 0, "knn_pixels": 20.0, "knn_untrained": 15.0}]
    for at in range(1, steps + 1):
        records += [{**record, "step": at} for record in ((step, epoch) if at % 10 == 0 or at == steps else (step,))]
    return records


@pytest.fixture
def figure(monkeypatch) -> list[Figure]:
    """Every figure that was saved."""
    saved: list[Figure] = []
    monkeypatch.setattr(curves, "save", lambda figure, path: saved.append(figure))
    return saved


def panel(figure: Figure, title: str):
    return next(axis for axis in figure.axes if axis.get_title(loc="left").startswith(title))


def legend(axis) -> list[str]:
    return [text.get_text() for text in axis.get_legend().get_texts()]


@pytest.mark.parametrize(
    "runs",
    [
        pytest.param({"a": log()}, id="one"),
        pytest.param({"a": log(1, aligned=False)}, id="one-step-without-maps"),
        pytest.param({str(n): log(n) for n in range(1, 13)}, id="twelve"),
        pytest.param({"a": log(1000), "b": log(5, aligned=False)}, id="long-and-short"),
        pytest.param({"a": log(400, loss=math.nan)}, id="loss-not-a-number"),
    ],
)
def test_every_kind_of_log_is_drawn(runs, tmp_path, recwarn):
    curves.draw(tmp_path / "made" / "curves.png", runs)
    picture = files.imread(tmp_path / "made" / "curves.png")
    assert min(picture.shape[:2]) > 500
    assert float(picture[..., :3].std()) > 0.01
    assert not recwarn.list


def test_one_run_has_a_colour_a_quantity_and_its_baselines(figure):
    curves.draw(None, {"a": log()})
    assert legend(panel(figure[0], "loss")) == ["weighted sum", "global", "aligned"]
    assert len({line.get_color() for line in panel(figure[0], "loss").lines}) == 3
    assert legend(panel(figure[0], "accuracy")) == ["kNN", "untrained 15.0", "raw pixels 20.0"]
    assert legend(panel(figure[0], "schedules")) == ["learning rate", "momentum (right)"]
    assert not figure[0].legends


@pytest.mark.parametrize("neighbours", [(5,), (200, 20), (1, 5, 20, 200)], ids=str)
def test_every_number_of_neighbours_has_a_curve_and_baselines_of_its_colour(neighbours, figure):
    records = log()
    for i, k in enumerate(neighbours):
        suffix = "" if k == 200 else f"_{k}"
        for record in records:
            values = {"epoch": {"knn": 40.0}, "baselines": {"knn_untrained": 15.0, "knn_pixels": 20.0}}
            record.update({key + suffix: value + i for key, value in values.get(record["kind"], {}).items()})
    for record in records:
        if 200 not in neighbours:
            for key in ("knn", "knn_untrained", "knn_pixels"):
                record.pop(key, None)
    curves.draw(None, {"a": records})
    drawn = {float(line.get_ydata()[0]): line.get_color() for line in panel(figure[0], "accuracy").lines}
    assert sorted(drawn) == sorted(value + i for value in (40.0, 15.0, 20.0) for i in range(len(neighbours)))
    for i in range(len(neighbours)):
        assert drawn[40.0 + i] == drawn[15.0 + i] == drawn[20.0 + i]
    assert len(set(drawn.values())) == len(neighbours)
    named = ["kNN" if k == 200 else f"kNN-{k}" for k in neighbours]
    assert set(legend(panel(figure[0], "accuracy"))[: len(named)]) == set(named)
    curves.draw(None, {"a": records, "b": log()})  # where quantities have dashes


def test_several_runs_have_a_colour_each_and_their_names(figure):
    curves.draw(None, {"calm": log(loss=1.0), "wild": log(loss=2.0, aligned=False)})
    assert [text.get_text() for text in figure[0].legends[0].get_texts()] == ["calm", "wild"]
    drawn = [(line.get_color(), line.get_ydata()[0]) for line in panel(figure[0], "loss").lines]
    calm, wild = (handle.get_color() for handle in figure[0].legends[0].legend_handles)
    assert drawn == [(calm, 1), (wild, 2), (calm, 1), (wild, 2), (calm, 3)]  # sums, global parts, the aligned part
    assert len(panel(figure[0], "distance of the maps").lines) == 2


def test_what_a_log_lacks_is_said_in_its_panel(figure):
    curves.draw(None, {"a": log(aligned=False)})
    assert [text.get_text() for text in panel(figure[0], "distance of the maps").texts] == ["not in the log"]


def test_the_probe_is_beside_knn_and_rankme_right_of_the_spread_where_there_are_any(figure):
    told = {"epoch": {"probe": 45.0, "rankme": 31.0}, "baselines": {"rankme_untrained": 12.0}}
    curves.draw(None, {"a": [record | told.get(record["kind"], {}) for record in log()]})
    curves.draw(None, {"a": log()})
    with_it, without = figure
    assert legend(panel(with_it, "accuracy")) == ["kNN", "linear probe", "untrained 15.0", "raw pixels 20.0"]
    assert [line.get_ydata()[0] for line in panel(with_it, "accuracy").lines[:2]] == [40.0, 45.0]
    (right,) = (axis for axis in with_it.axes if [line.get_ydata()[0] for line in axis.lines] == [31.0])
    assert right.get_ylim()[0] == 0
    assert legend(panel(with_it, "spread"))[:2] == ["std of normalised z · √K", "RankMe (right)"]
    assert len(legend(panel(without, "spread"))) == 2
    assert len(with_it.axes) == len(without.axes) + 1


def test_a_warning_is_no_point_of_a_curve(figure):
    curves.draw(None, {"a": [*log(), {"kind": "warning", "step": 3, "z_std": 0.01}]})
    assert min(panel(figure[0], "spread").lines[0].get_ydata()) == 0.9


def test_maps_are_drawn_by_their_distance_from_uniform_ones(figure):
    curves.draw(None, {"a": log()})
    entropy, spread = panel(figure[0], "distance of the maps").lines
    assert (entropy.get_ydata(), spread.get_ydata()) == (pytest.approx([0.01]), pytest.approx([0.02]))


def test_uniform_maps_lie_on_the_ground(figure):
    curves.draw(None, {"a": [*log(aligned=False), {"kind": "epoch", "step": 3, "map_entropy": 1.0, "map_spread": 0.0}]})
    low, high = panel(figure[0], "distance of the maps").get_ylim()
    assert (low, high >= 1) == (0, True)


def test_a_long_log_becomes_means_between_lowest_and_highest():
    values = np.arange(900.0)
    mean, low, high = curves.thinned(values)
    assert mean.tolist() == values[1::3].tolist()
    assert (low.tolist(), high.tolist()) == (values[::3].tolist(), values[2::3].tolist())
    assert curves.thinned([5.0, 3.0]).tolist() == [[5, 3]] * 3
