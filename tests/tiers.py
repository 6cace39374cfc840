"""The two tiers of the suite: `make test` runs the short one, `make test-all` everything.

KINDS alone decides what waits for `make test-all`: whatever a row of it has gets the marker `thorough`.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

MARKER = "thorough"
SHORT = f"not {MARKER}"  # what `make test` gives to -m


@dataclass(frozen=True)
class Kind:
    """Tests that wait for the long tier, in words that go after their number."""

    name: str
    has: Callable[[pytest.Item], bool]
    # Of each test function, the short tier keeps the first case, one for each value of these parameters.
    keeps_one: bool = False
    of_each: tuple[str, ...] = ()


def parameters(item: pytest.Item) -> dict[str, Any]:
    return item.callspec.params if hasattr(item, "callspec") else {}


def named(*patterns: str) -> Callable[[pytest.Item], bool]:
    """Whether one of the patterns is found in the id of a test, `tests/test_x.py::test_name[case]`."""
    return lambda item: re.search("|".join(patterns), item.nodeid) is not None


def interpreted(item: pytest.Item) -> bool:
    return parameters(item).get("backend") == "triton" or "test_triton_kernels.py" in item.nodeid


def emulated(item: pytest.Item) -> bool:
    return parameters(item).get("backend") == "cuda" or "arch" in parameters(item)


# The first row that has a test counts it.
KINDS = (
    Kind("of what compilers make of the kernels", lambda item: "reports" in item.fixturenames),
    Kind(
        "of runs that are killed or are two processes", named(r"test_(killed|distributed|own_group|eval_processes)\.py")
    ),
    Kind("of faults that take long", named(r"test_faults\.py.*-slow\]")),
    Kind("of the trainer", named(r"test_(export|memory|waiting|data_reference|timm_runs)\.py"), keeps_one=True),
    Kind("of the benchmarks", named(r"test_benchmark(s|_(cuda|parts|performance|prologue|step|tune))\.py")),
    Kind(
        "of the op in other processes or many times",
        named(
            r"test_op_(ddp|peak_memory|out_of_memory)\.py",
            "shares_of_two_ranks",
            "repeats_of_a_large_batch",
            "opcheck_of_the_backward",
        ),
    ),
    Kind("of whole builds", named("portable_build", "real_nvcc_builds")),
    Kind("of pieces of the CUDA kernels and their emulator", named(r"test_cuda_(tiling|emulation)\.py")),
    Kind("in Triton's interpreter", interpreted, keeps_one=True),
    Kind("in the emulation of an sm_70", lambda item: parameters(item).get("arch") in ("sm_70", 70)),
    Kind("in the emulation of an sm_80", emulated, keeps_one=True, of_each=("dtype",)),
)


def mark(items: Iterable[pytest.Item]) -> Counter[str]:
    """Marks what waits for the long tier; how many tests of each kind that is."""
    found: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        if kind := next((kind for kind in KINDS if kind.has(item)), None):
            found[kind.name].append(item)
    counts: Counter[str] = Counter()
    for kind in KINDS:
        kept = set(_first_cases(found[kind.name], kind.of_each)) if kind.keeps_one else set()
        for item in found[kind.name]:
            if item not in kept:
                item.add_marker(MARKER)
                counts[kind.name] += 1
    return counts


def _first_cases(items: Iterable[pytest.Item], of_each: tuple[str, ...]) -> Iterator[pytest.Item]:
    """By the order in which parameters are written, whatever the order in which tests are run."""
    cases: dict[tuple[str, ...], list[pytest.Item]] = defaultdict(list)
    for item in items:
        apart = (str(parameters(item).get(name)) for name in of_each)
        cases[(item.nodeid.partition("[")[0], *apart)].append(item)
    for each in cases.values():
        yield min(each, key=lambda item: tuple(item.callspec.indices.values()) if hasattr(item, "callspec") else ())


class Report:
    """Ends a run of the short tier with what the long one adds. With pytest-xdist only its workers collect tests."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.counts: Counter[str] = Counter()

    def pytest_sessionfinish(self) -> None:
        if hasattr(self.config, "workeroutput"):
            self.config.workeroutput[MARKER] = dict(self.counts)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        self.counts = Counter(getattr(node, "workeroutput", {}).get(MARKER, self.counts))

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self.config.option.markexpr == SHORT and self.counts:
            kinds = ", ".join(f"{number:,} {kind}" for kind, number in self.counts.items())
            terminalreporter.write_line(f"make test-all adds {self.counts.total():,} tests: {kinds}")
