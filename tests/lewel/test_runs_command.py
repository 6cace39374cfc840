"""lewel runs: every run below a folder, by its files alone."""

from __future__ import annotations

import json
import os
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import fake_rows
import pytest
import torch
from tiny_runs import TINY, run_in

from lewel import cli
from lewel.commands import runs as runs_command
from lewel.recipe import plain, presets
from lewel.recipe.schema import Train
from lewel.results import found_runs, runs_table
from lewel.run.lock import Lock

LEWEL_M = presets.get("embedded/lewel_m")


@pytest.fixture(autouse=True)
def wide(monkeypatch) -> None:
    """What is printed depends on no terminal."""
    monkeypatch.setenv("COLUMNS", "300")


def listed(folder: Path) -> list[dict]:
    return runs_table.records(runs_table.ordered(list(found_runs.through(folder)), "name"))


def line_of(text: str, name: str) -> str:
    (line,) = [line for line in text.splitlines() if line.split()[:1] == [name]]
    return line


def test_a_run_is_told_by_its_recipe_epochs_and_accuracies(tmp_path, capsys):
    run = replace(LEWEL_M, seed=3, precision="bf16", out="x", heads=replace(LEWEL_M.heads, num_maps=128))
    fake_rows.write(tmp_path / "a" / "b", run, 12, knn=41.26, linear=55.04)
    fake_rows.write(tmp_path / "stopped", LEWEL_M, 5, knn=30.0)
    runs_command.run([str(tmp_path)])
    text = capsys.readouterr().out
    assert text.splitlines()[0].split() == [
        "run", "preset", "seed", "epoch", "kNN", "linear", "state", "changed", "otherwise", "than", "the", "preset",
    ]  # fmt: skip
    cells = line_of(text, "a/b").split()
    assert cells[:7] == ["a/b", "embedded/lewel_m", "3", "12/12", "41.3", "55.0", "finished"]
    assert line_of(text, "a/b").endswith("heads.num_maps 64 -> 128")
    assert line_of(text, "stopped").split()[3:7] == ["5/12", "30.0", "-", "stopped"]


@pytest.mark.parametrize(
    ("run", "changes"),
    [
        pytest.param(LEWEL_M, {}, id="the-preset"),
        pytest.param(replace(LEWEL_M, precision="fp32", seed=4, out="x"), {}, id="what-a-run-resolves"),
        pytest.param(replace(LEWEL_M, epochs=3), {"epochs": (12, 3)}, id="epochs"),
        pytest.param(replace(Train(), preset="gone/from_here", epochs=3), {"epochs": (20, 3)}, id="unknown-preset"),
        pytest.param(replace(presets.get("imagenet100/byol"), precision="bf16"), {"precision": ("fp16", "bf16")},
                     id="precision"),
    ],
)  # fmt: skip
def test_what_differs_from_the_preset(run, changes):
    assert found_runs.changes(run) == changes


@pytest.mark.parametrize(
    ("width", "told"),
    [
        (1000, "heads.num_maps 64 -> 128, heads.num_groups 8 -> 16, optim.name sgd -> lars"),
        (220, "heads.num_maps 64 -> 128, heads.num_groups 8 -> 16, optim.name sgd -> lars"),
        (148, "heads.num_maps 128, heads.num_groups 16, optim.name lars"),
        (125, "num_maps 128, num_groups 16, optim.name lars"),
        (110, "num_maps, num_groups, optim.name"),
        (92, "num_maps, num_groups, optim.name"),  # without the date
        (80, "num_maps, num_groups, optim.name"),  # without the preset too
        (40, "num_maps, num_groups, optim.name"),
    ],
)
def test_what_differs_is_shortened_but_for_the_names(width, told, tmp_path):
    """optim.name keeps its section, for encoder and data have a name too."""
    run = replace(
        LEWEL_M,
        heads=replace(LEWEL_M.heads, num_maps=128, num_groups=16),
        optim=replace(LEWEL_M.optim, name="lars"),
    )
    fake_rows.write(tmp_path / "run", run, 1)
    line = runs_table.text(list(found_runs.through(tmp_path)), width).splitlines()[1]
    assert line.endswith(f"  {told}")
    assert len(line) <= width or width == 40
    assert ("embedded/lewel_m" in line) == (width > 80)
    assert ("20" in line.replace("lewel_m", "")) == (width > 92)


