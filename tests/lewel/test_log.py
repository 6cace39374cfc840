"""What a run says about its speed, and what is kept of a log."""

from __future__ import annotations

import json
import math
import os
import time
from types import SimpleNamespace
from typing import ClassVar

import pytest

from lewel.errors import LewelError
from lewel.recipe.schema import Train
from lewel.watching import clock, log, progress


def test_images_per_second_and_the_share_of_waiting(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(clock.time, "monotonic", lambda: now[0])

    def batches():
        for _ in range(3):
            now[0] += 1  # a second to make a batch
            yield object()

    taken = clock.Clock(batch_size=16)
    for _ in taken.waiting(batches()):
        now[0] += 3  # and three to train on it
    assert taken.lap() == pytest.approx({"images_per_s": 3 * 16 / 12, "data_wait": 0.25})
    now[0] += 5
    assert taken.lap() == {"images_per_s": 0, "data_wait": 0}  # a lap starts anew


def test_records_up_to_the_step_are_kept_and_a_cut_off_line_is_not(tmp_path):
    path = tmp_path / "log.jsonl"
    lines = [json.dumps({"kind": "step", "step": step}) for step in (1, 2, 3)]
    path.write_text("\n".join(lines) + '\n{"kind": "st')
    assert [record["step"] for record in log.read(path)] == [1, 2, 3]
    log.RunLog(path, total_steps=9, first_step=2).close()
    assert path.read_text().splitlines() == lines[:2]
    for _ in range(2):
        log.RunLog(path, total_steps=9, first_step=0).close()
        assert path.read_text() == ""
    assert path.with_name("log.jsonl.before").read_text().splitlines() == lines[:2]
    assert len(list(tmp_path.glob("log*"))) == 2  # a log without steps is begun anew itself


def test_a_log_is_carried_into_another_folder_and_not_over_itself(tmp_path):
    old, new = tmp_path / "old.jsonl", tmp_path / "new.jsonl"
    log.carry_over(old, new)
    assert not new.exists()
    old.write_text("line")
    log.carry_over(old, new)
    log.carry_over(old, old)
    assert (old.read_text(), new.read_text()) == ("line", "line")


STEP = {"step": 1, "loss": 0.5, "lr": 0.1, "momentum": 0.99, "z_std": 0.9, "images_per_s": 10.0}


def test_a_quiet_log_does_nothing_at_all(tmp_path, monkeypatch, capsys):
    """It is of a process beside the one that logs."""
    monkeypatch.setattr(log, "boards", None)
    monkeypatch.setattr(log, "SECONDS_BETWEEN_LINES", -1)
    monkeypatch.setattr(log.sys.stderr, "isatty", lambda: True, raising=False)
    quiet = log.RunLog(tmp_path / "log.jsonl", total_steps=9, first_step=2, run=Train(wandb="project"), quiet=True)
    quiet.advance()
    quiet.step(STEP)
    quiet.record("epoch", {"step": 1}, "a line")
    quiet.say("a line")
    quiet.close()
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr() == ("", "")


def test_every_record_goes_to_the_log_and_to_the_boards(tmp_path, monkeypatch):
    class Board:
        seen: ClassVar[list] = []

        def write(self, kind, values):
            self.seen.append((kind, values))

        def close(self):
            self.seen.append("closed")

    monkeypatch.setattr(log, "boards", lambda folder, **_: [Board()])
    run_log = log.RunLog(tmp_path / "log.jsonl", total_steps=9, first_step=0)
    run_log.step(STEP)
    run_log.record("epoch", {"step": 1, "knn": 30.0}, "a line")
    run_log.close()
    assert Board.seen == [("step", STEP), ("epoch", {"step": 1, "knn": 30.0}), "closed"]
    assert log.read(tmp_path / "log.jsonl") == [{"kind": "step", **STEP}, {"kind": "epoch", "step": 1, "knn": 30.0}]


def test_plain_lines_tell_the_important_part_and_replaced_images(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(log, "SECONDS_BETWEEN_LINES", -1)
    run_log = log.RunLog(tmp_path / "log.jsonl", total_steps=9, first_step=0)
    run_log.step(STEP)
    run_log.step({**STEP, "replaced": 2})
    run_log.close()
    line = "step 1  loss 0.5  lr 0.1  z_std 0.9  images_per_s 10"
    assert capsys.readouterr().out.splitlines() == [line, line + "  replaced 2"]


def test_a_number_that_is_none_is_null_in_the_file_and_nan_when_it_is_read(tmp_path):
    """As of a step that fp16 overflowed in; strict readers of JSON refuse NaN and Infinity."""

    def refuse(constant):
        raise ValueError(constant)

    run_log = log.RunLog(tmp_path / "log.jsonl", total_steps=9, first_step=0)
    run_log.step({**STEP, "loss": math.inf, "z_std": math.nan, "scale": 0.5})
    run_log.close()
    (line,) = (tmp_path / "log.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=refuse) == {
        "kind": "step",
        **STEP,
        "loss": None,
        "z_std": None,
        "scale": 0.5,
    }
    (record,) = log.read(tmp_path / "log.jsonl")
    assert [key for key, value in record.items() if value != value] == ["loss", "z_std"]


def test_a_log_with_nan_of_an_earlier_version_is_read_and_rewritten_without(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"kind": "step", "step": 1, "loss": NaN}\n{"kind": "step", "step": 2, "loss": Infinity}\n')
    assert [math.isfinite(record["loss"]) for record in log.read(path)] == [False, False]
    log.RunLog(path, total_steps=9, first_step=2).close()
    assert [json.loads(line)["loss"] for line in path.read_text().splitlines()] == [None, None]


class TestProgress:
    @pytest.fixture
    def clock(self, monkeypatch):
        now = SimpleNamespace(seconds=0.0)
        monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now.seconds))
        return now

    @pytest.mark.parametrize(("each", "lines"), [(1, 0), (4, 2), (20, 9)])
    def test_is_told_every_fifteen_seconds_at_most(self, clock, each, lines):
        said = []
        tell = progress.Progress(said.append, bar=False)
        for what in ("pixels", "features"):
            for done in range(10):
                tell(what, 100 * done, 1000)
                clock.seconds += each
        assert len(said) == 2 * lines
        if lines:
            assert said[-1] == f"features: {900 if lines == 9 else 800} of 1,000 images"

    def test_of_what_is_short_there_is_no_bar(self, capsys):
        tell = progress.Progress(print, bar=True)
        for done in range(5):
            tell("pixels", done, 4)
        assert capsys.readouterr() == ("", "")

    def test_of_what_is_long_there_is_a_bar(self, capsys, monkeypatch):
        monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0)
        tell = progress.Progress(print, bar=True)
        for done in range(3):
            tell("pixels", done, 4)
            time.sleep(0.11)
        assert "pixels:  50%" in capsys.readouterr().err


