"""The parts of a training run: each second counts once, and where it belongs."""

from __future__ import annotations

import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import __main__, heap, recording
from benchmarks.documents import training
from benchmarks.training import parts
from lewel import data, ranges
from lewel.evaluation import health
from lewel.methods import losses
from lewel.methods.method import Method
from lewel.recipe import presets
from lewel.recipe.schema import Heads, Train
from lewel.run.session import prepare
from lewel.train import train

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
    monkeypatch.setattr(recording, "ROOT", tmp_path)
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
        (losses.F, "cross_entropy", "loss"),
        (torch.autograd, "backward", "backward"),
        (torch.optim.SGD, "step", "optimizer"),
        (torch, "_foreach_lerp_", "momentum"),  # which InfoNCE calls in its forward
        (health, "spread_of", "log"),
        (sys.modules["lewel.train"], "rates", "rest"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_slow_part_is_told(owner: object, name: str, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own = getattr(owner, name)

    def slow(*args, **options):
        time.sleep(0.2)
        return own(*args, **options)

    monkeypatch.setattr(owner, name, slow)
    _, seconds = parts.run_epochs(replace(SMALL, data=replace(SMALL.data, embedded_train=32)))
    assert list(seconds) == list(parts.PARTS.values())
    assert seconds[part] >= 2 * 0.19


def event(name: str, start: float, end: float, *kernels: float) -> SimpleNamespace:
    """An event of the host in microseconds, and the durations of the kernels that it launches."""
    return SimpleNamespace(
        name=name, device_type=torch.autograd.DeviceType.CPU, time_range=SimpleNamespace(start=start, end=end),
        kernels=[SimpleNamespace(duration=duration) for duration in kernels],
    )  # fmt: skip


RANGES = [
    event(parts.REST, 0, 100e6),
    event(ranges.FORWARD, 10e6, 60e6),
    event(ranges.ENCODER, 10e6, 30e6),
    event(ranges.MOMENTUM, 40e6, 40e6),  # shorter than the clock's tick
    event(ranges.ENCODER, 50e6, 60e6),
    event(ranges.BACKWARD, 60e6, 90e6),
    event("aten::mm", 12e6, 20e6),
]


def told(seconds: dict[str, float]) -> dict[str, float]:
    return {part: x for part, x in seconds.items() if x}


def test_seconds_of_a_part_leave_out_those_of_parts_within_it() -> None:
    assert told(parts.seconds_of(RANGES)) == {"forward": 20, "encoder": 30, "backward": 30, "rest": 20}


def test_on_a_gpu_kernels_count_where_they_are_launched_from_any_thread() -> None:
    launches = [event("conv", 11e6, 12e6, 5e6, 1e6), event("add", 65e6, 66e6, 40e6), event("copy", 5e6, 6e6, 1e6)]
    gpu = SimpleNamespace(name=ranges.ENCODER, device_type=torch.autograd.DeviceType.CUDA)  # the range on its side
    assert told(parts.seconds_of([*launches, gpu, *RANGES])) == {"encoder": 6, "backward": 40, "rest": 54}


def test_a_profile_of_a_run_has_all_ranges(tmp_path: Path) -> None:
    """As docs/training.md has it: a profiler around a run of two steps."""
    names = [value for name, value in vars(ranges).items() if name.isupper() and isinstance(value, str)]
    session = prepare(replace(SMALL, epochs=1, data=replace(SMALL.data, embedded_train=32)), tmp_path)
    with torch.profiler.profile() as profiled:
        train(session, None)
    counts = Counter(e.name for e in profiled.events() if e.name in names)
    assert counts.pop(ranges.DATA) >= 2 * 3  # a wait and two views
    keys_in_two_groups, follows_and_enqueues, zeroed_and_stepped = 2 * (1 + 2), 2 * 2, 2 * 2
    assert counts == {
        ranges.FORWARD: 2, ranges.ENCODER: keys_in_two_groups, ranges.HEAD: keys_in_two_groups, ranges.LOSS: 2 * 2,
        ranges.BACKWARD: 2, ranges.PROBE: 2, ranges.OPTIMIZER: zeroed_and_stepped,
        ranges.MOMENTUM: follows_and_enqueues, ranges.LOG: 2, ranges.SAVE: 1, ranges.EVALUATE: 2,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["lewel_m", "lewel_b"])
def test_ranges_break_no_graph(name: str) -> None:
    method = Method(replace(SMALL, method=presets.get(f"embedded/{name}").method))
    found = torch._dynamo.explain(method.online)(torch.randn(4, 3, 32, 32))
    assert found.graph_break_count == 0, found.break_reasons


def test_runs_are_recorded_and_tabulated(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        __main__.main(["parts", "--steps", "2", "--run", "embedded/lewel_m", "resnet18/lewel_b"])
    assert not exit.value.code
    (device,) = recording.devices()
    rows = recording.latest(device, "parts")
    assert [(row["case"]["run"], row["samples"]) for row in rows] == [("embedded/lewel_m", 2), ("resnet18/lewel_b", 2)]
    assert all(row["shares"][part] > 0 for row in rows for part in parts.PARTS.values())
    about, _, header, _, first, second = training.parts(device).splitlines()
    assert about.startswith("Percent of a step. ")
    assert header.startswith("| run | encoder | batch | precision | ms | data | forward | encoder | head |")
    assert first.startswith("| embedded/lewel_m | tiny at 32 | 16 | fp32 |")
    assert f"| {rows[1]['shares']['rest']:.2f} |" in second
    printed = capsys.readouterr().out
    assert printed.count("beside data, forward, encoder, head, loss, backward") == 2
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
