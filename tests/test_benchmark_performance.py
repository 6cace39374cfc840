"""The numbers of docs/performance.md against hand counts and the table that the op was designed by."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import recording
from benchmarks.documents import gpus, performance, quotes, tables, training
from benchmarks.gpu import roofline
from benchmarks.op import footprint
from benchmarks.op.cases import PAPER, SUITES, Case, Shape, make_inputs
from benchmarks.op.cost import MODES, Cost, Rates, floor_of, floor_seconds, least
from benchmarks.op.measure import Row, call_of
from benchmarks.op.providers import KERNELS, PROVIDERS
from benchmarks.training import aligned_loss
from lewel_kernels.triton import backward_launches

CASES = {shape.name: Case(shape, "channels_last", "bf16") for shape in PAPER}
GPUS = {gpu.name: gpu for gpu in roofline.GPUS}
FORWARD, WHOLE = MODES
SMALL = Shape("", N=2, C=8, D=16, K=4, H=1, W=3)
V100, H100 = "tesla-v100-sxm2-16gb", "nvidia-h100-80gb-hbm3"
CONTEXT: dict[str, Any] = {
    "run": "2026-01-02T03:04:05+00:00", "date": "2026-01-02T03:04:05+00:00", "device": "Toy", "driver": "999.1",
    "instructions": None, "threads": 7, "commit": None, "dirty": False, "versions": {"torch": "2.11.0"},
}  # fmt: skip


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of results, empty."""
    monkeypatch.setattr(recording, "ROOT", tmp_path)
    return tmp_path


