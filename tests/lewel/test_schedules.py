"""Golden points of the published 100-epoch LEWEL_B log: lr 3.6, 10 warm-up epochs, 1251 steps an epoch, m0 0.98."""

from __future__ import annotations

import pytest

from lewel.recipe.schema import Data, MethodSettings, Optim, Train
from lewel.run.schedules import learning_rate, target_momentum
from lewel.run.step import rates

STEPS = 1251


@pytest.mark.parametrize(
    ("step", "golden"),
    [
        pytest.param(0, 2.878e-4, id="first-step"),
        pytest.param(STEPS - 1, 0.36, id="end-of-epoch-0"),
        pytest.param(10 * STEPS - 1, 3.6, id="end-of-warm-up"),
        pytest.param(19 * STEPS, 3.5119, id="epoch-19"),
        pytest.param(99 * STEPS, 1.09651e-3, id="epoch-99"),
    ],
)
def test_learning_rate_at_the_published_points(step, golden):
    lr = learning_rate(step, peak=3.6, warmup_steps=10 * STEPS, total_steps=100 * STEPS)
    assert lr == pytest.approx(golden, rel=2e-4)


def test_target_momentum_at_the_published_point():
    momentum = target_momentum(9 * STEPS + 800, start=0.98, schedule="cosine", total_steps=100 * STEPS)
    assert momentum == pytest.approx(0.98045505, abs=5e-9)


def test_constant_momentum_does_not_move():
    assert {target_momentum(step, start=0.999, schedule="constant", total_steps=9) for step in range(9)} == {0.999}


def test_no_warm_up_starts_at_the_peak():
    assert learning_rate(0, peak=0.5, warmup_steps=0, total_steps=10) == 0.5


def test_a_constant_rate_does_not_move_after_the_warm_up():
    rates_ = [learning_rate(s, peak=0.4, warmup_steps=2, total_steps=5, schedule="constant") for s in range(5)]
    assert rates_ == [0.2, 0.4, 0.4, 0.4, 0.4]
    run = Train(optim=Optim(lr=0.4, warmup_epochs=0, schedule="constant"), epochs=3)
    assert {rates(run, step, 4)[0] for step in range(12)} == {0.4}


def test_a_run_scales_lr_with_the_batch_and_counts_steps_over_all_epochs():
    run = Train(
        data=Data(batch_size=1024),
        method=MethodSettings(momentum=0.98, momentum_schedule="cosine"),
        optim=Optim(lr=0.9, warmup_epochs=10),
        epochs=100,
    )
    lr, momentum, _ = rates(run, 9 * STEPS + 800, STEPS)
    assert lr == pytest.approx(3.6 * (9 * STEPS + 801) / (10 * STEPS))
    assert momentum == pytest.approx(0.98045505, abs=5e-9)


def test_cosine_momentum_starts_at_m_and_would_end_at_one():
    assert target_momentum(0, start=0.98, schedule="cosine", total_steps=10) == 0.98
    assert target_momentum(10, start=0.98, schedule="cosine", total_steps=10) == 1
    assert target_momentum(5, start=0.98, schedule="cosine", total_steps=10) == pytest.approx(0.99)
