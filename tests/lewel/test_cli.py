"""The command line: a sentence for everything that is wrong."""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest
from tiny_runs import TINY

import lewel_kernels
from lewel import cli, data
from lewel.commands import train as commands_train
from lewel.recipe import plain
from lewel.results import report
from lewel.watching import log

SMALL = ["--data.embedded-train", "256", "--data.embedded-test", "16", "--method.queue", "256"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        pytest.param(["trian"], "there is no command 'trian'", id="command"),
        pytest.param(["eval"], "lewel eval needs a kind and a run folder", id="eval"),
        pytest.param(
            ["eval", "knn", "nowhere"], "nowhere is no run folder: it is not there; lewel train says", id="run"
        ),
        pytest.param(["train", "--preset", "embedded/lewel"], "did you mean embedded/lewel_", id="preset"),
        pytest.param(["train", "--preset", "a.yaml"], "in a file is named by --config a.yaml", id="preset-of-a-file"),
        pytest.param(["train", "--heads.num-groups", "7"], "64 maps and 7 groups", id="check"),
        pytest.param(["train", "--backend", "gpu", *SMALL], "gpu", id="backend"),
        pytest.param(["train", "--preset", "embedded/byol", "--preset=x"], "--preset is given 2 times", id="presets"),
        pytest.param(["train", "--config=a", "--config", "b"], "--config is given 2 times (b, a)", id="configs"),
        pytest.param(["train", "--preset="], "--preset is empty; name a recipe", id="empty-preset"),
        pytest.param(["train", "--config", ""], "--config is empty; name a recipe", id="empty-config"),
        pytest.param(["train", "--resume", "none.pt"], "none.pt to resume from", id="resume"),
        pytest.param(["train", "--out", "/proc/none/run"], "cannot write to the run folder /proc/none", id="out"),
        pytest.param(["train", "--out", __file__], f"cannot write to the run folder {__file__}: Not a dir", id="file"),
        pytest.param(
            ["train", "--data.root", "x", "--data.name", "embedded"],
            "data.root x says nothing about the embedded",
            id="root",
        ),
        pytest.param(["train", "--data.root", "x", ""], "data.root has an empty place", id="empty-place"),
        pytest.param(
            ["train", "--data.root", "a", "--data.root=b"],
            "given 2 times, of which one would count; several",
            id="roots",
        ),
        pytest.param(["train", "--log_every", "1", "--log-every=2"], "--log-every is given 2 times", id="twice"),
        pytest.param(["train", "--dry-run", "--no-dry-run"], "--dry-run is given 2 times", id="on-and-off"),
        pytest.param(
            ["train", "--optim.no-decay-all", "--optim.decay_all"],
            "--optim.decay-all is given 2 times",
            id="off-and-on",
        ),
        pytest.param(
            ["train", "--compile", "True"],
            "--compile takes no value, got True; --compile switches on, --no-compile off",
            id="value-of-a-switch",
        ),
        pytest.param(["train", "--dry-run=true"], "--dry-run takes no value, got true", id="value-of-a-flag"),
        pytest.param(
            ["train", "--optim.no-decay-all=1"], "on, --optim.no-decay-all off", id="value-of-a-switch-in-a-section"
        ),
        pytest.param(["presets", "--bogus"], "--bogus", id="option-of-presets"),
        pytest.param(["maps", "."], "no images were given; name some after the run", id="no-images"),
    ],
)
def test_command_line_errors_are_sentences_with_status_2(arguments, sentence, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lewel", *arguments])
    monkeypatch.setattr(data, "build", None)  # nothing is read before the refusal
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_train_and_eval_from_the_command_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "tiny.yaml").write_text(plain.to_yaml(replace(TINY, epochs=1)))
    out = str(tmp_path / "run")
    monkeypatch.setattr("sys.argv", ["lewel", "train", "--config", str(tmp_path / "tiny.yaml"), "--out", out])
    cli.main()
    printed = capsys.readouterr().out
    assert "learning rate 0.5 per 256 images is 0.03125 at 16" in printed
    assert f"wrote {out}/curves.png and {out}/maps.png" in printed
    monkeypatch.setattr("sys.argv", ["lewel", "eval", "knn", out])
    cli.main()
    assert f"{out}: kNN" in capsys.readouterr().out


def test_nothing_to_continue_is_said_and_the_log_starts_anew(tmp_path, monkeypatch, capsys):
    """As after a run that was killed in its first epoch."""
    (tmp_path / "config.yaml").write_text(plain.to_yaml(replace(TINY, epochs=1)))
    (tmp_path / "log.jsonl").write_text('{"kind": "baselines", "step": 0, "knn_pixels": 0, "knn_untrained": 0}\n')
    config, out = str(tmp_path / "config.yaml"), str(tmp_path)
    monkeypatch.setattr("sys.argv", ["lewel", "train", "--config", config, "--out", out, "--resume", "auto"])
    monkeypatch.setattr(report, "write", lambda session: None)
    cli.main()
    assert f"nothing to continue: there is no checkpoint in {out}" in capsys.readouterr().out
    assert [record["kind"] for record in log.read(tmp_path / "log.jsonl")].count("baselines") == 1


@pytest.mark.parametrize(
    ("argument", "told"), [("--version", f"lewel {lewel_kernels.__version__}\n"), ("help", cli.USAGE)]
)
def test_what_is_asked_of_a_command_line(argument, told, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["lewel", argument])
    cli.main()
    assert told in capsys.readouterr().out


def test_presets_are_listed(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["lewel", "presets"])
    cli.main()
    assert "cifar10/lewel_b" in capsys.readouterr().out


def test_a_full_disk_is_a_sentence_whichever_file_meets_it(monkeypatch, capsys):
    def full(arguments):
        raise OSError(errno.ENOSPC, "No space left on device", "run/log.jsonl")

    monkeypatch.setattr(commands_train, "run", full)
    monkeypatch.setattr("sys.argv", ["lewel", "train"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert capsys.readouterr().err == "lewel: run/log.jsonl: No space left on device\n"


@pytest.mark.parametrize(("rank", "said"), [("0", "lewel: interrupted\n"), ("1", "")])
def test_of_several_processes_one_tells_that_they_were_interrupted(rank, said, monkeypatch, capsys):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(commands_train, "run", interrupted)
    monkeypatch.setattr("lewel.console.end_interrupted", lambda: None)
    monkeypatch.setattr("sys.argv", ["lewel", "train"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 130
    assert capsys.readouterr().err == said


def test_of_several_processes_one_tells_what_all_found_before_they_met(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("sys.argv", ["lewel", "train", "--heads.num-groups", "7"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert capsys.readouterr().err == ""


def test_help_is_written_for_forty_columns_at_least(monkeypatch, capsys):
    """In one column tyro would take minutes and gigabytes."""
    monkeypatch.setenv("COLUMNS", "1")
    monkeypatch.setattr("sys.argv", ["lewel", "show", "--help"])
    cli.main()
    assert " -------------------------------------- " in capsys.readouterr().out.splitlines()
