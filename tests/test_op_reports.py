"""What the package says about itself, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from lewel_kernels import AlignAggregate, dispatch, explain, info


def test_the_repr_of_a_module_shows_the_backend() -> None:
    assert "backend=reference" in repr(AlignAggregate(8, 4, backend="reference"))


def test_the_repr_of_a_module_never_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEWEL_BACKEND", "nope")
    assert "LEWEL_BACKEND must be one of cpu, reference; got 'nope'" in repr(AlignAggregate(8, 4))


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


def test_importing_the_package_loads_no_compiler_and_no_gpu_library() -> None:
    code = (
        "import sys, torch; before = set(sys.modules); import lewel_kernels\n"
        "heavy = ('triton', 'ninja', 'pybind11', 'lewel_kernels.native', 'torch.utils.cpp_extension')\n"
        "loaded = [name for name in heavy if name in set(sys.modules) - before]\n"
        "assert not loaded, f'import lewel_kernels loads {loaded}'\n"
        "assert not torch.cuda.is_initialized()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
