"""torch.compile and torch.export: one graph, any batch, the backend's name in it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import emulation
import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from lewel_kernels import AlignAggregate

pytestmark = pytest.mark.usefixtures("poisoned")

OPS = torch.ops.lewel_kernels


def layer(backend: str, device: torch.device, dtype: torch.dtype = torch.float32) -> AlignAggregate:
    torch.manual_seed(0)
    return AlignAggregate(12, 8, temperature=0.3, bias=True, backend=backend, device=device, dtype=dtype)


def images(n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    features = torch.randn(n, 16, 5, 3, generator=generator).to(device).requires_grad_()
    return features, torch.randn(n, 12, 5, 3, generator=generator).to(device).requires_grad_()


@pytest.mark.parametrize("num_groups", [1, 2, 4], ids="groups_{}".format)
def test_inductor_on_few_channels(num_groups: int, backend: str, device: torch.device) -> None:
    """One channel a group, one vector, one group: inductor compares the strides of results with the fake kernels'."""
    x = torch.randn(3, 4, 9, device=device)
    module = AlignAggregate(4, 4, num_groups=num_groups, backend=backend, device=device)
    torch.testing.assert_close(torch.compile(module, fullgraph=True)(x).relu(), module(x).relu())


def calls(counter: CompileCounterWithBackend) -> list[torch.fx.Node]:
    """The calls of the op in all graphs that were compiled: one a graph."""
    return [
        node
        for compiled in counter.graphs
        for node in compiled.graph.nodes
        if node.target in (OPS.align_aggregate_fwd, OPS.align_aggregate_fwd.default)
    ]


def test_compile_with_a_dynamic_batch(backend: str, device: torch.device) -> None:
    """One graph without breaks, which serves every batch; the graph names the backend."""
    module = layer(backend, device)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=counter)
    for n in (4, 2, 3, 7):
        x, y = images(n, device), images(n, device)
        found = torch.autograd.grad(compiled(*x).square().sum(), (*x, *module.parameters()))
        expected = torch.autograd.grad(module(*y).square().sum(), (*y, *module.parameters()))
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b)
    (node,) = calls(counter)
    assert backend in node.args


def test_batches_of_one_and_none_compile_once_more_each(backend: str, device: torch.device) -> None:
    """torch.compile specialises sizes 0 and 1, as for any op; nothing else adds graphs."""
    module = layer(backend, device)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, fullgraph=True, backend=counter)
    for n in (4, 2, 3, 5, 1, 0, 6, 1, 0):
        x = images(n, device)
        torch.testing.assert_close(compiled(*x), module(*x))
    assert len(calls(counter)) <= 4


def test_inductor(backend: str, device: torch.device) -> None:
    module = layer(backend, device)
    x = images(3, device)
    found = torch.compile(lambda f, p: module(f.relu(), p) * 2, fullgraph=True)(*x)
    torch.testing.assert_close(found, module(x[0].relu(), x[1]) * 2)
    gradients = torch.autograd.grad(found.square().sum(), x)
    expected = torch.autograd.grad((module(x[0].relu(), x[1]) * 2).square().sum(), x)
    torch.testing.assert_close(gradients, expected)


def test_export_with_a_dynamic_batch(backend: str, device: torch.device) -> None:
    module = layer(backend, device)
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(module, images(4, device), dynamic_shapes=({0: batch}, {0: batch}))
    assert any(backend in node.args for node in program.graph.nodes if node.target is OPS.align_aggregate_fwd.default)
    x = images(6, device)
    torch.testing.assert_close(program.module()(*x), module(*x))


def test_an_exported_program_runs_in_a_fresh_process(backend: str, device: torch.device, tmp_path: Path) -> None:
    """The backend was chosen when it was exported; nothing but the op is called where it runs."""
    module, (x, _) = AlignAggregate(16, 8, backend=backend, device=device), images(2, device)
    torch.export.save(torch.export.export(module, (x.detach(),)), tmp_path / "program.pt2")
    torch.save((x.detach(), module(x).detach()), tmp_path / "expected.pt")
    code = (emulation.INSTALL if emulation.in_force() else "") + (
        "import torch, lewel_kernels\n"
        "x, expected = torch.load('expected.pt')\n"
        "torch.testing.assert_close(torch.export.load('program.pt2').module()(x).detach(), expected)\n"
    )
    tests = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tests.parent), str(tests)])}
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