@pytest.mark.parametrize("width", [40, 60])
def test_a_narrow_terminal_loses_the_date_and_then_the_preset(width, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    fake_rows.write(tmp_path / "r", LEWEL_M, 3, linear=50.0)
    runs_command.run([str(tmp_path)])
    heading, line = capsys.readouterr().out.splitlines()
    assert max(len(heading), len(line)) <= width
    assert line.split() == (["r"] + ["embedded/lewel_m"] * (width > 45) + ["0", "3/12", "-", "50.0", "stopped"])


def test_the_newest_result_and_the_probe_are_shown(tmp_path):
    fake_rows.write(tmp_path / "run", LEWEL_M, 2, knn=30.0, linear=50.0)
    fake_rows.result(tmp_path / "run", "step-00000008", 52.0, kind="linear-a", date="2026-02-01")
    (tmp_path / "run" / "eval" / "semi-1-step-00000008.json").write_text("{}")
    other = {"kind": "linear-cached", "checkpoint": "w", "step": None, "date": "2027-01-01", "values": {}}
    (tmp_path / "run" / "eval" / "linear-cached-w.json").write_text(json.dumps(other | {"accuracy": 90.0}))
    with open(tmp_path / "run" / "log.jsonl", "a") as log:
        log.write(json.dumps({"kind": "epoch", "step": 12, "epoch": 3, "knn_20": 33.0, "probe": 44.0}) + "\n")
    (found,) = found_runs.through(tmp_path)
    assert (found.linear_accuracy, found.linear["kind"], found.probe) == (52.0, "linear-a", 44.0)
    assert (found.knn_k, found.knn_accuracy, found.epoch) == (20, 33.0, 3)
    text = runs_table.text([found], 1000)
    assert "probe" in text
    assert "33.0 (k 20)" in text
    assert "52.0 (a)" in text


@pytest.mark.parametrize(
    ("made", "told"),
    [
        pytest.param({"settings": {"seeds": 1}}, "50.0", id="other-settings"),
        pytest.param({"step": None}, "50.0", id="other-weights"),
        pytest.param({"own": False}, "50.0", id="other-images"),
        pytest.param({"kind": "linear-b"}, "60.0 (b)", id="another-protocol"),
        pytest.param({"checkpoint": "step-00000004"}, "60.0", id="an-earlier-checkpoint"),
    ],
)
def test_the_newest_result_of_the_run_with_usual_settings_is_preferred(made, told, tmp_path):
    fake_rows.write(tmp_path / "one", LEWEL_M, 2, linear=50.0)
    made = {"checkpoint": "step-00000008", "accuracy": 60.0, "number": 2, "date": "2027-01-01"} | made
    fake_rows.result(tmp_path / "one", **made)
    line = line_of(runs_table.text(list(found_runs.through(tmp_path)), 1000), "one")
    assert f"  {told}  " in line


def test_a_result_of_other_settings_alone_says_so(tmp_path):
    fake_rows.write(tmp_path / "run", LEWEL_M, 2)
    fake_rows.result(tmp_path / "run", "step-00000008", 60.0, settings={"rates": [0.1]})
    assert "60.0 (cached, other settings)  " in runs_table.text(list(found_runs.through(tmp_path)), 1000)


def test_a_run_is_running_while_its_lock_lives(tmp_path):
    fake_rows.write(tmp_path / "run", LEWEL_M, 2)
    held = Lock(tmp_path / "run")
    held.take()
    try:
        assert [each["state"] for each in listed(tmp_path)] == ["running"]
    finally:
        held.release()
    assert [each["state"] for each in listed(tmp_path)] == ["stopped"]


def test_a_run_without_an_epoch_yet(tmp_path):
    """Of the embedded set the epoch is known by the recipe, of a folder of images not."""
    folder = replace(LEWEL_M, data=replace(LEWEL_M.data, name="folder", root="/x"))
    for name, run in (("made", LEWEL_M), ("files", folder)):
        fake_rows.write(tmp_path / name, run, 0)
        with open(tmp_path / name / "log.jsonl", "a") as log:
            log.write(json.dumps({"kind": "step", "step": 130, "loss": 1.0, "z_std": 1.0}) + "\n")
    made, files = listed(tmp_path)[::-1]
    assert (made["epoch"], made["step"], files["epoch"], files["step"]) == (2, 130, None, 130)
    assert "step 130 of ?/12" in runs_table.text(list(found_runs.through(tmp_path)), 200)


def test_knn_is_that_of_the_last_epoch_that_had_it(tmp_path):
    fake_rows.write(tmp_path / "run", LEWEL_M, 2, knn=31.5)
    with open(tmp_path / "run" / "log.jsonl", "a") as log:
        log.writelines(
            json.dumps({"kind": "epoch", "step": 4 * n, "epoch": n, "map_entropy": 1.0}) + "\n" for n in (3, 4)
        )
        log.write('{"kind": "step", "step": 17, "lo')  # cut off
    (found,) = found_runs.through(tmp_path)
    assert (found.knn_accuracy, found.epoch, found.step) == (31.5, 4, 16)


def test_of_a_long_log_the_end_is_read(tmp_path, monkeypatch):
    """And no checkpoint is."""
    fake_rows.write(tmp_path / "run", LEWEL_M, 2, knn=31.5)
    step = json.dumps({"kind": "step", "step": 1, "loss": 1.0, "padding": "x" * 200}) + "\n"
    log = tmp_path / "run" / "log.jsonl"
    log.write_text(step * 100_000 + log.read_text())
    size, read = log.stat().st_size, []
    monkeypatch.setattr(torch, "load", None)
    lines = found_runs._backwards
    monkeypatch.setattr(found_runs, "_backwards", lambda path: (read.append(len(line)) or line for line in lines(path)))
    (found,) = found_runs.through(tmp_path)
    assert found.knn_accuracy == 31.5
    assert sum(read) < 1000 < size


@pytest.mark.parametrize("length", [1, 7, 64, 10_000])
def test_lines_come_backwards_whatever_the_blocks(length, tmp_path, monkeypatch):
    monkeypatch.setattr(found_runs, "BLOCK", length)
    lines = [f"{n} {'x' * (n * 37 % 90)}".encode() for n in range(50)]
    (tmp_path / "log").write_bytes(b"\n\n" + b"\n".join(lines) + b"\n")
    assert list(found_runs._backwards(tmp_path / "log")) == lines[::-1]
    (tmp_path / "log").write_bytes(b"")
    assert list(found_runs._backwards(tmp_path / "log")) == []


def test_links_are_followed_once_and_runs_are_not_looked_into(tmp_path):
    outside = tmp_path / "outside"
    fake_rows.write(outside / "far", LEWEL_M, 1)
    fake_rows.write(tmp_path / "runs" / "run", LEWEL_M, 1)
    fake_rows.write(tmp_path / "runs" / "run" / "eval" / "inner", LEWEL_M, 1)
    (tmp_path / "runs" / "link").symlink_to(outside)
    (outside / "back").symlink_to(tmp_path / "runs")
    (tmp_path / "runs" / "empty").mkdir()
    (tmp_path / "runs" / "nowhere").symlink_to(tmp_path / "gone")
    assert [each["name"] for each in listed(tmp_path / "runs")] == ["link/far", "run"]
    assert [each["name"] for each in listed(tmp_path / "runs" / "run")] == ["run"]


def broken(folder: Path, name: str) -> Path:
    fake_rows.write(folder / name, LEWEL_M, 2, knn=30.0)
    return folder / name


def test_a_broken_run_has_a_line_that_says_what_is_wrong(tmp_path, capsys):
    (broken(tmp_path, "no-log") / "log.jsonl").unlink()
    (broken(tmp_path, "no-recipe") / "config.yaml").unlink()
    (broken(tmp_path, "bad-recipe") / "config.yaml").write_text("epochs: [")
    (broken(tmp_path, "unknown") / "config.yaml").write_text("colour: 3")
    broken(tmp_path, "whole")
    (broken(tmp_path, "no-lines") / "log.jsonl").write_bytes(b"\0\xff\n[]\n{}\n")
    runs_command.run([str(tmp_path)])
    lines = {line.split(":")[0].split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines["no-log"] == (
        f"no-log: broken: {tmp_path}/no-log is no run folder: it has no log.jsonl; lewel train says where it writes"
    )
    assert "it has no config.yaml" in lines["no-recipe"]
    assert f"cannot read the recipe {tmp_path}/bad-recipe/config.yaml: line 1" in lines["bad-recipe"]
    assert "there is no colour" in lines["unknown"]
    assert "stopped" in lines["whole"]
    assert "0/12" in lines["no-lines"]
    assert {each["name"]: bool(each["wrong"]) for each in listed(tmp_path)}["unknown"]


def test_runs_of_an_earlier_version_are_listed(tmp_path):
    for method in ("moco_v2", "lewel_b"):
        with tarfile.open(Path(__file__).parent / "old_runs" / f"{method}.tar.xz") as tar:
            tar.extractall(tmp_path, filter="data")
    found = listed(tmp_path)
    assert [(each["name"], each["state"], each["epoch"], each["epochs"]) for each in found] == [
        ("lewel_b", "stopped", 1, 3),
        ("moco_v2", "stopped", 1, 3),
    ]


def test_a_real_run_is_finished(tmp_path):
    run_in(tmp_path / "run", replace(TINY, epochs=1))
    (tmp_path / "run" / "config.yaml").write_text(plain.to_yaml(replace(TINY, epochs=1)))
    (found,) = listed(tmp_path)
    assert (found["state"], found["epoch"], found["step"]) == ("finished", 1, 3)
    assert set(found["knn"]) == {"200", "20"}


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param({"probe": "low"}, id="words"),
        pytest.param({"probe": float("nan"), "knn": float("nan")}, id="nan"),
        pytest.param({"probe": True, "epoch": True}, id="switches"),
        pytest.param({"probe": [1], "knn": {"a": 1}, "epoch": "3"}, id="lists"),
        pytest.param({"step": "4"}, id="step"),
        pytest.param({"step": 4.5}, id="half-a-step"),
        pytest.param({"step": -4, "epoch": -1}, id="before-the-start"),
        pytest.param({"epoch": float("inf")}, id="infinite"),
    ],
)
def test_a_bad_record_is_no_record(bad, tmp_path, capsys):
    """And the other runs are listed."""
    fake_rows.write(tmp_path / "a", LEWEL_M, 2, knn=30.0, linear=50.0)
    fake_rows.write(tmp_path / "b", LEWEL_M, 2)
    record = {"kind": "epoch", "step": 12, "epoch": 3} | bad
    with open(tmp_path / "b" / "log.jsonl", "a") as log:
        log.write(json.dumps(record) + "\n")
    runs_command.run([str(tmp_path), "--sort", "knn"])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]] == ["b", "a"]
    runs_command.run([str(tmp_path), "--json"])
    found = {each["name"]: each for each in json.loads(capsys.readouterr().out, parse_constant=pytest.fail)}
    assert (found["b"]["probe"], found["b"]["knn"]) == (None, {})


