"""Two processes: the same training as one where BN is synchronised, and one network everywhere in any case."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from in_turns import InTurns
from tiny_runs import assert_equal, in_double
from two_processes import LOCAL, MOVED, NOISE, PASSES, RUNS, SYNCED, in_16_bits, online_knn

from lewel.evaluation import features
from lewel.run import checkpoint
from lewel.run.session import Session, build, prepare
from lewel.train import train
from lewel.watching import log


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def ranks(folder) -> list[dict[str, Any]]:
    """What each of two processes found."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    script = Path(__file__).with_name("two_processes.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parents[2])}
    done = subprocess.run(
        [*torchrun, str(script), str(folder)], env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return [torch.load(folder / f"rank-{rank}.pt") for rank in range(2)]


def assert_trained_as(alone: Session, state: dict[str, Any]) -> None:
    """In float64: to the rounding of sums that are taken in another order."""
    before = alone.method.online.encoder.conv1.weight.detach().clone()
    train(alone, None)
    assert (alone.method.online.encoder.conv1.weight - before).abs().max() > 0.01
    for key, value in alone.method.state_dict().items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(state[key], value, rtol=1e-7, atol=1e-9, msg=lambda m, key=key: f"{key}: {m}")
        else:
            assert state[key] == value, key  # the pointer of the queue


@pytest.mark.parametrize("name", SYNCED)
def test_with_synchronised_bn_two_processes_train_as_one(name, ranks, tmp_path):
    """And so do their probes, from the images of both."""
    alone = in_double(prepare(SYNCED[name], tmp_path))
    assert_trained_as(alone, ranks[0][name]["state"])
    torch.testing.assert_close(ranks[0][name]["probe"], dict(alone.probe.state_dict()), rtol=1e-6, atol=1e-8)
    mine, theirs = features.measured(alone), ranks[0][name]["measured"]
    assert theirs["probe"] == pytest.approx(mine.probe)
    assert theirs["rankme"] == pytest.approx(mine.rankme, rel=1e-4)


def test_where_one_process_has_no_features_of_the_first_view_none_has_a_probe(ranks):
    """And the run ends, in passes of two a step."""
    assert [r["unshown"] for r in ranks] == [{"probe": None, "steps": 3}] * 2


@pytest.mark.parametrize("name", RUNS)
def test_all_processes_have_one_probe(name, ranks):
    first, second = (rank[name] for rank in ranks)
    assert_equal(first["probe"], second["probe"])
    assert first["measured"] == second["measured"]


def test_in_16_bits_bn_over_aligned_vectors_is_synchronised_too(ranks):
    """The projectors' and the predictor's, in two views. Sums of 16 bits that are taken in another order differ."""
    alone = in_16_bits()
    assert len(alone) == 9
    for name, value in alone.items():
        for rank in ranks:
            torch.testing.assert_close(rank["in_16_bits"][name], value, rtol=2e-3, atol=2e-4, msg=name)
        assert not name.endswith("num_batches_tracked") or value == 2


@pytest.mark.parametrize("name", LOCAL)
def test_with_bn_of_their_own_two_processes_train_as_one_that_takes_their_shares_in_turns(name, ranks, tmp_path):
    """The same weights, queue and statistics, those of the first."""
    alone = in_double(prepare(replace(LOCAL[name], probe=False), tmp_path))
    alone.method.forward = InTurns(alone.method)
    assert_trained_as(alone, ranks[0][name]["state"])


@pytest.mark.parametrize("name", PASSES)
def test_a_pass_of_each_process_is_its_turn_of_one(name, ranks):
    """Losses of each, which its own keys are the positives of, and the keys of both for the queue."""
    method = build(PASSES[name], torch.device("cpu"))[0].double()
    with torch.no_grad():
        parts, keys = InTurns(method).both(*NOISE, 0.5, draw=7)
    for number, rank in enumerate(ranks):
        found = rank["passes"][name]
        torch.testing.assert_close(found["keys"], keys)
        torch.testing.assert_close(found["parts"], {part: of_each[number] for part, of_each in parts.items()})


@pytest.mark.parametrize("name", RUNS)
def test_all_processes_end_with_the_same_weights_and_queue(name, ranks):
    first, second = (rank[name]["state"] for rank in ranks)
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    for key, value in first.items():
        if isinstance(value, torch.Tensor) and not key.endswith(statistics):
            assert torch.equal(value, second[key]), key
        elif not isinstance(value, torch.Tensor):
            assert value == second[key], key  # the pointer of the queue


def test_shuffle_bn_mixes_the_processes_and_unshuffles_both_outputs(ranks):
    found = [rank["shuffling"] for rank in ranks]
    everything = torch.tensor([0.0, 1, 2, 3, 10, 11, 12, 13])[:, None]
    assert torch.equal(torch.cat([f["seen"] for f in found]).sort(dim=0).values, everything)
    for f, own in zip(found, everything.chunk(2), strict=True):
        assert not torch.isin(f["seen"], own).all()
        assert torch.equal(f["z"], everything + 0.5)
        assert torch.equal(f["aligned"], everything[:, None] * torch.tensor([1.0, 2, 3])[:, None])
        assert torch.equal(f["z_next"], f["z"])
    assert not torch.equal(found[0]["seen"], found[0]["seen_next"])


def test_processes_draw_different_random_maps(ranks):
    """Over the same features: z says that these are equal."""
    first, second = (rank["random_maps"] for rank in ranks)
    assert torch.equal(first["z"], second["z"])
    assert (first["R"] != second["R"]).any(dim=(1, 2)).all()


@pytest.mark.parametrize("name", ["lewel_b", *LOCAL])
def test_knn_is_that_of_one_process_with_these_weights(name, ranks, tmp_path):
    """And with these BN statistics, those of the first process, where each has its own."""
    session = in_double(prepare(RUNS[name], tmp_path))
    session.method.load_state_dict(ranks[0][name]["state"])
    alone = online_knn(session)
    for number, rank in enumerate(ranks):
        found = rank[name]["knn"]
        assert found["accuracy"] == alone["accuracy"]
        for key in ("bank", "bank_labels"):
            torch.testing.assert_close(found[key], alone[key][number::2])
        torch.testing.assert_close(found["test"], torch.cat([alone["test"][0::2], alone["test"][1::2]]))


def test_initial_weights_are_read_by_one_process_and_used_by_both(ranks, folder):
    given = torch.load(folder / "initial.pth")
    for rank in ranks:
        for network in ("online", "target"):
            for name, value in given.items():
                assert torch.equal(rank["begun"]["state"][f"{network}.encoder.{name}"], value), name
        assert "there is no file or run folder" in rank["begun"]["error"]


@pytest.mark.parametrize("name", LOCAL)
def test_a_resumed_run_of_two_processes_ends_bitwise_as_the_uninterrupted_one(name, ranks):
    for rank in ranks:
        resumed = rank[f"{name}-resumed"]["state"]
        assert_equal(rank[name]["state"], resumed)
    assert ranks[0][f"{name}-resumed"]["losses"] == ranks[0][name]["losses"]


def test_a_run_of_two_processes_goes_on_in_one_of_two_passes_as_if_nothing_had_changed(ranks, folder, tmp_path, capsys):
    """Of local BN: a pass has the same images, whoever takes it. Statistics are those of all passes of the first."""
    middle = checkpoint.found(folder / "moved" / "checkpoints")[0]
    alone = in_double(prepare(replace(MOVED, accumulate=2), tmp_path))
    train(alone, middle)
    said = "in 1 processes of 2 passes, before in 2 of 1: batch norm sees 8 images as before"
    assert said in capsys.readouterr().out
    for key, value in alone.method.state_dict().items():
        if "running_" not in key and "num_batches" not in key:
            torch.testing.assert_close(ranks[0]["moved"]["state"][key], value, rtol=1e-7, atol=1e-9)


def test_a_process_receives_the_images_that_it_shuffles_to_itself_and_no_others(ranks):
    for rank in ranks:
        sent, received = rank["shuffling"]["exchanged"]
        assert (sum(sent), sum(received)) == (4, 4)
    assert ranks[0]["shuffling"]["exchanged"][0][1] == ranks[1]["shuffling"]["exchanged"][1][0]


def test_sigterm_to_one_process_stops_and_saves_all(ranks, folder):
    assert [rank["preempted"] for rank in ranks] == [{"finished": False, "steps": 2}] * 2
    assert [path.name for path in checkpoint.found(folder / "preempted" / "checkpoints")] == ["step-00000002.pt"]


def test_one_process_writes_the_log(ranks, folder):
    steps = [record["step"] for record in log.read(folder / "shuffled" / "log.jsonl") if record["kind"] == "step"]
    assert steps == list(range(1, 7))
