"""What the two tiers of the suite leave out, and what is kept between its runs."""

from __future__ import annotations

from pathlib import Path

import kept
import pytest
import tiers

pytest_plugins = "pytester"
SUITE = """
    import pytest

    @pytest.mark.parametrize("dtype", ["fp32", "fp16"])
    @pytest.mark.parametrize("backend", ["cpu", "triton", "cuda"])
    @pytest.mark.parametrize("case", ["first", "second"])
    def test_op(case, backend, dtype): ...

    def test_plain(): ...
"""
CONFTEST = f"""
    import sys
    sys.path.insert(0, {str(Path(__file__).parent)!r})
    import tiers

    def pytest_configure(config):
        config.pluginmanager.register(tiers.Report(config), "tiers")

    def pytest_collection_modifyitems(config, items):
        if config.getoption("--backwards"):
            items.reverse()
        config.pluginmanager.get_plugin("tiers").counts = tiers.mark(items)

    def pytest_addoption(parser):
        parser.addoption("--backwards", action="store_true")
"""


@pytest.fixture
def suite(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makepyfile(SUITE)
    pytester.makeconftest(CONFTEST)
    pytester.makepyprojecttoml(f'[tool.pytest.ini_options]\nmarkers = ["{tiers.MARKER}"]\n')
    return pytester


@pytest.mark.parametrize("order", [(), ("--backwards",)], ids=["as_written", "backwards"])
def test_the_short_tier_keeps_the_first_case_of_what_is_slow(suite: pytest.Pytester, order: tuple[str, ...]) -> None:
    """All of the cpu backend, one case in the interpreter, one for each dtype in the emulation."""
    result = suite.runpytest_inprocess("-v", "-p", "no:randomly", "-m", tiers.SHORT, *order)
    passed = {line.split()[0].partition("::")[2] for line in result.outlines if " PASSED" in line}
    cpu = {f"test_op[{case}-cpu-{dtype}]" for case in ("first", "second") for dtype in ("fp32", "fp16")}
    slow = {"test_op[first-triton-fp32]", "test_op[first-cuda-fp32]", "test_op[first-cuda-fp16]"}
    assert passed == {"test_plain", *cpu, *slow}


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["one_process", "workers"])
def test_the_short_tier_tells_what_the_long_one_adds(suite: pytest.Pytester, workers: tuple[str, ...]) -> None:
    adds = "make test-all adds 5 tests: 3 in Triton's interpreter, 2 in the emulation of an sm_80"
    short = suite.runpytest_subprocess("-p", "no:randomly", "-m", tiers.SHORT, *workers)
    short.assert_outcomes(passed=8, deselected=0 if workers else 5)
    assert adds in short.outlines
    every = suite.runpytest_subprocess("-p", "no:randomly", *workers)
    every.assert_outcomes(passed=13)
    assert not any("make test-all" in line for line in every.outlines)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LEWEL_CACHE_DIR", str(tmp_path))
    return tmp_path


def test_what_is_kept_is_made_once_for_its_inputs(cache: Path) -> None:
    made: list[Path] = []

    def make(path: Path) -> None:
        made.append(path)
        path.write_text("reports")

    source = kept.ROOT / "tests" / "tiers.py"
    first = kept.kept("reports", ["nvcc 13", source], make)
    assert first.read_text() == "reports"
    assert first.is_relative_to(cache)
    assert kept.kept("reports", ["nvcc 13", source], make) == first
    assert len(made) == 1
    others = {
        kept.kept("reports", inputs, make)
        for inputs in (["nvcc 12", source], ["nvcc 13"], ["nvcc 1", "3", source], ["nvcc 13", Path(kept.__file__)])
    }
    assert len(others | {first}) == len(made) == 5


def test_what_fails_to_be_made_is_made_again(cache: Path) -> None:
    def fail(path: Path) -> None:
        path.write_text("half")
        raise RuntimeError("no space")

    with pytest.raises(RuntimeError, match="no space"):
        kept.kept("reports", [], fail)
    assert kept.kept("reports", [], lambda path: path.write_text("whole")).read_text() == "whole"
