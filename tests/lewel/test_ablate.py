"""lewel ablate: the rows are the paper's, valid for every data set, run once, and reported as they came out."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import fake_rows
import pytest
from fault import start
from matplotlib.figure import Figure

from lewel import cli
from lewel.ablations import at_once, picture, refusals, results, rows, run, tables
from lewel.ablations.at_once import Job, Phase
from lewel.ablations.rows import Asked
from lewel.commands import ablate as ablate_command
from lewel.commands import train as train_command
from lewel.errors import LewelError
from lewel.recipe import plain, presets
from lewel.run.preemption import Stopped

ALL = tables.GROUPS["all"]
PLACES = {"imagenet100": {"roots": ("/data/imagenet",), "classes": "in100.txt"}}


def asked(out: Path | str = "", name: str = "table5", **more) -> Asked:
    return Asked(tables.chosen(name), out=str(out), **{"seeds": (0, 1), **more})


def by_name(runs: list[rows.RowRun]) -> dict[str, rows.RowRun]:
    return {each.row.name: each for each in runs}


# ------------------------------------------------------------------------------------------------ the rows


@pytest.mark.parametrize("data", tables.BASES)
def test_every_row_is_a_recipe_that_trains(data):
    """rows.of checks each; of every table there are as many different recipes as rows."""
    runs = rows.of(Asked(ALL, data, seeds=(0,), **PLACES.get(data, {})))
    recipes = {plain.to_yaml(replace(each.run, out="")) for each in runs}
    assert len(recipes) == len(runs) == len({each.folder for each in runs})


def test_the_rows_of_the_papers_own_set_have_its_sizes():
    found = rows.of(Asked(ALL, "imagenet100", seeds=(0,), **PLACES["imagenet100"]))
    made = {name: (each.run.heads, each.run.method.w_aligned) for name, each in by_name(found).items()}
    widths = {name: heads.num_maps for name, (heads, _) in made.items() if name.startswith("moco_v2")}
    assert widths == {"moco_v2": 128, "moco_v2-k256": 256, "moco_v2-k512": 512}
    grouped = {(heads.num_maps, heads.num_groups) for name, (heads, _) in made.items() if name.startswith("lewel_b")}
    assert grouped == {(512, 4), (256, 1), (256, 2), (256, 4), (256, 8), (256, 16), (128, 4), (64, 4)}
    assert {w for name, (_, w) in made.items() if re.match(r"w0|moco_v2$|aligned|lewel_m$", name)} == {
        0, 0.1, 0.3, 0.5, 0.7, 0.9, 1
    }  # fmt: skip
    aligned = sorted(heads.aligned_width for name, (heads, _) in made.items() if name.startswith("width"))
    assert aligned == [32, 64, 256, 512]  # and 128, the default
    extra = made["extra_head"][0]
    assert (extra.maps, extra.num_maps, extra.num_groups) == ("uniform", 128, 128)
    assert made["shared_projector"][0].semantic_projector == "shared"
    assert made["random_maps"][0].maps == "random"
    assert made["separate_head"][0].coupling == "separate"


def test_the_papers_numbers_stand_in_their_rows():
    shown = {name: [(row.accuracy, row.miou) for row in tables.made(name, 128, 256).rows] for name in tables.TITLES}
    assert shown["table5"] == [(79.5, 61.6), (80.0, 62.6), (81.0, 62.7), (82.1, 63.4)]
    assert [accuracy for accuracy, _ in shown["table6"]] == [79.5, 79.8, 80.2, 79.9, 81.8, 79.8, 82.1]
    assert [miou for _, miou in shown["table7"]] == [59.7, 62.6, 63.2, 63.3, 63.4, 62.1, 61.4, 60.9, 61.8]
    known = {row.x: row.accuracy for row in tables.made("fig3a", 128, 256).rows if row.accuracy}
    assert known == {0: 79.5, 0.5: 82.1, 1: 80.0}
    assert [row.x for row in tables.made("fig3b", 128, 256).rows if row.accuracy] == [128]


def test_tables_share_their_rows():
    """The default row of LEWEL_M is one run for four tables."""
    shared = [name for name in ALL if "lewel_m" in by_name(rows.of(asked(name=name)))]
    assert shared == ["table5", "table6", "fig3a", "fig3b"]
    names = [each.name for each in rows.of(asked(name="all"))]
    assert len(names) == len(set(names)) == 2 * 26
    assert {"moco_v2-k128-seed0", "w0.1-seed1", "width32-seed0", "lewel_b-k64-g4-seed1"} <= set(names)


def test_a_row_scales_with_the_maps_that_every_row_is_given():
    runs = by_name(rows.of(asked(name="table6", settings={"heads.num_maps": 32})))
    assert runs["moco_v2-k128"].run.heads.num_maps == 128
    assert runs["moco_v2"].run.heads.num_maps == runs["lewel_m"].run.heads.num_maps == 32
    assert runs["extra_head"].run.heads.num_groups == 32


@pytest.mark.parametrize("data", tables.BASES)
def test_what_rows_differ_in_cannot_be_set(data):
    """By any of the tables, or by the presets; but for the number of maps, and for what BYOL has and does not read."""
    recipes = [dict(plain.flat(plain.to_plain(each.run))) for each in rows.of(Asked(ALL, data, **PLACES.get(data, {})))]
    differ = {name for name in recipes[0] if len({str(recipe[name]) for recipe in recipes}) > 1}
    unread = {f"method.{name}" for name in ("queue", "split_bn", "temperature")}
    assert differ - {"seed", "out", "preset", "heads.num_maps", *unread} == set(tables.compared(data))


# ------------------------------------------------------------------------------------------------ their commands


@pytest.mark.parametrize("data", ["embedded", "imagenet100"])
def test_the_command_of_a_row_makes_its_recipe(data):
    given = ["--optim.momentum=0.8", "compile=true", "knn_k=[20, 5]", "data.max-pixels=1000", "wandb="]
    places = {"roots": ("/a place/x", "b"), "classes": "it's.txt"} if data == "imagenet100" else {}
    for each in rows.of(
        asked(name="all", data=data, seeds=(7,), settings=rows.settings_of(given), epochs=30, **places)
    ):
        words = each.train[each.train.index("train") + 1 :]
        assert train_command.parse(words) == train_command.TrainCommand(each.run, resume="auto")


def test_a_switch_is_written_as_the_command_line_has_it():
    (first, *_) = rows.of(asked(settings={"channels_last": False, "data.exif_rotate": True}, data="imagenet100",
                                roots=("r",)))  # fmt: skip
    assert {"--no-channels-last", "--data.exif-rotate"} <= set(first.train)


def test_the_lines_for_a_shell_are_what_would_be_run(tmp_path, monkeypatch, capsys):
    out = tmp_path / "it's a $place"
    monkeypatch.setattr("sys.argv", ["lewel", "ablate", "table5", "--seeds", "3", "--commands", "--out", str(out)])
    cli.main()
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    runs = rows.of(asked(out, seeds=(3,)))
    assert len(lines) == 4
    for line, each in zip(lines, runs, strict=True):
        train, evaluate = line.split(" && ")
        assert (shlex.split(train), shlex.split(evaluate)) == (each.train, each.evaluate)
    echoed = subprocess.run(["sh", "-c", f"printf '%s\\n' {lines[0].partition(' && ')[0]}"], capture_output=True)
    assert echoed.stdout.decode().splitlines() == runs[0].train
    assert not out.exists()


def test_the_lines_for_a_shell_leave_out_what_is_done(tmp_path):
    runs = rows.of(asked(tmp_path, seeds=(0,)))
    fake_rows.of(runs[0], linear=50.0)
    fake_rows.of(runs[1])
    fake_rows.of(runs[2], epochs=5)
    lines = run.commands(asked(tmp_path, seeds=(0,)))
    assert lines == [
        shlex.join(runs[1].evaluate), *(f"{shlex.join(each.train)} && {shlex.join(each.evaluate)}" for each in runs[2:])
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------------ what is done, and not


def test_a_row_is_done_when_its_last_checkpoint_is_evaluated(tmp_path):
    first, second = rows.of(asked(tmp_path))[:2]
    fake_rows.of(first)
    assert (first.trained(), first.done()) == (True, False)
    fake_rows.result(first.folder, "step-00000004", 40.0)  # of an earlier checkpoint
    fake_rows.result(first.folder, "step-00000048", 41.0, kind="linear-a")  # by another protocol
    assert not first.done()
    fake_rows.result(first.folder, "step-00000048", 42.0)
    assert first.done()
    assert first.linear()["accuracy"] == 42.0
    fake_rows.of(second, epochs=11)
    assert not second.trained()


@pytest.mark.parametrize(
    "made",
    [
        pytest.param({"settings": {"rates": [1e-6], "seeds": 1}}, id="another-grid"),
        pytest.param({"settings": {"epochs": 3}}, id="other-epochs"),
        pytest.param({"settings": {"batch_size": 64}}, id="another-batch"),
        pytest.param({"step": None, "epoch": None}, id="other-weights"),
        pytest.param({"own": False}, id="from-elsewhere"),
        pytest.param({"recipe": plain.to_plain(presets.get("embedded/lewel_m"))}, id="another-run-s"),
        pytest.param({"accuracy": float("nan")}, id="no-number"),
        pytest.param({"recipe": None}, id="no-recipe"),
    ],
)
def test_a_result_that_was_made_by_hand_is_not_the_row_s(made, tmp_path):
    """Whichever is newer: it is evaluated again, or has been."""
    (first, *_) = rows.of(asked(tmp_path))
    fake_rows.of(first)
    checkpoint = "step-00000048"
    fake_rows.result(first.folder, checkpoint, **{"accuracy": 12.0, "number": 2, "date": "2027-01-01"} | made)
    assert first.trained()
    assert not first.done()
    fake_rows.result(first.folder, checkpoint, 42.0)
    assert first.linear()["accuracy"] == results.accuracies(first)[0] == 42.0


def test_a_result_on_other_images_is_not_the_row_s(tmp_path):
    for name in ("here", "elsewhere"):
        (tmp_path / name).mkdir()
    (tmp_path / "linked").symlink_to("here")
    (first, *_) = rows.of(asked(tmp_path, data="imagenet100", roots=(str(tmp_path / "here"),), protocol="b"))
    fake_rows.of(first)
    recipe = plain.to_plain(first.run)
    for name, found in (("elsewhere", False), ("linked", True)):
        recipe["data"]["root"] = str(tmp_path / name)
        fake_rows.result(first.folder, f"step-{4 * 240:08d}", 42.0, kind="linear-b", recipe=recipe)
        assert (first.linear() is not None) == found
    recipe["data"]["eval"] = str(tmp_path / "elsewhere")
    fake_rows.result(first.folder, f"step-{4 * 240:08d}", 42.0, kind="linear-b", recipe=recipe)
    assert first.linear() is None


def test_only_a_protocol_that_keeps_a_state_is_told_to_go_on(tmp_path):
    for protocol, ending in (("cached", []), ("a", ["--resume", "auto"])):
        (first, *_) = rows.of(asked(tmp_path, protocol=protocol))
        assert first.evaluate[first.evaluate.index("--protocol") :] == ["--protocol", protocol, *ending]


def test_a_run_without_its_report_goes_on(tmp_path):
    (first, *_) = rows.of(asked(tmp_path))
    fake_rows.of(first)
    (first.folder / "report.txt").unlink()
    assert not first.trained()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        pytest.param({"epochs": 8}, "epochs: 8 -> 12", id="epochs"),
        pytest.param({"optim.lr": 0.3}, "optim.lr: 0.3 -> 0.5", id="rate"),
        pytest.param({"init": "torchvision"}, "init: torchvision -> ", id="init"),
        pytest.param({"accumulate": 2}, "accumulate: 2 -> 1", id="passes"),
        pytest.param({"knn_k": [20, 5]}, "knn_k: [20, 5] -> [200, 20]", id="neighbours"),
        pytest.param({"knn_temperature": 0.5}, "knn_temperature: 0.5 -> 0.1", id="temperature"),
        pytest.param({"knn_bank": 64}, "knn_bank: 64 -> 0", id="bank"),
        pytest.param({"precision": "bf16", "knn_every": 2, "keep": 5, "data.workers": 3}, "", id="what-makes-the-same"),
    ],
)
def test_a_folder_of_another_recipe_is_refused_before_anything_starts(changed, said, tmp_path, monkeypatch):
    runs = rows.of(asked(tmp_path))
    fake_rows.write(runs[-1].folder, runs[-1].run, 12)
    first = plain.changed(runs[0].run, changed, source="test")
    fake_rows.write(runs[0].folder, first, first.epochs)
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(at_once, "work", lambda jobs, number, tell: {})
    with pytest.raises(LewelError, match=re.escape(said)) if said else contextlib.nullcontext():
        run.ablate(asked(tmp_path), 1, lambda line: None)
    if said:
        assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_another_process_writes_to_is_refused(tmp_path):
    (first, *_) = rows.of(asked(tmp_path))
    fake_rows.of(first, epochs=2)
    (first.folder / "lock.json").write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": "", "boot": ""}))
    with pytest.raises(LewelError, match="is writing to"):
        run.ablate(asked(tmp_path), 1, lambda line: None)


def test_only_what_is_left_is_run(tmp_path, monkeypatch):
    runs = rows.of(asked(tmp_path, seeds=(0,)))
    fake_rows.of(runs[0], linear=50.0)
    fake_rows.of(runs[1])
    fake_rows.of(runs[2], epochs=5)
    given: list[Job] = []
    monkeypatch.setattr(at_once, "work", lambda jobs, number, tell: given.extend(jobs) or {})
    said: list[str] = []
    assert run.ablate(asked(tmp_path, seeds=(0,)), 1, said.append) == 0
    left = [(job.name, [(phase.what, phase.whole) for phase in job.phases]) for job in given]
    assert left == [
        ("aligned_only-seed0", [("evaluation", True)]),
        ("separate_head-seed0", [("training", False), ("evaluation", True)]),
        ("lewel_m-seed0", [("training", True), ("evaluation", True)]),
    ]
    assert said[0] == f"4 runs in {tmp_path}, of which 1 are done already"


# ------------------------------------------------------------------------------------------------ processes


def waits_for(what: Callable[[], object], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "it has not come"
        time.sleep(0.01)


def meanwhile(act: Callable[[], None]) -> None:
    """In a thread that keeps nothing from ending."""
    threading.Thread(target=act, daemon=True).start()


WAIT = (
    "import signal, time, pathlib\n"
    "def wait(what):\n"
    "    until = time.monotonic() + 60\n"
    "    while not what() and time.monotonic() < until: time.sleep(.01)\n"
)


def script(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def job(folder: Path, name: str, *texts: str, done: bool = True) -> Job:
    """A job whose phases have done what they are for, where they do it at all, once they have been started."""
    log = folder / f"{name}.log"

    def started(text: str) -> bool:
        return done and log.exists() and shlex.join(script(text)) in log.read_text()

    return Job(name, [Phase("training", script(t), functools.partial(started, t)) for t in texts], log, lambda: "x 1")


def test_a_job_that_fails_keeps_none_of_the_others_from_running(tmp_path):
    said: list[str] = []
    jobs = [
        job(tmp_path, "first", "print('wrong'); print('lewel: no room'); print(); raise SystemExit(2)", "never"),
        job(tmp_path, "second", "print(1)", "print(2)"),
        job(tmp_path, "third", "print('stopped')", done=False),  # as SIGTERM ends a run, with status 0
    ]
    assert at_once.work(jobs, 1, said.append) == {"first": "lewel: no room", "third": "stopped"}
    lines = [line for line in (tmp_path / "second.log").read_text().splitlines() if line[:1] != "$"]
    assert lines == ["1", "2"]
    assert said[0] == "first: training (1 of 3)"
    assert said[1] == "first: failed, training: lewel: no room; 2 left"
    assert said[3].startswith("second: done, x 1, in ")
    assert "; 1 left, about " in said[3]


def test_of_a_process_that_was_killed_the_signal_is_told(tmp_path):
    """As of one that took too much memory, which has no last words of its own."""
    killed = job(tmp_path, "row", "import os; print('step 3', flush=True); os.kill(os.getpid(), 9)")
    assert at_once.work([killed], 1, lambda line: None) == {"row": "step 3 (ended by SIGKILL)"}


def test_what_a_phase_has_done_for_a_later_one_is_not_done_again(tmp_path):
    made = tmp_path / "made"
    first = Phase("training", script(f"open({str(made)!r}, 'w')"), made.exists)
    second = Phase("evaluation", script("raise SystemExit(1)"), made.exists)
    assert at_once.work([Job("row", [first, second], tmp_path / "row.log")], 1, lambda line: None) == {}


def test_as_many_as_are_wanted_run_at_once(tmp_path):
    """Each of three waits until another has begun too, which of one at a time none would see."""
    text = (
        "import pathlib, time, os; here = pathlib.Path({here!r}); open(here / 'began-{n}', 'w').close()\n"
        "until = time.monotonic() + 30\n"
        "while len(list(here.glob('began-*'))) < 2 and time.monotonic() < until: time.sleep(.01)\n"
        "assert time.monotonic() < until; print(os.environ['OMP_NUM_THREADS'])"
    )
    jobs = [job(tmp_path, f"row{n}", text.format(here=str(tmp_path), n=n)) for n in range(3)]
    assert at_once.work(jobs, 2, lambda line: None) == {}


def test_processes_share_cores_and_gpus(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert at_once.environment(0, 3)["OMP_NUM_THREADS"] == "2"
    assert at_once.environment(0, 99)["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert at_once.environment(0, 3)["OMP_NUM_THREADS"] == "5"
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert "CUDA_VISIBLE_DEVICES" not in at_once.environment(0, 1)
    assert [at_once.environment(slot, 3)["CUDA_VISIBLE_DEVICES"] for slot in range(3)] == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert [at_once.environment(slot, 2)["CUDA_VISIBLE_DEVICES"] for slot in range(2)] == ["4", "6"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_passed_on_once_and_waited_for(number, tmp_path):
    text = (
        f"{WAIT}got = []\n"
        f"signal.signal({int(number)}, lambda *a: got.append(1))\n"
        f"pathlib.Path({str(tmp_path / 'ready')!r}).touch()\n"
        "wait(lambda: got)\n"
        "time.sleep(.3)\n"
        "print('saved', len(got), flush=True)"
    )
    before = signal.getsignal(number)

    def send() -> None:
        waits_for((tmp_path / "ready").exists)
        os.kill(os.getpid(), number)

    meanwhile(send)
    with pytest.raises(Stopped) as stop:
        at_once.work([job(tmp_path, "row", text, "print()"), job(tmp_path, "other", "print()")], 1, lambda line: None)
    assert stop.value.by == number.name
    assert str(stop.value) == "0 of 2 rows are done, what the others have is saved; the same command goes on"
    assert at_once.last_line(tmp_path / "row.log") == "saved 1"
    assert not (tmp_path / "other.log").exists()
    assert signal.getsignal(number) == before


def test_a_second_ctrl_c_is_passed_on_too(tmp_path):
    here = str(tmp_path)
    text = (
        f"{WAIT}got = []\n"
        f"signal.signal(signal.SIGINT, lambda *a: (got.append(1), open(f'{here}/got-{{len(got)}}', 'w')))\n"
        f"pathlib.Path('{here}', 'got-0').touch()\n"
        "wait(lambda: len(got) == 2)\n"
        "print('ended', len(got), flush=True)"
    )

    def send() -> None:
        for number in range(2):
            waits_for((tmp_path / f"got-{number}").exists)
            os.kill(os.getpid(), signal.SIGINT)

    meanwhile(send)
    with pytest.raises(Stopped, match="the same command goes on"):
        at_once.work([job(tmp_path, "row", text)], 1, lambda line: None)
    assert at_once.last_line(tmp_path / "row.log") == "ended 2"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_before_anything_has_started_ends_it_with_a_sentence(number, tmp_path, monkeypatch):
    monkeypatch.setattr(refusals, "check_places", lambda runs: os.kill(os.getpid(), number))
    monkeypatch.setattr(at_once, "work", lambda *a: pytest.fail("it has started"))
    with pytest.raises(Stopped) as stop:
        run.ablate(asked(tmp_path / "rows"), 1, lambda line: None)
    assert stop.value.by == number.name
    assert not (tmp_path / "rows").exists()


def test_ctrl_c_of_a_terminal_reaches_this_process_alone(tmp_path):
    """A second one, from the terminal, would end a run before it has saved."""
    at_once.work([job(tmp_path, "row", "import os; print(os.getsid(0), os.getpid())")], 1, lambda line: None)
    session, process = at_once.last_line(tmp_path / "row.log").split()
    assert session == process


def test_times_are_expected_from_those_of_the_same_kind():
    times = at_once.Times()
    train, resumed = (Phase("training", [], bool, whole=whole) for whole in (True, False))
    evaluate = Phase("evaluation", [], bool)
    times.add(train, 100)
    times.add(train, 200)
    times.add(resumed, 10)
    assert times.expected([train, resumed], 2) == 150
    assert times.expected([train, evaluate], 1) is None
    assert [at_once.duration(s) for s in (40, 170, 5400, 7500)] == ["40 s", "3 min", "90 min", "2 h 5 min"]


# ------------------------------------------------------------------------------------------------ the result


def reported(folder: Path, name: str = "table5", seeds: tuple[int, ...] = (0, 1, 2)) -> Asked:
    """Rows with made up accuracies: the first has three seeds, the second one, the third none, the others two."""
    every = asked(folder, name, seeds=seeds)
    order = [row.name for row in rows.of_tables(every)[name].rows]
    for each in rows.of(every):
        place = order.index(each.row.name)
        if each.seed < (3, 1, 0)[min(place, 2)] or (place > 2 and each.seed < 2):
            fake_rows.of(each, linear=50.0 + 2 * each.seed**2 + place, knn=30.0 + each.seed)
    return every


def test_a_table_has_mean_and_deviation_beside_the_papers_numbers(tmp_path):
    every = reported(tmp_path)
    said: list[str] = []
    run.report(every, said.append)
    text = (tmp_path / "table5.md").read_text()
    assert text in "\n".join(said) + "\n"
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    # 50, 52, 58: mean 53 1/3, deviations -3.33, -1.33, 4.67, of which the squares' sum 34.67, half of it 17.33.
    assert cells[2] == ["✓", "", "", "79.5", "61.6", "53.3 ± 4.2", "31.0 ± 1.0", "3"]
    assert cells[3] == ["", "✓", "", "80.0", "62.6", "51.0 ± -", "30.0 ± -", "1 of 3"]
    assert cells[4] == ["✓", "✓", "", "81.0", "62.7", "-", "-", "0 of 3"]
    assert cells[5] == ["✓", "✓", "✓", "82.1", "63.4", "54.0 ± 1.4", "30.5 ± 0.7", "2 of 3"]
    header = text.partition("|")[0]
    for part in ("Table 5", "embedded/moco_v2, embedded/lewel_m", "epochs: 12; seeds: 0 1 2", "protocol cached"):
        assert part in header
    record = json.loads((tmp_path / "table5.json").read_text())
    assert record["rows"][0]["linear"] == {
        "mean": pytest.approx(160 / 3), "std": pytest.approx(statistics.stdev([50, 52, 58])), "seeds": 3
    }  # fmt: skip
    assert record["rows"][2]["runs"] == [
        {"seed": seed, "folder": str(tmp_path / f"separate_head-seed{seed}"), "linear": None, "knn": None}
        for seed in range(3)
    ]
    assert record["rows"][3]["cells"] == {"Global": "✓", "Align.": "✓", "Coupled head": "✓"}


def test_a_run_before_its_last_epoch_has_no_numbers(tmp_path):
    (first, *_) = rows.of(asked(tmp_path))
    fake_rows.of(first, linear=50.0, epochs=11)
    assert results.accuracies(first) == (None, None)


@pytest.mark.parametrize("name", ["fig3a", "fig3b"])
def test_a_figure_is_drawn_of_what_there_is(name, tmp_path):
    (tmp_path / "none").mkdir()
    run.report(asked(tmp_path / "none", name), lambda line: None)
    run.report(reported(tmp_path, name), lambda line: None)
    pictures = [path.read_bytes() for path in (tmp_path / f"{name}.png", tmp_path / "none" / f"{name}.png")]
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
    assert len(pictures[0]) > len(pictures[1])
    assert (tmp_path / f"{name}.md").exists()


@pytest.fixture
def pictured(monkeypatch) -> list[Figure]:
    """The pictures that are drawn."""
    figures: list[Figure] = []
    monkeypatch.setattr(picture, "save", lambda figure, path: figures.append(figure))
    return figures


def lines_of(axis) -> dict[str, list[tuple[float, float]]]:
    """The points of an axis by the colour they have, those that no line joins under "apart"."""
    drawn = {}
    for line in axis.lines:
        name = "apart" if line.get_markerfacecolor() == "white" else f"{line.get_color()}{line.get_marker()}"
        drawn[name] = [(float(x), round(float(y), 3)) for x, y in line.get_xydata()]
    return drawn


def test_fig_3a_joins_only_points_of_one_recipe(pictured, tmp_path):
    """w = 0 is a preset with a rate of its own; a missing row is no point of the line; and one seed has no bar."""
    every = reported(tmp_path, "fig3a", seeds=(0, 1, 2))  # in the order of w: 3 seeds, one, none, two each
    run.report(every, lambda line: None)
    (figure,) = pictured
    linear = figure.axes[0]
    drawn = lines_of(linear)
    (means,) = (line for line in linear.lines if line.get_label().startswith("mean"))
    assert means.get_label() == "mean ± deviation, 1 to 3 seeds"
    ys = [float(y) for _, y in means.get_xydata()]
    assert [math.isnan(y) for y in ys] == [True, False, True, False, False, False, False]
    assert [x for x, y in drawn["apart"] if not math.isnan(y)] == [0.0]
    assert [x for bars in linear.collections for x in sorted({s[0][0] for s in bars.get_segments()})] == [
        0, 0.5, 0.7, 0.9, 1
    ]  # fmt: skip
    said = "w = 0 is the preset embedded/moco_v2, which has settings of its own: optim.lr 0.5, not 0.12"
    assert said in " ".join(figure.axes[1].get_xlabel().split())
    assert f"- {said}\n" in (tmp_path / "fig3a.md").read_text()
    assert json.loads((tmp_path / "fig3a.json").read_text())["notes"] == [said]


def test_presets_with_nothing_of_their_own_are_joined(pictured, tmp_path):
    """Those of cifar10 differ in w alone."""
    every = asked(tmp_path, "fig3a", data="cifar10", seeds=(0,), roots=("/x",))
    for each in rows.of(every):
        fake_rows.of(each, linear=50.0)
    run.report(every, lambda line: None)
    (means,) = (line for line in pictured[0].axes[0].lines if line.get_label() == "mean, 1 seed")
    assert not any(math.isnan(y) for _, y in means.get_xydata())
    assert not pictured[0].axes[0].collections  # no caps
    assert json.loads((tmp_path / "fig3a.json").read_text())["notes"] == []


@pytest.mark.parametrize(
    ("name", "data", "axes", "told"),
    [
        ("fig3a", "embedded", 3, "paper, ImageNet-100 (right axis)"),
        ("fig3a", "imagenet100", 2, "paper"),
        ("fig3b", "imagenet100", 2, "paper"),
        ("fig3b", "embedded", 2, "paper, ImageNet-100: 82.1 % at K (here 64); no other value is known"),
    ],
)
def test_the_papers_points_share_the_axis_of_the_same_images(name, data, axes, told, pictured, tmp_path):
    run.report(asked(tmp_path, name, data=data, roots=("/x",) * (data != "embedded")), lambda line: None)
    (figure,) = pictured
    assert len(figure.axes) == axes
    labels = [line.get_label() for axis in figure.axes for line in axis.lines]
    assert told in [*labels, *figure.axes[1].get_xlabel().split("\n")]


def test_a_row_that_fails_is_told_at_the_end_with_status_1(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(at_once, "work", lambda jobs, number, tell: {"lewel_m-seed0": "lewel: no room"})
    with pytest.raises(SystemExit) as stop:
        ablate_command.run(["table5", "--seeds", "0", "--out", str(tmp_path)])
    assert stop.value.code == 1
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"failed: lewel_m-seed0: lewel: no room (all of it in {tmp_path}/lewel_m-seed0.log)"
    )


def test_without_a_table_all_are_listed(capsys):
    ablate_command.run([])
    printed = capsys.readouterr().out
    assert all(name in printed for name in (*tables.TITLES, *tables.GROUPS, *tables.BASES))


TINY = (
    "data.embedded_train=64 data.embedded_test=32 data.batch_size=32 data.image_size=32 heads.hidden=16 "
    "heads.num_maps=16 method.queue=64 backend=reference"
)


def test_a_whole_ablation_is_interrupted_and_continued(tmp_path, monkeypatch):
    """Two rows in processes: Ctrl-C in the middle, then the same command to the end, then once more."""
    command = f"ablate table5 --seeds 0 --epochs 1 --jobs 2 --out rows --set {TINY}"
    monkeypatch.chdir(tmp_path)
    tiny = Asked(("table5",), seeds=(0,), epochs=1, out="rows", settings=rows.settings_of(TINY.split()))
    for each in rows.of(tiny)[:2]:
        fake_rows.of(each, linear=50.0)
    process = start(command, tmp_path)
    trains = tmp_path / "rows/lewel_m-seed0/log.jsonl"
    waits_for(lambda: trains.exists() or process.poll() is not None, 240)
    assert process.poll() is None, process.communicate()[0]
    process.send_signal(signal.SIGINT)
    printed = process.communicate(timeout=240)[0].decode()
    assert process.returncode == -signal.SIGINT, printed
    assert "2 rows are done, what the others have is saved; the same command goes on" in printed
    process = start(command, tmp_path)
    printed = process.communicate(timeout=240)[0].decode()
    assert process.returncode == 0, printed
    record = json.loads((tmp_path / "rows" / "table5.json").read_text())
    assert [row["linear"]["seeds"] for row in record["rows"]] == [1, 1, 1, 1], printed
    assert [row["knn"]["seeds"] for row in record["rows"]] == [1, 1, 1, 1], printed
    process = start(command, tmp_path)
    printed = process.communicate(timeout=240)[0].decode()
    assert "4 runs in rows, of which 4 are done already" in printed
    assert "training" not in printed


def test_presets_of_a_base_are_those_of_its_methods():
    for named in tables.BASES.values():
        assert {method: presets.get(name).method.name for method, name in named.items()} == {
            method: method for method in tables.METHODS
        }
