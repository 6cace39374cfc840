"""The cost of a call where the tensors cost nothing: at batch 1 it is what a user waits for."""

from __future__ import annotations

import pytest

from benchmarks import timing
from benchmarks.op import footprint
from benchmarks.op.cases import Case, Shape, make_inputs
from benchmarks.op.cost import MODES
from benchmarks.op.measure import call_of
from benchmarks.op.providers import PROVIDERS, refusal
from lewel_kernels import BACKENDS

TINY = Case(Shape("tiny", N=1, C=16, D=16, K=8, H=2, W=2), "channels_last", "fp32")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", [name for name in BACKENDS if name != "reference"])
def test_a_call_costs_less_than_the_lines_that_it_replaces(name: str, mode: str, one_thread: None) -> None:
    inputs = make_inputs(TINY)
    if sentence := refusal(name, inputs):
        pytest.skip(f"{name}: {sentence}")
    calls = {n: call_of(TINY, PROVIDERS[n](), inputs, mode) for n in ("eager", name)}
    # The least of many samples: whatever else the machine does only adds to one. It is about half of eager's.
    least = {n: min(times) for n, times in timing.interleave(calls, "cpu", 0.5).items()}
    assert least[name] < least["eager"]


@pytest.mark.parametrize(("mode", "operators"), [(MODES[0], 1), (MODES[1], 2)])
@pytest.mark.parametrize("name", [name for name in BACKENDS if name != "reference"])
def test_a_call_is_one_operator_each_way(name: str, mode: str, operators: int) -> None:
    """No cast, copy or fill around the kernels; eager needs 8 and 29."""
    inputs = make_inputs(TINY)
    if sentence := refusal(name, inputs):
        pytest.skip(f"{name}: {sentence}")
    assert footprint.launches(call_of(TINY, PROVIDERS[name](), inputs, mode), "cpu") == operators
