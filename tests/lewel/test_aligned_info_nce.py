"""The aligned InfoNCE in blocks against the plain formula: values, gradients, and what is never in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lewel.errors import LewelError
from lewel.methods import losses
from lewel.methods.losses import aligned_info_nce

K, TEMPERATURE = 5, 0.2


def plain(query: Tensor, key: Tensor, temperature: float, *, first: int = 0) -> Tensor:
    """All logits at once, and for each image those that count."""
    logits = torch.einsum("nik,mjk->nimj", losses.unit(query), losses.unit(key)) / temperature
    total = 0.0
    for n, own in enumerate(range(first, first + len(query))):
        positive = logits[n, :, own].diagonal()
        others = torch.cat([logits[n, :, :own], logits[n, :, own + 1 :]], 1).flatten(1)
        total = total + (torch.cat([positive[:, None], others], 1).logsumexp(1) - positive).sum()
    return total / query.shape[:2].numel()


def embeddings(n: int, m: int, l: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(n + 10 * m + 100 * l)
    query, key = (torch.randn(images, l, K, dtype=torch.float64, generator=random).to(dtype) for images in (n, m))
    return query.requires_grad_(), key.requires_grad_()


def gradients(loss: Tensor, *of: Tensor) -> tuple[Tensor, ...]:
    return loss.detach(), *torch.autograd.grad(3 * loss, of)


class Seen(TorchDispatchMode):
    """Every operator, and the most elements that any of their results has."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.names.append(func.overloadpacket.__name__)
        self.largest = max([self.largest, *(x.numel() for x in tree_leaves(out) if isinstance(x, Tensor))])
        return out


@pytest.fixture
def in_blocks(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Tensor], None]:
    """Blocks of so many images for keys (M, L, K)."""

    def set_size(images: int, key: Tensor) -> None:
        logits = images * key.shape[1] * key.shape[:2].numel()
        monkeypatch.setattr(losses, "BLOCK_BYTES", logits * key.element_size())

    return set_size


@pytest.mark.parametrize("images", [1, 2, 3, 7], ids="blocks of {}".format)
@pytest.mark.parametrize(
    ("n", "m", "l", "first"),
    [
        pytest.param(7, 7, 4, 0, id="own-keys"),
        pytest.param(7, 16, 4, 0, id="first-of-two"),
        pytest.param(7, 16, 4, 9, id="last-of-two"),
        pytest.param(3, 9, 4, 3, id="second-of-three"),
        pytest.param(1, 5, 4, 2, id="one-image"),
        pytest.param(7, 9, 1, 1, id="one-vector"),
    ],
)
def test_value_and_gradients_of_the_plain_formula(n, m, l, first, images, in_blocks):
    query, key = embeddings(n, m, l)
    in_blocks(images, key)
    found, expected = (
        gradients(loss(query, key, TEMPERATURE, first=first), query, key) for loss in (aligned_info_nce, plain)
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)


def test_numerical_gradients(in_blocks):
    query, key = embeddings(3, 5, 2)
    in_blocks(2, key)
    assert torch.autograd.gradcheck(lambda q, k: aligned_info_nce(q, k, TEMPERATURE, first=1), (query, key))


@pytest.mark.parametrize("wanted", [0, 1], ids=["of-queries", "of-keys"])
def test_one_gradient_alone(wanted):
    both = embeddings(3, 4, 2)
    expected = gradients(plain(*both, TEMPERATURE), both[wanted])
    both[1 - wanted].requires_grad_(False)
    seen = Seen()
    with seen:
        found = gradients(aligned_info_nce(*both, TEMPERATURE), both[wanted])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)
    assert sum(name in ("mm", "addmm_") for name in seen.names) == 2  # the logits and this gradient


def test_without_gradients_there_are_only_logits():
    query, key = embeddings(3, 4, 2)
    with torch.no_grad(), Seen() as seen:
        loss = aligned_info_nce(query, key, TEMPERATURE)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, plain(query, key, TEMPERATURE).detach(), rtol=1e-12, atol=0)
    assert [name for name in seen.names if name in ("mm", "addmm_", "exp_")] == ["mm"]