def test_a_full_disk_is_a_sentence_and_the_log_closes(tmp_path):
    path = tmp_path / "log.jsonl"
    path.symlink_to("/dev/full")
    lines = log.Lines(path, 0, print)
    with pytest.raises(LewelError, match=r"cannot write .*log\.jsonl: No space left on device"):
        lines.write("step", STEP)
    lines.close()


def test_a_board_that_fails_is_left_alone_and_said_to_be_once(tmp_path, monkeypatch, capsys):
    class Board:
        def write(self, kind, values):
            raise OSError("the network is gone")

        def close(self):
            raise AssertionError

    monkeypatch.setattr(log, "boards", lambda *arguments, **named: [Board()])
    run_log = log.RunLog(tmp_path / "log.jsonl", total_steps=9, first_step=0)
    run_log.step(STEP)
    run_log.step({**STEP, "step": 2})
    run_log.close()
    assert capsys.readouterr().out == "Board fails (the network is gone); the run goes on without it\n"
    assert [record["step"] for record in log.read(tmp_path / "log.jsonl")] == [1, 2]


def test_a_log_that_an_editor_has_replaced_goes_on_in_the_new_file(tmp_path):
    path = tmp_path / "log.jsonl"
    lines = log.Lines(path, 0, print)
    lines.write("step", STEP)
    other = tmp_path / "edited"
    other.write_text(path.read_text())
    other.replace(path)
    lines.write("step", {**STEP, "step": 2})
    lines.close()
    assert [record["step"] for record in log.read(path)] == [1, 2]


def test_a_log_that_was_removed_alone_begins_anew_which_is_said_once(tmp_path, capsys):
    path = tmp_path / "log.jsonl"
    lines = log.Lines(path, 0, print)
    path.unlink()
    for step in (1, 2):
        lines.write("step", {**STEP, "step": step})
    lines.close()
    assert [record["step"] for record in log.read(path)] == [1, 2]
    assert capsys.readouterr().out == f"{path} was removed; the run goes on, and begins it anew\n"


@pytest.mark.parametrize("made_again", [False, True])
def test_a_log_whose_folder_is_gone_or_a_pipe_is_a_sentence(made_again, tmp_path):
    path = tmp_path / "run" / "log.jsonl"
    path.parent.mkdir()
    lines = log.Lines(path, 0, print)
    path.parent.rename(tmp_path / "renamed")
    if made_again:
        path.parent.mkdir()
    with pytest.raises(LewelError, match=r"log\.jsonl is gone, as where the run folder was deleted or renamed"):
        lines.write("step", STEP)
    lines.close()
    path.parent.mkdir(exist_ok=True)
    os.mkfifo(path)
    with pytest.raises(LewelError, match=r"log\.jsonl is a pipe"):
        log.Lines(path, 3, print)