def test_a_recipe_with_a_number_that_is_none_makes_strict_json(tmp_path, capsys):
    fake_rows.write(tmp_path / "a", replace(LEWEL_M, knn_temperature=float("inf")), 2)
    runs_command.run([str(tmp_path), "--json"])
    (found,) = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found["changes"] == {"knn_temperature": {"preset": 0.1, "run": None}}


def test_names_cannot_break_the_list(tmp_path, capsys):
    fake_rows.write(tmp_path / "two\nlines\x1b[31m", replace(LEWEL_M, preset="a\tb"), 2)
    fake_rows.write(tmp_path / "\x07bell", LEWEL_M, 2)
    (tmp_path / "\x07bell" / "config.yaml").unlink()
    runs_command.run([str(tmp_path)])
    printed = capsys.readouterr().out
    assert printed.count("\n") == 3
    assert r"two\nlines\x1b[31m  a\tb" in printed
    assert r"\x07bell: broken: " in printed
    assert not {"\x07", "\x1b", "\t"} & set(printed)


@pytest.mark.parametrize(
    ("sort", "order"),
    [("date", ["c", "a", "b"]), ("name", ["a", "b", "c"]), ("knn", ["c", "b", "a"]), ("linear", ["c", "a", "b"])],
)
def test_the_order_has_the_newest_or_best_last(sort, order, tmp_path, capsys):
    now = time.time()
    for name, knn, linear, age in (("a", 40.0, 50.0, 100), ("b", 30.0, 60.0, 10), ("c", None, None, 1000)):
        fake_rows.write(tmp_path / name, LEWEL_M, 2, knn, linear)
        for path in (tmp_path / name).rglob("*.*"):
            os.utime(path, (now - age, now - age))
    runs_command.run([str(tmp_path), "--sort", sort])
    assert [line[0] for line in capsys.readouterr().out.splitlines()[1:]] == order


