"""``pytest benchmarks``: the quick suite under pytest-benchmark, grouped by shape, the provider as a parameter.

A backend that leaves the error budget fails; torch.compile then is skipped, with the sentence that says by how much. On
a GPU (``--device cuda``) each call is synchronised, and the device's own milliseconds stand in extra_info.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks import machine, timing
from benchmarks.op.cases import SUITES, Case, Inputs, input_sets
from benchmarks.op.cost import MODES, least
from benchmarks.op.measure import call_of, expect, find_problem
from benchmarks.op.providers import COMPILED, PROVIDERS, Op, quiet, refusal

CASES = [case for case in SUITES["quick"] if case.layout == "channels_last"]
Prepared = tuple[Case, Op, list[Inputs]]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case.shape.name}-{case.dtype}")
def case(request: pytest.FixtureRequest, device: str) -> Case:
    return replace(request.param, device=device)


@pytest.fixture(scope="module")
def sets(case: Case) -> list[Inputs]:
    return input_sets(case, machine.cache_bytes(case.device))


@pytest.fixture(scope="module", params=[name for name in PROVIDERS if name != "compile-max"])
def prepared(request: pytest.FixtureRequest, case: Case, sets: list[Inputs]) -> Prepared:
    """A provider that runs the case and keeps the error budget on it; compile-max tunes for minutes, `run` has it."""
    name = request.param
    if sentence := refusal(name, sets[0]):
        pytest.skip(f"{name}: {sentence}")
    torch.compiler.reset()
    op = PROVIDERS[name]()
    with quiet(name):
        problem = find_problem(case, op, sets[0], expect(case, sets[0]))
    if problem:  # torch.compile's exponential is less exact, which is not ours to mend
        (pytest.skip if name in COMPILED else pytest.fail)(f"{name}: {problem}")
    return case, op, sets


@pytest.mark.parametrize("mode", MODES)
def test_quick(prepared: Prepared, mode: str, benchmark: Any) -> None:
    case, op, sets = prepared
    calls = [call_of(case, op, inputs, mode) for inputs in sets]
    for call in calls:
        call()
    turn = timing.taking_turns(calls)
    benchmark.group = f"{case}, {mode}"
    cost = least(case, mode)
    benchmark.extra_info |= {"least_bytes": cost.bytes, "least_flops": cost.flops, "device": case.device}

    def synchronised() -> None:
        turn()
        timing.synchronise(case.device)

    if case.device_type == "cuda":
        benchmark.extra_info["device_ms"] = 1e3 * timing.sample(turn, case.device, repeats=20)
    benchmark(synchronised)
