"""Activation checkpointing: what a backward computes again runs on the backend of its forward, or says why not."""

from __future__ import annotations

import functools
import gc
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    checkpoint_sequential,
    create_selective_checkpoint_contexts,
)

from lewel_kernels import AlignAggregate, BackendUnavailable, dispatch, explain, fused_align_aggregate, use_backend

# Another than the automatic choice, wherever that is not the reference.
DEMANDED = "reference"


@pytest.fixture(autouse=True)
def _nothing_is_recalled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_demanded", type(dispatch._demanded)())


@pytest.fixture
def other() -> str:
    """The automatic choice on the CPU."""
    name = dispatch.choose(torch.device("cpu"), torch.float32, 8, None)
    if name == DEMANDED:
        pytest.skip("the automatic choice is the reference: no other backend runs here")
    return name


def backends(call: Callable[[], object]) -> list[str]:
    """Of the op's calls, in order."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profile:
        call()
    calls = [event for event in profile.events() if event.name.startswith("lewel_kernels::") and "[" in event.name]
    return [event.name.partition("aggregate_")[2] for event in sorted(calls, key=lambda event: event.time_range.start)]


def head_and_images() -> tuple[AlignAggregate, Tensor]:
    torch.manual_seed(0)
    return AlignAggregate(16, 8), torch.randn(3, 16, 3, 5, requires_grad=True)


@pytest.mark.parametrize("use_reentrant", [False, True], ids=["", "reentrant"])
@pytest.mark.parametrize("kind", ["parameter", "derived_weight", "sequential"])
def test_what_is_computed_again_runs_where_it_ran(kind: str, use_reentrant: bool, other: str) -> None:
    head, x = head_and_images()

    def derived(x: Tensor) -> Tensor:
        return fused_align_aggregate(x, head.weight * 1)

    def train() -> None:
        with use_backend(DEMANDED):
            if kind == "sequential":
                model = nn.Sequential(nn.Conv2d(16, 16, 1), nn.Sequential(nn.ReLU(), head), nn.Linear(16, 2))
                y = checkpoint_sequential(model, 3, x, use_reentrant=use_reentrant)
            else:
                y = checkpoint(head if kind == "parameter" else derived, x, use_reentrant=use_reentrant)
        y.sum().backward()

    assert backends(train) == [f"fwd[{DEMANDED}]", f"fwd[{DEMANDED}]", f"bwd[{DEMANDED}]"]


def test_in_the_thread_of_a_backward(other: str) -> None:
    """As on a GPU, where a backward has a thread of its own, which knows nothing of the block."""
    head, x = head_and_images()
    with use_backend(DEMANDED):
        y = checkpoint(head, x, use_reentrant=False)
        failed: list[Exception] = []

        def backward() -> None:
            try:
                y.sum().backward()
            except Exception as error:
                failed.append(error)

        thread = threading.Thread(target=backward)
        thread.start()
        thread.join()
    assert not failed


def test_a_later_call_without_the_block_is_a_call_without_it(other: str) -> None:
    head, x = head_and_images()
    with use_backend(DEMANDED):
        head(x)
    assert backends(lambda: checkpoint(head, x, use_reentrant=False).sum().backward()) == [
        f"fwd[{other}]", f"fwd[{other}]", f"bwd[{other}]",
    ]  # fmt: skip


@pytest.mark.parametrize("first", [True, False], ids=["demanded_first", "demanded_last"])
def test_statistics_of_another_backend_are_refused(first: bool, other: str) -> None:
    """One head in and out of a block before one backward: it cannot be known which is computed again."""
    head, x = head_and_images()

    def demanded() -> Tensor:
        with use_backend(DEMANDED):
            return checkpoint(head, x, use_reentrant=False)

    def plain() -> Tensor:
        return checkpoint(head, x, use_reentrant=False)

    outputs = [run() for run in ((demanded, plain) if first else (plain, demanded))]
    with pytest.raises(RuntimeError, match=r"a checkpoint has computed it again on .*: name the backend in the call"):
        sum(y.sum() for y in outputs).backward()  # type: ignore[union-attr]


def test_what_the_sentence_says_helps(other: str) -> None:
    head, x = head_and_images()

    def demanded(x: Tensor) -> Tensor:
        with use_backend(DEMANDED):
            return head(x)

    def train() -> None:
        outputs = checkpoint(demanded, x, use_reentrant=False), checkpoint(head, x, use_reentrant=False)
        sum(y.sum() for y in outputs).backward()  # type: ignore[union-attr]

    assert {*backends(train)} == {f"{way}[{name}]" for way in ("fwd", "bwd") for name in (DEMANDED, other)}


def test_a_variable_that_changes_is_noticed(other: str, monkeypatch: pytest.MonkeyPatch) -> None:
    head, x = head_and_images()
    monkeypatch.setenv("LEWEL_BACKEND", DEMANDED)
    y = checkpoint(head, x, use_reentrant=False)
    monkeypatch.delenv("LEWEL_BACKEND")
    with pytest.raises(RuntimeError, match=f"ran on {DEMANDED}, and a checkpoint has computed it again on {other}"):
        y.sum().backward()


@pytest.mark.parametrize("policy", [CheckpointPolicy.MUST_SAVE, CheckpointPolicy.MUST_RECOMPUTE], ids=lambda p: p.name)
def test_selective_checkpoints(policy: CheckpointPolicy, other: str) -> None:
    head, x = head_and_images()
    contexts = functools.partial(create_selective_checkpoint_contexts, lambda *_, **__: policy)

    def train() -> None:
        with use_backend(DEMANDED):
            y = checkpoint(head, x, use_reentrant=False, context_fn=contexts)
        y.sum().backward()

    again = [f"fwd[{DEMANDED}]"] * (policy == CheckpointPolicy.MUST_RECOMPUTE)
    assert backends(train) == [f"fwd[{DEMANDED}]", *again, f"bwd[{DEMANDED}]"]


def test_saved_tensors_may_be_moved(backend: str, device: torch.device) -> None:
    """A copy of what was saved says nothing of its backend, and is no reason to refuse it."""
    torch.manual_seed(0)
    head, x = AlignAggregate(16, 8, backend=backend, device=device), torch.randn(3, 16, 3, 5, device=device)
    with torch.autograd.graph.save_on_cpu():
        y = head(x.requires_grad_())
    found = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(found, torch.autograd.grad(head(x).sum(), x))


def test_a_checkpoint_gives_the_gradients_of_none(backend: str, device: torch.device) -> None:
    torch.manual_seed(0)
    head, x = AlignAggregate(16, 8, backend=backend, device=device), torch.randn(3, 16, 3, 5, device=device)
    leaves = (x.requires_grad_(), *head.parameters())
    found = torch.autograd.grad(checkpoint(head, x, use_reentrant=False).square().sum(), leaves)
    for a, b in zip(found, torch.autograd.grad(head(x).square().sum(), leaves), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", ["parameter", "derived_weight"])
def test_a_hook_of_a_backward_computes_nothing_again(kind: str, other: str) -> None:
    head, x = head_and_images()
    run = head if kind == "parameter" else lambda x: fused_align_aggregate(x, head.weight * 1)
    with use_backend(DEMANDED):
        run(x)
    y = torch.ones(3, requires_grad=True).exp()
    found: list[list[str]] = []
    y.register_hook(lambda _: found.append(backends(lambda: run(x.detach()))))
    y.sum().backward()
    assert found == [[f"fwd[{other}]"]]


def test_a_block_around_the_backward_wins(other: str) -> None:
    head, x = head_and_images()

    def train() -> None:
        with use_backend(DEMANDED):
            y = checkpoint(head, x, use_reentrant=True)
        with use_backend(other):
            y.sum().backward()

    assert backends(train) == [f"fwd[{DEMANDED}]", f"fwd[{other}]", f"bwd[{other}]"]


def test_a_function_that_is_compiled_again_in_the_backward(other: str) -> None:
    """Its second graph would read what the first one needs from another backend."""
    head, x = head_and_images()

    class Block(nn.Module):
        step = 0

        def forward(self, x: Tensor) -> Tensor:
            return head(x) * (self.step + 1)

    block = Block()
    compiled = torch.compile(block, backend="aot_eager")

    def train() -> None:
        with use_backend(DEMANDED):
            y = checkpoint(compiled, x, use_reentrant=False)
        block.step = 1
        y.sum().backward()

    ran = [call for call in backends(train) if call.endswith("]")]
    assert {*ran} == {f"fwd[{DEMANDED}]", f"bwd[{DEMANDED}]"}


def test_explain_in_a_checkpoint_says_who_demanded(other: str) -> None:
    head, x = head_and_images()
    said: list[dispatch.Explanation] = []

    def explained(x: Tensor) -> Tensor:
        said.append(explain(x, head.weight))
        return head(x)

    with use_backend(DEMANDED):
        y = checkpoint(explained, x, use_reentrant=False)
    y.sum().backward()
    assert [x.backend for x in said] == [DEMANDED, DEMANDED]
    assert said[1].reason == "demanded by use_backend, when the call that is computed again was made"


def test_a_weight_that_is_gone_is_forgotten() -> None:
    head, x = head_and_images()
    with use_backend(DEMANDED):
        head(x)
    assert len(dispatch._demanded) == 1
    del head
    gc.collect()
    assert len(dispatch._demanded) == 0


def test_a_backend_that_is_recalled_and_cannot_run_says_so(other: str, monkeypatch: pytest.MonkeyPatch) -> None:
    head, x = head_and_images()
    with use_backend(DEMANDED):
        y = checkpoint(head, x, use_reentrant=False)
    monkeypatch.setattr(dispatch.load(DEMANDED), "refuse", lambda request: "it has gone")
    with pytest.raises(BackendUnavailable, match="it has gone"):
        y.sum().backward()
