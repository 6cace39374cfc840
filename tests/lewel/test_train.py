"""Whole tiny runs on the embedded set: the same for any number of workers."""

from __future__ import annotations

import copy
import itertools
import math
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from neighbours import compared
from PIL import Image
from tiny_runs import METHODS, TINY, assert_equal, assert_same, losses_of, run_in, weights

from lewel import data, distributed
from lewel.data import batched
from lewel.data.folder import Folder
from lewel.data.loader import BatchKey
from lewel.errors import DataError
from lewel.evaluation import features, health, knn
from lewel.evaluation.features import knn_accuracy
from lewel.methods.method import Method as Model
from lewel.recipe import presets
from lewel.recipe.schema import Optim, Train
from lewel.results import report
from lewel.run import checkpoint
from lewel.run.session import prepare
from lewel.run.step import Outcome
from lewel.train import Loop, train
from lewel.watching import clock, log


def test_workers_do_not_change_the_run(tmp_path, finished):
    session = run_in(tmp_path / "workers", replace(TINY, data=replace(TINY.data, workers=2)))
    assert losses_of(session) == losses_of(finished)
    assert_same(session, finished)


def test_another_seed_is_another_run(tmp_path):
    """Other weights, another order, other views of the same images, other draws; whatever was drawn before."""
    runs = []
    for seed in (0, 1, 1):
        torch.randn(3)
        runs.append(prepare(replace(TINY, seed=seed), tmp_path))
    batches = [next(session.loader.epoch(0)) for session in runs]
    views = [session.sets.train[BatchKey(0, np.arange(8))].first for session in runs]
    for name, value in weights(runs[0]).items():
        if name.endswith("weight") and value.ndim > 1:
            assert not torch.equal(value, weights(runs[1])[name]), name
    assert_same(runs[1], runs[2])
    assert not torch.equal(batches[0].indices, batches[1].indices)
    assert torch.equal(batches[1].indices, batches[2].indices)
    assert (views[0] != views[1]).any(dim=(1, 2, 3)).all()
    assert torch.equal(views[1], views[2])
    assert [session.method.seed for session in runs] == [0, 1, 1]


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
    assert presets.load(finished.folder / "config.yaml") == TINY
    assert [path.name for path in checkpoint.found(finished.folder / "checkpoints")] == [
        "step-00000006.pt",
        "step-00000009.pt",
    ]
    records = log.read(finished.folder / "log.jsonl")
    assert [record["kind"] for record in records].count("epoch") == 3
    knn_names = {"knn_pixels", "knn_untrained", "knn_pixels_20", "knn_untrained_20"}
    assert set(records[0]) == {"kind", "step", *knn_names, "rankme_untrained"}
    step = next(record for record in records if record["kind"] == "step")
    assert set(step) == {
        *("kind", "step", "lr", "momentum", "loss", "loss_global", "loss_aligned"),
        *("z_std", "images_per_s", "data_wait", "peak_memory_mib"),
    }
    assert set(records[-1]) == {
        *("kind", "step", "epoch", "seconds", "knn", "knn_20", "probe", "rankme", "map_entropy", "map_spread"),
    }


@pytest.mark.parametrize("name", METHODS)
def test_the_loop_is_these_steps(name, tmp_path):
    """Four steps over two epochs, by hand but for the method itself: data, schedules, SGD, order."""
    run = replace(
        TINY,
        seed=3,
        epochs=2,
        data=replace(TINY.data, embedded_train=32),
        method=replace(METHODS[name], momentum=0.9),
        optim=Optim(lr=0.5, weight_decay=0.01, decay_all=False, warmup_epochs=1),
    )
    session = run_in(tmp_path, run)
    images = session.sets.bank.images
    torch.manual_seed(3)
    method = Model(run).to(memory_format=torch.channels_last)
    trained = [p for p in method.parameters() if p.requires_grad]
    velocity = [torch.zeros_like(p) for p in trained]
    peak = 0.5 * 16 / 256
    lrs = [peak / 2, peak, peak, peak / 2]  # two steps up, then half a cosine of two
    momenta = [0.9 + 0.1 * (0.5 - 0.5 * math.cos(math.pi * step / 4)) for step in range(4)]
    for step, (lr, momentum) in enumerate(zip(lrs, momenta, strict=True)):
        epoch, batch = divmod(step, 2)
        indices = np.random.default_rng([3, epoch]).permutation(32)[16 * batch : 16 * (batch + 1)]
        first, second = (
            batched.apply(images[indices], batched.draw(run.data.augmentation, 32, view, 3, epoch, indices))
            for view in (0, 1)
        )
        m = momentum if run.method.momentum_schedule == "cosine" else 0.9
        first, second = (x.to(memory_format=torch.channels_last) for x in (first, second))
        outcome = method(first, second, m)
        grads = torch.autograd.grad(outcome.loss, trained)
        with torch.no_grad():
            for p, g, v in zip(trained, grads, velocity, strict=True):
                v.mul_(0.9).add_(g.add(p, alpha=0.01) if p.ndim > 1 else g)
                p.add_(v, alpha=-lr)
        method.finish(outcome.keys, m)
    assert_equal(method.state_dict(), weights(session))
    assert session.method.online.encoder.conv1.weight.is_contiguous(memory_format=torch.channels_last)


