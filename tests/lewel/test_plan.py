"""The dry run: everything is said, nothing is done."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_runs import TINY

import lewel_kernels
from lewel import cli, data
from lewel.cost import plan
from lewel.recipe import plain
from lewel.run import session
from lewel.watching import boards


@pytest.fixture
def dry(tmp_path, monkeypatch, capsys):
    """Runs `lewel train --dry-run` with arguments in an empty folder; what it prints, or its error."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def run(*arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["lewel", "train", *arguments, "--dry-run"])
        try:
            cli.main()
        except SystemExit:
            return capsys.readouterr().err
        finally:
            assert not list((tmp_path / "here").iterdir())
        return capsys.readouterr().out

    return run


def test_a_dry_run_begins_with_what_the_run_would_print(tmp_path):
    real = plan.recipe_of(session.prepare(TINY, tmp_path))
    assert plan.text(TINY, 1).startswith(real + "\n")


def test_a_dry_run_says_images_steps_rates_and_memory(dry, monkeypatch):
    monkeypatch.setattr(data, "build", None)  # nothing is read
    printed = dry("--preset", "imagenet/lewel_b_eman_200", "--encoder.name", "resnet18", "--processes", "64")
    for line in (
        "1,281,167 training images, 1,251 steps an epoch, 250,200 steps",
        "learning rate 0.9 per 256 images is 3.6 at 1024, 0.000288 at the first step",
        "training images: the published number of the set of imagenet/lewel_b_eman_200",
        "warm-up 12,510 steps; momentum from 0.98 at the first step to 1 at the last",
        "memory of each of 64 processes, in a step of 16 images (fp16), in MiB:",
        "total at the peak",
        "it would be written to runs/imagenet-lewel_b_eman_200",
    ):
        assert line in printed


def test_the_rows_of_memory_add_up():
    rows = plan.text(TINY, 1).split("in MiB:\n")[1].splitlines()
    sizes = [float(row.split()[-1]) for row in rows if not row.lstrip().startswith("(")]
    assert sum(sizes[:-1]) == pytest.approx(sizes[-1], abs=0.05 * len(sizes))


def test_online_knn_is_planned_where_there_is_one(dry):
    printed = dry("--preset", "embedded/lewel_m", "--data.embedded-test", "3000")
    assert "online kNN of 3,000 test images, a bank of 4,096 in blocks, needs beside the weights" in printed
    assert "online kNN" not in dry("--preset", "embedded/lewel_m", "--knn-every", "0")
    printed = dry("--preset", "imagenet/lewel_m_200", "--encoder.name", "resnet18")
    assert "online kNN of 10,000 test images, a bank of 100,000" in printed
    assert "--data.root has the test images counted" in printed


def test_initial_weights_are_tried_unless_the_run_goes_on(dry, finished, tmp_path):
    torch.save({"epoch": 3}, tmp_path / "w.pth")
    arguments = ("--preset", "embedded/lewel_m", "--init", str(tmp_path / "w.pth"))
    assert "holds no weight of the encoder" in dry(*arguments)
    assert "it would continue" in dry(*arguments, "--resume", "auto", "--out", str(finished.folder))


class TestImages:
    @pytest.fixture
    def root(self, tmp_path):
        for split, count in (("train", 20), ("test", 2)):
            for name in ("a", "b"):
                (tmp_path / "set" / split / name).mkdir(parents=True)
                for i in range(count):
                    (tmp_path / "set" / split / name / f"{i}.png").write_bytes(b"is not decoded")
        return str(tmp_path / "set")

    def test_are_counted_where_they_are(self, root):
        run = replace(TINY, data=replace(TINY.data, name="folder", root=root, storage="memory"))
        assert f"training images: counted in {root}\n" in plan.text(run, 1)
        assert "40 training images, 2 steps an epoch" in plan.text(run, 1)

    def test_that_are_not_the_preset_s_are_told_apart(self, root):
        run = replace(TINY, preset="imagenet/lewel_m_100", data=replace(TINY.data, name="folder", root=root))
        assert f"counted in {root}; the set of imagenet/lewel_m_100 has 1,281,167\n" in plan.text(run, 1)

    def test_of_nobody_s_set_must_be_there(self, dry, tmp_path):
        (tmp_path / "mine.yaml").write_text(plain.to_yaml(replace(TINY, data=replace(TINY.data, name="folder"))))
        assert "data.root is empty; --data.root must name" in dry("--config", str(tmp_path / "mine.yaml"))


class TestProcesses:
    def test_are_those_that_torchrun_started(self, dry, monkeypatch):
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", "0")
        assert "memory of each of 2 processes" in dry("--preset", "embedded/lewel_m")

    def test_but_for_the_first_are_silent(self, dry, monkeypatch):
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", "1")
        assert dry("--preset", "embedded/lewel_m") == ""

    def test_are_an_option_of_the_dry_run_alone(self, monkeypatch, capsys, tmp_path):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", ["lewel", "train", "--processes", "8"])
        with pytest.raises(SystemExit):
            cli.main()
        assert "--processes 8 only plans a --dry-run" in capsys.readouterr().err

    def test_share_the_images_of_a_pass(self, dry):
        printed = dry("--preset", "embedded/byol", "--accumulate", "2", "--data.batch-size", "20", "--processes", "2")
        assert "memory of each of 2 processes, in a step of 10 images in 2 passes of 5" in printed


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        pytest.param(["--heads.num-groups", "7"], "64 maps and 7 groups", id="recipe"),
        pytest.param(["--processes", "3"], "must be divisible by processes times accumulate", id="processes"),
        pytest.param(["--processes", "-1"], "processes must be positive", id="negative"),
        pytest.param(["--heads.num-maps", "96", "--heads.num-groups", "48"], "must divide the 256 channels", id="net"),
        pytest.param(["--data.embedded-train", "256"], "an epoch of 256 images makes only 256", id="queue"),
        pytest.param(["--backend", "gpu"], "backend must be one of", id="backend"),
        pytest.param(["--resume", "none.pt"], "there is no checkpoint", id="resume"),
    ],
)
def test_a_recipe_that_cannot_run_is_refused_with_a_run_s_sentence(arguments, sentence, dry):
    assert sentence in dry("--preset", "embedded/lewel_m", *arguments)


def test_a_backend_that_cannot_run_here_is_refused(dry, monkeypatch):
    def refuse(*arguments, **options):
        raise ValueError("backend 'cuda' cannot run")

    monkeypatch.setattr(lewel_kernels, "explain", refuse)
    assert dry("--preset", "embedded/lewel_m", "--backend", "cuda") == "lewel: backend 'cuda' cannot run\n"


def test_a_board_that_is_not_installed_is_refused(dry, monkeypatch):
    monkeypatch.setattr(boards, "_is_installed", lambda name: False)
    assert "Weights & Biases is not installed" in dry("--preset", "embedded/lewel_m", "--wandb", "mine")
