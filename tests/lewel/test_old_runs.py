"""Runs of an earlier version (checkpoint 3, at commit 9bd7d27), saved after an epoch, continue as that version did.

old_runs/ has a run folder of each method, with continued.json, what the earlier version logged of the next six steps.
Their weights are made up, so that the files compress; everything a step depends on is in them.
"""

from __future__ import annotations

import json
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lewel.commands import show
from lewel.evaluation.features import knn_accuracy
from lewel.recipe import checks, plain
from lewel.run import checkpoint, folders
from lewel.run.session import prepare
from lewel.train import train
from lewel.watching import log

# Relative, of each step. With two threads of AVX-512 the runs continue bit by bit; elsewhere sums are taken in another
# order. The first loss is a forward pass from the same weights: with one thread, and with AVX2, it differed by up to
# 4e-6. From then on each step enlarges what the one before left: with a queue of keys, as good as fixed, it stayed at
# 2e-5, and it grew most where networks predict each other's aligned embeddings, to 2e-2 at the fifth step.
TOLERANCES = {
    "moco_v2": (2e-5, 1e-4, 1e-4, 1e-4, 1e-4, 1e-4),
    "lewel_m": (2e-5, 1e-4, 2e-3, 3e-3, 1e-2, 1e-2),
    "byol": (2e-5, 1e-4, 5e-4, 1e-3, 2e-3, 2e-3),
    "lewel_b": (2e-5, 2e-4, 5e-3, 1e-2, 3e-2, 3e-2),
}


@pytest.fixture(params=TOLERANCES)
def folder(request, tmp_path) -> Path:
    with tarfile.open(Path(__file__).parent / "old_runs" / f"{request.param}.tar.xz") as tar:
        tar.extractall(tmp_path, filter="data")
    return tmp_path / request.param


def newest(folder: Path) -> Path:
    return checkpoint.found(folder / "checkpoints")[-1]


def test_an_old_run_continues_with_the_losses_of_its_version(folder):
    """As lewel train --resume does."""
    run = plain.load(folder / "config.yaml")
    checks.check(run)
    assert run.method.name == folder.name
    assert train(prepare(run, folder), newest(folder))
    expected = json.loads((folder / "continued.json").read_text())
    steps = [record for record in log.read(folder / "log.jsonl") if record["kind"] == "step" and record["step"] > 3]
    for i, (step, tolerance) in enumerate(zip(steps, TOLERANCES[folder.name], strict=True)):
        for key in ("loss", "loss_global", "z_std"):
            assert step[key] == pytest.approx(expected[key][i], rel=tolerance), (step["step"], key)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_an_old_run_that_will_be_rounded_otherwise_says_so(folder, precision):
    path = newest(folder)
    run = replace(plain.load(folder / "config.yaml"), precision=precision)
    session = prepare(run, folder)
    changed = {"config": plain.to_plain(run), "scaler": session.scaler.state_dict()}
    torch.save(torch.load(path, weights_only=True) | changed, path)
    said = checkpoint.restore(path, session)
    expected = run.method.aligned and precision != "fp32"
    assert (f"which in {precision} rounded the semantic projector" in said) == expected


def test_an_old_run_is_evaluated_and_shown(folder, capsys):
    """As lewel eval and lewel show do; then saved and read again, nothing of it is lost."""
    session = folders.load(folder)
    old = torch.load(newest(folder), weights_only=True)
    assert all(0 <= accuracy <= 100 for accuracy in knn_accuracy(session).values())
    show.run([str(folder)])
    assert folder.name in capsys.readouterr().out
    new = checkpoint.read(checkpoint.save(session))
    assert (old["format"], new["format"]) == (checkpoint.BEFORE, checkpoint.FORMAT)
    tensors = {key.removeprefix("objective."): value for key, value in new["method"].items()}
    assert set(tensors) == set(old["method"])
    for key, value in old["method"].items():
        same = torch.equal(tensors[key], value) if isinstance(value, torch.Tensor) else tensors[key] == value
        assert same, key
