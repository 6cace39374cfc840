"""Two gloo ranks under DistributedDataParallel give the gradients of one process with the whole batch."""

from __future__ import annotations

from pathlib import Path

import emulation
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from op_cases import OpCase, OpInputs, make
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from lewel_kernels import AlignAggregate

CASE = OpCase("ranks", N=6, C=24, D=16, K=8, G=2, space=(4, 4), bias=True)
RANKS = 2


def layer(backend: str) -> AlignAggregate:
    torch.manual_seed(0)
    return AlignAggregate(16, 8, num_groups=2, temperature=0.3, bias=True, backend=backend, dtype=torch.float64)


def loss(module: torch.nn.Module, inputs: OpInputs, rows: slice) -> Tensor:
    assert inputs.pixels is not None
    pooled = module(inputs.features[rows], inputs.pixels[rows])
    return (pooled * inputs.grad_pooled[rows]).sum() / pooled.shape[0]


def gradients(module: torch.nn.Module) -> list[Tensor]:
    return [p.grad for p in module.parameters() if p.grad is not None]


def worker(rank: int, backend: str, folder: str) -> None:
    if backend == "cuda":
        emulation.install()  # this is another process
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", RANKS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS)
    try:
        module = DistributedDataParallel(layer(backend))
        share = CASE.N // RANKS
        loss(module, make(CASE), slice(rank * share, (rank + 1) * share)).backward()
        torch.save(gradients(module), f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def test_two_ranks_are_one_process(backend: str, device: torch.device, tmp_path: Path) -> None:
    if device.type != "cpu":
        pytest.skip(f"the two ranks are processes on the CPU; this is a test on {device}")
    module = layer(backend)
    loss(module, make(CASE), slice(None)).backward()
    expected = gradients(module)
    assert len(expected) == 2
    mp.spawn(worker, args=(backend, str(tmp_path)), nprocs=RANKS)  # type: ignore[attr-defined, no-untyped-call]
    for rank in range(RANKS):
        for found, wanted in zip(torch.load(tmp_path / f"{rank}.pt"), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
