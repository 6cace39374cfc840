"""lewel bench: that it times the trainer's own steps, and that its table says what was timed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks import heap, timing
from benchmarks.training import bench
from benchmarks.training.bench import Candidate, Case, make_views
from lewel import cli
from lewel.errors import LewelError
from lewel.run.step import Stepper

CASE = Case("tiny", image_size=16, batch=8, precision="fp32")
SMALL = ["--image-size", "16", "--batch", "8", "--seconds", "0.01"]


@pytest.fixture(autouse=True)
def heap_of_the_other_tests(monkeypatch):
    monkeypatch.setattr(heap, "keep_heap", lambda: True)


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["lewel", "bench", *arguments])
    cli.main()


def faked(monkeypatch: pytest.MonkeyPatch, times: dict[tuple[str, str | None], list[float]]) -> list[bench.Row]:
    """The rows of CASE if steps took these seconds and 1000 bytes."""
    monkeypatch.setattr(timing, "interleave", lambda calls, *_: {key: times[key] for key in calls})
    monkeypatch.setattr(heap, "peak_bytes", lambda *_: 1000)
    return bench.measure(CASE, list(dict.fromkeys(method for method, _ in times)), seconds=0)


def test_the_table_has_a_line_for_each_method_and_two_with_the_aligned_branch(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(timing, "busy_cores", lambda: 2.5)
    call(monkeypatch, *SMALL, "--precision", "fp32")
    machine, busy, case, _, *lines, blank, paper, _ = capsys.readouterr().out.splitlines()
    assert timing.device_name("cpu") in machine
    assert torch.__version__ in machine
    assert "keep 2.5 cores busy" in busy
    assert case == "tiny, 16x16, batch 8, fp32, a step of all in turn, 5 rounds"
    ops = ["fused", "reference"]
    assert [line.split()[1] for line in lines if line.startswith("  lewel")] == 2 * ops
    assert [line.split()[0] for line in lines] == ["moco_v2", *2 * ["lewel_m"], "byol", *2 * ["lewel_b"]]
    assert [line.partition(" % of ")[2] for line in lines] == ["", *2 * ["moco_v2"], "", *2 * ["byol"]]
    assert (blank, "V100" in paper) == ("", True)


def test_numbers_of_a_row(monkeypatch):
    base, fused, reference = faked(
        monkeypatch,
        {
            ("moco_v2", None): [1.0, 4.0, 2.0],  # the machine slows down, all alike
            ("lewel_m", None): [1.2, 4.8, 12.0],
            ("lewel_m", "reference"): [1.5, 6.0, 3.0],
        },
    )
    assert [row.overhead for row in (base, fused, reference)] == [None, pytest.approx(20), pytest.approx(50)]
    assert (fused.ms, fused.images_per_second, fused.rounds) == (pytest.approx(4800), pytest.approx(8 / 4.8), 3)
    assert fused.peak_bytes == Candidate(CASE, "lewel_m").held_bytes() + 1000


def test_without_its_baseline_a_method_has_no_overhead(monkeypatch):
    rows = faked(monkeypatch, {("lewel_b", None): [1.0, 1.0], ("lewel_b", "reference"): [2.0, 2.0]})
    assert [row.overhead for row in rows] == [None, None]


def test_a_system_that_does_not_tell_memory_leaves_its_column_empty(monkeypatch):
    monkeypatch.setattr(heap, "peak_bytes", lambda *_: None)
    (row,) = bench.measure(CASE, ["byol"], seconds=0.01)
    assert row.peak_bytes is None
    line = bench.table(CASE, [replace(row, ms=1.0, images_per_second=2.0)]).splitlines()[2]
    assert line.split() == ["byol", "1.00", "2.0"]


def test_held_bytes_are_both_networks_gradients_momentum_and_queue():
    candidate = Candidate(CASE, "moco_v2")
    candidate.step(*make_views(CASE)[0])
    method = candidate.method
    network = sum(p.numel() for p in method.online.parameters())
    statistics = sum(b.nbytes for b in method.online.buffers())
    assert candidate.held_bytes() == 4 * (4 * network + 4096 * 64) + 2 * statistics


def test_a_step_is_the_trainers(monkeypatch):
    taken, own = [], Stepper.take
    monkeypatch.setattr(Stepper, "take", lambda *args, **options: taken.append(options) or own(*args, **options))
    candidate = Candidate(CASE, "lewel_m")
    trained = [p for p in candidate.method.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in trained]
    candidate.step(*make_views(CASE)[0])
    assert len(taken) == 1
    assert all(not torch.equal(a, b) for a, b in zip(before, trained, strict=True) if a.ndim > 1)
    assert candidate.method.queue.pointer == 8


@pytest.mark.parametrize(("precision", "scaled"), [("fp32", False), ("bf16", False), ("fp16", True)])
def test_a_step_in_fp16_has_its_scaler(precision, scaled):
    candidate = Candidate(replace(CASE, precision=precision), "lewel_m")
    assert candidate.step(*make_views(CASE)[0]).isfinite()
    assert candidate.take.func.__self__.scaler.is_enabled() == scaled
    assert candidate.method.precision == precision


@pytest.mark.parametrize("method", ["lewel_m", "lewel_b"])
def test_a_row_names_the_backend_that_the_step_runs_on(method, monkeypatch):
    views = make_views(CASE)[0]
    assert Candidate(CASE, method, "reference").backend(views[0]) == "reference"
    assert Candidate(CASE, method).backend(views[0]) not in ("", "reference")
    assert Candidate(CASE, bench.BASELINES[method]).backend(views[0]) == ""


@pytest.mark.parametrize(
    ("encoder", "method", "heads"),
    [
        ("resnet50", "lewel_m", (2048, 128, 4)),
        ("resnet18", "lewel_b", (4096, 256, 4)),
        ("tiny", "lewel_b", (512, 64, 8)),
    ],
)
def test_heads_are_the_papers_or_those_of_the_presets(encoder, method, heads):
    run = bench.recipe(replace(CASE, encoder=encoder, image_size=224), method)
    assert (run.heads.hidden, run.heads.num_maps, run.heads.num_groups) == heads
    assert run.encoder.stem == "imagenet"
    assert run.method.name == method


@pytest.mark.parametrize(
    ("asked", "case"),
    [
        (("cpu", "auto", 0, 128, "fp32"), Case("tiny", 32, 128, "fp32", "cpu")),
        (("cuda", "auto", 0, 128, "fp16"), Case("resnet50", 224, 128, "fp16", "cuda")),
        (("cuda", "tiny", 0, 64, "bf16"), Case("tiny", 32, 64, "bf16", "cuda")),
        (("cpu", "resnet18", 64, 2, "fp32"), Case("resnet18", 64, 2, "fp32", "cpu")),
    ],
)
def test_defaults_suit_the_device(asked, case):
    assert bench.case_on(*asked) == case


def test_too_little_memory_is_a_sentence(monkeypatch):
    def short(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(timing, "interleave", short)
    with pytest.raises(LewelError, match="cpu has too little memory for tiny, 16x16, batch 8, fp32; try --batch 4"):
        bench.measure(CASE, ["byol"], seconds=1)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--seconds", "0"], "seconds must be positive and finite, got 0.0"),
        (["--seconds", "inf"], "seconds must be positive and finite, got inf"),
        (["--batch", "1"], "data.batch_size must be at least 2"),
        (["--image-size", "8"], "the feature map is one position"),
        (["--methods", "moco"], "moco_v2"),
        (["--methods"], "methods is empty; name one"),
    ],
)
def test_what_cannot_be_timed_is_a_sentence(arguments, sentence, monkeypatch, capsys):
    monkeypatch.setattr(timing, "busy_cores", lambda: None)
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, *arguments)
    assert stop.value.code == 2
    assert sentence in capsys.readouterr().err
