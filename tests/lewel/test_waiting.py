"""A training step hands the device its work and goes on: nothing waits for an answer but the steps that are logged."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_runs import TINY
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lewel.evaluation import health, online
from lewel.methods.probe import Probe
from lewel.recipe import presets
from lewel.recipe.schema import Optim, Train
from lewel.run import session
from lewel.run.session import prepare
from lewel.run.step import Outcome, Stepper
from lewel.train import Loop
from lewel.train import train as train_session

LARS = Optim(name="lars", decay_all=False, warmup_epochs=1)
METHODS = {
    "moco_v2": replace(presets.MOCO_V2, queue=32, split_bn=2),
    "lewel_m": TINY.method,
    "byol": presets.BYOL,
    "lewel_b-eman": replace(presets.LEWEL_B, target="eman"),
}
READS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::_unique2")


class Operators(TorchDispatchMode):
    """Records the operators that the host would wait for: those that read, and those that copy from the host."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []
        self.copies: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        if func.name() == "aten::_fused_sgd_" and tensors[0].is_meta:
            return None  # works in place, and knows no such device
        out = func(*args, **(kwargs or {}))
        tensors += [x for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        if func.name() in READS:
            self.reads.append(func.name())
        if len({x.device for x in tensors}) > 1 and not (kwargs or {}).get("non_blocking"):
            self.copies.append(func.name())
        return out


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A device that tells nothing: PyTorch's meta, whose tensors have no contents, so that reading one is an error."""
    autocast = torch.autocast
    monkeypatch.setattr(torch, "autocast", lambda kind, *args, **options: autocast("cpu", *args, **options))
    return torch.device("meta")


class Steps:
    """Calls take the run's next step, on views of noise, with a probe beside it."""

    def __init__(self, run: Train, device: torch.device) -> None:
        method, optimizer = session.build(run, device)
        kind = "cuda" if device.type == "cuda" else "cpu"
        scaler = torch.amp.GradScaler(kind, enabled=run.precision == "fp16")
        probe = Probe(method.online.encoder.channels, 10).to(device)
        self.stepper, self.done = Stepper(method, method, optimizer, scaler, probe), 0
        self.views = (*torch.randn(2, 16, 3, 32, 32, device=device), torch.arange(16, device=device) % 10)

    def __call__(self) -> Outcome:
        self.done += 1
        return self.stepper.take([self.views], 1, step=self.done - 1, lr=0.1, momentum=0.9)  # type: ignore[list-item]


@pytest.mark.parametrize("name", METHODS)
def test_a_step_moves_nothing_between_host_and_device(name: str, device: torch.device) -> None:
    """Nothing that is waited for: LARS tells the device the sizes of its tensors in passing."""
    step = Steps(replace(TINY, method=METHODS[name], optim=LARS), device)
    with Operators() as seen:
        step()
        outcome = step()
    assert seen.copies == []
    assert all(x.is_meta for x in (outcome.loss, outcome.z, *outcome.parts.values()))


@pytest.mark.parametrize("optim", [TINY.optim, LARS], ids=["sgd", "lars"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", METHODS)
def test_a_step_reads_no_number(name: str, precision: str, optim: Optim, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the gradient scaler too, whose omission of a step is decided on the device."""
    step = Steps(
        replace(TINY, method=METHODS[name], precision=precision, optim=optim, backend=None), torch.device("cpu")
    )
    read: list[str] = []
    for way in ("tolist", "numpy", "cpu"):
        own = getattr(torch.Tensor, way)
        monkeypatch.setattr(torch.Tensor, way, lambda x, own=own, way=way: read.append(way) or own(x))
    with Operators() as seen:
        step()
        step()
    assert seen.reads + read == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", METHODS)
def test_a_step_does_not_wait_for_the_gpu(name: str, precision: str) -> None:
    step = Steps(replace(TINY, method=METHODS[name], precision=precision, optim=LARS), torch.device("cuda"))
    step()  # makes workspaces
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_an_epoch_reads_the_device_on_logged_steps_only(
    device: torch.device, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight steps, of which the first, the fifth and the last are logged, each with one transfer."""
    run = replace(TINY, epochs=1, log_every=5, optim=LARS, data=replace(TINY.data, embedded_train=128))
    prepared, at = prepare(run, tmp_path), []
    prepared.method, prepared.optimizer = session.build(run, device)
    prepared.world = replace(prepared.world, device=device)
    prepared.probe = prepared.probe.to(device)

    def read(values: dict[str, torch.Tensor]) -> dict[str, float]:
        at.append(prepared.steps_done)
        assert all(x.is_meta for x in values.values())
        return dict.fromkeys(values, 1.0)

    monkeypatch.setattr(health, "read", read)
    for name in ("log_baselines", "log_epoch"):
        monkeypatch.setattr(online, name, lambda *_: None)
    monkeypatch.setattr(Loop, "_save", lambda _: None)
    with Operators():
        assert train_session(prepared, None)
    assert at == [1, 5, 8]
