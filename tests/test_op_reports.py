"""What the package says about itself, and what importing it costs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fresh import modules_after

from lewel_kernels import AlignAggregate, dispatch, explain, info


def test_the_repr_of_a_module_shows_the_backend() -> None:
    assert "backend=reference" in repr(AlignAggregate(8, 4, backend="reference"))


def test_the_repr_of_a_module_never_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEWEL_BACKEND", "nope")
    names = ", ".join(dispatch.BACKENDS)
    assert f"LEWEL_BACKEND must be one of {names}; got 'nope'" in repr(AlignAggregate(8, 4))


def test_no_other_backend_is_asked_when_one_is_demanded(monkeypatch: pytest.MonkeyPatch) -> None:
    """To answer, the cpu backend would have to be compiled."""
    monkeypatch.setattr("lewel_kernels.native.unavailable", lambda: pytest.fail("the cpu backend was asked"))
    explain(torch.zeros(2, 8, 9), torch.zeros(4, 8), backend="reference")
    assert "backend=reference" in repr(AlignAggregate(8, 4, backend="reference"))


def test_info_names_versions_backends_and_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEWEL_BACKEND", "reference")
    report = info.report()
    for word in (
        f"torch {torch.__version__.split('+')[0]}",
        "python",
        "gpu",
        *dispatch.BACKENDS,
        "LEWEL_BACKEND='reference'",
    ):
        assert word in report


def test_info_says_what_each_gpu_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    triton = dispatch.load("triton")
    monkeypatch.setattr(triton, "INTERPRETED", False)
    monkeypatch.setattr(triton, "device_type", "cuda")
    assert "  triton: runs on cuda tensors; PyTorch sees no GPU here" in info.report()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(info, "_gpus", list)
    monkeypatch.setattr(triton, "_capability", lambda device: [(9, 0), (7, 0)][device.index])
    monkeypatch.setattr(triton, "_cannot_launch", lambda: None)
    assert "  triton: gpu 0: runs; gpu 1: it needs a GPU from sm_80 on" in info.report()


def test_importing_the_package_loads_no_compiler_and_no_gpu_library() -> None:
    heavy = {"triton", "ninja", "pybind11", "lewel_kernels.native", "torch.utils.cpp_extension"}
    code = "import lewel_kernels, torch; assert not torch.cuda.is_initialized()"
    assert not heavy & (modules_after(code) - modules_after("import torch"))


def test_the_wheel_holds_every_source() -> None:
    """Kernels are compiled where they run: a source that is not packed is missed only there."""
    tomllib = pytest.importorskip("tomllib", reason="reading pyproject.toml takes Python 3.11")
    root = Path(__file__).parents[1]
    project = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {f"lewel_kernels.{folder.replace('/', '.')}": folder for folder in ("csrc", "csrc/cpu", "csrc/cuda")}
    packed = {
        file
        for package, patterns in project["package-data"].items()
        for pattern in patterns
        for file in (root / folders.get(package, package.replace(".", "/"))).glob(pattern)
    }
    sources = {file for file in (root / "csrc").rglob("*") if file.suffix in (".h", ".cpp", ".cu", ".cuh")}
    tables = set((root / "lewel_kernels" / "triton" / "configs").glob("*.json"))
    assert sources
    assert tables
    assert sources | tables <= packed
    modules = {file.parent for name in ("lewel", "lewel_kernels") for file in (root / name).rglob("*.py")}
    assert {".".join(folder.relative_to(root).parts) for folder in modules} <= set(project["packages"])


def test_what_is_shipped_knows_of_no_emulation() -> None:
    """It belongs to the tests, which put it in the place of what the cuda backend asks of a GPU."""
    root = Path(__file__).parents[1]
    for file in (file for name in ("csrc", "lewel_kernels") for file in (root / name).rglob("*.*")):
        if file.suffix in (".py", ".h", ".cpp", ".cu"):
            assert "emulat" not in file.read_text().lower(), file.relative_to(root)