def put(folder: Path, suite: str, rows: list[Any], **about: object) -> None:
    """Stores rows of a suite, as the records of a GPU unless ``about`` tells another story."""
    folder.mkdir(exist_ok=True)
    made = ({**CONTEXT, **about, **(row if isinstance(row, dict) else asdict(row))} for row in rows)
    (folder / f"{suite}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in made))


def both(case: Case, provider: str, forward: float, whole: float, **other: Any) -> list[Row]:
    """A provider in both modes, in milliseconds."""
    times = zip(MODES, (forward, whole), strict=True)
    return [Row(case, mode, provider, p50=t, **({"samples": 9} | other)) for mode, t in times]


def step_row(method: str, variant: str, overhead: float | None, **case: object) -> dict[str, object]:
    known = {"encoder": "resnet50", "image_size": 224, "batch": 128, "precision": "bf16", "device": "cuda:0"}
    return {"case": known | case, "method": method, "variant": variant, "backend": None, "p50": 1.0,
            "images_per_second": 2.0, "peak_bytes": None, "overhead": overhead, "speedup": None}  # fmt: skip


def loss_row(n: int, ms: float, peak: int | None, **formula: str) -> dict[str, object]:
    measured = {"p50": ms, "logits_bytes": 1 << 18, "saved_bytes": 1 << 19, "peak_bytes": peak}
    return {"case": {"N": n}, **measured, **formula}


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
    assert (1e6 * floors[FORWARD], 1e6 * (floors[WHOLE] - floors[FORWARD])) == pytest.approx(floor, rel=0.05)
    kernels = roofline.predicted_seconds(case, GPUS[gpu])
    assert 1e6 * kernels[FORWARD] == pytest.approx(planned[0], rel=0.05)
    # Parts of dW and dA in float32 came on top of what the design counted.
    assert 1.05 * planned[1] < 1e6 * (kernels[WHOLE] - kernels[FORWARD]) < 1.2 * planned[1]


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


def test_the_passes_of_the_kernels() -> None:
    # Bytes: features 96, pixels 192, M 48, its norms 24, pooled 32, dA 96, three sums over positions 32 each; weight
    # 256, in 16 bits 128; one part of dW.
    # Flops: a projection 768, a pooling 96.
    assert roofline.passes(Case(SMALL, "channels_last", "bf16")) == {
        "forward": [
            ("W to 16 bits", Cost(256 + 128, 0)),
            ("E1, norms", Cost(192 + 128 + 48 + 24, 768)),
            ("E2-E5", Cost(48 + 24 + 96 + 32, 96)),
        ],
        "backward": [
            ("E6-E7", Cost(48 + 24 + 96 + 32 + 96 + 96 + 3 * 32, 2 * 96)),
            ("E8-E9", Cost(48 + 24 + 96 + 3 * 32 + 48, 0)),
            ("E10, dX", Cost(48 + 128 + 192, 768)),
            ("E10, parts of dW", Cost(48 + 192 + 256, 768)),
            ("E10, sum of dW", Cost(256 + 128, 0)),
            ("dW to 32 bits", Cost(128 + 256, 0)),
        ],
    }


def dw_parts(case: Case) -> int:
    """Bytes of the parts in which dW is summed."""
    launches = backward_launches.plan(case.call().backward()).launches
    (parts,) = (launch.arguments["p_dw"] for launch in launches if "p_dw" in launch.arguments)
    return int(parts.nbytes)


def test_the_passes_in_float32_have_no_copy_of_the_weight() -> None:
    passes = roofline.passes(Case(SMALL, "channels_last", "fp32"))
    assert passes["forward"][0] == ("E1, norms", Cost(384 + 256 + 96 + 24, 768))
    assert passes["backward"][2:] == [
        ("E10, dX", Cost(96 + 256 + 384, 768)),
        ("E10, parts of dW", Cost(96 + 384 + 256, 768)),
        ("E10, sum of dW", Cost(256 + 256, 0)),
    ]


@pytest.mark.parametrize("gpu", roofline.GPUS, ids=lambda gpu: gpu.name)
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_no_plan_is_below_the_floor(gpu: roofline.GPU, dtype: str) -> None:
    for shape in [*PAPER, *(replace(shape, N=1) for shape in PAPER)]:
        case = Case(shape, "channels_last", dtype)
        planned = roofline.predicted_seconds(case, gpu)
        for mode in MODES:
            assert planned[mode] >= floor_of(case, mode, gpu.rates), (shape, mode)


def test_the_saved_bytes() -> None:
    # M, the norms and the copy of the weight: 2 x 4 x 3, 2 x 3 and 4 x 16 values.
    assert roofline.saved_bytes(Case(SMALL, "nchw", "bf16")) == 2 * 24 + 4 * 6 + 2 * 64
    assert roofline.saved_bytes(Case(SMALL, "nchw", "fp32")) == 4 * 24 + 4 * 6


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_the_saved_bytes_are_those_of_the_backends(dtype: str, backend: str, device: torch.device) -> None:
    case = Case(Shape("", N=3, C=16, D=8, K=8, H=3, W=5), "channels_last", dtype, str(device))
    inputs = make_inputs(case)
    call = call_of(case, PROVIDERS[backend](), inputs, WHOLE)
    assert footprint.saved_bytes(call, inputs.leaves) == roofline.saved_bytes(case)


def test_every_table_counts_the_saved_bytes_alike() -> None:
    # Of M64: M 64 x 128 x 49 x 2 = 802816 bytes, norms 12544, the copy of the weight 524288; and with D doubled again.
    assert "| M64 (N=64 C=2048 D=2048 K=128 7x7) | 25.7 | 1.3 |" in performance.saved()
    assert "| D doubled | x 1.43 | x 1.80 | x 1.39 |" in performance.growth()
    assert "| 7x7, N=64 C=D=2048 | 97 | 6.2 | 7.9 | 1.3 |" in performance.dense()


def test_what_is_said_about_the_predictions() -> None:
    ratios: dict[str, list[float]] = {"M": [], "B": [], "H100": [], "backward": [], "eager": []}
    for shape in performance.PREDICTED:
        case = performance._case(shape)
        for gpu in roofline.GPUS:
            floors = [floor_of(case, mode, gpu.rates) for mode in MODES]
            eager = [roofline.eager(case).seconds(mode, gpu.rates) for mode in MODES]
            kernels = list(roofline.predicted_seconds(case, gpu).values())
            of_eager, (forward, backward) = (
                [times[0] / floors[0], (times[1] - times[0]) / (floors[1] - floors[0])] for times in (eager, kernels)
            )
            ratios["eager"] += of_eager
            ratios["backward"].append(backward)
            ratios["M" if shape.name[0] == "M" else "H100" if gpu.name == "H100" else "B"].append(forward)
    parts = {name: dw_parts(CASES[name]) / 1e6 for name in ("M256", "B256")}
    said = {
        f"memory everywhere, and the kernels take at most {max(ratios['M']):.2f} times the floor",
        f"they take {min(ratios['B']):.2f} to {max(ratios['B']):.2f} times the floor on these three",
        f"On the H100 memory binds shape B too, and they take at most {max(ratios['H100']):.2f} times",
        f"Backward they take {min(ratios['backward']):.2f} to {max(ratios['backward']):.2f} times the floor",
        f"{parts['M256']:.0f} MB at shape M and {parts['B256']:.0f} MB at shape B",
        f"Eager takes {min(ratios['eager']):.2f} to {max(ratios['eager']):.2f} times the floor",
    }
    text = " ".join((quotes.ROOT / "docs/performance.md").read_text().split())
    assert [sentence for sentence in said if sentence not in text] == []


def test_predictions_at_every_shape_of_the_paper_with_49_positions(stored: Path) -> None:
    assert [shape.name for shape in performance.PREDICTED] == ["M32", "M64", "M128", "M256", "B64", "B128", "B256"]
    assert len(re.findall(r"^\| [MB]\d+ .*\| not yet run \|$", performance.predictions(), re.M)) == 7 * len(GPUS)


def test_the_flops_of_the_op_in_a_step() -> None:
    m = 2 * 49 * (2048 * 128 + 2048 * 32)  # E1 and E5; their gradients are twice that
    assert training._op_flops("infonce", 2048, 128) == 4 * m  # one view online with its backward, one target
    b = 2 * 49 * (4096 * 256 + 2048 * 64)
    assert training._op_flops("byol", 4096, 256) == 2 * 4 * b


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
        ("nvidia-h200", "H200"),
        ("nvidia-h200-nvl", None),
        ("nvidia-h200-mig-1g-18gb", None),
        ("nvidia-gh200-480gb", None),
        ("nvidia-gh200", None),
    ],
)
def test_a_row_has_measurements_of_its_own_gpu_only(device: str, owner: str | None) -> None:
    assert [gpu.name for gpu in roofline.GPUS if gpu.owns(device)] == [owner] * (owner is not None)


