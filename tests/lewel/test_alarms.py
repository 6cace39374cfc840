"""Runs that go wrong: stopped with a sentence before they spoil a checkpoint, or warned of."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from tiny_runs import TINY, run_in

from lewel.commands import show
from lewel.errors import LewelError
from lewel.evaluation import health
from lewel.methods.method import Method as Model
from lewel.recipe.schema import Optim
from lewel.results import report
from lewel.run import checkpoint
from lewel.run.session import prepare
from lewel.train import train
from lewel.watching import log

CALM = r"lower --optim\.lr or a longer --optim\.warmup-epochs"


@pytest.mark.parametrize("log_every", [1, 100], ids=["logged", "between-two-lines"])
def test_a_loss_that_is_not_finite_stops_the_run(log_every, tmp_path):
    with pytest.raises(LewelError, match=rf"the loss became nan .* {CALM}"):
        run_in(tmp_path, replace(TINY, optim=Optim(lr=1e30, warmup_epochs=0), log_every=log_every))
    assert checkpoint.found(tmp_path / "checkpoints") == []


def test_a_loss_that_was_infinite_between_two_lines_stops_the_run(tmp_path, monkeypatch):
    session, forward = prepare(replace(TINY, log_every=100), tmp_path), Model.forward
    steps = iter(range(9))

    def one_is_infinite(self, *arguments, **keywords):
        step = forward(self, *arguments, **keywords)
        return step._replace(loss=step.loss + (math.inf if next(steps) == 1 else 0))

    monkeypatch.setattr(Model, "forward", one_is_infinite)
    with pytest.raises(LewelError, match="the loss became inf"):
        train(session, None)


def test_weights_that_a_last_step_broke_are_not_saved(tmp_path):
    """The loss of an epoch's only step is taken before the step, and is fine."""
    run = replace(TINY, data=replace(TINY.data, embedded_train=16), method=replace(TINY.method, queue=16))
    run = replace(run, optim=Optim(lr=1e41, warmup_epochs=0))
    with pytest.raises(LewelError, match=rf"weight is not finite after step 1; try a {CALM}"):
        run_in(tmp_path, run)
    assert not (tmp_path / "checkpoints").exists()


def test_fp16_that_overflows_at_every_step_stops_the_run(tmp_path, monkeypatch):
    session = prepare(replace(TINY, precision="fp16", log_every=2), tmp_path)
    session.scaler = torch.amp.GradScaler("cpu", init_scale=1e-4)
    forward = Model.forward

    def overflowing(self, *arguments, **keywords):
        step = forward(self, *arguments, **keywords)
        return step._replace(loss=step.loss * torch.tensor(1e38) * step.z.new_tensor(1e38).float())

    monkeypatch.setattr(Model, "forward", overflowing)
    with pytest.raises(LewelError, match="fp16 overflows at every step"):
        train(session, None)


@pytest.mark.parametrize(("spread", "overflowing"), [(0.5, 3), (0.05, 1)], ids=["all-but-two", "one-of-a-collapse"])
def test_a_step_that_fp16_overflows_in_is_left_out_of_what_a_run_is_judged_by(
    spread, overflowing, tmp_path, monkeypatch
):
    """Its numbers are null in the log, and curves, table and report do without them."""
    steps, left = iter(range(9)), iter([math.nan] * overflowing + [spread] * 9)
    forward = Model.forward

    def overflow(self, *arguments, **keywords):
        step = forward(self, *arguments, **keywords)
        return step._replace(loss=step.loss * (math.inf if next(steps) < overflowing else 1))

    monkeypatch.setattr(Model, "forward", overflow)
    monkeypatch.setattr(health, "spread_of", lambda z: torch.tensor(next(left)))
    session = run_in(tmp_path, replace(TINY, precision="fp16", epochs=2))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["kind"] == "step"]
    assert [loss is None for loss in losses] == [True] * overflowing + [False] * (6 - overflowing)
    assert [line["z_std"] for line in lines if line["kind"] == "warning"] == (
        [] if spread > 0.1 else [pytest.approx(spread)] * 2
    )
    report.write(session)
    show.run([str(tmp_path)])


@pytest.mark.parametrize(("spread", "warnings"), [(0.09, 2), (0.11, 0)], ids=["collapsed", "spread"])
def test_a_collapsed_embedding_is_warned_of_once_an_epoch(spread, warnings, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(health, "spread_of", lambda z: torch.tensor(spread))
    run_in(tmp_path, replace(TINY, epochs=2))
    kinds = [record["kind"] for record in log.read(tmp_path / "log.jsonl")]
    assert kinds.count("warning") == warnings
    line = "the embedding has collapsed: z_std stayed below 0.1 for an epoch"
    assert capsys.readouterr().out.count(line) == warnings


def test_one_step_of_little_spread_is_no_collapse(tmp_path, monkeypatch):
    """The start of an EMAN run nearly collapses and recovers."""
    spreads = iter([0.01, 0.05, 0.2])
    monkeypatch.setattr(health, "spread_of", lambda z: torch.tensor(next(spreads)))
    run_in(tmp_path, replace(TINY, epochs=1))
    assert "warning" not in {record["kind"] for record in log.read(tmp_path / "log.jsonl")}


@pytest.mark.parametrize(
    ("spreads", "warned"),
    [
        pytest.param([0.05, 0.05, 0.05, 0.2, 0.05, 0.05], [3], id="high-earlier-in-this-epoch"),
        pytest.param([0.05, 0.05, 0.2, 0.05, 0.05, 0.05], [6], id="high-in-the-epoch-before"),
    ],
)
def test_a_run_resumed_within_an_epoch_is_judged_by_the_whole_of_it(spreads, warned, tmp_path, monkeypatch):
    """Killed after the first of the second epoch's three steps."""
    left = iter(spreads)
    monkeypatch.setattr(health, "spread_of", lambda z: torch.tensor(next(left)))
    run = replace(TINY, epochs=2, save_every=4)
    run_in(tmp_path, run, epochs=2)  # checkpoints: of the epoch, and of step 4
    run_in(tmp_path, run, resume=tmp_path / "checkpoints" / "step-00000004.pt")
    records = log.read(tmp_path / "log.jsonl")
    assert [record["step"] for record in records if record["kind"] == "warning"] == warned
