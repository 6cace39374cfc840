"""What a training step and online kNN need in memory, counted on tensors that have sizes but no contents."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from lewel.cost.live import LiveStorages
from lewel.evaluation import features, knn
from lewel.methods.method import Method
from lewel.recipe.schema import Train
from lewel.run import optim
from lewel.run.session import build
from lewel.run.step import Stepper

# Optimizers' kernels that change tensors and make none. They have no fake twin: among fake tensors PyTorch would run
# them on real ones of the same sizes, which may be more than there is.
IN_PLACE = (torch.ops.aten._fused_sgd_, torch.ops.aten._fused_adamw_)


@dataclass(frozen=True)
class Memory:
    """Bytes that one process needs at the peak of a training step, split by what they hold."""

    weights: int
    """of the online network and what the objective owns beside a queue, with their BN statistics"""
    momentum_network: int
    queue: int
    optimizer: int
    gradients: int
    activations: int
    """the rest of the peak, with the views; in one process, less what gradients take over from activations"""
    trained: int
    """number of trained parameters, not bytes"""

    @property
    def total(self) -> int:
        """The most that is alive at once."""
        return sum(getattr(self, field.name) for field in fields(self) if field.name != "trained")


def expect(run: Train, processes: int = 1) -> Memory:
    """Memory that one of `processes` that share run's batch needs; run.precision must not be "auto". Takes seconds.

    Every tensor of the real step is counted, as operators on the CPU make them. The linear probe is not: it learns
    when the activations are gone, and holds three matrices of classes times channels (24 MiB for 1,000 times
    2,048). What PyTorch adds is not: workspaces of convolutions, the allocator's rounding and holes, a GPU's
    context, batches that wait in the loader. Measured on a CPU, steps took from 1 % more than expected to 6 % less,
    where gradients that meet are added in place; with backend "reference" 2 % more, for what lives inside its
    operators is not seen.
    """
    run = _local(run)
    with torch.device("meta"):  # a fake network cannot be copied, which is how the momentum network is made
        method, _ = build(run, torch.device("meta"))
    with _pretend(processes), FakeTensorMode(allow_non_fake_inputs=True), _LeftOut(), LiveStorages() as live:
        method.to_empty(device="cpu")
        optimizer = optim.build(run.optim, method.named_parameters(), method.objective.undecayed())
        trained = [p for p in method.parameters() if p.requires_grad]
        for p in trained:
            p.grad = torch.empty_like(p)
        optimizer.step()  # makes its state
        if processes > 1:  # gradients lie in DDP's buckets, which stay
            optimizer.zero_grad = functools.partial(optimizer.zero_grad, set_to_none=False)  # type: ignore[method-assign]
        live.most = 0
        stepper = Stepper(method, _WithoutDDP(method), optimizer, torch.amp.GradScaler("cpu", enabled=False))
        views = _views(run, run.data.batch_size // (processes * run.accumulate))
        stepper.take(views, run.accumulate, step=0, lr=run.optim.lr, momentum=run.method.momentum)
        state = [x for values in optimizer.state.values() for x in values.values() if isinstance(x, Tensor)]
        children = [*method.named_children(), *method.objective.named_children()]
        parts = {name: _bytes([*part.parameters(), *part.buffers()]) for name, part in children if name != "objective"}
        held = {
            "momentum_network": parts.pop("target", 0),
            "queue": parts.pop("queue", 0),
            "weights": sum(parts.values()),
            "optimizer": _bytes(state),
            "gradients": _bytes(trained),
        }
    return Memory(**held, activations=live.most - sum(held.values()), trained=sum(p.numel() for p in trained))


def expect_knn(run: Train, bank: int, tests: int, processes: int = 1) -> dict[str, int]:
    """Bytes that one of `processes` needs at the peak of online kNN: of raw pixels, and of the encoder's features.

    With what holds and compares them, a batch of images on its way, and the encoder's activations; beside the weights.
    What expect leaves out is left out here too: measured on a CPU, the peak was up to 1.4 times what is expected.
    """
    size, k, share = run.data.image_size, max(run.knn_k), -(-bank // processes)
    images = 4 * features.BATCH * 3 * size**2 * 4  # as read, in the network's layout, as rows, and those before
    with torch.device("meta"):
        method, _ = build(_local(run), torch.device("meta"))
    encoder, shape = method.online.encoder.eval(), (features.BATCH, 3, size, size)
    layout = torch.channels_last if run.channels_last else torch.contiguous_format
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        method.to_empty(device="cpu")
        with LiveStorages() as live, method.autocast():
            encoder(torch.empty(shape).to(memory_format=layout)).mean((2, 3), dtype=torch.float32)
    return {
        "raw pixels": images + knn.needed(tests, 3 * features.pixels_side(size) ** 2, share, k),
        "the encoder": live.most + knn.needed(tests, encoder.channels, share, k),
    }


def _local(run: Train) -> Train:
    """run as it computes the same on a CPU alone."""
    run = replace(run, compile=False, backend=None)  # all backends save the same, and not all take CPU tensors
    if run.method.batch_norm == "sync":  # BN over all processes keeps what local BN does; only "auto" depends on it
        key_bn = "plain" if run.method.key_bn == "auto" else run.method.key_bn
        run = replace(run, method=replace(run.method, batch_norm="local", key_bn=key_bn))
    return run


@contextlib.contextmanager
def _pretend(processes: int) -> Iterator[None]:
    """Inside the block this is the first of `processes`: its exchanges have the right shapes and carry nothing."""
    if processes == 1:
        yield
        return
    dist.init_process_group("fake", rank=0, world_size=processes, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


class _LeftOut(TorchDispatchMode):
    """Leaves out IN_PLACE."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return None if func.overloadpacket in IN_PLACE else func(*args, **(kwargs or {}))


class _WithoutDDP(nn.Module):
    """Stands in for DDP, which reads the addresses of tensors: fake tensors have none."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.forward = method.forward
        self.no_sync = contextlib.nullcontext


def _views(run: Train, images: int) -> Iterator[tuple[Tensor, Tensor]]:
    layout = torch.channels_last if run.channels_last else torch.contiguous_format
    shape = (images, 3, run.data.image_size, run.data.image_size)
    for _ in range(run.accumulate):
        yield torch.empty(shape, memory_format=layout), torch.empty(shape, memory_format=layout)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(x.untyped_storage().nbytes() for x in tensors)