def test_measurements_in_the_16_bits_of_the_gpu(stored: Path) -> None:
    lines = []
    for dtype, ms in (("bf16", (3.0, 9.0)), ("fp16", (1.0, 3.5))):
        lines += both(Case(CASES["M64"].shape, "channels_last", dtype, "cuda:1"), "eager", *ms)
    for device in (V100, H100, "nvidia-a100-sxm4-40gb"):
        put(stored / device, "paper", lines)
    measured = {name: performance._measured(CASES["M64"], gpu) for name, gpu in GPUS.items()}
    not_run = tables.NOT_RUN
    assert measured == {"V100": "eager 1000 / 2500", "A100-80": not_run, "H100": "eager 3000 / 6000", "H200": not_run}
    assert performance._measured(CASES["M32"], GPUS["V100"]) == not_run


def test_a_measurement_is_a_plain_launch_that_is_right(stored: Path) -> None:
    case = CASES["M64"]
    kernel = KERNELS[0]
    rows = both(case, "eager", 1.0, 2.0, launch="graph") + both(case, kernel, 3.0, 4.0, problem="wrong")
    rows += both(case, "eager", 0.0, 0.0, samples=0) + both(case, "compile-max", 1.0, 2.0)[:1]
    put(stored / H100, "paper", rows)
    assert performance._measured(case, GPUS["H100"]) == tables.NOT_RUN
    put(stored / H100, "paper", [*rows, *both(case, kernel, 1.0, 1.5), *both(case, "compile-max", 5.0, 7.0)])
    assert performance._measured(case, GPUS["H100"]) == f"compile-max 5000 / 2000, {kernel} 1000 / 500"


def test_the_dense_maps_are_measured(stored: Path) -> None:
    # Else a row would be "not yet run" for ever: each is a case of a suite, which a GPU has in its own 16 bits.
    of_suites = {replace(case, axis="") for suite in ("paper", "sweep") for case in SUITES[suite]}
    assert {performance._case(shape) for shape in performance.DENSE} <= of_suites
    assert [shape.H for shape in performance.DENSE] == [7, 14, 28, 56]
    (narrow,) = (c for c in SUITES["sweep"] if (c.axis, c.shape.H) == ("P", 28))
    put(stored / H100, "sweep", both(replace(narrow, device="cuda:0"), "eager", 1.0, 3.0))
    put(stored / V100, "paper", both(Case(CASES["56x56"].shape, "channels_last", "fp16", "cuda:0"), "eager", 2.0, 9.0))
    run = [line for line in performance.dense().splitlines() if "/" in line and "| not yet run |" not in line]
    assert [line.split(" | ")[1:] for line in run if line.startswith("| 28x28")] == [
        ["H100", "2 / 4", "eager 1000 / 2000 |"]
    ]
    assert [line.split(" | ")[1:] for line in run if line.startswith("| 56x56")] == [
        ["V100", "128 / 255", "eager 2000 / 7000 |"]
    ]
    assert len(run) == 2 + 2  # a title, a header


