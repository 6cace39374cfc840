"""Linear layers that keep, in 16 bits, what the rows of an image differ by."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny_runs import METHODS, TINY
from torch import Tensor, nn

from lewel.errors import LewelError
from lewel.methods import split_linear
from lewel.methods.heads import MLP
from lewel.methods.method import Method
from lewel.methods.norm import synchronise

HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])


def rows(spread: float = 0.01, size: float = 1.0) -> Tensor:
    """(5, 8, 64) in float64: 8 rows an image that differ by spread of their size."""
    draw = torch.Generator().manual_seed(0)
    mean, apart = (torch.randn(shape, generator=draw, dtype=torch.float64) for shape in ((5, 1, 64), (5, 8, 64)))
    return size * (mean + spread * apart)


def weight() -> Tensor:
    return torch.randn(32, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def apart(x: Tensor) -> Tensor:
    return x.double() - x.double().mean(1, keepdim=True)


def error(found: Tensor, truth: Tensor) -> float:
    found, truth = found.detach().double(), truth.detach()
    return float((found - truth).norm() / truth.norm())


def gradients(x: Tensor, w: Tensor, dtype: torch.dtype | None, dy: Tensor) -> tuple[Tensor, ...]:
    """Output, and its gradients by x and w; of F.linear without dtype."""
    x, w = x.clone().requires_grad_(), w.clone().requires_grad_()
    y = F.linear(x, w) if dtype is None else split_linear.split_linear(x, w, dtype)
    return y.detach(), *torch.autograd.grad(y, [x, w], dy.to(y.dtype))


def upstream(size: float = 1.0) -> Tensor:
    """(5, 8, 32), zero in the mean over all rows, as batch norm sends it back."""
    dy = torch.randn(5, 8, 32, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return size * (dy - dy.mean((0, 1)))


def test_without_rounding_it_is_the_linear_layer():
    found = gradients(rows(), weight(), torch.float64, upstream())
    for mine, theirs in zip(found, gradients(rows(), weight(), None, upstream()), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


@HALVES
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e4])
@pytest.mark.parametrize("scale", [1e-8, 1.0, 65536.0])
def test_the_differences_are_kept_at_any_scale_forward_and_backward(dtype, size, scale):
    """65536 is what a gradient scaler begins with; rounded before it multiplies, a row keeps little of them."""
    x, dy = rows(size=size), upstream(scale)
    truth = gradients(x, weight(), None, dy)
    y, dx, dw = gradients(x.float(), weight().float(), dtype, dy)
    bound = 0.006 if dtype == torch.bfloat16 else 0.0008
    assert (y.dtype, dx.dtype, dw.dtype) == (torch.float32,) * 3
    assert error(apart(y), apart(truth[0])) < bound
    assert error(dx, truth[1]) < bound
    assert error(dw, truth[2]) < bound
    rounded = F.linear(x.float().to(dtype).double(), weight())
    assert error(apart(rounded), apart(truth[0])) > 10 * bound or size != 1.0


@HALVES
def test_rows_that_agree_and_a_single_row_have_float32(dtype):
    for x in (rows(spread=0.0), rows()[:, :1]):
        y = split_linear.split_linear(x.float(), weight().float(), dtype)
        assert error(y, F.linear(x, weight())) < 1e-6


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_a_gradient_that_overflowed_is_seen_by_the_scaler(bad):
    dy = upstream().float()
    dy[0, 0, 0] = bad
    _, dx, dw = gradients(rows().float(), weight().float(), torch.float16, dy)
    assert not dx.isfinite().all()
    assert not dw.isfinite().all()


class TestChain:
    def test_without_autocast_it_is_the_module_bit_by_bit(self):
        mlp = MLP(64, 16, 8)
        x = rows().float()
        assert torch.equal(split_linear.chain(mlp, x).flatten(0, 1), mlp(x.flatten(0, 1)))

    @HALVES
    def test_both_layers_keep_the_differences_under_autocast(self, dtype):
        torch.manual_seed(0)
        mlp, x = MLP(64, 128, 16), rows().float()
        with torch.autocast("cpu", dtype):
            found, rounded = split_linear.chain(mlp, x), mlp(x.flatten(0, 1)).view(5, 8, 16)
        truth = mlp.double()(x.double().flatten(0, 1)).view(5, 8, 16)
        bound = 0.01 if dtype == torch.bfloat16 else 0.0015
        assert found.dtype == torch.float32
        assert error(apart(found), apart(truth)) < bound < error(apart(rounded), apart(truth)) / 5

    def test_layers_with_a_bias_run_in_float32(self):
        module = nn.Sequential(nn.Linear(64, 16), nn.ReLU())
        with torch.autocast("cpu", torch.bfloat16):
            found = split_linear.chain(module, rows().float())
        assert torch.equal(found, module(rows().float().flatten(0, 1)).view(5, 8, 16))

    def test_synchronised_bn_is_applied_as_any_other(self):
        mlp, x = MLP(64, 16, 8), rows().float()
        synced = synchronise(copy.deepcopy(mlp), torch.device("cpu"))
        with torch.autocast("cpu", torch.bfloat16):
            found, expected = split_linear.chain(synced, x), split_linear.chain(mlp, x)
        assert torch.equal(found, expected)
        assert synced.hidden[1].num_batches_tracked == 1
        found.sum().backward()
        assert all(p.grad is not None for p in synced.parameters())

    def test_what_a_module_does_is_its_forward_with_its_hooks(self):
        """A layer may be used twice, out of registration order, and be followed by one that works in place."""
        torch.manual_seed(0)
        module, x, seen = Twice(), rows().float(), []
        for layer in (module, module.twice):
            layer.register_forward_hook(lambda layer, given, out: seen.append(type(layer)))
        with torch.autocast("cpu", torch.bfloat16):
            found = split_linear.chain(module, x)
        assert seen == [nn.Linear, nn.Linear, Twice]
        found.square().sum().backward()
        grad = module.twice.weight.grad.clone()
        module.zero_grad()
        expected = module(x.flatten(0, 1)).view(5, 8, 16)
        expected.square().sum().backward()
        assert error(found, expected) < 0.01
        assert error(grad, module.twice.weight.grad) < 0.03

    def test_a_linear_layer_over_other_rows_is_refused(self):
        module = nn.Sequential(nn.Unflatten(0, (-1, 2)), nn.Linear(64, 4, bias=False))
        with (
            torch.autocast("cpu", torch.bfloat16),
            pytest.raises(LewelError, match=r"must get their 40 rows, but got \(20, 2, 64\)"),
        ):
            split_linear.chain(module, rows().float())


class Twice(nn.Module):
    """Rows (N, 64) -> (N, 16)."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(64, 16, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.twice = nn.Linear(64, 64, bias=False)

    def forward(self, rows):
        return self.last(self.relu(self.twice(self.relu(self.twice(rows)))))


@pytest.mark.parametrize(("precision", "splits"), [("fp32", 0), ("bf16", 2 * 2 * 2 + 2 * 2)])
def test_semantic_projectors_and_aligned_predictor_are_split_in_16_bits(precision, splits, monkeypatch):
    """Two layers each: of the projectors of two networks on two views, and of the predictor on two."""
    called, split = [], split_linear.split_linear
    monkeypatch.setattr(split_linear, "split_linear", lambda *given: called.append(given) or split(*given))
    method = Method(replace(TINY, method=METHODS["lewel_b-eman"], precision=precision))
    method(*torch.randn(2, 4, 3, 32, 32), 0.9).loss.backward()
    assert len(called) == splits
    assert all(x.dtype == torch.float32 for x, *_ in called)
