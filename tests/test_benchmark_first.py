"""The session for a GPU that is at hand for minutes: its plan, and its first parts, which build and check."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from benchmarks import __main__, recording
from benchmarks.compiled.triton_kernels import TritonReport
from benchmarks.documents import tables
from benchmarks.gpu import build, right, session
from benchmarks.gpu.right import Request, Row
from benchmarks.gpu.tune_space import SHAPES, TINY
from lewel_kernels import dispatch, functional
from lewel_kernels.native.toolchain import BuildError
from lewel_kernels.triton import configs

M, B = (Request(name, s.N, s.C, s.D, s.K, 4, s.P, "fp32", temperature=0.05) for name, s in list(TINY.items())[:2])
PLAIN = functional.fused_align_aggregate


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Results go to a folder of the test's own; nothing is asked of the machine."""
    monkeypatch.setattr(recording, "ROOT", tmp_path)
    about = {"date": "2026-01-02T03:04:05+00:00", "instructions": "AVX9", "threads": 7, "device": "Toy",
             "versions": {"torch": "2.11.0"}, "commit": None, "dirty": None}  # fmt: skip
    monkeypatch.setattr(recording, "quiet_machine", lambda device: about)
    return tmp_path


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that stands still unless ``now`` is set."""
    pretended = SimpleNamespace(now=0.0)
    monkeypatch.setattr(time, "monotonic", lambda: pretended.now)
    return pretended


def run(*arguments: str) -> int | str | None:
    with pytest.raises(SystemExit) as done:
        __main__.main(list(arguments))
    return done.value.code


def rows_of(folder: Path, suite: str) -> list[dict[str, Any]]:
    return [json.loads(line) for path in folder.glob(f"*/{suite}.jsonl") for line in path.read_text().splitlines()]


# The plan.


@pytest.mark.parametrize("native", [True, False], ids=["bf16", "without_bf16"])
def test_the_plan_goes_by_value_and_fits_its_minutes(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "refusal", lambda name, request: None)
    monkeypatch.setattr(session.machine, "native_bf16", lambda device: native)
    parts = session.first("cuda:0")
    assert [part.name for part in parts] == ["build", "right, triton", "right, cuda", "fast", "step"]
    assert sum(part.minutes for part in parts) <= session.minutes_of("first") == 9
    assert all(part.command[-2:] == ("--device", "cuda:0") for part in parts)
    for part in parts[1:4]:  # each has a clock of its own, and what it has begun when that ends is not lost
        own = float(part.command[part.command.index("--minutes") + 1])
        assert own + 0.1 < part.minutes
    step = parts[4].command
    assert step[step.index("--precision") + 1 : step.index("--seconds")] == (("bf16",) if native else ()) + ("fp16",)


def test_a_gpu_too_old_for_triton_has_its_part_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "refusal", lambda name, request: f"{name} is too new")
    monkeypatch.setattr(session.machine, "native_bf16", lambda device: False)
    assert [part.left_out for part in session.first("cuda:0")] == ["", "triton is too new", "", "", ""]


def test_a_rehearsal_runs_the_same_commands() -> None:
    parts = session.first("cpu")
    assert sum(part.minutes for part in parts) <= 9
    commands = [part.command[part.command.index("benchmarks") + 1] for part in parts]
    assert commands == ["build", "right", "right", "run", "step"]
    emulated = [part.command[:2] == ("tests/emulation", "sm_80") for part in parts]
    assert emulated == [True, False, True, False, False]
    assert [dict(part.environment).get("TRITON_INTERPRET") for part in parts] == ["1", "1", "1", None, None]


def test_a_session_ends_after_its_own_minutes(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    now = iter([0.0, 0.0, 9 * 60 - 4.0, 9 * 60 - 4.0, 9 * 60.0])
    monkeypatch.setattr(session.time, "monotonic", lambda: next(now))
    monkeypatch.setattr(session, "_run", lambda part, seconds: "ok")
    parts = [session.Part(name, 9, ("-c", "")) for name in ("long", "late")]
    assert session.run(parts, "cpu", 9) == 1
    assert "not begun: the parts before it took the 9 minutes" in capfd.readouterr().out


# What is checked.


@pytest.mark.parametrize("capability", [80, 90])
def test_every_entry_of_a_table_is_launched(capability: int) -> None:
    asked = right.requests("cuda:0", "triton")
    table = configs.table(configs.architecture(divmod(capability, 10)))
    assert right.entries(asked, capability) == table.keys() != set()
    assert {*SHAPES, "K512"} == {request.name for request in asked}


def test_the_calls_go_by_value() -> None:
    asked = right.requests("cuda:0", "cuda")
    assert [str(request) for request in asked[:6]] == [
        "M bf16 rows bias maps", "B bf16 rows bias maps", "M bf16 rows", "B bf16 rows",
        "M bf16 rows bias affine", "B bf16 rows bias affine",
    ]  # fmt: skip
    assert {request.N for request in asked if request.name in ("M", "B")} == {256}
    assert [*dict.fromkeys(request.dtype for request in asked)] == ["bf16", "fp16", "fp32"]
    for name in ("bias", "affine", "maps", "shared"):
        assert {getattr(request, name) for request in asked} == {False, True}
    assert {request.layout for request in asked} == {"rows", "planes"}
    assert {request.name for request in asked if request.shared} == {"M", "14x14", "56x56"}  # where C == D
    assert right.REPEATS["cuda"] == 100


def test_the_interpreter_is_not_asked_for_what_it_cannot() -> None:
    for backend, dtypes in (("triton", {"fp16", "fp32"}), ("cuda", {"bf16", "fp16", "fp32"})):
        asked = right.requests("cpu", backend)
        assert {request.dtype for request in asked} == dtypes
        assert max(request.N for request in asked) == 2


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("variant", right.VARIANTS, ids=lambda variant: " ".join(variant) or "plain")
def test_the_reference_has_no_problem(variant: dict[str, Any], dtype: str) -> None:
    request = replace(M, dtype=dtype, **variant)
    row = right.check(request, "cpu", "reference")
    assert row.problem is None
    assert row.repeats == right.REPEATS["cpu"]
    named = {"features", "weight", *([] if request.shared else ["pixels"])}
    named |= {"bias"} if request.bias else set()
    named |= {"scale", "shift"} if request.affine else set()
    outputs = {"pooled", "maps"} if request.maps else {"pooled"}
    assert row.errors.keys() == outputs | {f"d_{name}" for name in named}
    shares = [errors[kind] / errors[f"{kind}_allowed"] for errors in row.errors.values() for kind in ("max", "rms")]
    assert 0 < row.worst == max(shares) <= 1


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_no_activation_is_near_the_kink(dtype: str) -> None:
    request = replace(M, N=64, dtype=dtype, affine=True)
    leaves = right.make_inputs(request, "cpu").leaves
    activated = leaves["scale"][:, None] * leaves["pixels"] + leaves["shift"][:, None]
    assert activated.abs().min() >= right.KINK
    assert 0.2 < (activated > 0).float().mean() < 0.8
    assert leaves["features"].stride(1) == 1


def test_inputs_are_laid_out_as_asked() -> None:
    for layout in ("rows", "planes"):
        leaves = right.make_inputs(replace(M, layout=layout, bias=True), "cpu").leaves
        for name in ("features", "pixels"):
            assert (leaves[name].stride(1) == 1) == (layout == "rows")
            assert leaves[name].min() == 0  # behind a ReLU
    assert "pixels" not in right.make_inputs(replace(M, shared=True), "cpu").leaves


# What is found.


def doctored(monkeypatch: pytest.MonkeyPatch, change: Callable[[Tensor], Tensor], calls: Iterator[bool]) -> None:
    """The op, the output of some calls of which is changed."""

    def op(*args: Any, **options: Any) -> Any:
        pooled = PLAIN(*args, **options)
        return change(pooled) if next(calls) else pooled

    monkeypatch.setattr(right, "fused_align_aggregate", op)


def always() -> Iterator[bool]:
    while True:
        yield True


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda pooled: pooled * 1.05, "pooled"),
        (lambda pooled: pooled + 0.05 * (pooled - pooled.detach()), "d_features"),  # right but for its gradients
        (lambda pooled: torch.empty_like(pooled) + 0 * pooled, "pooled"),  # what nobody wrote
    ],
    ids=["result", "gradient", "unwritten"],
)
def test_a_wrong_kernel_is_red(
    change: Callable[[Tensor], Tensor], name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    doctored(monkeypatch, change, always())
    row = right.check(M, "cpu", "reference")
    assert str(row.problem).startswith(f"{name} is too far from the float64 truth: max ")
    assert not row.worst <= 1
    right.print_row(row)
    assert f"s  {name} is too far" in capsys.readouterr().out


def test_memory_that_nobody_wrote_is_poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a kernel that leaves out a part would return what eager has left there."""
    poisoned: list[bool] = []

    def op(*args: Any, **options: Any) -> Any:
        poisoned.append(bool(torch.empty(3, 4).isnan().all()))
        return PLAIN(*args, **options)

    monkeypatch.setattr(right, "fused_align_aggregate", op)
    assert right.check(M, "cpu", "reference").problem is None
    assert poisoned[0]
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_race_is_red(monkeypatch: pytest.MonkeyPatch) -> None:
    """One bit of one gradient, in the third repeat."""
    monkeypatch.setitem(right.REPEATS, "cpu", 9)
    own, calls = right.run, iter(range(100))

    def racing(op: right.Op, inputs: right.Inputs) -> dict[str, Tensor]:
        found = own(op, inputs)
        if next(calls) == 5:  # after the truth, eager and the first call
            found["d_weight"].view(torch.int32)[3, 2] ^= 1
        return found

    monkeypatch.setattr(right, "run", racing)
    row = right.check(M, "cpu", "reference")
    assert row.problem == "repeat 3 has other bits in d_weight"
    assert row.repeats == 2
    assert row.worst <= 1


