"""Objectives of one's own, with the linear probe that is on by default: they train, with it or without."""

from __future__ import annotations

import gc
from dataclasses import replace

import pytest
import torch
from tiny_runs import TINY, assert_equal, run_in

from lewel import distributed
from lewel.methods.objectives import OBJECTIVES, SimSiam
from lewel.methods.objectives.base import Terms
from lewel.methods.probe import Probe
from lewel.recipe.schema import MethodSettings
from lewel.run import checkpoint, session
from lewel.run.session import prepare
from lewel.run.step import Stepper
from lewel.watching import log

pytestmark = pytest.mark.usefixtures("narrow")
SHORT = replace(TINY, epochs=2, method=MethodSettings(loss="own", w_aligned=0.0), log_every=100)
NONE = "no linear probe is trained, for the objective own calls online neither with the first view nor"
ANEW = "the linear probe begins anew"


def own(embedded):
    """An objective that embeds what embedded makes of (online, first, second, pass)."""

    class Own(SimSiam):
        names = ("own",)

        def forward(self, online, target, first, second, momentum, draw):
            z = embedded(online, first, second, draw[1])
            return Terms({"global": z.square().mean()}, z.detach()[: len(first)])

    return Own


CALLS = {
    "with noise": lambda online, first, second, draw: online(first + 0.1 * torch.randn_like(first)).z,
    "the encoder alone": lambda online, first, second, draw: online.head(online.encoder(first).mean((2, 3))),
    "several crops": lambda online, first, second, draw: online(torch.cat([first, second])[:, :, 8:24, 8:24]).z,
    "a shuffled batch": lambda online, first, second, draw: online(torch.cat([first, second]).flip(0)).z,
    "half a batch": lambda online, first, second, draw: online(first[::2]).z,
}


@pytest.mark.parametrize("name", CALLS)
def test_without_the_first_view_it_trains_without_a_probe_and_says_so_once(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(OBJECTIVES, "own", own(CALLS[name]))
    run_in(tmp_path / "a", SHORT, epochs=1)
    (path,) = checkpoint.found(tmp_path / "a" / "checkpoints")
    assert "probe" not in checkpoint.read(path)
    assert capsys.readouterr().out.count(NONE) == 1
    resumed = run_in(tmp_path / "a", SHORT, resume=path)
    said = capsys.readouterr().out
    assert (said.count(NONE), said.count(ANEW), resumed.probe) == (1, 0, None)
    assert not any("probe" in record for record in log.read(tmp_path / "a" / "log.jsonl"))
    if name == "with noise":
        alone = run_in(tmp_path / "b", replace(SHORT, probe=False))
        assert_equal(alone.method.state_dict(), resumed.method.state_dict())
        assert NONE not in capsys.readouterr().out


def test_a_pass_that_shows_nothing_teaches_nothing(tmp_path, monkeypatch):
    """The second and later ones, as of an objective that changes: its run goes on, and the probe keeps what it has."""
    seen = []
    monkeypatch.setitem(
        OBJECTIVES, "own", own(lambda online, first, second, draw: online(first if draw < 2 else 1 - first).z)
    )
    learn = Probe.learn
    monkeypatch.setattr(
        Probe, "learn", lambda probe, rows, labels: seen.append(len(rows)) or learn(probe, rows, labels)
    )
    trained = run_in(tmp_path, SHORT)
    assert seen == [16, 16, 0, 0, 0, 0]
    assert trained.probe.passes == 6
    assert trained.probe.variance.any()
    assert all(value.isfinite().all() for value in trained.probe.buffers())


def test_a_probe_without_images_keeps_its_statistics():
    probe = Probe(3, 2)
    probe.learn(torch.randn(8, 3), torch.arange(8) % 2)
    before = {name: value.clone() for name, value in probe.named_buffers()}
    probe.learn(torch.empty(0, 3), torch.empty(0, dtype=torch.int64))
    assert_equal(before, dict(probe.named_buffers()))


def test_no_process_has_one_where_another_has_none(monkeypatch, tmp_path):
    """Shown here, and in another process not."""
    monkeypatch.setitem(OBJECTIVES, "own", own(lambda online, first, second, draw: online(first).z))
    method, optimizer = session.build(SHORT, torch.device("cpu"))
    stepper = Stepper(method, method, optimizer, torch.amp.GradScaler("cpu", enabled=False), Probe(64, 10))
    monkeypatch.setattr(distributed, "everywhere", lambda flag: [flag, False] == [True, True])
    views = torch.randn(2, 8, 3, 32, 32)
    stepper.take([(*views, torch.arange(8))] * 2, 2, step=0, lr=0.1, momentum=0.9)
    assert stepper.probe is None


def test_a_finished_run_that_is_resumed_says_nothing_of_a_probe(tmp_path, capsys):
    run = replace(TINY, epochs=1)
    run_in(tmp_path, replace(run, probe=False))
    (path,) = checkpoint.found(tmp_path / "checkpoints")
    capsys.readouterr()
    run_in(tmp_path, run, resume=path)
    said = capsys.readouterr().out
    assert "continuing after step 3" in said
    assert "probe" not in said


def test_the_probe_of_a_run_that_left_it_out_for_a_while_begins_anew_and_the_method_is_the_same(tmp_path, capsys):
    """--knn-every too may change on the way."""
    whole = run_in(tmp_path / "whole", replace(TINY, knn_every=3))
    folder = tmp_path / "parts"
    run_in(folder, TINY, epochs=1)
    run_in(
        folder, replace(TINY, probe=False, knn_every=2), epochs=1, resume=checkpoint.found(folder / "checkpoints")[-1]
    )
    capsys.readouterr()
    back = run_in(folder, replace(TINY, knn_every=3), resume=checkpoint.found(folder / "checkpoints")[-1])
    assert f"{ANEW}, for that checkpoint has none" in capsys.readouterr().out
    assert_equal(whole.method.state_dict(), back.method.state_dict())
    assert (whole.probe.passes, back.probe.passes) == (9, 3)
    assert prepare(TINY, tmp_path).probe.passes == 0


@pytest.mark.parametrize("together", [False, True], ids=["first view", "both views in a batch"])
def test_nothing_is_kept_from_one_step_to_the_next(together, monkeypatch):
    """No features, no graph: as many tensors are alive after each step, but those of the first, which make momenta."""
    both = own(lambda online, first, second, draw: online(torch.cat([first, second])).z)
    monkeypatch.setitem(OBJECTIVES, "own", both)
    run = SHORT if together else TINY
    method, optimizer = session.build(run, torch.device("cpu"))
    probe = Probe(method.online.encoder.channels, 10)
    stepper = Stepper(method, method, optimizer, torch.amp.GradScaler("cpu", enabled=False), probe)
    views, alive = torch.randn(2, 16, 3, 32, 32), []
    for step in range(4):
        stepper.take([(*views, torch.arange(16) % 10)] * 2, 2, step=step, lr=0.1, momentum=0.9)
        alive.append(sum(type(thing) in (torch.Tensor, torch.nn.Parameter) for thing in gc.get_objects()))
    assert probe.passes == 8
    assert alive[1] == alive[2] == alive[3]
