"""The parts of a training run: each second counts once, and where it belongs."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import __main__, heap
from benchmarks.documents import tables
from benchmarks.op import results
from benchmarks.training import parts
from lewel import data, train
from lewel.evaluation import health
from lewel.methods import method
from lewel.recipe.schema import Heads, Train

SMALL = replace(parts.RUNS["embedded/lewel_m"], heads=Heads(hidden=16, num_maps=8, num_groups=2), precision="fp32")
SMALL = replace(
    SMALL,
    data=replace(SMALL.data, image_size=32, batch_size=16, embedded_test=16),
    method=replace(SMALL.method, queue=32),
    log_every=1,
)


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Results go to a folder of the test's own, and runs are small and on the CPU."""
    monkeypatch.setattr(results, "ROOT", tmp_path)
    monkeypatch.setattr(heap, "keep_heap", lambda: True)  # not in the process of the other tests
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name, run in parts.RUNS.items():
        queue = run.method if run.method.loss == "byol" else replace(run.method, queue=32)
        monkeypatch.setitem(parts.RUNS, name, replace(SMALL, method=queue))
    return tmp_path


@pytest.mark.parametrize(
    ("owner", "name", "part"),
    [
        (data.batched, "apply", "data"),
        (method.losses, "info_nce", "forward"),
        (torch.autograd, "backward", "backward"),
        (torch.optim.SGD, "step", "optimizer"),
        (method, "follow", "momentum network, queue"),  # which InfoNCE calls in its forward
        (health, "spread_of", "logging"),
        (train, "rates", "rest"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_slow_part_is_told(owner: object, name: str, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own = getattr(owner, name)

    def slow(*args, **options):
        time.sleep(0.2)
        return own(*args, **options)

    usual = parts.measure("small", SMALL, steps=2)
    monkeypatch.setattr(owner, name, slow)
    row = parts.measure("small", SMALL, steps=2)
    assert list(row.shares) == list(parts.PARTS)
    assert sum(row.shares.values()) == pytest.approx(100)
    grown = {p: row.p50 * row.shares[p] - usual.p50 * usual.shares[p] for p in parts.PARTS}
    assert max(grown, key=lambda p: grown[p]) == part
    assert row.shares[part] * row.p50 / 100 >= 190


def test_runs_are_recorded_and_tabulated(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        __main__.main(["parts", "--steps", "2", "--run", "embedded/lewel_m", "resnet18/lewel_b"])
    assert not exit.value.code
    (device,) = results.devices()
    rows = results.latest(device, "parts")
    assert [(row["case"]["run"], row["samples"]) for row in rows] == [("embedded/lewel_m", 2), ("resnet18/lewel_b", 2)]
    assert all(row["shares"][part] > 0 for row in rows for part in parts.PARTS)
    about, _, header, _, first, second = tables.parts(device).splitlines()
    assert about.startswith("Percent of a step. ")
    assert header.startswith("| run | encoder | batch | precision | ms | data | forward |")
    assert first.startswith("| embedded/lewel_m | tiny at 32 | 16 | fp32 |")
    assert f"| {rows[1]['shares']['rest']:.2f} |" in second
    printed = capsys.readouterr().out
    assert printed.count("beside data, forward, backward") == 2
    assert f"{parts.beside(rows[0]['shares']):.2f} %" in printed


def test_where_a_run_would_train_on_the_gpu_it_is_not_recorded_as_the_cpus(
    recorded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(SystemExit, match="add --device cuda"):
        __main__.main(["parts"])


def test_runs_are_those_of_the_presets_and_a_resnet() -> None:
    known: dict[str, Train] = parts.RUNS
    assert [(run.encoder.name, run.data.batch_size, run.precision) for run in known.values()] == [
        *2 * [("tiny", 64, "auto")],
        *2 * [("resnet18", 128, "auto")],
    ]