def test_the_measured_cost_of_the_branch(stored: Path) -> None:
    assert training._branch_measured("lewel_m") == tables.NOT_RUN
    rows = [
        step_row("moco_v2", "no branch", None),
        step_row("lewel_m", "eager", 3.14),
        step_row("lewel_m", "fused", 1.0),
    ]
    put(stored / H100, "step", [
        *rows, step_row("lewel_m", "fused", -7.0, image_size=32), step_row("lewel_m", "fused", -8.0, encoder="tiny"),
        step_row("lewel_b", "fused", None), step_row("lewel_b", "eager", 4.44),
    ])  # fmt: skip
    put(stored / V100, "step", [step_row("lewel_m", "eager", 2.0, precision="fp32")])
    put(stored / "nvidia-h100-pcie", "step", [step_row("lewel_m", "eager", 50.0)])
    told = "V100: eager fp32 +2.0 %; H100: eager bf16 +3.1 %, fused bf16 +1.0 %"
    assert training._branch_measured("lewel_m") == told
    m, b = training.branch().splitlines()[2:]
    assert m.endswith(f" s) | {told} |")
    assert b.endswith(" s) | H100: eager bf16 +4.4 % |")


def test_the_largest_loss_that_was_measured(stored: Path) -> None:
    put(stored / "toy", "loss", [loss_row(8, 1.0, None)], instructions="AVX9")
    put(stored / H100, "loss", [loss_row(64, 1.0, 5), loss_row(128, 2.26, 547_500_000), loss_row(8, 0.1, 5)])
    put(stored / V100, "loss", [loss_row(64, 9.0, None), loss_row(64, 7.0, 9 << 20, variant="blocked")])
    lines = training.infonce("toy").splitlines()
    assert "| H100, 80 GB | 1732 | N=128: plain 2.3 ms, peak 548 MB |" in lines
    assert "| V100, 16 GB | 774 | N=64: plain 9.0 ms; blocked 7.0 ms, peak 9 MB |" in lines
    assert "| H200, 141 GB | 2299 | not yet run |" in lines  # (70.5e9 / 4 / 3.254) ** 0.5 / 32


def test_every_block_of_a_document_has_a_generator() -> None:
    assert {name for names in quotes.DOCUMENTS.values() for name in names} <= quotes.GENERATORS.keys()


def test_every_gpu_with_results_is_in_the_document(stored: Path) -> None:
    case = replace(CASES["M64"], device="cuda:0")
    size = {"case": {"shape": asdict(case.shape)}, "call": "cuda", "mode": FORWARD, "p50": 12.3}
    put(stored / "toy", "paper", both(case, "eager", 1.0, 2.0), instructions="AVX9")
    assert gpus.gpus() == "Nothing was run on any GPU yet.\n"
    name = "Unheard of 9000"
    put(stored / "unheard-of-9000", "overhead", [size], device=name)
    assert re.findall("^#.*", gpus.gpus(), re.M) == [f"### {name}", "#### Overhead of a call"]
    rows = both(case, "eager", 1.5, 4.0, saved_bytes=1 << 20, peak_bytes=3 << 20)
    checked = {"case": {"dtype": "bf16"}, "call": "M bf16", "worst": 0.25, "repeats": 100, "problem": None}
    put(stored / "unheard-of-9000", "right-triton", [checked], device=name)
    for suite in ("paper", "first", "sweep", "quick"):
        put(stored / "unheard-of-9000", suite, rows, device=name)
    put(stored / "unheard-of-9000", "step", [step_row("lewel_m", "eager", 3.14)], device=name)
    put(stored / "unheard-of-9000", "loss", [loss_row(64, 9.0, None)], device=name)
    put(stored / "another", "loss", [loss_row(32, 7.0, None)], device="Another")
    _, other, *parts = re.split("^#{3,4} ", gpus.gpus(), flags=re.M)
    assert other == "Another\n\n"
    expected = [
        ("The aligned InfoNCE", "| 32 | 0.3 | plain | 0.5 |"),
        (name, ""),
        ("Right, triton", "| bf16 | 1 | 0 | 25 % | 100 |"),
        ("Suite paper, forward", "| 1.50 | 0.00 |"),
        ("Suite paper, forward+backward", "| 4.00 | 0.00 |"),
        ("Suite first, forward", "| 1.50 | 0.00 |"),
        ("Suite first, forward+backward", "| 4.00 | 0.00 |"),
        ("Suite paper, memory", "| 1.0 | 3.0 |"),
        ("Suite sweep, forward+backward", "| 4.00 | 0.00 |"),
        ("Suite quick, forward+backward", "| 4.00 | 0.00 |"),
        ("Overhead of a call", "| cuda | 12 |  |"),
        ("A training step", "| lewel_m | bf16 |"),
        ("The aligned InfoNCE", "| 64 | 0.3 | plain | 0.5 |"),
    ]
    assert [part.split("\n\n", 1)[0].strip() for part in parts] == [title for title, _ in expected]
    for part, (title, row) in zip(parts, expected, strict=True):
        assert row in part, title
        assert not row or "driver 999.1" in part, title  # of the GPU, and with its circumstances


