"""Runs that are killed and resumed, and checkpoints that cannot be written or used."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from full_disk import refusal
from tiny_runs import METHODS, TINY, assert_same, losses_of, run_in
from torch import nn

from lewel.recipe import plain, presets
from lewel.recipe.schema import MethodSettings, Optim, Train
from lewel.results import report
from lewel.run import checkpoint, resuming, shares
from lewel.run.session import Session, prepare
from lewel.run.shares import Shares
from lewel.train import train
from lewel.watching import log


@pytest.mark.parametrize("name", METHODS)
def test_a_resumed_run_ends_bitwise_as_the_uninterrupted_one(name, tmp_path, finished):
    run = replace(TINY, method=METHODS[name])
    whole = finished if run == TINY else run_in(tmp_path / "whole", run)
    run_in(tmp_path / "killed", run, epochs=2)
    newest = checkpoint.found(tmp_path / "killed" / "checkpoints")[-1]
    resumed = run_in(tmp_path / "killed", run, resume=newest)
    assert_same(resumed, whole)
    assert losses_of(resumed) == losses_of(whole)
    for mine, theirs in zip(resumed.optimizer.state.values(), whole.optimizer.state.values(), strict=True):
        assert torch.equal(mine["momentum_buffer"], theirs["momentum_buffer"])


def test_what_was_logged_after_the_checkpoint_is_dropped_on_resume(tmp_path, finished):
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    (folder / "checkpoints" / "step-00000009.pt").unlink()  # killed in the third epoch, whose steps are in the log
    resumed = run_in(folder, TINY, resume=folder / "checkpoints" / "step-00000006.pt")
    steps = [record["step"] for record in log.read(folder / "log.jsonl") if record["kind"] == "step"]
    assert steps == list(range(1, 10))
    assert losses_of(resumed) == losses_of(finished)


def test_a_run_continues_in_another_folder_with_its_whole_log(tmp_path, finished):
    resumed = run_in(tmp_path / "other", TINY, resume=finished.folder / "checkpoints" / "step-00000006.pt")
    assert losses_of(resumed) == losses_of(finished)
    assert_same(resumed, finished)
    assert "untrained" in report.summary(resumed)


def test_a_finished_checkpoint_without_its_run_folder_is_reported(tmp_path, finished):
    """It is evaluated anew. Nothing is known of the time before, and that is left out."""
    (tmp_path / "alone").mkdir()
    (tmp_path / "log.jsonl").write_text('{"a log": "of something else"}')
    moved = shutil.copy(finished.folder / "checkpoints" / "step-00000009.pt", tmp_path / "alone" / "best.pt")
    report.write(run_in(tmp_path / "run", TINY, resume=Path(moved)))
    text = (tmp_path / "run" / "report.txt").read_text()
    assert "after 3 epochs" in text
    assert "untrained" not in text
    assert "images/s" in text


def test_later_checkpoints_give_way_to_the_run_that_continues_from_an_earlier_one(tmp_path, finished, capsys):
    folder = tmp_path / "run"
    run_in(folder, replace(TINY, keep=3))
    later = prepare(replace(TINY, keep=1), folder)
    run_in(folder, later.run, epochs=1, resume=folder / "checkpoints" / "step-00000003.pt")
    assert [path.name for path in checkpoint.found(folder / "checkpoints")] == ["step-00000006.pt"]
    said = "; removed step-00000006.pt, which comes later; removed step-00000009.pt, which comes later"
    assert f"step-00000003.pt{said}" in capsys.readouterr().out


MOVES = {
    "the same": (TINY, 1, 1, ""),
    "more images": (
        *(
            TINY,
            4,
            1,
            "; in 1 processes of 1 passes, before in 4 of 1: batch norm sees 16 images instead of 4 images, ",
        ),
        "batch norm of keys sees 8 images instead of 4 images of all processes, ",
        "the aligned loss sees 16 images instead of 4 images",
    ),
    "passes for processes": (
        replace(TINY, accumulate=4, method=MethodSettings(loss="byol")),
        *(4, 1, "; in 1 processes of 4 passes, before in 4 of 1: batch norm sees 4 images as before"),
    ),
    "synchronised": (
        replace(TINY, accumulate=2, method=MethodSettings(loss="byol", batch_norm="sync")),
        *(2, 1, "; in 1 processes of 2 passes, before in 2 of 1: batch norm sees 8 images instead of 16 images"),
    ),
    "passes that nothing sees": (
        replace(TINY, method=MethodSettings(w_aligned=0.0)),
        *(1, 2, "; in 1 processes of 1 passes, before in 1 of 2: nothing sees more than one image"),
    ),
}


@pytest.mark.parametrize("name", MOVES)
def test_a_run_that_goes_on_in_other_processes_or_passes_says_what_changes(name):
    """Of 16 images a step, in one process now."""
    run, processes, accumulate, *sentence = MOVES[name]
    normed = name != "passes that nothing sees"
    before, now = Shares(replace(run, accumulate=accumulate), processes, normed), Shares(run, 1, normed)
    assert shares.refusal(before, now) == ""
    assert shares.said(before, now) == "".join(sentence)


@pytest.mark.parametrize(
    ("before", "now", "sentence"),
    [
        ((1, 1), (1, 8), "1 of 8: batch norm would see 2 images instead of 16 images.*the aligned loss would.*ate 1,"),
        ((8, 1), (2, 2), "2 of 2: batch norm would see 4 images instead of 2 images.*Give --accumulate 4,"),
        ((2, 1), (4, 2), "4 of 2: batch norm would see 2 images instead of 8 images.*Give --accumulate 1,"),
    ],
    ids=["one-gpu", "too-few-passes", "more-processes-and-passes"],
)
def test_passes_of_other_images_are_refused(before, now, sentence):
    """(processes, accumulate) each."""
    before, now = (Shares(replace(TINY, accumulate=passes), processes, True) for processes, passes in (before, now))
    assert re.search(sentence, shares.refusal(before, now))


def test_a_run_does_not_go_on_in_more_passes(tmp_path, finished):
    """Batch norm would see half of the images."""
    newest = finished.folder / "checkpoints" / "step-00000006.pt"
    session = prepare(replace(TINY, accumulate=2), tmp_path)
    with pytest.raises(
        checkpoint.CheckpointError, match=r"step-00000006\.pt was trained in 1 processes of 1 passes.*8 im"
    ):
        resuming.restore(newest, session)
    assert session.steps_done == 0


@pytest.mark.parametrize("optimizer", ["sgd", "lars"])
@pytest.mark.parametrize("before", [True, False], ids=["from-channels-last", "to-channels-last"])
def test_a_run_goes_on_in_another_memory_format(before, optimizer, tmp_path):
    """Rounding apart it ends as if it had had it from the start, for momenta get the format of their weights."""
    run = replace(TINY, optim=Optim(optimizer, lr=0.05, decay_all=False), epochs=2)
    whole = run_in(tmp_path / "whole", replace(run, channels_last=not before))
    run_in(tmp_path / "moved", replace(run, channels_last=before), epochs=1)
    path = tmp_path / "moved" / "checkpoints" / "step-00000003.pt"
    assert losses_of(run_in(tmp_path / "moved", whole.run, resume=path)) == pytest.approx(losses_of(whole), rel=1e-3)
    session, saved = prepare(whole.run, tmp_path / "again"), checkpoint.read(path)["optimizer"]["state"]
    resuming.restore(path, session)
    for (weight, state), theirs in zip(session.optimizer.state.items(), saved.values(), strict=True):
        for name, momentum in state.items():
            assert momentum.stride() == weight.stride()
            assert torch.equal(momentum, theirs[name])


def test_a_run_goes_on_compiled(tmp_path, monkeypatch, finished):
    compile_module = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda module: compile_module(module, backend="aot_eager"))
    newest = finished.folder / "checkpoints" / "step-00000006.pt"
    compiled = run_in(tmp_path, replace(TINY, compile=True), resume=newest)
    assert losses_of(compiled) == pytest.approx(losses_of(finished), rel=1e-3)


class TestEpochs:
    """A run may grow where the steps it has taken are those of the longer run."""

    CONSTANT = replace(TINY, optim=replace(TINY.optim, schedule="constant"))

    def test_of_a_run_without_a_schedule_may_become_more(self, tmp_path):
        short = replace(self.CONSTANT, epochs=2)
        run_in(tmp_path / "grown", short)
        grown = run_in(
            tmp_path / "grown", self.CONSTANT, resume=tmp_path / "grown" / "checkpoints" / "step-00000006.pt"
        )
        whole = run_in(tmp_path / "whole", self.CONSTANT)
        assert_same(grown, whole)
        assert losses_of(grown) == losses_of(whole)
        assert presets.load(tmp_path / "grown" / "config.yaml").epochs == 3

    def test_of_a_run_that_is_warming_up_may_become_others(self, tmp_path):
        """Its first epoch is the same of any cosine that begins after it."""
        run_in(tmp_path / "grown", replace(TINY, epochs=2), epochs=1)
        grown = run_in(tmp_path / "grown", TINY, resume=tmp_path / "grown" / "checkpoints" / "step-00000003.pt")
        assert_same(grown, run_in(tmp_path / "whole", TINY))

    @pytest.mark.parametrize("epochs", [2, 4], ids=["fewer", "more"])
    @pytest.mark.parametrize(
        "schedules",
        [
            pytest.param(("cosine", "constant"), id="rate"),
            pytest.param(("constant", "cosine"), id="momentum"),
        ],
    )
    def test_that_a_schedule_depends_on_are_refused(self, schedules, epochs, finished, tmp_path):
        rate, momentum = schedules
        run = replace(
            TINY,
            optim=replace(TINY.optim, schedule=rate),
            method=replace(TINY.method, momentum_schedule=momentum),
        )
        path = tmp_path / "step-00000006.pt"
        state = torch.load(finished.folder / "checkpoints" / path.name)
        torch.save(state | {"config": plain.to_plain(run)}, path)
        session = prepare(replace(run, epochs=epochs), tmp_path)
        with pytest.raises(checkpoint.CheckpointError, match=rf"epochs: 3 -> {epochs}.*--optim\.schedule constant"):
            resuming.restore(path, session)

    def test_that_are_over_already_are_refused(self, finished, tmp_path):
        path = finished.folder / "checkpoints" / "step-00000006.pt"
        session = prepare(replace(TINY, epochs=1), tmp_path)
        with pytest.raises(checkpoint.CheckpointError, match=r"has been trained for 2 epochs, .* more than --epochs 1"):
            resuming.restore(path, session)


def test_a_run_that_starts_in_the_folder_of_another_starts_its_log(tmp_path):
    (tmp_path / "log.jsonl").write_text(json.dumps({"kind": "baselines", "step": 0, "knn_pixels": 0}) + "\n")
    run_in(tmp_path, TINY, epochs=1)
    assert [record["kind"] for record in log.read(tmp_path / "log.jsonl")].count("baselines") == 1


class TestUnusableCheckpoint:
    """A sentence, the previous checkpoint offered, and nothing overwritten."""

    @pytest.fixture
    def folder(self, tmp_path, finished) -> Path:
        shutil.copytree(finished.folder, tmp_path / "run")
        return tmp_path / "run"

    def refused(self, folder: Path, path: Path, run: Train = TINY) -> str:
        before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        with pytest.raises(checkpoint.CheckpointError) as error:
            train(prepare(run, folder), path)
        assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before
        return str(error.value)

    @pytest.mark.parametrize("share", [0.0, 0.3, 0.999], ids=["empty", "a-third", "almost-whole"])
    def test_truncated(self, folder, share):
        path = folder / "checkpoints" / "step-00000009.pt"
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
        message = self.refused(folder, path)
        assert "step-00000009.pt is truncated or no checkpoint at all" in message
        assert f"--resume {folder / 'checkpoints' / 'step-00000006.pt'}" in message

    @pytest.mark.parametrize("text", ["test\n", "state\n", "\x80\x02."], ids=["pops", "stores", "empty-pickle"])
    def test_any_other_file(self, folder, text):
        """The unpickler takes letters for instructions, and fails at each in its own way."""
        path = folder / "checkpoints" / "step-00000012.pt"
        path.write_text(text, encoding="latin-1")
        assert "truncated or no checkpoint at all" in self.refused(folder, path)

    @pytest.mark.parametrize(
        ("content", "sentence"),
        [
            pytest.param(None, "is truncated or no checkpoint at all", id="text"),
            pytest.param({"weight": torch.ones(2)}, "was not written by this version of lewel train", id="state_dict"),
            pytest.param(torch.ones(2), "was not written by this version of lewel train", id="tensor"),
            pytest.param(
                {"format": "lewel checkpoint 2"}, "was not written by this version of lewel", id="earlier-format"
            ),
            pytest.param(Path, "is truncated or no checkpoint at all", id="code"),
        ],
    )
    def test_foreign(self, folder, content, sentence):
        path = folder / "checkpoints" / "step-00000012.pt"
        if content is None:
            path.write_text(json.dumps({"not": "a checkpoint"}))
        else:
            torch.save(content, path)
        message = self.refused(folder, path)
        assert f"{path} {sentence}" in message
        assert "step-00000009.pt" in message

    def test_missing(self, folder):
        assert "there is no checkpoint" in self.refused(folder, folder / "checkpoints" / "step-00000021.pt")

    def test_of_another_method(self, folder):
        byol = replace(TINY, method=METHODS["lewel_b-eman"])
        message = self.refused(folder, folder / "checkpoints" / "step-00000009.pt", byol)
        assert "holds lewel_m but this run is lewel_b" in message

    def test_of_another_recipe(self, folder):
        message = self.refused(folder, folder / "checkpoints" / "step-00000009.pt", replace(TINY, epochs=5))
        assert "epochs: 3 -> 5" in message
        message = self.refused(folder, folder / "checkpoints" / "step-00000009.pt", replace(TINY, optim=Optim(lr=0.4)))
        assert "optim.lr: 0.5 -> 0.4" in message

    @pytest.mark.parametrize("seed_or_precision", [{"seed": 1}, {"precision": "bf16"}], ids=["seed", "precision"])
    def test_of_another_seed_or_precision(self, folder, seed_or_precision):
        run = replace(TINY, **seed_or_precision)
        ((key, value),) = seed_or_precision.items()
        message = self.refused(folder, folder / "checkpoints" / "step-00000009.pt", run)
        assert f"{key}: {getattr(TINY, key)} -> {value}" in message

    def test_of_anything_that_the_next_step_would_depend_on(self):
        """What may change is where things are, how often is said something, and who computes; nothing else.

        But for the number of epochs, see TestEpochs.
        """
        free = {"preset", "out", "keep", "keep_every", "save_every", "log_every", "wandb", "backend", "epochs"}
        free |= {"knn_every", "knn_k", "knn_temperature", "knn_bank", "probe", "linear_at_end"}
        free |= {"data.root", "data.download", "data.workers"}
        free |= {"init", "accumulate", "compile", "channels_last", "data.eval", "data.max_unreadable"}
        keys = [change.split(":")[0] for change in plain.differences(TINY, different(TINY))]
        assert len(keys) == len(list(plain.flat(plain.to_plain(TINY))))
        changes = plain.differences(TINY, different(TINY), ignore=resuming.FREE_TO_CHANGE)
        assert [change.split(":")[0] for change in changes] == [key for key in keys if key not in free]

    def test_of_other_data(self, folder, monkeypatch):
        """One image more is no step more, but another order."""
        session, path = prepare(TINY, folder), folder / "checkpoints" / "step-00000009.pt"
        monkeypatch.setattr(type(session.sets.train), "__len__", lambda views: 49)
        with pytest.raises(checkpoint.CheckpointError, match="was trained on 48 images but there are 49 now"):
            train(session, path)

    @pytest.mark.parametrize("key", checkpoint.KEYS)
    def test_incomplete(self, folder, key):
        path = folder / "checkpoints" / "step-00000009.pt"
        state = torch.load(path)
        del state[key]
        torch.save(state, path)
        with pytest.raises(
            checkpoint.CheckpointError, match=rf"step-00000009\.pt is incomplete .it lacks {key}.*-00000006\.pt"
        ):
            checkpoint.read(path)

    def test_of_other_weights(self, folder):
        path = folder / "checkpoints" / "step-00000009.pt"
        state = torch.load(path)
        del state["method"]["online.encoder.bn1.weight"]
        torch.save(state, path)
        assert "the weights in" in self.refused(folder, path)


def different(schema: Any) -> Any:
    """A recipe that differs in every setting; it need not make sense."""
    if dataclasses.is_dataclass(schema):
        fields = {field.name: getattr(schema, field.name) for field in dataclasses.fields(schema)}
        return replace(schema, **{name: different(value) for name, value in fields.items()})
    return not schema if isinstance(schema, bool) else [schema] if schema is None else schema * 2 or 1


class TestSave:
    @pytest.fixture
    def folder(self, tmp_path, finished) -> Path:
        shutil.copytree(finished.folder / "checkpoints", tmp_path / "checkpoints")
        return tmp_path / "checkpoints"

    @staticmethod
    def save(folder: Path, session: Session) -> Path:
        """As after three more steps."""
        return checkpoint.save(replace(session, folder=folder.parent, steps_done=12))

    @pytest.mark.parametrize("room", [0, 100, 200_000], ids=["nothing-fits", "a-beginning-fits", "much-fits"])
    def test_a_full_disk_is_a_sentence_and_leaves_the_last_good_file(self, room, folder, finished):
        before = {path: path.read_bytes() for path in folder.iterdir()}
        sentence = refusal(lambda: self.save(folder, finished), room)
        assert sentence.startswith(f"could not write {folder}/step-00000012.pt: ")
        assert f"--resume {folder}/step-00000009.pt" in sentence
        assert {path: path.read_bytes() for path in folder.iterdir()} == before

    def test_what_torch_does_not_say_of_a_full_disk_or_quota_is_said(self, folder, finished, monkeypatch):
        """As its writer of archives does where a write to the file raises."""

        def fail(state, file):
            monkeypatch.setattr(file, "file", SimpleNamespace(write=refuse), raising=False)
            with contextlib.suppress(OSError):
                file.write(b"half")
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")

        def refuse(content):
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

        monkeypatch.setattr(torch, "save", fail)
        with pytest.raises(checkpoint.CheckpointError, match=r"could not write .*: Disk quota exceeded;"):
            self.save(folder, finished)

    @pytest.mark.parametrize(("key", "value"), [("step", "9"), ("step", -5), ("config", None), ("processes", "2")])
    def test_a_checkpoint_with_odd_values_is_damaged(self, key, value, folder):
        path = folder / "step-00000009.pt"
        torch.save(torch.load(path) | {key: value}, path)
        with pytest.raises(checkpoint.CheckpointError, match=rf"is damaged \({key} cannot be {value!r}\)"):
            checkpoint.read(path)

    @pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
    def test_nothing_half_written_stays_or_has_the_name(self, folder, finished, error, monkeypatch):
        def stop(state, file):
            file.write(b"half")
            raise error

        before = {path: path.read_bytes() for path in folder.iterdir()}
        monkeypatch.setattr(torch, "save", stop)
        with pytest.raises(error):
            self.save(folder, finished)
        assert {path: path.read_bytes() for path in folder.iterdir()} == before

    @pytest.mark.parametrize(
        ("keep", "every", "left"),
        [(1, 0, [12]), (1, 2, [6, 12]), (2, 3, [9, 12]), (1, 4, [12]), (1, 1, [3, 6, 9, 12])],
    )
    def test_milestones_are_kept_beside_the_newest(self, keep, every, left, folder, finished):
        """Three steps are an epoch; a file of step 7, within one, is no milestone."""
        for step in (3, 7):
            shutil.copy(folder / "step-00000009.pt", folder / checkpoint.name_of(step))
        self.save(folder, replace(finished, run=replace(TINY, keep=keep, keep_every=every)))
        assert checkpoint.found(folder) == [folder / checkpoint.name_of(step) for step in left]

    def test_what_a_killed_process_left_is_removed(self, folder, finished):
        (folder / ".step-00000012.pt.123").write_bytes(b"half")
        self.save(folder, finished)
        assert [path.name for path in sorted(folder.iterdir())] == ["step-00000009.pt", "step-00000012.pt"]

    def test_a_file_is_on_the_disk_before_it_has_its_name(self, folder, finished, monkeypatch):
        """A machine that goes down between the two would else leave a name over nothing."""
        done: list[tuple[str, int]] = []
        fsync, rename = os.fsync, os.replace
        monkeypatch.setattr(os, "fsync", lambda file: done.append(("fsync", os.fstat(file).st_size)) or fsync(file))
        monkeypatch.setattr(
            os, "replace", lambda old, new: done.append(("rename", os.stat(old).st_size)) or rename(old, new)
        )
        size = self.save(folder, finished).stat().st_size
        assert done == [("fsync", size), ("rename", size)]

    def test_a_file_has_its_name_only_when_it_is_whole(self, folder, finished, monkeypatch):
        def look(state, file):
            assert not (folder / "step-00000012.pt").exists()
            save(state, file)

        save = torch.save
        monkeypatch.setattr(torch, "save", look)
        assert checkpoint.read(self.save(folder, finished))["epoch"] == 4
