"""The benchmark core: right results are timed, wrong ones get no speed-up, rows are data with provenance."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import __main__, providers, results
from benchmarks.cases import DTYPES, Case, Shape, make_inputs
from benchmarks.measure import MODES, measure
from benchmarks.parity import compare

ROOT = Path(__file__).parents[1]
TINY = Shape("tiny", N=4, C=32, D=16, K=16, H=3, W=5)


def wrong(features: Tensor, pixels: Tensor, weight: Tensor) -> Tensor:
    """Right but for one part in twenty."""
    return providers.eager_align_aggregate(features, pixels, weight) * 1.05


def broken(features: Tensor, pixels: Tensor, weight: Tensor) -> Tensor:
    raise RuntimeError("no such machine")


@pytest.fixture(autouse=True)
def _providers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(providers.PROVIDERS, "wrong", lambda: wrong)
    monkeypatch.setitem(providers.PROVIDERS, "broken", lambda: broken)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_right_results_are_timed_and_wrong_ones_get_no_speed_up(
    layout: str, dtype: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = measure(Case(TINY, layout, dtype), ["eager", "reference", "wrong", "broken"], seconds=0.01)
    assert [(row.mode, row.provider) for row in rows] == [
        (mode, name) for mode in MODES for name in ("eager", "reference", "wrong", "broken")
    ]
    for row in rows:
        fine = row.provider in ("eager", "reference")
        assert (row.problem is None) == fine
        assert (row.vs_eager is None) == (row.problem is not None)
        assert (row.samples > 0) == (row.provider != "broken")
        assert row.p20 <= row.p50 <= row.p80
    results.print_case(rows)
    results.print_means(rows)
    printed = capsys.readouterr().out
    assert "broken: cannot run: RuntimeError: no such machine" in printed
    assert "wrong: pooled is too far from the float64 truth" in printed
    assert "none: 1 of 1 cases have no speed-up" in printed


def test_inputs_have_the_layout_and_dtypes_of_the_case() -> None:
    for dtype in DTYPES:
        inputs = make_inputs(Case(TINY, "channels_last", dtype))
        assert inputs.features.dtype == inputs.pixels.dtype == inputs.grad.dtype == DTYPES[dtype]
        assert inputs.weight.dtype == torch.float32
        assert inputs.features.is_contiguous(memory_format=torch.channels_last)


def test_the_error_budget() -> None:
    truth = torch.randn(10_000, dtype=torch.float64)
    noise = torch.randn_like(truth) * 1e-5
    eager = (truth + noise).float()
    assert compare((truth - noise).float(), eager, truth).ok
    assert not compare((truth + 1.4 * noise).float(), eager, truth).ok  # rms
    spike = noise.clone()
    spike[noise.abs().argmax()] *= 3
    assert not compare((truth + spike).float(), eager, truth).ok  # max
    assert not compare(torch.full_like(eager, float("nan")), eager, truth).ok


def test_rows_are_recorded_with_their_provenance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "ROOT", tmp_path)
    arguments = ["run", "--provider", "reference", "--shape", "small", "--layout", "nchw", "--dtype", "fp32"]
    monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments, "--seconds", "0.01"])
    monkeypatch.setattr(__main__, "keep_heap", lambda: True)  # not in the process of the other tests
    for _ in range(2):  # appends
        __main__.main()
    (path,) = tmp_path.glob("results/*/quick.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == 2 * len(MODES) * 2
    for row in rows:
        assert row["case"]["shape"]["name"] == "small"
        assert row["versions"]["torch"].startswith(torch.__version__.split("+")[0])
        assert {
            "device",
            "threads",
            "commit",
            "dirty",
            "date",
            "busy_cores",
            "heap_kept",
            "p50",
            "vs_eager",
            "problem",
        } <= row.keys()


def test_the_heap_keeps_what_is_freed() -> None:
    """After a few rounds a tensor of 64 MB costs no page faults (in a process of its own: the setting stays)."""
    code = (
        "import resource, torch\n"
        "from benchmarks.measure import keep_heap\n"
        "assert keep_heap()\n"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(16):\n"
        "    before = faults(); torch.ones(16 << 20); print(faults() - before)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    first, *_, last = map(int, run.stdout.split())
    assert first > 1000 > 100 > last