def test_knn_is_of_the_online_encoder_in_eval_mode_with_the_training_images_as_bank(tmp_path, monkeypatch):
    session, seen = prepare(TINY, tmp_path), compared(monkeypatch)
    with torch.no_grad():
        for parameter in session.method.online.parameters():  # to tell it from the target
            parameter.mul_(1.1)
    told = []
    monkeypatch.setattr(knn, "correct", lambda *arguments, **options: told.append((*arguments, options)) or [8, 4])
    before = copy.deepcopy(weights(session))
    assert knn_accuracy(session) == {200: 50.0, 20: 25.0}
    assert all(module.training for module in session.method.modules())
    assert_equal(weights(session), before)  # no batch statistics were taken
    encoder = session.method.online.encoder.eval()
    sets, (_, labels, classes, options) = session.sets, told[0]
    for images, rows, truth in ((sets.bank, seen[0].bank, seen[0].labels), (sets.test, seen[0].test, labels)):
        pixels, expected = images[np.arange(len(images))]
        with torch.no_grad():
            torch.testing.assert_close(rows, encoder(pixels).mean((2, 3)))
        assert torch.equal(truth, expected)
    assert (classes, options) == (10, {"k": (200, 20), "temperature": 0.1})
    assert seen[0].k == 48  # all of the bank


