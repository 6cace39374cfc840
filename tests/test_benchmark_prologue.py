"""The four ways through batch normalisation, ReLU and the op: equal, timed beside each other, told in a table."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from benchmarks import __main__, heap, machine, recording
from benchmarks.documents import gpus, performance, tables
from benchmarks.gpu import roofline
from benchmarks.op import prologue
from benchmarks.op.cases import Case, Shape
from benchmarks.op.cost import MODES

TINY = Shape("tiny", N=4, C=32, D=48, K=16, H=3, W=3)
CONTEXT = {"run": "2026-01-02", "date": "2026-01-02T03:04:05", "device": "Toy", "driver": "1", "instructions": None,
           "threads": 1, "commit": None, "dirty": False, "versions": {"torch": "2.11.0"}}  # fmt: skip


@pytest.fixture
def one_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The command with one small case, without the compiler, writing to the test's own folder."""
    ways = prologue.ways
    monkeypatch.setattr(recording, "ROOT", tmp_path)
    monkeypatch.setattr(heap, "keep_heap", lambda: True)  # not in the process of the other tests
    monkeypatch.setattr(machine, "cache_bytes", lambda _: 1)
    monkeypatch.setattr(prologue, "suite", lambda device: [Case(TINY, "channels_last", "bf16", device)])
    without = lambda backend: {k: v for k, v in ways(backend).items() if k != prologue.COMPILE}  # noqa: E731
    monkeypatch.setattr(prologue, "ways", without)
    return tmp_path


def run(*arguments: str) -> None:
    with pytest.raises(SystemExit) as done:
        __main__.main(["prologue", "--seconds", "0.01", *arguments])
    assert done.value.code is None


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("way", [prologue.AFTER, prologue.AFFINE])
def test_every_way_keeps_the_budget_on_every_backend(
    dtype: str, way: str, backend: str, device: torch.device
) -> None:  # fmt: skip
    case = Case(TINY, "channels_last", dtype, str(device))
    assert prologue.find_problem(case, prologue.ways(backend)[way], prologue.make_inputs(case)) is None


@pytest.mark.parametrize("spoiled", ["gamma", "statistics"])
def test_a_way_that_loses_a_gradient_is_found(spoiled: str) -> None:
    case = Case(TINY, "channels_last", "fp32")

    def wrong(features: torch.Tensor, pixels: torch.Tensor, gamma: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        if spoiled == "gamma":
            gamma = gamma + 0 * gamma.detach() - 0.001
            return prologue.eager(features, pixels, gamma, *rest)
        scale, shift = prologue.folded(pixels.detach(), gamma, rest[0])  # they depend on the pixels too
        activated = (pixels * scale[:, None, None] + shift[:, None, None]).relu()
        return prologue.eager_align_aggregate(features, activated, rest[1])

    told = prologue.find_problem(case, wrong, prologue.make_inputs(case))
    assert str(told).startswith({"gamma": "pooled is too far", "statistics": "d_pixels is too far"}[spoiled])


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_no_input_lies_at_the_kink_of_the_relu(dtype: str) -> None:
    inputs = prologue.make_inputs(Case(TINY, "channels_last", dtype))
    pixels, gamma, beta = (x.detach().double() for x in (inputs.pixels, inputs.gamma, inputs.beta))
    before = torch.nn.functional.batch_norm(pixels, None, None, gamma, beta, training=True, eps=prologue.EPS)
    assert before.abs().min() > 2e-4
    assert 0.2 < (before > 0).double().mean() < 0.8
    assert inputs.pixels.is_contiguous(memory_format=torch.channels_last)


def test_rows_are_recorded(one_case: Path) -> None:
    run()
    (path,) = one_case.glob("*/prologue.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    ways = [name for name in prologue.WAYS if name != prologue.COMPILE]
    assert [(row["mode"], row["provider"]) for row in rows] == [(mode, way) for mode in MODES for way in ways]
    assert all(row["samples"] and row["p50"] > 0 and row["problem"] is None for row in rows)
    assert [row["speedup"] for row in rows if row["provider"] == prologue.EAGER] == [1.0, 1.0]
    # Never the interpreter, though it would take the request here.
    assert {row["backend"] for row in rows} <= {None, "cpu", "reference"}
    (device,) = recording.devices()
    assert tables.prologue(device).count("| tiny (N=4 D=48 K=16 3x3) | bf16 |") == 2
    assert tables.prologue(device) in performance.prologue()


def test_a_run_in_no_time_is_a_sentence(one_case: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(case: Case, seconds: float) -> None:
        raise RuntimeError("out of memory\nand more")

    monkeypatch.setattr(prologue, "measure", fails)
    with pytest.raises(SystemExit, match="Nothing was measured"):
        __main__.main(["prologue", "--no-record"])


def test_what_a_gpu_measured_is_in_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "ROOT", tmp_path)
    assert performance.prologue().count("not yet run") == 2 * len(roofline.GPUS) * len(prologue.WAYS)
    case = Case(performance.B_256, "channels_last", "bf16", "cuda:0")
    make: Callable[..., prologue.Row] = prologue.Row
    rows = [make(case, prologue.AFFINE, mode, "plain", "triton", p50=ms, samples=9, speedup=2.5)
            for mode, ms in zip(MODES, (0.1, 0.3), strict=True)]  # fmt: skip
    rows += [make(case, prologue.EAGER, mode, "plain", None, p50=1.0, samples=9, problem="wrong") for mode in MODES]
    folder = tmp_path / "nvidia-h100-80gb-hbm3"
    folder.mkdir()
    (folder / "prologue.jsonl").write_text("".join(json.dumps(CONTEXT | asdict(row)) + "\n" for row in rows))
    (line,) = (x for x in performance.prologue().splitlines() if x.startswith("| B256") and "| H100 |" in x)
    assert line.endswith("| not yet run | not yet run | not yet run | 100 / 200 |")  # eager was wrong
    assert "#### Batch norm and ReLU before the op" in gpus.gpus()
    assert "0.100 (x 2.50)" in gpus.gpus()
    assert "1.000 \\*" in gpus.gpus()
