"""The description of a call that backends plan from, and what else is read from it."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest
import torch
from fresh import modules_after
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.compiled.requests import SHIPPED, call_of
from lewel_kernels.plan import Array, Call, Sizes
from lewel_kernels.signature import Inputs, Options
from lewel_kernels.triton import backward_launches, forward_launches
from lewel_kernels.triton.launch import Plan

OPTIONS = Options(4, 0.1, 1e-12, torch.bfloat16)
SMALL = Call.sized(N=2, C=8, D=16, K=4, P=3, G=4, dtype=torch.bfloat16, capability=(9, 0))


def inputs(device: str) -> Inputs:
    new = torch.empty(2, 49, 64, dtype=torch.bfloat16, device=device).mT
    return Inputs(new, new[:, :32], torch.empty(16, 32, dtype=torch.bfloat16, device=device), None)


def plans(call: Call) -> tuple[Plan, Plan]:
    return forward_launches.plan(call), backward_launches.plan(call.backward())


def test_calls_on_tensors_without_numbers_are_planned_alike() -> None:
    real, meta = (Call.of(inputs(device), OPTIONS, (9, 0)) for device in ("cpu", "meta"))
    with FakeTensorMode():
        fake = Call.of(inputs("cpu"), OPTIONS, (9, 0))
    assert real == meta == fake
    assert len({real, meta, fake}) == 1
    assert plans(real) == plans(fake)
    assert real != Call.of(inputs("cpu"), OPTIONS._replace(temperature=0.2), (9, 0))
    with pytest.raises(AttributeError):
        real.tf32 = True  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        plans(real)[0].launches[0].flops = 0  # type: ignore[misc]


def test_an_address_counts_by_its_distance_from_16_bytes() -> None:
    x = torch.empty(1 + 2 * 8 * 9, dtype=torch.float32)[1:].view(2, 8, 9)
    array = Array.of("x", x)
    assert array is not None
    assert array.offset == x.data_ptr() % 16 == 4


def test_planning_imports_no_triton() -> None:
    code = (
        "import torch\n"
        "from lewel_kernels.plan import Call\n"
        "from lewel_kernels.triton import backward_launches, forward_launches\n"
        "call = Call.sized(N=2, C=8, K=4, P=3, G=4, dtype=torch.float32, capability=(9, 0))\n"
        "forward_launches.plan(call), backward_launches.plan(call.backward())\n"
    )
    assert "triton" not in modules_after(code)


def test_flops_are_those_of_the_equations() -> None:
    assert SMALL.sizes == Sizes(N=2, C=8, D=16, K=4, L=1, P=3)
    assert (SMALL.sizes.projection, SMALL.sizes.pooling) == (768, 96)
    assert [sum(x.flops for x in plan.launches) for plan in plans(SMALL)] == [768 + 96, 2 * (768 + 96)]
    features_alone = SMALL.backward((True, False, False, False, False, False))
    assert [x.flops for x in backward_launches.plan(features_alone).launches] == [96]


def test_the_workspace_is_what_is_neither_given_nor_returned() -> None:
    # Of the backward, in float32: top, inverse and delta (2, 4), dA (2, 4, 3), one part of dW (4, 16); dM in bfloat16.
    assert [plan.workspace for plan in plans(SMALL)] == [0, 4 * (3 * 8 + 24 + 64) + 2 * 24]
    forward, backward = plans(SMALL)
    assert [x.name for x in forward.made] == ["pooled", "maps", "heat", "norm"]
    assert [x.name for x in backward.made if x in backward.outputs] == ["d_features", "d_pixels", "d_weight"]


@pytest.mark.parametrize("capability", [80, 90])
def test_arrays_of_one_name_are_one(capability: int) -> None:
    """A replay finds its tensors by their names."""
    for request in SHIPPED:
        for plan in plans(call_of(request, capability)):
            arrays = {x for launch in plan.launches for x in launch.arrays} | {x for x in plan.outputs if x is not None}
            assert len(arrays) == len({x.name for x in arrays}), request
