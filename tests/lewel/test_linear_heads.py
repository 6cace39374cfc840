"""Stacked linear heads: each trains as one by itself would, whatever is beside it."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from linear_heads_cases import BATCHES, BLIND, CLASSES, HELD, LABELS, ROWS, SEEING, WIDTH, stack, trained

from lewel.evaluation import heads
from lewel.evaluation.heads import Head, Heads


def separate(head: Head, blind: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and bias that torch.optim.SGD and autograd train in float64."""
    fc = torch.nn.Linear(WIDTH, CLASSES, dtype=torch.float64)
    with torch.no_grad():
        fc.weight.copy_(0.01 * torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(head.seed)))
        fc.bias.zero_()
    optimizer = torch.optim.SGD(fc.parameters(), lr=1.0, momentum=0.9)
    for at, factor in BATCHES:
        rows, labels, seen = ROWS[at].double(), LABELS[at], ~HELD[at] if blind else slice(None)
        optimizer.param_groups[0]["lr"] = head.rate * factor
        optimizer.zero_grad()
        F.cross_entropy(fc(rows[seen]), labels[seen]).backward()
        optimizer.step()
    return fc.weight.detach(), fc.bias.detach()


def larc_by_hand(head: Head) -> tuple[torch.Tensor, torch.Tensor]:
    """The formula of apex for each of weight and bias, on gradients of autograd, and SGD after it."""
    weight = 0.01 * torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(head.seed))
    parts = [weight.double(), torch.zeros(CLASSES, dtype=torch.float64)]
    velocities = [torch.zeros_like(part) for part in parts]
    for at, factor in BATCHES:
        leaves = [part.clone().requires_grad_() for part in parts]
        loss = F.cross_entropy(F.linear(ROWS[at].double(), *leaves), LABELS[at])
        for part, velocity, grad in zip(parts, velocities, torch.autograd.grad(loss, leaves), strict=True):
            norm, size = part.norm(), grad.norm()
            if norm != 0 and size != 0:
                grad = grad * (1e-3 * norm / (size + 0 * norm + 1e-8))
            velocity.mul_(0.9).add_(grad)
            part.sub_(head.rate * factor * velocity)
    return parts[0], parts[1]


