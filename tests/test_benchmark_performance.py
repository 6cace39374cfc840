"""The numbers of docs/performance.md against hand counts and the table that the op was designed by."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from benchmarks import aligned_loss, performance, results, roofline
from benchmarks.cases import PAPER, Case, Shape
from benchmarks.cost import MODES, Cost, Rates, floor_of, floor_seconds, least
from benchmarks.measure import Row

CASES = {shape.name: Case(shape, "channels_last", "bf16") for shape in PAPER}
GPUS = {gpu.name: gpu for gpu in roofline.GPUS}
FORWARD, WHOLE = MODES


@pytest.mark.parametrize(
    ("shape", "gpu", "floor", "planned"),
    [
        ("B256", "H100", (74, 131), (82, 151)),
        ("B256", "A100-80", (124, 237), (173, 321)),
        ("B256", "V100", (329, 658), (441, 823)),
        ("M256", "H100", (45, 82), (48, 91)),
    ],
)
def test_predictions_are_those_that_the_op_was_designed_by(
    shape: str, gpu: str, floor: tuple[float, float], planned: tuple[float, float]
) -> None:
    case, rates = CASES[shape], GPUS[gpu].rates
    floors = {mode: floor_of(case, mode, rates) for mode in MODES}
    for seconds, expected in ((floors, floor), (roofline.predicted_seconds(case, GPUS[gpu]), planned)):
        found = 1e6 * seconds[FORWARD], 1e6 * (seconds[WHOLE] - seconds[FORWARD])
        assert found == pytest.approx(expected, rel=0.05)


def test_the_floor_of_both_directions_is_the_sum_of_theirs() -> None:
    case = Case(Shape("", N=1, C=4, D=8, K=4, H=1, W=2), "nchw", "fp32")
    # Forward 32 + 64 + 128 + 16 bytes and 128 + 16 flops, backward 64 + 128 + 256 + 16 bytes and 256 + 32 flops.
    assert least(case, FORWARD) == Cost(240, 144)
    assert least(case, WHOLE) == Cost(240 + 464, 144 + 288)
    rates = Rates(copy=1.0, matmul=144 / 250)  # 250 s of flops, 500 backward: more than of bytes
    assert floor_of(case, FORWARD, rates) == pytest.approx(250)
    assert floor_of(case, WHOLE, rates) == pytest.approx(750)
    rates = Rates(copy=1.0, matmul=144 / 236)  # 236 s of flops, 472 backward: forward waits for bytes
    assert floor_of(case, WHOLE, rates) == pytest.approx(240 + 472)
    assert floor_of(case, WHOLE, rates) > floor_seconds(least(case, WHOLE), rates)


def test_the_passes_of_the_planned_design() -> None:
    passes = roofline.passes(Case(Shape("", N=2, C=8, D=16, K=4, H=1, W=3), "channels_last", "bf16"))
    # Bytes: features 96, pixels 192, M 48, its norms 24, pooled 32, weight 128. Flops: a projection 768, a pooling 96.
    assert passes == {
        "forward": [
            ("E1, norms", Cost(192 + 128 + 48 + 24, 768)),
            ("E2-E5", Cost(48 + 24 + 96 + 32, 96)),
        ],
        "backward": [
            ("E6-E8", Cost(48 + 24 + 96 + 32 + 96 + 48, 2 * 96)),
            ("E9", Cost(48 + 48 + 24 + 48, 0)),
            ("E10, pixels", Cost(48 + 128 + 192, 768)),
            ("E10, weight", Cost(48 + 192 + 2 * 128, 768)),
        ],
    }


def test_the_flops_of_the_op_in_a_step() -> None:
    m = 2 * 49 * (2048 * 128 + 2048 * 32)  # E1 and E5; their gradients are twice that
    assert performance._op_flops("infonce", 2048, 128) == 4 * m  # one view online with its backward, one target
    b = 2 * 49 * (4096 * 256 + 2048 * 64)
    assert performance._op_flops("byol", 4096, 256) == 2 * 4 * b


@pytest.mark.parametrize(
    ("device", "owner"),
    [
        ("tesla-v100-sxm2-16gb", "V100"),
        ("tesla-v100-pcie-32gb", "V100"),
        ("nvidia-a100-sxm4-80gb", "A100-80"),
        ("nvidia-a100-80gb-pcie", "A100-80"),
        ("nvidia-a100-sxm4-40gb", None),
        ("nvidia-a100-sxm4-80gb-mig-1g-10gb", None),
        ("nvidia-h100-80gb-hbm3", "H100"),
        ("nvidia-h100-pcie", None),
        ("nvidia-h100-nvl", None),
        ("nvidia-h100-80gb-hbm3-mig-1g-10gb", None),
        ("nvidia-gh200-480gb", None),
    ],
)
def test_a_row_has_measurements_of_its_own_gpu_only(device: str, owner: str | None) -> None:
    assert [gpu.name for gpu in roofline.GPUS if gpu.owns(device)] == [owner] * (owner is not None)


def test_measurements_in_the_16_bits_of_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "ROOT", tmp_path)
    lines = []
    for dtype, ms in (("bf16", (3.0, 9.0)), ("fp16", (1.0, 3.5))):
        case = Case(CASES["M64"].shape, "channels_last", dtype, "cuda")
        lines += [
            {"run": "1", **asdict(Row(case, m, "eager", p50=t, samples=9))} for m, t in zip(MODES, ms, strict=True)
        ]
    for device in ("tesla-v100-sxm2-16gb", "nvidia-h100-80gb-hbm3", "nvidia-a100-sxm4-40gb"):
        (tmp_path / device).mkdir()
        (tmp_path / device / "paper.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    measured = {name: performance._measured(CASES["M64"], gpu) for name, gpu in GPUS.items()}
    assert measured == {"V100": "eager 1000 / 2500", "A100-80": performance.NOT_RUN, "H100": "eager 3000 / 6000"}
    assert performance._measured(CASES["M32"], GPUS["V100"]) == performance.NOT_RUN


def test_live_storages_are_counted_once_and_while_they_live() -> None:
    own = torch.zeros(1000)
    with aligned_loss.LiveStorages([own]) as storages:
        own.mul_(2)
        kept = own + 1  # 4000 bytes
        kept.view(10, 100).add_(1)
        for _ in range(3):
            torch.zeros(500)  # 2000 bytes, freed each time
    assert storages.most == 6000


def test_the_live_bytes_of_the_loss() -> None:
    n, rows = 8, 8 * 32
    # In the gradient of log-softmax: its result, that of the picked logarithms, the softmax, and the mask of bytes;
    # beside them the normalised keys, and of each row an index and a few statistics.
    expected = 3 * 4 * rows**2 + rows**2 + 4 * rows * 128
    assert expected <= aligned_loss.live_bytes(n) <= expected + 16 * rows + 64
    queries, keys = aligned_loss._embeddings(n, "cpu")
    with aligned_loss.LiveStorages([queries, keys]) as storages:
        aligned_loss._gradient(queries, keys)
    assert storages.most == aligned_loss.live_bytes(n)  # contents make no difference


def test_the_largest_batch_of_the_loss() -> None:
    assert aligned_loss.logits_bytes(32) == 4 << 20
    assert performance._largest_batch(10 * aligned_loss.logits_bytes(100), 10.0) == 100
    assert performance._largest_batch(9.99 * aligned_loss.logits_bytes(100), 10.0) == 99


def test_the_fit_does_not_rest_on_measured_peaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "ROOT", tmp_path)
    (tmp_path / "toy").mkdir()
    about = {
        "run": "1", "date": "2026-01-02T03:04:05+00:00", "device": "Toy", "driver": None, "instructions": "AVX9",
        "threads": 7, "commit": None, "dirty": False, "versions": {"torch": "2.11.0"},
    }  # fmt: skip
    documents = []
    for peak in (None, 1 << 20, 1 << 40):
        row = {"case": {"N": 8}, "p50": 1.0, "logits_bytes": 1 << 18, "saved_bytes": 1 << 19, "peak_bytes": peak}
        (tmp_path / "toy" / "loss.jsonl").write_text(json.dumps({**about, **row}) + "\n")
        documents.append(performance.infonce("toy"))
    assert "| 8 | 0.3 | 0.5 | 1.0 |  | 1.0 |" in documents[0]
    assert "| 8 | 0.3 | 0.5 | 1.0 | 1.0 | 1.0 |" in documents[1]
    fits = [document.split("At most ")[1] for document in documents]
    assert fits[0] == fits[1] == fits[2]
    assert fits[0].startswith("3.25 matrices")
    assert "| V100, 16 GB | 774 |" in fits[0]  # (8e9 / 4 / 3.254) ** 0.5 / 32


def test_a_measured_loss_has_its_live_bytes() -> None:
    row = aligned_loss.measure(2, "cpu", 0.01)
    assert row.live_bytes == aligned_loss.live_bytes(2)
    assert row.logits_bytes == 4 * 64**2
    row.peak_bytes = None
    aligned_loss.print_row(row)
