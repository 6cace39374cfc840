"""lewel show: curves and a line about every run, from logs of any state."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest

from lewel import cli
from lewel.commands import show
from lewel.errors import LewelError
from lewel.results import curves

STEP = {"kind": "step", "loss": 1.25, "z_std": 0.9, "lr": 0.1, "momentum": 0.99}


def hold_a_run(folder: Path, records: list[dict], cut_off: str = "") -> Path:
    folder.mkdir(parents=True)
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + cut_off)
    return folder


def test_a_finished_run(finished, tmp_path, monkeypatch, capsys):
    """From the command line, into its folder."""
    folder = tmp_path / "mine"
    shutil.copytree(finished.folder, folder, ignore=shutil.ignore_patterns("eval"))  # of other tests
    monkeypatch.setattr("sys.argv", ["lewel", "show", str(folder)])
    cli.main()
    heading, row, wrote = capsys.readouterr().out.splitlines()
    assert (
        " ".join(heading.split())
        == "run step loss kNN first kNN last kNN-20 first kNN-20 last probe RankMe std of z images/s "
        "waiting peak MiB"
    )
    assert row.split()[:2] == ["mine", "9"]
    assert "-" not in row.split()
    assert wrote == f"wrote {folder / 'curves.png'}"
    assert (folder / "curves.png").stat().st_size > 10_000


def test_several_runs_in_one_picture_by_the_names_of_their_folders(tmp_path, monkeypatch, capsys):
    drawn = []
    monkeypatch.setattr(curves, "draw", lambda path, runs: drawn.append((path, list(runs))))
    folders = [str(hold_a_run(tmp_path / name, [{**STEP, "step": 1}])) for name in ("a/x", "a/y", "b/x")]
    show.run(folders[:2])
    show.run([*folders, "--out", "all.png"])
    assert drawn == [(Path("curves.png"), ["x", "y"]), (Path("all.png"), folders)]  # two are called x
    assert "wrote all.png" in capsys.readouterr().out


def test_the_folder_one_is_in_has_a_name_too(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(hold_a_run(tmp_path / "here", [{**STEP, "step": 1}]))
    show.run(["."])
    assert "here" in capsys.readouterr().out
    assert Path("curves.png").exists()


def test_a_run_that_trains_or_was_killed(tmp_path):
    """Nothing but steps yet, and the last line half written."""
    folder = hold_a_run(tmp_path / "run", [{**STEP, "step": 1}, {**STEP, "step": 10}], cut_off='{"kind": "st')
    show.run([str(folder)])
    assert (folder / "curves.png").exists()


def test_the_summary_is_of_the_last_step_and_of_the_typical_speed():
    speeds = ((100, 0.9, 70.0), (300, 0.1, 80.0), (310, 0.12, 90.4))
    steps = [
        {**STEP, "step": 10 * at, "images_per_s": speed, "data_wait": wait, "peak_memory_mib": memory}
        for at, (speed, wait, memory) in enumerate(speeds, start=1)
    ]
    epochs = [
        {
            "kind": "epoch",
            "step": 10 * at,
            "knn": 30.0 + at,
            "knn_20": 40.0 + at,
            "probe": 50.0 + at,
            "rankme": 7.0 * at,
        }
        for at in (1, 2, 3)
    ]
    expected = {
        **{"step": "30", "loss": "1.25", "kNN first": "31.0", "kNN last": "33.0"},
        **{"kNN-20 first": "41.0", "kNN-20 last": "43.0"},
        **{"probe": "53.0", "RankMe": "21.0"},
        **{"std of z": "0.90", "images/s": "300", "waiting": "12.0%", "peak MiB": "90"},
    }
    assert show.summary([*steps, *epochs], [200, 20]) == expected
    overflowed = {"kind": "step", "step": 31, "loss": math.nan, "z_std": math.nan}
    assert show.summary([*steps, *epochs, overflowed], [200, 20]) == {**expected, "step": "31"}


def test_a_run_without_knn_or_of_an_earlier_version_is_summed_up_too():
    row = show.summary([{**STEP, "step": 1}, {"kind": "epoch", "step": 1, "seconds": 2.0}], [])
    assert (row["kNN first"], row["kNN last"]) == ("-", "-")
    row = show.summary([{**STEP, "step": 1}, {"kind": "epoch", "step": 1, "knn": 30.0}], [200, 20])
    assert (row["kNN last"], row["kNN-20 last"]) == ("30.0", "-")
    assert (row["probe"], row["RankMe"]) == ("-", "-")


def test_runs_with_other_numbers_of_neighbours_have_columns_of_all(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(curves, "draw", lambda path, runs: None)
    for name, key, last in (("a", "knn_5", 31.0), ("b", "knn", 41.0)):
        epochs = [{"kind": "epoch", "step": step, key: last + step - 2} for step in (1, 2)]
        hold_a_run(tmp_path / name, [{**STEP, "step": 1}, *epochs])
    show.run([str(tmp_path / "a"), str(tmp_path / "b")])
    heading, *rows = capsys.readouterr().out.splitlines()[:3]
    assert " ".join(heading.split()).startswith("run step loss kNN-5 first kNN-5 last kNN first kNN last std of z")
    assert [row.split()[3:7] for row in rows] == [["30.0", "31.0", "-", "-"], ["-", "-", "40.0", "41.0"]]


def test_a_column_is_there_where_some_run_has_a_value(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(curves, "draw", lambda path, runs: None)
    epoch = {"kind": "epoch", "step": 1}
    old = hold_a_run(tmp_path / "old", [{**STEP, "step": 1}, {**epoch, "knn": 30.0}])
    new = hold_a_run(tmp_path / "new", [{**STEP, "step": 1}, {**epoch, "knn": 31.0, "probe": 20.0, "rankme": 9.0}])
    bare = hold_a_run(tmp_path / "bare", [{**STEP, "step": 1}])
    expected = {
        (bare,): ["run step loss std of z", "bare 1 1.25 0.90"],
        (old,): ["run step loss kNN first kNN last std of z", "old 1 1.25 30.0 30.0 0.90"],
        (old, new): [
            "run step loss kNN first kNN last probe RankMe std of z",
            "old 1 1.25 30.0 30.0 - - 0.90",
            "new 1 1.25 31.0 31.0 20.0 9.0 0.90",
        ],
    }
    for runs, lines in expected.items():
        show.run([*map(str, runs), "--out", str(tmp_path / "all.png")])
        told = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
        assert told[: len(lines)] == lines


def test_the_newest_result_of_each_evaluation_has_a_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(curves, "draw", lambda path, runs: None)
    folder = hold_a_run(tmp_path / "run", [{**STEP, "step": 1}])
    (folder / "eval").mkdir()
    for number, (kind, accuracy) in enumerate([("linear-cached", 40.0), ("knn", 30.0), ("linear-cached", 50.0)]):
        result = {"kind": kind, "date": f"2030-01-0{number + 1}T10:00", "checkpoint": "step-00000001"}
        path = folder / "eval" / f"{kind}-{number}.json"
        values = {"knn": {"5": accuracy, "20": 35.0}} if kind == "knn" else {}
        path.write_text(json.dumps(result | {"accuracy": accuracy, "values": values}))
    for name, which in (("knn-w", {"step": None}), ("knn-step-00000001-2", {"step": 1, "own": False})):
        result = {"kind": "knn", "date": "2030-01-09T10:00", "checkpoint": "x", "accuracy": 20.0, "values": {}}
        (folder / "eval" / f"{name}.json").write_text(json.dumps(result | which))
    show.run([str(folder)])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("run: ")]
    assert lines == [
        "run: kNN-5 30.0 %, kNN-20 35.0 %, of step-00000001, 2030-01-02",
        "run: linear-cached 50.0 %, of step-00000001, 2030-01-03",
        "run: other weights or images (knn-step-00000001-2.json): knn 20.0 %, 2030-01-09",
        "run: other weights or images (knn-w.json): knn 20.0 %, 2030-01-09",
    ]


def test_columns_are_aligned():
    rows = [{"run": "a", "loss": "1.5"}, {"run": "longer", "loss": "10"}]
    assert show.table(rows).splitlines() == ["run     loss", "a        1.5", "longer    10"]


@pytest.mark.parametrize(
    ("records", "sentence"),
    [
        (None, r"run is no run folder: it is not there; lewel train says"),
        ([{"kind": "baselines", "step": 0, "knn_pixels": 1, "knn_untrained": 1}], "the log of .*run has no step yet"),
        ([], "the log of .*run has no step yet"),
    ],
    ids=["no log", "baselines only", "empty"],
)
def test_nothing_to_show_is_a_sentence(records, sentence, tmp_path):
    if records is not None:
        hold_a_run(tmp_path / "run", records)
    with pytest.raises(LewelError, match=sentence):
        show.run([str(tmp_path / "run")])


def test_no_run_at_all_is_a_sentence():
    with pytest.raises(LewelError, match=r"no run was given; name run folders: lewel show RUN"):
        show.run([])