def test_live_storages_are_counted_once_and_while_they_live() -> None:
    own = torch.zeros(1000)
    with aligned_loss.LiveStorages([own]) as storages:
        own.mul_(2)
        kept = own + 1  # 4000 bytes
        kept.view(10, 100).add_(1)
        for _ in range(3):
            torch.zeros(500)  # 2000 bytes, freed each time
    assert storages.most == 6000


def test_the_live_bytes_of_the_plain_loss() -> None:
    n, rows = 8, 8 * 32
    # In the gradient of log-softmax: its result, that of the picked logarithms, the softmax, and the mask of bytes;
    # beside them the normalised keys, and of each row an index and a few statistics.
    expected = 3 * 4 * rows**2 + rows**2 + 4 * rows * 128
    assert expected <= aligned_loss.live_bytes(n, "plain") <= expected + 16 * rows + 64


def test_the_live_bytes_of_the_blocked_loss() -> None:
    n, rows, block = 128, 128 * 32, 32 << 20
    assert aligned_loss.logits_bytes(n) == 2 * block
    # A block of logits and one of probabilities; queries over the temperature, keys, the gradient; and of each row its
    # loss and the lengths of query and key.
    expected = 2 * block + 3 * 4 * rows * 128
    assert expected <= aligned_loss.live_bytes(n, "blocked") <= expected + 16 * rows + 2048


@pytest.mark.parametrize("formula", aligned_loss.FORMULAS)
def test_contents_make_no_difference_to_live_bytes(formula: str) -> None:
    queries, keys = aligned_loss._embeddings(8, "cpu")
    with aligned_loss.LiveStorages([queries, keys]) as storages:
        aligned_loss._gradient(formula, queries, keys)
    assert storages.most == aligned_loss.live_bytes(8, formula)


def test_the_formulas_of_the_loss_agree() -> None:
    queries, keys = aligned_loss._embeddings(3, "cpu")
    plain, blocked = (aligned_loss._gradient(formula, queries, keys) for formula in aligned_loss.FORMULAS)
    torch.testing.assert_close(plain, blocked)


def test_the_largest_batch_of_the_loss() -> None:
    assert aligned_loss.logits_bytes(32) == 4 << 20
    assert training._largest_batch(10 * aligned_loss.logits_bytes(100), 10.0) == 100
    assert training._largest_batch(9.99 * aligned_loss.logits_bytes(100), 10.0) == 99


def test_the_fit_does_not_rest_on_measured_peaks(stored: Path) -> None:
    made = []
    for peak in (None, 1 << 20, 1 << 40):
        put(stored / "toy", "loss", [loss_row(8, 1.0, peak)], instructions="AVX9")
        made.append(training.infonce("toy"))
    assert "| 8 | 0.3 | plain | 0.5 | 1.0 |  | 1.0 |" in made[0]
    assert "| 8 | 0.3 | plain | 0.5 | 1.0 | 1.0 | 1.0 |" in made[1]
    assert "the plain formula has 14.0 GB alive at once, in blocks it is 0.12 GB." in made[0]
    fits = [document.split("At most ")[1] for document in made]
    assert fits[0] == fits[1] == fits[2]
    assert fits[0].startswith("3.25 matrices")
    assert "| V100, 16 GB | 774 |" in fits[0]  # (8e9 / 4 / 3.254) ** 0.5 / 32


def test_a_measured_loss_has_its_live_bytes() -> None:
    rows = aligned_loss.measure(2, "cpu", 0.01)
    assert [row.variant for row in rows] == ["plain", "blocked"]
    for row in rows:
        assert row.live_bytes == aligned_loss.live_bytes(2, row.variant)
        assert row.logits_bytes == 4 * 64**2
        row.peak_bytes = None
        aligned_loss.print_row(row)
