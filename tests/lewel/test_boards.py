"""TensorBoard by reading its files back; Weights & Biases by a stand-in that records what it is told."""

from __future__ import annotations

import errno
import os
import sys
from dataclasses import replace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer
from tensorboard.summary.writer.record_writer import RecordWriter
from tiny_runs import TINY, run_in

from lewel import start
from lewel.commands import train as command
from lewel.errors import LewelError
from lewel.recipe.schema import Train
from lewel.watching import log

STAND_IN = """
class Error(Exception):
    pass

inits, sent, last, broken = [], {}, {}, ""

class Run:
    def __init__(self, id):
        self.id, self.step = id, last.get(id, -1) + 1

    def log(self, values, step):
        assert step >= self.step
        self.step = last[self.id] = step
        sent.setdefault(self.id, []).append((step, values))

    def finish(self):
        sent[self.id].append("finished")

def init(**settings):
    if broken:
        raise Error(broken)
    inits.append(settings)
    return Run(settings["id"] or f"id-{len(inits)}")
"""


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "wandb.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    import wandb

    yield wandb
    del sys.modules["wandb"]


@pytest.fixture
def no_tensorboard(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)


def events(folder) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a folder: steps and values by name."""
    shown = EventAccumulator(str(folder)).Reload()
    return {tag: [(event.step, event.value) for event in shown.Scalars(tag)] for tag in shown.Tags()["scalars"]}


def write(folder, first_step: int, steps: range, loss: float, run: Train | None = None) -> log.RunLog:
    """Logs steps as a run that was killed after the last of them: nothing is closed while the log is held."""
    run_log = log.RunLog(folder / "log.jsonl", total_steps=9, first_step=first_step, run=run)
    for step in steps:
        shown = {"lr": 0.1, "z_std": 0.9, "images_per_s": 10.0}
        run_log.step({"step": step, "loss": loss, **shown})
    return run_log


class TestTensorBoard:
    @pytest.fixture(autouse=True)
    def few_files(self, monkeypatch):
        """TensorBoard reads files by name, which ends in their number within this process: 10 would come before 9."""
        monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))

    def test_shows_every_number_of_the_log_by_kind_and_name(self, finished):
        shown, records = events(finished.folder), log.read(finished.folder / "log.jsonl")
        expected: dict[str, list] = {}
        for record in records:
            for name in set(record) - {"kind", "step"}:
                expected.setdefault(f"{record['kind']}/{name}", []).append((record["step"], record[name]))
        assert set(shown) == set(expected)
        assert {"step/loss", "step/peak_memory_mib", "epoch/knn", "baselines/knn_pixels"} < set(shown)
        assert {"epoch/probe", "epoch/rankme", "baselines/rankme_untrained"} < set(shown)
        for name, pairs in expected.items():
            assert [step for step, _ in shown[name]] == [step for step, _ in pairs]
            assert [value for _, value in shown[name]] == pytest.approx([value for _, value in pairs])

    def test_shows_what_a_killed_run_wrote(self, tmp_path):
        held = write(tmp_path, 0, range(1, 4), loss=1.0)
        (path,) = tmp_path.glob("events.out.tfevents.*")
        at_once = path.stat().st_size
        held.close()
        assert path.stat().st_size == at_once
        assert events(tmp_path)["step/loss"] == [(1, 1), (2, 1), (3, 1)]

    @pytest.mark.parametrize("before", [0, 2])
    def test_a_full_disk_leaves_it_out_which_is_said_once(self, before, tmp_path, monkeypatch, capfd):
        flush, left = RecordWriter.flush, [before]

        def full(writer):
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            flush(writer)

        monkeypatch.setattr(RecordWriter, "flush", full)
        write(tmp_path, 0, range(1, 6), loss=1.0).close()
        said = "".join(capfd.readouterr())
        assert said.count("\n") == 1
        assert "No space left on device" in said
        assert said.endswith("the run goes on without it\n")
        assert len(log.read(tmp_path / "log.jsonl")) == 5

    def test_hides_what_a_resumed_run_does_again(self, tmp_path):
        write(tmp_path, 0, range(1, 6), loss=1.0)
        write(tmp_path, 3, range(4, 7), loss=2.0)
        expected = [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (6, 2)]
        assert events(tmp_path)["step/loss"] == expected
        assert [(record["step"], record["loss"]) for record in log.read(tmp_path / "log.jsonl")] == expected

    def test_hides_all_of_a_run_that_starts_anew(self, tmp_path):
        write(tmp_path, 0, range(5), loss=1.0)
        write(tmp_path, 0, range(2), loss=2.0)
        assert events(tmp_path)["step/loss"] == [(0, 2), (1, 2)]

    def test_is_done_without_where_it_is_not_installed(self, tmp_path, no_tensorboard):
        write(tmp_path, 0, range(1, 3), loss=1.0)
        assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


@pytest.mark.usefixtures("no_tensorboard")
class TestWeightsAndBiases:
    run = Train(wandb="my-project")

    def test_gets_the_recipe_and_every_number(self, tmp_path, wandb):
        folder = tmp_path / "mine"
        folder.mkdir()
        run_log = log.RunLog(folder / "log.jsonl", total_steps=9, first_step=0, run=self.run)
        run_log.record("baselines", {"step": 0, "knn_pixels": 20.0}, "a line")
        run_log.record("epoch", {"step": 9, "knn": 30.0}, "a line")
        run_log.record("warning", {"step": 9, "z_std": 0.01}, "a line")
        run_log.close()
        start = wandb.inits[0]
        assert (start["project"], start["name"], start["resume"]) == ("my-project", "mine", "allow")
        assert (start["dir"], start["config"]["optim"]["lr"]) == (folder, self.run.optim.lr)
        epoch, warning = (9, {"epoch/knn": 30.0}), (9, {"warning/z_std": 0.01})
        assert wandb.sent == {"id-1": [(0, {"baselines/knn_pixels": 20.0}), epoch, warning, "finished"]}

    def test_goes_on_in_the_same_place_where_it_stopped(self, tmp_path, wandb):
        write(tmp_path, 0, range(1, 6), 1.0, self.run)
        write(tmp_path, 3, range(4, 8), 1.0, self.run)
        assert wandb.inits[1]["id"] == "id-1"
        assert [step for step, _ in wandb.sent["id-1"]] == [1, 2, 3, 4, 5, 6, 7]

    def test_begins_another_place_for_a_run_that_starts_anew(self, tmp_path, wandb):
        write(tmp_path, 0, range(1, 3), 1.0, self.run)
        write(tmp_path, 0, range(1, 3), 1.0, self.run)
        write(tmp_path, 2, range(3, 4), 1.0, self.run)
        assert [start["id"] for start in wandb.inits] == [None, None, "id-2"]

    def test_is_not_asked_without_a_project(self, tmp_path, wandb):
        write(tmp_path, 0, range(1, 3), 1.0, Train())
        assert not wandb.inits

    def test_a_whole_run_is_logged(self, tmp_path, wandb):
        run_in(tmp_path, replace(TINY, epochs=1, wandb="my-project"))
        *records, last = wandb.sent["id-1"]
        assert [step for step, _ in records] == [0, 1, 2, 3, 3]
        assert last == "finished"

    def test_that_does_not_start_is_a_sentence(self, tmp_path, wandb, monkeypatch):
        monkeypatch.setattr(wandb, "broken", "no API key.")
        with pytest.raises(LewelError, match="does not start: no API key; WANDB_MODE=offline"):
            run_in(tmp_path, replace(TINY, wandb="my-project"))
        assert not (tmp_path / "config.yaml").exists()  # so the folder does not count as a run

    @pytest.mark.parametrize("folder", [False, True], ids=["nothing", "a folder of its runs"])
    def test_that_is_missing_is_a_sentence_before_anything_is_read(self, folder, tmp_path, monkeypatch):
        """wandb leaves a folder wandb/ behind, which Python would import as a package without content."""
        monkeypatch.chdir(tmp_path)
        if folder:
            (tmp_path / "wandb").mkdir()
            monkeypatch.setattr(sys, "path", [str(tmp_path)])
        else:
            monkeypatch.setitem(sys.modules, "wandb", None)
        monkeypatch.setattr(start, "prepare", None)
        with pytest.raises(
            LewelError, match=r"wandb is 'my-project' but .* not installed; pip install \"lewel\[wandb\]"
        ):
            command.run(["--wandb", "my-project"])