@pytest.mark.parametrize("l", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_one_image_has_no_negatives(l, dtype):
    query, key = embeddings(1, 1, l, dtype)
    for found in gradients(aligned_info_nce(query, key, TEMPERATURE), query, key):
        assert found.eq(0).all()


def test_the_lowest_temperature_overflows_nothing():
    """Logits reach 1000 there; errors of float32 are seen against the same numbers in float64."""
    query, key = embeddings(6, 6, 3, torch.float32)
    with torch.no_grad():
        key[0] = query[0]  # a loss near zero beside large ones
    exact = [x.detach().double().requires_grad_() for x in (query, key)]
    found = gradients(aligned_info_nce(query, key, 1e-3), query, key)
    expected = gradients(plain(*exact, 1e-3), *exact)
    for mine, true in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.double(), true, rtol=1e-3, atol=1e-3 * true.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bits_are_accumulated_in_float32(dtype, in_blocks):
    query, key = embeddings(6, 6, 3, dtype)
    in_blocks(2, key.float())
    wide = [x.detach().float().requires_grad_() for x in (query, key)]
    loss, *found = gradients(aligned_info_nce(query, key, TEMPERATURE), query, key)
    exact, *expected = gradients(aligned_info_nce(*wide, TEMPERATURE), *wide)
    torch.testing.assert_close(loss, exact, rtol=0, atol=0)  # of the same dtype too
    for mine, true in zip(found, expected, strict=True):
        assert torch.equal(mine, true.to(dtype))  # rounded once, at the end


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_autocast_changes_no_bit(dtype):
    query, key = embeddings(4, 5, 3, dtype)
    expected = gradients(aligned_info_nce(query, key, TEMPERATURE), query, key)
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(aligned_info_nce(query, key, TEMPERATURE), query, key)
    assert all(map(torch.equal, found, expected))


def test_a_second_derivative_is_refused():
    query, key = embeddings(3, 3, 2)
    loss = aligned_info_nce(query, key, TEMPERATURE)
    with pytest.raises(LewelError, match="no second derivative"):
        torch.autograd.grad(loss, query, create_graph=True)


def test_every_run_gives_the_same_bits(in_blocks):
    query, key = embeddings(13, 29, 6, torch.float32)
    in_blocks(3, key)
    runs = [gradients(aligned_info_nce(query, key, TEMPERATURE, first=13), query, key) for _ in range(5)]
    assert all(all(map(torch.equal, run, runs[0])) for run in runs)


@pytest.mark.parametrize("images", [1, 2], ids="blocks of {}".format)
def test_there_are_two_blocks_at_a_time(images, in_blocks):
    query, key = embeddings(9, 11, 6)
    in_blocks(images, key)
    with Seen() as seen:
        loss = aligned_info_nce(query, key, TEMPERATURE)
        forward = len(seen.names)
        loss.backward()
    assert seen.largest == 2 * (images * 6) * (11 * 6)
    assert len(seen.names) > forward  # the backward is seen
    with Seen() as seen:
        plain(query, key, TEMPERATURE).backward()
    assert seen.largest == (9 * 6) * (11 * 6)


@pytest.mark.parametrize(
    ("key", "first"),
    [
        pytest.param((4, 2, K), 2, id="beyond-the-last-key"),
        pytest.param((4, 2, K), -1, id="before-the-first-key"),
        pytest.param((2, 2, K), 0, id="fewer-keys"),
        pytest.param((8, 1, K), 0, id="other-L"),
        pytest.param((4, 2, K + 1), 0, id="other-width"),
    ],
)
def test_every_query_needs_its_key(key, first):
    with pytest.raises(LewelError, match=rf"N = 3 queries .* \(M, 2, {K}\), .* first = {first}$"):
        aligned_info_nce(torch.ones(3, 2, K), torch.ones(key), TEMPERATURE, first=first)