def close(made: torch.Tensor, wanted: tuple[torch.Tensor, torch.Tensor]) -> None:
    torch.testing.assert_close(made[:, :WIDTH], wanted[0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(made[:, WIDTH], wanted[1], rtol=1e-9, atol=1e-12)
    assert not made[:, WIDTH + 1 :].any()


def test_stacked_heads_are_those_that_autograd_and_sgd_train_one_by_one():
    made = stack().weights
    for weights, head, blind in zip(made, SEEING + BLIND, (False, False, True, True), strict=True):
        close(weights, separate(head, blind))
    assert (made[0] - made[2]).abs().max() > 1e-3  # what is held out counts


def test_larc_is_the_formula_of_apex():
    for weights, head in zip(stack(SEEING, (), larc=True).weights, SEEING, strict=True):
        close(weights, larc_by_hand(head))


def test_larc_of_one_number_by_hand():
    """Two classes, one feature of 1: the first step of the weights, which LARC scales, and of the bias."""
    one = Heads([Head(0.5, 0)], classes=2, width=1, larc=True, dtype=torch.float64)
    one.weights[0, :, 0] = torch.tensor([3.0, 4.0])  # |w| = 5
    one.step(torch.ones(1, 1), torch.tensor([1]), 1.0)
    error = 1 / (1 + torch.e)  # probability of class 0, and what class 1 lacks; |g| = sqrt(2) error
    moved = 0.5 * 1e-3 * 5 / 2**0.5
    torch.testing.assert_close(one.weights[0, :, 0], torch.tensor([3 - moved, 4 + moved], dtype=torch.float64))
    bias = torch.tensor([-0.5 * error, 0.5 * error], dtype=torch.float64)
    torch.testing.assert_close(one.weights[0, :, 1], bias, rtol=0, atol=1e-12)  # not adapted, for it was 0


@pytest.mark.parametrize("larc", [False, True], ids=["sgd", "larc"])
def test_a_head_that_diverges_leaves_the_others_bitwise_as_they_are(larc):
    wild = Head(torch.inf, 1)
    calm, beside = (
        stack((SEEING[0], other), (other, BLIND[1]), larc=larc, dtype=torch.float32) for other in (Head(0.2, 1), wild)
    )
    assert beside.finite() == [True, False, False, True]
    for place in (0, 3):
        assert torch.equal(calm.weights[place], beside.weights[place])
    assert beside.correct(ROWS, LABELS)[[0, 3]].equal(calm.correct(ROWS, LABELS)[[0, 3]])
    assert not beside.correct(ROWS, LABELS, 3)[[1, 2]].any()  # nan is right of nothing


def test_blind_heads_are_bitwise_the_same_whatever_the_images_held_out_show():
    other = torch.where(HELD[:, None], torch.rand_like(ROWS), ROWS)
    wrong = torch.where(HELD, (LABELS + 1) % CLASSES, LABELS)
    made = stack()
    again = trained(Heads(SEEING, BLIND, classes=CLASSES, width=WIDTH, dtype=torch.float64), other, wrong)
    assert torch.equal(made.weights[2:], again.weights[2:])
    assert (made.weights[:2] - again.weights[:2]).abs().max() > 1e-4


def test_heads_in_parts_are_those_of_one_part(monkeypatch):
    whole = stack()
    right = whole.correct(ROWS, LABELS), whole.correct(ROWS, LABELS, 3)
    monkeypatch.setattr(heads, "ROOM", CLASSES * 16)  # one head at a time
    monkeypatch.setattr(heads, "ROWS", 10)
    parted = stack()
    assert (len(whole._parts), len(parted._parts)) == (2, 4)
    torch.testing.assert_close(parted.weights, whole.weights, rtol=1e-9, atol=1e-12)
    assert parted.correct(ROWS, LABELS).equal(right[0])
    assert parted.correct(ROWS, LABELS, 3).equal(right[1])


def test_what_is_classified_right_is_what_topk_says():
    made = stack(dtype=torch.float32)
    logits = ROWS.float() @ made.weights[..., :WIDTH].mT + made.weights[..., WIDTH].unsqueeze(1)  # (L, N, K)
    for top in (1, 3):
        among = (logits.topk(top).indices == LABELS[:, None]).any(-1).sum(-1)
        assert made.correct(ROWS, LABELS, top).equal(among)
    assert 0 < made.correct(ROWS, LABELS)[0] < len(ROWS)


def test_features_of_zeros_are_classified_by_no_head():
    made = Heads([Head(0.1, 0)], classes=3, width=4)
    assert not made.correct(torch.zeros(5, 4), torch.arange(5) % 3).any()


def test_heads_that_are_saved_between_two_steps_go_on_bitwise():
    whole, half, rest = (Heads(SEEING, BLIND, classes=CLASSES, width=WIDTH, larc=True) for _ in range(3))
    trained(whole)
    trained(half, batches=BATCHES[:3])
    rest.load_state_dict({name: value.clone() for name, value in half.state_dict().items()})
    trained(rest, batches=BATCHES[3:])
    assert torch.equal(rest.weights, whole.weights)


def test_one_seed_is_the_same_initial_weights_at_every_rate_and_another_seed_is_not():
    made = Heads([Head(rate, seed) for rate, seed in itertools.product((0.1, 1.0), (0, 1))], classes=50, width=100)
    first, second, third, fourth = made.weights
    assert torch.equal(first, third)
    assert torch.equal(second, fourth)
    assert not torch.equal(first, second)
    assert first[:, :100].std() == pytest.approx(0.01, rel=0.05)
    assert not first[:, 100:].any()


def test_an_image_without_a_label_counts_for_no_head():
    """Heads are those of the same batches without such images, seeing and blind ones."""
    nameless = torch.rand(64, generator=torch.Generator().manual_seed(1)) < 0.3
    labels = torch.where(nameless, -1, LABELS)
    made = trained(Heads(SEEING, BLIND, classes=CLASSES, width=WIDTH, dtype=torch.float64), ROWS, labels)
    fewer = Heads(SEEING, BLIND, classes=CLASSES, width=WIDTH, dtype=torch.float64)
    for at, factor in BATCHES:
        named = ~nameless[at]
        fewer.step(ROWS[at][named], LABELS[at][named], factor, HELD[at][named])
    torch.testing.assert_close(made.weights, fewer.weights, rtol=1e-9, atol=1e-12)


def test_a_batch_in_which_no_image_has_a_label_has_no_gradient():
    made = Heads(SEEING, BLIND, classes=CLASSES, width=WIDTH)
    before = made.weights.clone()
    made.step(ROWS[:16], torch.full((16,), -1), 1.0, HELD[:16])
    assert torch.equal(made.weights, before)


def test_a_logit_that_is_no_number_is_before_every_class():
    made = Heads([Head(0.1, 0)], classes=3, width=1)
    made.weights[0, 0] = torch.nan
    made.weights[0, 1, 1] = 1
    for top in (1, 2):
        right = made.correct(torch.ones(1, 1), torch.tensor([1]), top)
        assert right.tolist() == [int(top == 2)]
    made.weights[0, 2] = torch.nan
    assert made.correct(torch.ones(1, 1), torch.tensor([1]), 2).tolist() == [0]


def test_features_that_are_classified_are_multiplied_by_the_scale():
    made = stack()
    scaled = made.correct(ROWS.double() / 4, LABELS, scale=4.0)
    assert scaled.equal(made.correct(ROWS.double(), LABELS))
    assert not scaled.equal(made.correct(ROWS.double() / 4, LABELS))