def test_records_for_other_programs(tmp_path, capsys):
    fake_rows.write(tmp_path / "run", replace(LEWEL_M, epochs=2), 2, knn=30.0, linear=50.0)
    runs_command.run([str(tmp_path), "--json"])
    (record,) = json.loads(capsys.readouterr().out)
    assert record["changes"] == {"epochs": {"preset": 12, "run": 2}}
    assert record["knn"] == {"200": 30.0, "20": 31.0}
    assert record["linear"] == {"kind": "linear-cached", "checkpoint": "step-00000008", "epoch": 1, "accuracy": 50.0}
    assert (record["state"], record["wrong"], record["folder"]) == ("finished", None, str(tmp_path / "run"))
    assert record["changed"][:2] == "20"


@pytest.mark.parametrize(
    ("folder", "status", "said"),
    [
        ("empty", 2, "there is no run in empty: no folder at any depth has a config.yaml and a log.jsonl"),
        ("nowhere", 2, "nowhere is no folder with runs: it is not there; name the one that"),
        ("file", 2, "file is no folder with runs: it is a file"),
    ],
)
def test_where_there_is_no_run_a_sentence_says_what_was_looked_for(folder, status, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("file").touch()
    monkeypatch.setattr("sys.argv", ["lewel", "runs", folder])
    try:
        cli.main()
        ended = 0
    except SystemExit as stop:
        ended = stop.code
    printed = capsys.readouterr()
    assert ended == status
    assert said in printed.out + printed.err
