"""Whole tiny runs on the embedded set: the same for any number of workers, resumed bitwise, nothing overwritten."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from lewel import checkpoint, cli, data, log, recipe, report
from lewel.config import Data, Encoder, Heads, Method, Optim, Train
from lewel.errors import LewelError
from lewel.train import Session, prepare, train

TINY = Train(
    data=Data(image_size=32, embedded_train=48, embedded_test=16, batch_size=16),
    encoder=Encoder("tiny", stem="small2"),
    heads=Heads(hidden=16, num_maps=8, num_groups=2),
    method=Method(queue=32, split_bn=2),
    optim=Optim(lr=0.5, warmup_epochs=1),
    epochs=3,
    log_every=1,
    backend="reference",
)
METHODS = {
    "lewel_m": TINY.method,
    "lewel_b-eman": Method(loss="byol", target="eman", momentum_schedule="cosine"),
}


def run_in(folder: Path, run: Train, *, epochs: int | None = None, resume: Path | None = None) -> Session:
    """Trains run in folder, killed after epochs where given."""
    session = prepare(run, folder)
    if epochs is None:
        train(session, resume)
        return session
    save, done = checkpoint.save, []

    def save_then_die(*arguments, **keywords):
        path = save(*arguments, **keywords)
        done.append(path)
        if len(done) == epochs:
            raise KeyboardInterrupt
        return path

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save", save_then_die)
        with pytest.raises(KeyboardInterrupt):
            train(session, resume)
    return session


def weights(session: Session) -> dict[str, torch.Tensor]:
    return session.method.state_dict()


def assert_same(first: Session, second: Session) -> None:
    for key, value in weights(first).items():
        other = weights(second)[key]
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, key


def losses_of(session: Session) -> list[float]:
    return [record["loss"] for record in log.read(session.folder / "log.jsonl") if record["kind"] == "step"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Session:
    return run_in(tmp_path_factory.mktemp("runs") / "finished", TINY)


@pytest.mark.parametrize("name", METHODS)
def test_a_resumed_run_ends_bitwise_as_the_uninterrupted_one(name, tmp_path):
    run = replace(TINY, method=METHODS[name])
    whole = run_in(tmp_path / "whole", run)
    generator = torch.get_rng_state()
    run_in(tmp_path / "killed", run, epochs=2)
    newest = checkpoint.found(tmp_path / "killed" / "checkpoints")[-1]
    resumed = run_in(tmp_path / "killed", run, resume=newest)
    assert_same(resumed, whole)
    assert losses_of(resumed) == losses_of(whole)
    assert torch.equal(torch.get_rng_state(), generator)
    for mine, theirs in zip(resumed.optimizer.state.values(), whole.optimizer.state.values(), strict=True):
        assert torch.equal(mine["momentum_buffer"], theirs["momentum_buffer"])


def test_what_was_logged_after_the_checkpoint_is_dropped_on_resume(tmp_path, finished):
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    (folder / "checkpoints" / "epoch-0003.pt").unlink()  # killed in the third epoch, whose steps are in the log
    resumed = run_in(folder, TINY, resume=folder / "checkpoints" / "epoch-0002.pt")
    steps = [record["step"] for record in log.read(folder / "log.jsonl") if record["kind"] == "step"]
    assert steps == list(range(1, 10))
    assert losses_of(resumed) == losses_of(finished)


def test_workers_do_not_change_the_run(tmp_path, finished):
    session = run_in(tmp_path / "workers", replace(TINY, data=replace(TINY.data, workers=2)))
    assert losses_of(session) == losses_of(finished)
    assert_same(session, finished)


def test_another_seed_is_another_run(tmp_path, finished):
    assert losses_of(run_in(tmp_path / "seed", replace(TINY, seed=1, epochs=1)))[0] != losses_of(finished)[0]


def test_fused_and_reference_backend_train_alike(tmp_path):
    """No further apart than the reference is from itself after its weights were changed in the fifth digit."""
    calm = replace(TINY, optim=Optim(lr=0.05))

    def losses(name: str, run: Train, change: float) -> torch.Tensor:
        session = prepare(run, tmp_path / name)
        with torch.no_grad():
            for parameter in session.method.parameters():
                parameter.mul_(1 + change * torch.randn_like(parameter))
        train(session, None)
        return torch.tensor(losses_of(session))

    reference = losses("reference", calm, 0.0)
    changed = losses("changed", calm, 1e-5)
    fused = losses("fused", replace(calm, backend=None), 0.0)
    torch.testing.assert_close(fused[:3], reference[:3], rtol=1e-4, atol=0)
    assert (fused - reference).abs().max() < (changed - reference).abs().max()


def test_bf16_autocast_starts_alike_and_runs_to_the_end(tmp_path, finished):
    session = run_in(tmp_path / "bf16", replace(TINY, precision="bf16"))
    assert losses_of(session)[0] == pytest.approx(losses_of(finished)[0], rel=0.03)
    assert losses_of(session)[0] != losses_of(finished)[0]
    assert len(losses_of(session)) == 9


@pytest.mark.parametrize(("native", "precision"), [(True, "bf16"), (False, "fp32")])
def test_automatic_precision_is_bf16_where_the_processor_has_it(native, precision, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    session = prepare(replace(TINY, precision="auto"), tmp_path)
    assert session.run.precision == session.method.precision == precision


def test_run_folder_tells_the_whole_story(finished):
    assert recipe.load(finished.folder / "config.yaml") == TINY
    assert [path.name for path in checkpoint.found(finished.folder / "checkpoints")] == [
        "epoch-0002.pt",
        "epoch-0003.pt",
    ]
    records = log.read(finished.folder / "log.jsonl")
    assert [record["kind"] for record in records].count("epoch") == 3
    assert set(records[0]) == {"kind", "step", "knn_pixels", "knn_untrained"}
    step = next(record for record in records if record["kind"] == "step")
    assert set(step) == {
        *("kind", "step", "lr", "momentum", "loss", "loss_global", "loss_aligned"),
        *("z_std", "images_per_s", "data_wait"),
    }
    assert set(records[-1]) == {"kind", "step", "epoch", "seconds", "knn", "map_entropy", "map_spread"}


def test_summary_shows_the_result_beside_its_baselines(finished):
    text = report.summary(finished)
    for expected in ("raw pixels", "untrained", "after 3 epochs", "std of normalised z", "images/s", "digit's box"):
        assert expected in text


def test_a_finished_run_is_loaded_with_its_weights(finished):
    loaded = report.load(finished.folder)
    assert loaded.epochs_done == 3
    assert_same(loaded, finished)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    with pytest.raises(LewelError, match=r"the loss became nan .* lower --optim\.lr"):
        run_in(tmp_path, replace(TINY, optim=Optim(lr=1e30, warmup_epochs=0)))


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
        assert cli._folder(self.run, "") == (Path("runs/embedded-lewel_m"), None)
        assert cli._folder(self.run, "auto") == (Path("runs/embedded-lewel_m"), None)

    def test_numbered_where_taken(self):
        self.hold_a_run("embedded-lewel_m")
        assert cli._folder(self.run, "") == (Path("runs/embedded-lewel_m-2"), None)
        self.hold_a_run("embedded-lewel_m-2")
        assert cli._folder(self.run, "") == (Path("runs/embedded-lewel_m-3"), None)

    def test_auto_takes_the_newest_checkpoint_of_the_newest_folder(self):
        self.hold_a_run("embedded-lewel_m", "epoch-0009.pt")
        folder = self.hold_a_run("embedded-lewel_m-2", "epoch-0001.pt", "epoch-0002.pt")
        assert cli._folder(self.run, "auto") == (folder, folder / "checkpoints" / "epoch-0002.pt")

    def test_a_chosen_folder_that_holds_a_run_is_refused(self):
        folder = self.hold_a_run("mine")
        with pytest.raises(LewelError, match="holds a run already; continue it with --resume auto"):
            cli._folder(replace(self.run, out=str(folder)), "")


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
        path = folder / "checkpoints" / "epoch-0003.pt"
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
        message = self.refused(folder, path)
        assert "epoch-0003.pt is truncated or no checkpoint at all" in message
        assert f"--resume {folder / 'checkpoints' / 'epoch-0002.pt'}" in message

    @pytest.mark.parametrize("content", ["text", "state_dict", "code"])
    def test_foreign(self, folder, content):
        path = folder / "checkpoints" / "epoch-0004.pt"
        if content == "text":
            path.write_text(json.dumps({"not": "a checkpoint"}))
        else:
            torch.save({"weight": torch.ones(2)} if content == "state_dict" else Path, path)
        message = self.refused(folder, path)
        assert "was not written by lewel train" in message or "no checkpoint at all" in message
        assert "epoch-0003.pt" in message

    def test_missing(self, folder):
        assert "there is no checkpoint" in self.refused(folder, folder / "checkpoints" / "epoch-0007.pt")

    def test_of_another_method(self, folder):
        byol = replace(TINY, method=METHODS["lewel_b-eman"])
        message = self.refused(folder, folder / "checkpoints" / "epoch-0003.pt", byol)
        assert "holds lewel_m but this run is lewel_b" in message

    def test_of_another_recipe(self, folder):
        message = self.refused(folder, folder / "checkpoints" / "epoch-0003.pt", replace(TINY, epochs=5))
        assert "epochs: 3 -> 5" in message

    def test_an_interrupted_save_leaves_the_last_good_file(self, folder, finished, monkeypatch):
        def full_disk(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(torch, "save", full_disk)
        with pytest.raises(checkpoint.CheckpointError, match=r"No space left on device.*epoch-0003\.pt"):
            checkpoint.save(
                folder / "checkpoints",
                4,
                run=TINY,
                method=finished.method,
                optimizer=finished.optimizer,
                step=12,
                seconds=1.0,
            )
        assert [path.name for path in (folder / "checkpoints").iterdir() if path.name.startswith(".")] == []


def test_maps_are_drawn_over_image_files_without_the_data(tmp_path, finished, monkeypatch):
    Image.new("RGB", (40, 50), "red").save(tmp_path / "red.png")
    monkeypatch.setattr(data, "build", None)
    report.draw_maps(finished.folder, [tmp_path / "red.png"], tmp_path / "maps.png")
    assert Image.open(tmp_path / "maps.png").width > 100


def test_a_picture_that_is_none_is_a_sentence(tmp_path, finished):
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(LewelError, match=r"cannot read .*text\.png as an image"):
        report.draw_maps(finished.folder, [tmp_path / "text.png"], tmp_path / "maps.png")


SMALL = ["--data.embedded-train", "256", "--data.embedded-test", "16", "--method.queue", "256"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        pytest.param(["trian"], "there is no command 'trian'", id="command"),
        pytest.param(["eval"], "needs one of knn and a run folder, got nothing", id="eval"),
        pytest.param(["eval", "knn", "nowhere"], "nowhere is no run folder", id="run"),
        pytest.param(["train", "--preset", "embedded/lewel"], "did you mean embedded/lewel_", id="preset"),
        pytest.param(["train", "--heads.num-groups", "7"], "64 maps and 7 groups", id="check"),
        pytest.param(["train", "--backend", "gpu", *SMALL], "gpu", id="backend"),
    ],
)
def test_command_line_errors_are_sentences_with_status_2(arguments, sentence, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lewel", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_train_and_eval_from_the_command_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "tiny.yaml").write_text(recipe.to_yaml(replace(TINY, epochs=1)))
    out = str(tmp_path / "run")
    monkeypatch.setattr("sys.argv", ["lewel", "train", "--config", str(tmp_path / "tiny.yaml"), "--out", out])
    cli.main()
    printed = capsys.readouterr().out
    assert "learning rate 0.5 per 256 images is 0.03125 at 16" in printed
    assert f"wrote {out}/curves.png and {out}/maps.png" in printed
    monkeypatch.setattr("sys.argv", ["lewel", "eval", "knn", out])
    cli.main()
    assert f"{out}: kNN" in capsys.readouterr().out