def test_a_kernel_that_raises_is_a_problem_of_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def raising(*args: object, **options: object) -> Tensor:
        raise RuntimeError("an illegal memory access\nand much more")

    monkeypatch.setattr(right, "fused_align_aggregate", raising)
    assert right.check(M, "cpu", "reference").problem == "cannot run: RuntimeError: an illegal memory access"
    assert not torch.are_deterministic_algorithms_enabled()


# The command.


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch, clock: SimpleNamespace) -> list[str | None]:
    """What becomes of each check, a sentence or None; each takes ten seconds of the pretended clock."""
    verdicts: list[str | None] = []
    every = [replace(M, N=n) for n in range(1, 5)]

    def check(request: Request, device: str, backend: str) -> Row:
        clock.now += 10
        problem = verdicts.pop(0)
        return Row(request, str(request), backend, worst=0.5, repeats=1, problem=problem)

    monkeypatch.setattr(right, "requests", lambda device, backend: every)
    monkeypatch.setattr(right, "refusal", lambda request, device, backend: None)
    monkeypatch.setattr(right, "check", check)
    return verdicts


def test_a_problem_stops_nothing_and_fails(
    checks: list[str | None], recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checks += [None, "d_weight is wrong", None, None]
    assert run("right", "--backend", "cuda") == 1
    assert [row["problem"] for row in rows_of(recorded, "right-cuda")] == [None, "d_weight is wrong", None, None]
    assert "4 of 4 calls of cuda were checked, 1 of them have a problem." in capsys.readouterr().out
    checks += [None] * 4
    assert run("right", "--backend", "cuda") == 0


def test_checks_end_in_time_and_say_what_is_left(
    checks: list[str | None], recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """25 seconds: after two of ten a third would end later."""
    checks += [None] * 4
    assert run("right", "--backend", "triton", "--minutes", str(25 / 60)) == 0
    assert len(rows_of(recorded, "right-triton")) == 2
    printed = capsys.readouterr().out
    assert f"minutes are not enough for these 2 calls: {M}; {M}" in printed
    assert "2 of 4 calls of triton were checked, 0 of them" in printed


def test_a_row_is_written_when_it_is_there(checks: list[str | None], recorded: Path) -> None:
    checks += [None, None]  # the third check finds none and raises
    with pytest.raises(IndexError):
        __main__.main(["right", "--backend", "cuda"])
    assert len(rows_of(recorded, "right-cuda")) == 2


def test_a_device_that_was_lost_ends_the_checks(
    checks: list[str | None], recorded: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What comes after it would fail too, whatever is right."""
    monkeypatch.setattr(right, "lost", lambda device: "AcceleratorError: illegal memory access")
    checks += [None, "cannot run: AcceleratorError", None, None]
    assert run("right", "--backend", "cuda") == 1
    assert len(rows_of(recorded, "right-cuda")) == 2
    assert "so 2 calls are left: AcceleratorError" in capsys.readouterr().out


def test_a_backend_that_refuses_is_said_and_checked_nowhere(
    checks: list[str | None], recorded: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        right, "refusal", lambda request, device, backend: "bf16 needs sm_80" if request.N < 4 else None
    )
    checks += [None]
    assert run("right", "--backend", "cuda") == 0
    assert "Left out: bf16 needs sm_80" in capsys.readouterr().out
    monkeypatch.setattr(right, "refusal", lambda request, device, backend: "there is no nvcc")
    assert run("right", "--backend", "cuda") == "Nothing was checked."
    assert "Left out: there is no nvcc" in capsys.readouterr().out


def test_entries_that_no_right_call_launched_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    every = right.requests("cuda:0", "triton")
    rows = [Row(request, str(request), "triton") for request in every]
    total = len(configs.table("sm90"))
    assert right.proven(rows, "cuda:0").startswith(f"{total} of {total} entries of configs/sm90.json")
    for row in rows:
        row.problem = "wrong" if row.case.dtype == "fp16" and row.case.affine else None
    told = right.proven(rows, "cuda:0")
    assert told.startswith(f"{total - 6} of {total}")
    assert "not pixels_bwd fp16 rows K128 E0, pixels_bwd fp16 rows K256 E0, project fp16 rows K128 E0" in told
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    assert right.proven(rows, "cuda:0") == ""


def test_the_table_of_the_documents(checks: list[str | None], recorded: Path) -> None:
    checks += [None, "d_bias is wrong", None, None]
    run("right", "--backend", "cuda")
    (device,) = recording.devices()
    about, _, *lines = tables.right(device, "cuda").splitlines()
    assert about.startswith("Toy with AVX9, 7 threads")
    assert lines[2:] == ["| fp32 | 4 | 1 | 50 % | 1 |", "", "- M fp32 rows: d_bias is wrong"]


# The build.


@pytest.fixture
def compilers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    """A library of two kernels, and what Triton made of each kernel."""
    library = tmp_path / "library.so"
    library.write_bytes(
        b"\0.text._ZN5lewel4cuda3one\0.text._ZN5lewel4cuda3two\0.nv.info._ZN5lewel4cuda3two\0.text._Zmore\0"
        b"_ZN5lewel4cuda4host\0"
    )
    pretended = SimpleNamespace(asked=[], reports=[report()], error=None)

    def compile_all(capabilities: list[int], processes: int, requests: list[Request]) -> list[TritonReport]:
        pretended.asked.append((requests, capabilities, processes))
        return pretended.reports

    def built(target: object) -> SimpleNamespace:
        if pretended.error:
            raise pretended.error
        return SimpleNamespace(library=library, seconds=31.5)

    monkeypatch.setattr(build.triton_kernels, "compile_all", compile_all)
    monkeypatch.setattr(build.builder, "build", built)
    monkeypatch.setattr(build.native, "build_info", lambda name: {"archs": "sm_90"})
    monkeypatch.setattr(build.os, "cpu_count", lambda: 16)
    return pretended


def report(**facts: Any) -> TritonReport:
    told = {"key": "project bf16", "config": "", "source": "", "request": "M bf16"}
    return TritonReport(kernel="project_kernel", capability=90, **told, **facts)


def test_both_kinds_are_built_and_recorded(
    compilers: SimpleNamespace, recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("build") == 0
    rows = rows_of(recorded, "build")
    assert sorted((row["case"]["kernels"], row["count"], row["problem"]) for row in rows) == [
        ("cpu", 2, None), ("cuda", 2, None), ("triton", 1, None)
    ]  # fmt: skip
    assert "cuda, all, for sm_90: 2 kernels in 31.5 s" in capsys.readouterr().out


def test_what_cannot_be_built_is_a_problem_and_the_rest_is_built(
    compilers: SimpleNamespace, recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compilers.error = BuildError("there is no nvcc")
    assert run("build") == 1
    assert "triton, rehearsed, for sm_90: 1 kernels" in (printed := capsys.readouterr().out)
    assert "the cuda backend cannot be built: there is no nvcc" in printed
    compilers.error, compilers.reports = None, [report(), report(stack=8, spill_stores=8)]
    assert run("build") == 1
    assert "on sm_90 spills registers: 8 bytes stored" in capsys.readouterr().out


def test_on_a_gpu_all_that_is_checked_is_compiled_for_it(
    compilers: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    rows = list(build.measure("cuda:0"))
    assert sorted(row.case["calls"] for row in rows) == ["all", "heads", "wider maps"]
    heads, others = (requests for requests, _, _ in compilers.asked)
    assert [*heads, *others] == [replace(r, capabilities=(90,)) for r in right.requests("cuda:0", "triton")]
    assert [other for _, *other in compilers.asked] == [[[90], 12]] * 2  # four cores are nvcc's
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    assert [row.case["kernels"] for row in build.measure("cuda:0")] == ["cuda"]