def test_knn_has_a_bank_of_so_many_images_and_features_as_exact_as_the_precision_allows(tmp_path, monkeypatch):
    """Every seventh of 48; the encoder in bf16, the mean over positions in float32."""
    session, seen = prepare(replace(TINY, knn_bank=7, precision="bf16"), tmp_path), compared(monkeypatch)
    features.knn_accuracy(session)
    pixels, labels = session.sets.bank[np.arange(7) * 48 // 7]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        maps = session.method.online.encoder.eval()(pixels)
    assert maps.dtype == torch.bfloat16
    torch.testing.assert_close(seen[0].bank, maps.float().mean((2, 3)), rtol=1e-6, atol=1e-7)
    assert torch.equal(seen[0].labels, labels)


def test_knn_is_the_same_of_a_bank_in_many_blocks(tmp_path, monkeypatch):
    run = replace(TINY, data=replace(TINY.data, embedded_train=600, embedded_test=300))
    session = prepare(run, tmp_path)
    whole, seen = (features.knn_of_pixels(session), features.knn_accuracy(session)), compared(monkeypatch)
    monkeypatch.setattr(knn, "ROWS", 70)
    assert (features.knn_of_pixels(session), features.knn_accuracy(session)) == whole
    assert [call.blocks for call in seen] == [9, 9]


def test_knn_of_the_last_epoch_is_logged_and_beside_it_the_baselines(tmp_path, monkeypatch):
    values = iter([[2, 3], [1, 2], [4, 5], [8, 9]])  # raw pixels, untrained, epoch 2, epoch 3
    seen = compared(monkeypatch)
    monkeypatch.setattr(knn, "correct", lambda *_, **__: next(values))
    run_in(tmp_path, replace(TINY, knn_every=2))
    records = log.read(tmp_path / "log.jsonl")
    assert [call.bank.shape[1] for call in seen] == [3 * 32 * 32, 256, 256, 256]
    assert (records[0]["knn_pixels"], records[0]["knn_untrained"]) == (12.5, 6.25)
    assert (records[0]["knn_pixels_20"], records[0]["knn_untrained_20"]) == (18.75, 12.5)
    assert [(r["epoch"], r["knn"], r["knn_20"]) for r in records if r["kind"] == "epoch"] == [
        (2, 25, 31.25),
        (3, 50, 56.25),
    ]


def test_knn_is_switched_off_with_its_baselines_and_all_else_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(knn, "correct", None)
    session = run_in(tmp_path, replace(TINY, knn_every=0))
    report.write(session)
    records = log.read(tmp_path / "log.jsonl")
    assert "baselines" not in {record["kind"] for record in records}
    epochs = [record for record in records if record["kind"] == "epoch"]
    assert [set(record) for record in epochs] == [{"kind", "step", "epoch", "seconds", "map_entropy", "map_spread"}] * 3
    assert "kNN" not in (tmp_path / "report.txt").read_text() + capsys.readouterr().out
    assert (tmp_path / "curves.png").exists()


def test_map_statistics_are_of_images_of_every_class(tmp_path, monkeypatch):
    """A folder's test images are in the order of their classes."""
    run = replace(TINY, epochs=1, data=replace(TINY.data, embedded_test=600))
    session, seen = prepare(run, tmp_path), []
    monkeypatch.setattr(
        health, "map_statistics", lambda _, images: seen.append(images) or {"map_entropy": 0, "map_spread": 0}
    )
    train(session, None)
    places = [i * 600 // 256 for i in range(256)]
    assert torch.equal(seen[0], session.sets.test[np.array(places)][0])


def test_unreadable_images_are_counted_in_the_log(tmp_path):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(16):
                Image.new("RGB", (40, 40), (9 * number, 0, 0)).save(tmp_path / split / name / f"{number}.png")
    (tmp_path / "train" / "dog" / "3.png").write_bytes(b"no image")
    data = replace(TINY.data, name="folder", root=str(tmp_path), workers=1)
    run_in(tmp_path / "run", replace(TINY, data=data, epochs=2))
    records = log.read(tmp_path / "run" / "log.jsonl")
    counts = [record["replaced"] for record in records if record["kind"] == "step"]
    assert counts == [1] * len(counts) != []  # the evaluation before training has met it


def test_an_epoch_is_saved_before_it_is_evaluated_and_evaluated_when_it_was_not(tmp_path, monkeypatch):
    """A scheduler does not wait for an evaluation."""
    run, whole = replace(TINY, epochs=2), features.measured

    def killed(session, tell):
        if session.steps_done == 3:
            raise KeyboardInterrupt
        return whole(session, tell)

    monkeypatch.setattr(features, "measured", killed)
    with pytest.raises(KeyboardInterrupt):
        run_in(tmp_path, run)
    (newest,) = checkpoint.found(tmp_path / "checkpoints")
    assert newest.name == "step-00000003.pt"
    monkeypatch.setattr(features, "measured", whole)
    for _ in range(2):  # the second time there is nothing left to do
        run_in(tmp_path, run, resume=newest)
        epochs = [r["epoch"] for r in log.read(tmp_path / "log.jsonl") if r["kind"] == "epoch"]
        assert epochs == [1, 2]
        newest = checkpoint.found(tmp_path / "checkpoints")[-1]


def test_a_run_resumed_after_an_evaluated_epoch_evaluates_the_later_ones(tmp_path):
    run_in(tmp_path, TINY, epochs=2)  # killed before the second was evaluated
    run_in(tmp_path, TINY, resume=tmp_path / "checkpoints" / "step-00000003.pt")
    assert [r["epoch"] for r in log.read(tmp_path / "log.jsonl") if r["kind"] == "epoch"] == [1, 2, 3]


def test_the_pixels_of_large_images_are_compared_small(tmp_path, monkeypatch):
    """As they are, the test images of ImageNet would fill 30 GB."""
    seen = compared(monkeypatch)
    for side in (64, 96):
        data = replace(TINY.data, image_size=side, embedded_train=16)
        features.knn_of_pixels(prepare(replace(TINY, data=data, method=replace(TINY.method, queue=16)), tmp_path))
    assert [call.bank.shape[1] for call in seen] == [3 * 64 * 64, 3 * 32 * 32]


def test_an_unreadable_image_counts_once_in_all_processes(tmp_path, monkeypatch):
    """Each tells the others which ones it met: of three files, each here has met two."""
    split = Folder([tmp_path / f"{i}.png" for i in range(8)], [-1] * 8, tmp_path, TINY.data)
    here, there = (
        torch.tensor(marks, dtype=torch.uint8) for marks in ([0, 1, 1, 0, 0, 0, 0, 0], [0, 0, 1, 0, 1, 0, 0, 0])
    )
    split.join(here)
    session = prepare(TINY, tmp_path)
    session.sets = replace(session.sets, folders=(split,))
    monkeypatch.setattr(distributed, "gather", lambda marks: torch.cat([marks, there, here]))
    loop, outcome = (
        Loop(session, None, None),
        Outcome(torch.tensor(1.0), {"global": torch.tensor(2.0)}, torch.randn(4, 8)),
    )
    with pytest.raises(data.Unreadable, match="3 of the 8 images"):
        loop._numbers(outcome)
    split.config = replace(TINY.data, max_unreadable=0.5)
    loop.told = 0
    numbers = loop._numbers(outcome)
    assert numbers["replaced"] == split.replaced == 3
    assert (numbers["loss"], numbers["loss_global"]) == (1, 2)


@pytest.mark.parametrize("passes", [2, 3, 5])
def test_where_the_images_end_the_last_whole_step_is_saved(passes, tmp_path, monkeypatch):
    """With two passes a step: of half a step, whose statistics have moved, nothing is."""
    session = prepare(replace(TINY, accumulate=2), tmp_path)
    whole, read = session.loader.epoch, []

    def ends(epoch, first):
        for views in whole(epoch, first):
            if len(read) == passes:
                raise DataError("the disk is gone")
            read.append(views)
            yield views

    monkeypatch.setattr(session.loader, "epoch", ends)
    with pytest.raises(DataError, match="the disk is gone") as caught:
        train(session, None)
    saved = checkpoint.found(tmp_path / "checkpoints")
    assert [path.name for path in saved] == ["step-00000001.pt"] * (passes == 2)
    assert all(f"{path} is saved: --resume auto goes on from there" in str(caught.value) for path in saved)


def test_the_seconds_of_a_run_are_those_of_all_its_epochs(tmp_path, monkeypatch):
    """By a clock that ticks whenever somebody looks; every epoch looks as often."""
    monkeypatch.setattr(sys.modules["lewel.train"], "time", SimpleNamespace(monotonic=itertools.count().__next__))
    session = run_in(tmp_path, replace(TINY, log_every=100))
    seconds = [record["seconds"] for record in log.read(tmp_path / "log.jsonl") if record["kind"] == "epoch"]
    assert seconds[2] - seconds[1] == seconds[1] - seconds[0] > 0
    assert session.seconds == seconds[2]


def test_seconds_before_a_checkpoint_within_an_epoch_count_once(tmp_path, monkeypatch):
    """By a clock that ticks whenever somebody looks: there are no more of them than ticks."""
    ticking = SimpleNamespace(monotonic=itertools.count().__next__)
    monkeypatch.setattr(sys.modules["lewel.train"], "time", ticking)
    session = run_in(tmp_path, replace(TINY, save_every=1))
    assert 0 < session.seconds < ticking.monotonic()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_logged_speed_counts_each_image_once(accumulate, tmp_path, monkeypatch):
    """Of an epoch of three steps, whatever the passes of a step."""
    seen, lap = [], clock.Clock.lap
    monkeypatch.setattr(clock.Clock, "lap", lambda clock: seen.append(clock.batches * clock.batch_size) or lap(clock))
    run_in(tmp_path, replace(TINY, epochs=1, accumulate=accumulate))
    assert seen == [16, 16, 16]


def test_the_scale_of_the_loss_is_logged_in_fp16(tmp_path):
    run_in(tmp_path, replace(TINY, precision="fp16", epochs=1))
    scales = [record["scale"] for record in log.read(tmp_path / "log.jsonl") if record["kind"] == "step"]
    assert len(scales) == 3
    assert min(scales) >= 2**10
