"""python -m benchmarks step: rows, the refusal of wrong ones, and that each variant runs the code it names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import lewel_kernels
from benchmarks import __main__, heap, machine, recording
from benchmarks.documents import training
from benchmarks.training import candidates, step
from benchmarks.training.candidates import NO_BRANCH, Candidate, StepCase, case_on, make_views, recipe
from benchmarks.training.step import find_problem, measure
from lewel.recipe import plain, presets
from lewel.run.step import Stepper

CASE = StepCase("tiny", image_size=16, batch=8, precision="fp32")
PAIRS = [("lewel_m", "eager"), ("lewel_m", "fused"), ("lewel_b", "eager"), ("lewel_b", "fused")]


def without_gradient_of_the_maps(features: Tensor, weight: Tensor, **options) -> Tensor:
    """Right forward, and a backward that misses half: the loss cannot tell."""
    half = torch.where(torch.rand_like(options["pixels"]) < 0.5, options["pixels"], options["pixels"].detach())
    return lewel_kernels.functional.fused_align_aggregate(features, weight, **(options | {"pixels": half}))


def average(features: Tensor, weight: Tensor, *, num_groups: int, **options) -> Tensor:
    """Global average pooling in place of the maps, as if they were flat."""
    pooled = features.float().mean((2, 3)).unsqueeze(1).repeat(1, len(weight) // num_groups, 1)
    return pooled + 0 * (weight.sum() + options["pixels"].sum())


def fake_times(monkeypatch: pytest.MonkeyPatch, times: dict[tuple[str, str], list[float]]) -> None:
    """Steps take these seconds; nothing is run for the memory either."""
    monkeypatch.setattr(step.timing, "interleave", lambda calls, *_: {key: times[key] for key in calls})
    monkeypatch.setattr(step.heap, "peak_bytes", lambda *_: 3 << 20)


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Results go to a folder of the test's own."""
    monkeypatch.setattr(recording, "ROOT", tmp_path)
    monkeypatch.setattr(heap, "keep_heap", lambda: True)  # not in the process of the other tests
    return tmp_path


