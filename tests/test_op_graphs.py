"""CUDA graphs: the op, captured once and replayed with other contents, gives the bits of a plain call."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from op_cases import OpCase, OpInputs, make, run_op
from torch import Tensor

# A replay allocates and fills nothing that was not captured: with poison, what a kernel expects to find zeroed is NaN.
pytestmark = pytest.mark.usefixtures("poisoned")

CASES = (
    OpCase("pixels", N=5, C=64, D=48, K=16, G=4, space=(7, 7), bias=True),
    OpCase("shared", N=4, C=48, D=None, K=16, G=4, space=(5, 6), bias=True),
)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def capture(call: Callable[[], dict[str, Tensor]]) -> tuple[torch.cuda.CUDAGraph, dict[str, Tensor]]:
    """The graph of a call, and the results that its replays fill."""
    # What is compiled, tuned or allocated once must not happen within a capture; PyTorch asks for a stream of its own.
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()
    return graph, results


def fill(inputs: OpInputs, others: OpInputs) -> None:
    """New contents in the same memory."""
    with torch.no_grad():
        for name, x in inputs.leaves.items():
            x.copy_(others.leaves[name])
        inputs.grad_pooled.copy_(others.grad_pooled)
        inputs.grad_maps.copy_(others.grad_maps)


@pytest.mark.parametrize("return_maps", [False, True], ids=["pooled", "pooled_and_maps"])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward_and_backward"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_replay_is_the_plain_call(
    case: OpCase, dtype: str, backward: bool, return_maps: bool, backend: str, device: torch.device
) -> None:
    if device.type != "cuda":
        pytest.skip(f"CUDA graphs are captured on a GPU; these tensors are on {device}")

    def draw(seed: int) -> OpInputs:
        inputs = make(case, dtype=DTYPES[dtype], device=device, seed=seed)
        for x in inputs.leaves.values():
            x.requires_grad_(backward)
        return inputs

    inputs = draw(0)
    with torch.cuda.device(device):
        graph, found = capture(lambda: run_op(inputs, backend, return_maps=return_maps))
    for seed in (1, 2):  # two, so that results which no replay changes cannot be right
        others = draw(seed)
        fill(inputs, others)
        graph.replay()
        expected = run_op(others, backend, return_maps=return_maps)
        assert found.keys() == expected.keys()
        for name, x in expected.items():
            assert torch.equal(found[name], x), f"{name} of replay {seed}"
