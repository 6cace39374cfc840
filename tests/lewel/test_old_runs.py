"""Runs of an earlier version (checkpoint 3, at commit 9bd7d27), saved after an epoch, continue as that version did.

old_runs/ has a run folder of each method, with continued.json, what the earlier version logged of the next six steps in
float64. Their weights are made up, so that the files compress; everything a step depends on is in them.
"""

from __future__ import annotations

import json
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_runs import in_double

from lewel.commands import show
from lewel.evaluation.features import knn_accuracy
from lewel.recipe import checks, plain, presets
from lewel.run import checkpoint, folders, resuming
from lewel.run.session import prepare
from lewel.train import train
from lewel.watching import log

METHODS = ("moco_v2", "lewel_m", "byol", "lewel_b")


@pytest.fixture(params=METHODS)
def folder(request, tmp_path) -> Path:
    with tarfile.open(Path(__file__).parent / "old_runs" / f"{request.param}.tar.xz") as tar:
        tar.extractall(tmp_path, filter="data")
    return tmp_path / request.param


def newest(folder: Path) -> Path:
    return checkpoint.found(folder / "checkpoints")[-1]


def test_an_old_run_continues_with_the_losses_of_its_version(folder):
    """As lewel train --resume does, but in float64: in float32 steps enlarge what the order of a sum has changed."""
    run = presets.load(folder / "config.yaml")
    checks.check(run)
    assert run.method.name == folder.name
    assert train(in_double(prepare(run, folder)), newest(folder))
    expected = json.loads((folder / "continued.json").read_text())
    steps = [record for record in log.read(folder / "log.jsonl") if record["kind"] == "step" and record["step"] > 3]
    for key in ("loss", "loss_global", "z_std"):
        assert [step[key] for step in steps] == pytest.approx(expected[key], rel=1e-6), key


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_an_old_run_that_will_be_rounded_otherwise_says_so(folder, precision):
    path = newest(folder)
    run = replace(presets.load(folder / "config.yaml"), precision=precision)
    session = prepare(run, folder)
    changed = {"config": plain.to_plain(run), "scaler": session.scaler.state_dict()}
    torch.save(torch.load(path, weights_only=True) | changed, path)
    said = resuming.restore(path, session)
    expected = run.method.aligned and precision != "fp32"
    assert (f"which in {precision} rounded the semantic projector" in said) == expected


def test_an_old_run_is_shown_beside_a_new_one(folder, finished, capsys, tmp_path):
    """Whose columns it has no values for."""
    show.run([str(folder), str(finished.folder), "--out", str(tmp_path / "both.png")])
    heading, old, new = (line.split("  ") for line in capsys.readouterr().out.splitlines()[:3])
    assert {"probe", "RankMe"} <= {name.strip() for name in heading}
    assert (old[0], [cell.strip() for cell in old].count("-") >= 2) == (folder.name, True)
    assert "-" not in [cell.strip() for cell in new]
    assert (tmp_path / "both.png").stat().st_size > 10_000


def test_an_old_run_is_evaluated_and_shown(folder, capsys):
    """As lewel eval and lewel show do; then saved and read again, nothing of it is lost."""
    session = folders.load(folder)
    old = torch.load(newest(folder), weights_only=True)
    assert all(0 <= accuracy <= 100 for accuracy in knn_accuracy(session).values())
    show.run([str(folder)])
    assert folder.name in capsys.readouterr().out
    assert session.probe.passes == 0  # of that version's checkpoints none has one
    new = checkpoint.read(checkpoint.save(session))
    assert (old["format"], new["format"]) == (checkpoint.BEFORE, checkpoint.FORMAT)
    tensors = {key.removeprefix("objective."): value for key, value in new["method"].items()}
    assert set(tensors) == set(old["method"])
    for key, value in old["method"].items():
        same = torch.equal(tensors[key], value) if isinstance(value, torch.Tensor) else tensors[key] == value
        assert same, key