def test_every_method_and_variant_is_a_recorded_row(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of those with small heads; that the others take a step is another test."""
    sizes = ["--image-size", "16", "--batch", "8", "--precision", "fp32", "--seconds", "0.01"]
    with pytest.raises(SystemExit) as exit:
        __main__.main(["step", *sizes, "--method", "moco_v2", "lewel_m", "byol", "lewel_b"])
    assert not exit.value.code
    (device,) = recording.devices()
    rows = recording.latest(device, "step")
    assert [(row["method"], row["variant"]) for row in rows] == [
        ("moco_v2", "no branch"), *PAIRS[:2], ("byol", "no branch"), *PAIRS[2:]
    ]  # fmt: skip
    for row in rows:
        aligned, fused = row["variant"] != "no branch", row["variant"] == "fused"
        assert row["problem"] is None
        assert 0 < row["p20"] <= row["p50"] <= row["p80"]
        assert row["images_per_second"] == pytest.approx(8000 / row["p50"])
        assert row["samples"] >= 5
        assert (row["overhead"] is not None) == aligned
        assert (row["speedup"] is not None) == fused
        assert (row["backend"] in lewel_kernels.BACKENDS) == fused
        assert row["case"] == {"encoder": "tiny", "image_size": 16, "batch": 8, "precision": "fp32", "device": "cpu"}
        assert row["held_bytes"] > 0
    about, *table = capsys.readouterr().out.split("\n\n")
    assert f"torch {torch.__version__.split('+')[0]}" in about
    assert [block.splitlines()[0] for block in table[:2]] == 2 * ["tiny, 16x16, batch 8, fp32, 5 rounds"]
    assert "LEWEL_B 4.4 % over BYOL" in table[2]


def test_overhead_and_speed_up_are_medians_of_the_rounds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_times(
        monkeypatch,
        {
            ("moco_v2", "no branch"): [1.0, 2.0, 4.0],  # the machine slows down, all alike
            ("lewel_m", "eager"): [1.5, 3.0, 6.0],
            ("lewel_m", "fused"): [1.2, 2.4, 12.0],
        },
    )
    base, eager, fused = measure(CASE, ["moco_v2", "lewel_m"], seconds=0)
    assert (base.overhead, base.speedup) == (None, None)
    assert eager.overhead == pytest.approx(50)
    assert eager.speedup is None
    assert fused.overhead == pytest.approx(20)
    assert fused.speedup == pytest.approx(1.25)
    assert fused.p50 == pytest.approx(2400)
    assert fused.images_per_second == pytest.approx(8 / 2.4)
    step.print_case([base, eager, fused])
    assert "+20.0 % of moco_v2         1.250" in capsys.readouterr().out


def test_without_its_baseline_a_method_has_no_overhead(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_times(monkeypatch, {("lewel_m", name): [1.0, 1.0] for name in ("eager", "fused")})
    assert [row.overhead for row in measure(CASE, ["lewel_m"], seconds=0)] == [None, None]


@pytest.mark.parametrize("method", ["lewel_m", "lewel_b"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("wrong", "name"), [(average, "pooled"), (without_gradient_of_the_maps, "d_pixels")])
def test_a_wrong_step_gets_neither_speed_up_nor_overhead(
    wrong, name: str, precision: str, method: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(candidates.OPS, "fused", wrong)
    baseline = step.BASELINES[method]
    fake_times(
        monkeypatch,
        {(baseline, "no branch"): [1.0, 1.0], (method, "eager"): [2.0, 2.0], (method, "fused"): [1.5, 1.5]},
    )
    rows = measure(replace(CASE, precision=precision), [baseline, method], seconds=0)
    assert [row.problem is None for row in rows] == [True, True, False]
    assert rows[1].overhead == pytest.approx(100)
    assert (rows[2].overhead, rows[2].speedup) == (None, None)
    step.print_case(rows)
    printed = capsys.readouterr().out
    assert "no speed-up" in printed
    assert f"{method}, fused: {name} is too far from the float64 truth" in printed


@pytest.mark.parametrize(("precision", "scaled"), [("fp32", False), ("bf16", False), ("fp16", True)])
def test_a_step_in_fp16_has_its_scaler(precision: str, scaled: bool) -> None:
    candidate = Candidate(replace(CASE, precision=precision), "lewel_m", "fused")
    assert candidate.step(*make_views(CASE)[0]).isfinite()
    assert candidate.take.func.__self__.scaler.is_enabled() == scaled
    assert candidate.method.precision == precision


def test_held_bytes_are_both_networks_gradients_momentum_and_queue() -> None:
    candidate = Candidate(CASE, "moco_v2", NO_BRANCH)
    candidate.step(*make_views(CASE)[0])
    method = candidate.method
    network = sum(p.numel() for p in method.online.parameters())
    statistics = sum(b.nbytes for b in method.online.buffers())
    assert candidate.held_bytes() == 4 * (4 * network + 4096 * 64) + 2 * statistics


def test_a_system_that_does_not_tell_memory_leaves_its_column_empty(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_times(monkeypatch, {("byol", NO_BRANCH): [1.0, 1.0]})
    monkeypatch.setattr(step.heap, "peak_bytes", lambda *_: None)
    (row,) = measure(CASE, ["byol"], seconds=0)
    assert row.peak_bytes is None
    step.print_case([replace(row, held_bytes=5 << 20)])
    assert capsys.readouterr().out.splitlines()[-1].split() == [
        "byol", "no", "branch", "1000.00", "[", "1000.00", "1000.00]", "8.0", "5"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("encoder", "method", "heads"),
    [
        ("resnet50", "lewel_m", (2048, 128, 4)),
        ("resnet18", "lewel_b", (4096, 256, 4)),
        ("tiny", "lewel_b", (512, 64, 8)),
    ],
)
def test_recipes_are_those_of_the_presets(encoder: str, method: str, heads: tuple[int, int, int]) -> None:
    run = recipe(replace(CASE, encoder=encoder, image_size=224), method)
    assert (run.heads.hidden, run.heads.num_maps, run.heads.num_groups) == heads
    assert (run.encoder.name, run.encoder.stem) == (encoder, "imagenet")
    assert run.method.name == method
    assert run.preset.startswith("cifar10/" if encoder == "tiny" else "imagenet/")


@pytest.mark.parametrize(("encoder", "size"), [("tiny", 32), ("resnet50", 224)])
@pytest.mark.parametrize("method", candidates.BASELINES)
def test_a_method_differs_from_its_baseline_in_the_branch_alone(method: str, encoder: str, size: int) -> None:
    case = StepCase(encoder, size, batch=8, precision="fp32")
    plain_run, run = (recipe(case, name) for name in (candidates.BASELINES[method], method))
    told = plain.differences(plain_run, run, ignore=("heads.projector",))
    assert told == ["method.w_aligned: 0.0 -> 0.5"]


@pytest.mark.parametrize(("method", "head"), [("moco_v2", "MoCoHead"), ("byol", "MLP"), ("simsiam", "MLP")])
def test_a_baseline_has_the_projector_of_its_method_with_the_branch_or_moco_v2s(method: str, head: str) -> None:
    assert type(Candidate(CASE, method, NO_BRANCH).method.online.head).__name__ == head


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", candidates.METHODS)
def test_a_step_of_every_method_is_finite(method: str, precision: str) -> None:
    assert Candidate(replace(CASE, precision=precision), method, "fused").step(*make_views(CASE)[0]).isfinite()


def test_what_has_no_precision_of_its_own_is_no_choice(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        __main__.main(["step", "--precision", "ambient"])
    assert exit.value.code == 2
    assert "invalid choice: 'ambient'" in capsys.readouterr().err


def test_every_method_of_the_presets_is_measured_beside_its_baseline() -> None:
    """So that one that is added to the presets needs no change here."""
    known = {preset.run.method.name for preset in presets.PRESETS.values()}
    assert set(candidates.METHODS) == known
    assert candidates.BASELINES == {"lewel_m": "moco_v2", "lewel_b": "byol", "lewel_s": "simsiam"}


@pytest.mark.parametrize(
    ("asked", "case"),
    [
        (("cpu", "auto", 0, 128, "fp32"), StepCase("tiny", 32, 128, "fp32", "cpu")),
        (("cuda", "auto", 0, 128, "fp16"), StepCase("resnet50", 224, 128, "fp16", "cuda")),
        (("cuda", "tiny", 0, 64, "bf16"), StepCase("tiny", 32, 64, "bf16", "cuda")),
        (("cpu", "resnet18", 64, 2, "fp32"), StepCase("resnet18", 64, 2, "fp32", "cpu")),
    ],
)
def test_defaults_suit_the_device(asked: tuple[str, str, int, int, str], case: StepCase) -> None:
    assert case_on(*asked) == case


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("method", ["lewel_m", "lewel_b"])
def test_a_right_op_has_no_problem(method: str, precision: str) -> None:
    case = StepCase("tiny", image_size=32, batch=16, precision=precision)
    assert find_problem(Candidate(case, method, "fused"), *make_views(case)[0]) is None


def test_each_variant_runs_its_own_code_and_leaves_the_op_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []

    def counted(name: str):
        own = candidates.OPS[name]

        def op(*args, **options):
            called.append(name)
            return own(*args, **options)

        return op

    before = lewel_kernels.fused_align_aggregate
    for name in candidates.OPS:
        monkeypatch.setitem(candidates.OPS, name, counted(name))
    views = make_views(CASE)[0]
    for method, variant in PAIRS:
        called.clear()
        Candidate(CASE, method, variant).step(*views)
        assert set(called) == {variant}
        assert lewel_kernels.fused_align_aggregate is before
    called.clear()
    for method in ("moco_v2", "byol"):
        Candidate(CASE, method, "no branch").step(*views)
    assert not called


def test_the_step_is_the_trainers(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[dict] = []
    own = Stepper.take
    monkeypatch.setattr(Stepper, "take", lambda *args, **options: taken.append(options) or own(*args, **options))
    candidate = Candidate(CASE, "lewel_m", "fused")
    before = [p.detach().clone() for p in candidate.method.parameters() if p.requires_grad]
    candidate.step(*make_views(CASE)[0])
    assert len(taken) == 1
    after = [p for p in candidate.method.parameters() if p.requires_grad]
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True) if a.ndim > 1)
    assert candidate.method.objective.queue.pointer == 8


def short_of_memory(monkeypatch: pytest.MonkeyPatch, largest: dict[str, int]) -> list[tuple[list[str], int]]:
    """A device that holds so many images of each baseline's group; the groups and batches that were tried."""
    tried = []

    def measure(case: StepCase, methods: list[str], seconds: float) -> list[step.Row]:
        tried.append((methods, case.batch))
        if case.batch > largest[methods[0]]:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return [
            step.Row(case, name, "fused", "cpu", 1.0, 1.0, 1.0, 5, 1000.0 * case.batch, None, None) for name in methods
        ]

    monkeypatch.setattr(step, "measure", measure)
    return tried


def test_a_small_gpu_measures_what_fits(
    recorded: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tried = short_of_memory(monkeypatch, {"moco_v2": 128, "byol": 40, "simsiam": 128})
    with pytest.raises(SystemExit) as exit:
        __main__.main(["step"])
    assert not exit.value.code
    moco, byol, simsiam = ([base, method] for method, base in candidates.BASELINES.items())
    assert tried == [(moco, 128), (byol, 128), (byol, 64), (byol, 32), (simsiam, 128)]
    rows = recording.latest(recording.devices()[0], "step")
    assert {(row["method"], row["case"]["batch"]) for row in rows} == {
        ("moco_v2", 128), ("lewel_m", 128), ("byol", 32), ("lewel_b", 32), ("simsiam", 128), ("lewel_s", 128)
    }  # fmt: skip
    assert "byol, lewel_b: the device has too little memory for batch 64; trying 32" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["step"], "byol, lewel_b\n  left out: OutOfMemoryError: CUDA out of memory."),
        (["step", "--batch", "1"], "data.batch_size must be at least 2"),
        (["step", "--image-size", "8"], "the feature map is one position"),
    ],
)
def test_a_step_that_measures_nothing_fails(
    arguments: list[str], told: str, recorded: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if arguments == ["step"]:
        short_of_memory(monkeypatch, {"moco_v2": 0, "byol": 0, "simsiam": 0})
    with pytest.raises(SystemExit) as exit:
        __main__.main(arguments)
    assert exit.value.code == "Nothing was measured."
    assert told in capsys.readouterr().out
    assert not list(recorded.iterdir())


@pytest.mark.parametrize(
    ("methods", "groups"),
    [
        (["moco_v2", "lewel_m", "byol", "lewel_b"], [["moco_v2", "lewel_m"], ["byol", "lewel_b"]]),
        (["lewel_b", "moco_v2", "byol", "byol"], [["lewel_b", "byol"], ["moco_v2"]]),
    ],
)
def test_methods_are_measured_beside_their_baselines(methods: list[str], groups: list[list[str]]) -> None:
    assert step.together(methods) == groups


def test_a_table_marks_what_is_outside_the_error_budget(recorded: Path) -> None:
    rows = [
        step.Row(CASE, "lewel_m", "fused", "cpu", 1.0, 1.0, 1.0, 5, 8000.0, None, None, problem=problem)
        for problem in ("too far", None)
    ]
    for row, star in zip(rows, (True, False), strict=True):
        recorder = recording.Recorder("step", "cpu", machine.provenance("cpu", busy=0.0, heap_kept=True))
        recorder.path.unlink(missing_ok=True)
        recorder.append([row])
        text = training.step(recorder.path.parent.name)
        assert ("| lewel_m | fp32 | 8 | fused (cpu) \\* |" in text) == star
        assert ("\\* outside the error budget" in text) == star
