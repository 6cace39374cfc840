"""Which folder a run is written to, and what it continues from."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_runs import TINY

from lewel.errors import LewelError
from lewel.run import folders


class TestRunFolder:
    """Which folder a command writes to, and what it continues from."""

    run = replace(TINY, preset="embedded/lewel_m")

    @pytest.fixture(autouse=True)
    def _in_an_empty_folder(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)

    @staticmethod
    def hold_a_run(name: str, *checkpoints: str) -> Path:
        folder = Path("runs", name)
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "config.yaml").touch()
        for checkpoint_name in checkpoints:
            (folder / "checkpoints" / checkpoint_name).touch()
        return folder

    def test_named_after_the_preset(self):
        assert folders.choose(self.run, "") == (Path("runs/embedded-lewel_m"), None)
        assert folders.choose(self.run, "auto") == (Path("runs/embedded-lewel_m"), None)

    def test_numbered_where_taken(self):
        self.hold_a_run("embedded-lewel_m")
        assert folders.choose(self.run, "") == (Path("runs/embedded-lewel_m-2"), None)
        self.hold_a_run("embedded-lewel_m-2")
        assert folders.choose(self.run, "") == (Path("runs/embedded-lewel_m-3"), None)
        for name in ("embedded-lewel_m-10", "embedded-lewel_m-9", "embedded-lewel_m-notes", "embedded-lewel_mini-99"):
            self.hold_a_run(name)
            assert folders.choose(self.run, "auto") == (Path("runs/embedded-lewel_m-10"), None)
        assert folders.choose(self.run, "") == (Path("runs/embedded-lewel_m-11"), None)

    def test_auto_takes_the_newest_checkpoint_of_the_newest_folder(self):
        self.hold_a_run("embedded-lewel_m", "step-00000027.pt")
        folder = self.hold_a_run("embedded-lewel_m-2", "step-00000003.pt", "step-00000006.pt")
        assert folders.choose(self.run, "auto") == (folder, folder / "checkpoints" / "step-00000006.pt")

    def test_a_chosen_folder_that_holds_a_run_is_refused(self):
        folder = self.hold_a_run("mine")
        with pytest.raises(LewelError, match="holds a run already; continue it with --resume auto"):
            folders.choose(replace(self.run, out=str(folder)), "")

    def test_a_checkpoint_continues_in_its_run_folder_whatever_the_working_folder(self, tmp_path, monkeypatch):
        path = tmp_path / self.hold_a_run("mine", "step-00000003.pt") / "checkpoints" / "step-00000003.pt"
        for start, given in ((tmp_path, "runs/mine/checkpoints/step-00000003.pt"), (path.parent, "step-00000003.pt")):
            monkeypatch.chdir(start)
            assert folders.choose(self.run, given) == (tmp_path / "runs" / "mine", path)

    def test_a_checkpoint_outside_a_run_needs_a_folder(self, tmp_path):
        (tmp_path / "best.pt").touch()
        with pytest.raises(LewelError, match=r"best\.pt lies in no run folder's checkpoints/, so --out must say"):
            folders.choose(self.run, "best.pt")
        out = str(tmp_path / "on")
        assert folders.choose(replace(self.run, out=out), "best.pt") == (tmp_path / "on", tmp_path / "best.pt")

    def test_another_run_is_not_continued_over(self):
        path = self.hold_a_run("mine", "step-00000003.pt") / "checkpoints" / "step-00000003.pt"
        other = self.hold_a_run("other")
        with pytest.raises(LewelError, match="other holds another run already"):
            folders.choose(replace(self.run, out=str(other)), str(path))
        assert folders.choose(replace(self.run, out="runs/mine"), str(path)) == (
            Path("runs/mine").resolve(),
            path.resolve(),
        )


@pytest.mark.parametrize(
    ("kind", "sentence"), [("link", "is a link to .*nowhere, which is not there"), ("file", "is no folder")]
)
def test_checkpoints_that_cannot_be_written_are_told_of_before_anything_is(kind, sentence, tmp_path):
    there = tmp_path / "run" / "checkpoints"
    there.parent.mkdir()
    there.symlink_to(tmp_path / "nowhere") if kind == "link" else there.touch()
    with contextlib.ExitStack() as claims, pytest.raises(LewelError, match=sentence):
        folders.claim(replace(TINY, out=str(there.parent)), "", claims)
    assert list(there.parent.iterdir()) == [there]
