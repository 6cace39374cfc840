"""Reports of compiled kernels and their budgets, whichever kind the kernels are; and the command that checks both."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.compiled import __main__ as command
from benchmarks.compiled import budget as budgets
from benchmarks.compiled.cuda_kernels import CudaReport
from benchmarks.compiled.report import Report, table


@pytest.fixture(params=["cuda", "triton"])
def fine(request: pytest.FixtureRequest) -> Report:
    if request.param == "cuda":
        return CudaReport(
            kernel="some_kernel<Half, 128>", capability=90, compiler="nvcc 13.0", registers=123, shared=1000,
            tensor_cores={"HMMA": 4},
        )  # fmt: skip
    pytest.importorskip("triton")
    from benchmarks.compiled.triton_kernels import TritonReport

    return TritonReport(
        kernel="some_kernel", key="some fp16 rows K128", config="4 warps", source="the rule", request="M fp16 rows",
        capability=90, compiler="Triton 3.6", registers=123, shared=1000, precision="ieee",
        tensor_cores={"wgmma": 4}, loads={4: 1, 16: 8},
    )  # fmt: skip


def of_80(report: Report) -> Report:
    return replace(report, capability=80)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"spill_stores": 8, "spill_loads": 4, "stack": 16},
            "spills registers: 8 bytes stored, 4 loaded, a stack of 16; allowed: 0",
        ),
        ({"stack": 16}, "spills registers: 0 bytes stored, 0 loaded, a stack of 16; allowed: 0"),
        ({"shared": 232449}, "takes 232449 bytes of shared memory; a block may have 232448"),
        ({"tensor_cores": {}}, "multiplies matrices without tensor cores; expected: "),
        ({"error": "does not compile: no such block", "registers": 0}, "does not compile: no such block"),
    ],
    ids=["spills", "stack", "shared", "tensor_cores", "error"],
)
def test_faults_are_found(fine: Report, change: dict[str, Any], sentence: str) -> None:
    assert fine.faults() == []
    (found,) = replace(fine, **change).faults()
    assert found.startswith(f"{fine} {sentence}")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [({"registers": 129}, "has registers: 129; allowed: 128"), ({"shared": 1001}, "has shared: 1001; allowed: 1000")],
    ids=["registers", "shared"],
)
def test_a_budget_that_is_exceeded_is_named(fine: Report, change: dict[str, Any], sentence: str) -> None:
    budget = budgets.budget_of([fine])
    assert budgets.excesses([fine, replace(fine, registers=128)], budget) == []
    assert budgets.excesses([replace(fine, **change)], budget) == [f"{fine} {sentence}"]


def test_a_kernel_without_a_budget_and_a_budget_without_a_kernel_are_errors(fine: Report) -> None:
    budget = budgets.budget_of([fine, of_80(fine)])
    entry = budget["sm_90"].pop(fine.entry)
    (found,) = budgets.excesses([fine], budget)
    assert found == f"{fine} has no budget; python -m benchmarks.compiled {fine.kind} --update gives it one"
    budget["sm_90"] = {fine.entry: entry, "old": entry}
    (found,) = budgets.excesses([fine, of_80(fine)], json.loads(budgets.to_text(budget)))
    assert found.startswith("the budget of old on sm_90 is nobody's")
    assert budgets.excesses([of_80(fine)], budget) == []  # sm_90 was not compiled


def test_numbers_of_another_compiler_are_not_compared(fine: Report) -> None:
    budget = budgets.budget_of([fine])
    assert budgets.other_compilers([fine], budget) == []
    (found,) = budgets.other_compilers([replace(fine, compiler="another")], budget)
    assert found.startswith(f"the budget of sm_90 is of {fine.compiler}, and this is another; python -m")


def test_writing_one_architecture_leaves_the_others(fine: Report) -> None:
    change = replace(of_80(fine), registers=99, compiler="newer")
    after = budgets.merged(budgets.budget_of([fine, of_80(fine)]), budgets.budget_of([change]))
    assert after == budgets.budget_of([change, fine])
    assert list(after) == [budgets.COMPILERS, "sm_80", "sm_90"]


def test_reports_come_back_from_json_and_are_printed(fine: Report) -> None:
    assert type(fine).from_json(json.loads(json.dumps(asdict(fine)))) == fine
    header, line = table([fine]).splitlines()
    assert header.split()[:4] == ["kernel", "arch", "registers", "shared"]
    assert line.startswith(fine.entry)
    assert "sm_90  123" in line


# The command.


@pytest.fixture
def kernels(fine: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Stands in for what compiles the kernels of either kind; the budget is empty."""
    made = SimpleNamespace(CAPABILITIES=(80, 90), reports=[fine], asked=[], why=None)
    made.unavailable = lambda capability: made.why

    def compile_all(capabilities: list[int], processes: int) -> list[Report]:
        made.asked.append((capabilities, processes))
        return made.reports

    made.compile_all = compile_all
    monkeypatch.setitem(sys.modules, "pretended_kernels", made)  # type: ignore[arg-type]
    monkeypatch.setattr(command, "KINDS", {fine.kind: "pretended_kernels"})
    monkeypatch.setattr(budgets, "FOLDER", tmp_path / "budgets")
    return made


def test_a_budget_is_written_and_kept(
    fine: Report, kernels: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main([]) == 1
    assert f"{fine} has no budget" in capsys.readouterr().out
    assert command.main([fine.kind, "--update", "--arch", "sm_90", "--processes", "3"]) == 0
    assert command.main([fine.kind]) == 0
    assert "All is in order." in capsys.readouterr().out
    kernels.reports = [replace(fine, registers=200)]
    assert command.main([fine.kind]) == 1
    assert f"{fine} has registers: 200; allowed: 128" in capsys.readouterr().out
    assert kernels.asked == [([80, 90], 2), ([90], 3), ([80, 90], 2), ([80, 90], 2)]


def test_what_cannot_be_compiled_is_said(kernels: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--arch", "sm_75"]) == 2
    assert "--arch must name some of sm_80, sm_90" in capsys.readouterr().err
    kernels.why = "there is no nvcc; install it"
    assert command.main(["--arch", "sm_80"]) == 2
    assert "sm_80 cannot be compiled for: there is no nvcc; install it" in capsys.readouterr().err
    del sys.modules["pretended_kernels"]
    assert command.main([]) == 2
    assert "pretended_kernels is not installed" in capsys.readouterr().err
