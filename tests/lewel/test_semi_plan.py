"""What a fine-tuning does before it begins: which images, batches and rates, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lewel.errors import LewelError
from lewel.evaluation import lists, semi
from lewel.evaluation.protocols import PROTOCOLS
from lewel.evaluation.semi import Settings
from lewel.evaluation.subject import Asked, Subject, find
from lewel.evaluation.tuning import Tuning
from lewel.recipe import presets


@pytest.fixture
def subject(finished, tmp_path) -> Subject:
    """The tiny run: 48 training images, 16 test images, 10 classes."""
    return find(Asked(run=finished.folder, out=str(tmp_path / "out"), kind="semi"))


@pytest.mark.parametrize(("labels", "rates"), [(1, (1e-4, 1.0)), (10, (0.01, 0.1))])
def test_rates_are_the_paper_s(labels, rates):
    assert Settings(labels=labels).rates == rates
    assert Settings(labels=labels, lr=0.5, fc_lr=2.0).rates == (0.5, 2.0)


def test_a_batch_has_no_more_images_than_have_labels(subject):
    planned = semi.plan(subject, Settings())
    assert (planned.batch, planned.rates) == (10, (1e-4 * 10 / 256, 10 / 256))
    assert planned.said == (
        "1 % of the labels: 10 of 48 training images, 1 of every class, drawn by seed 0\n"
        "50 epochs of 1 step of 10 images, rates 3.91e-06 (encoder) and 0.0391 (classifier), divided by 10 after "
        "epochs 30 and 40; there are only 10 labelled images, so both rates are those for 256 images, times 10/256"
    )


def test_a_smaller_batch_has_smaller_rates_and_more_steps(subject):
    planned = semi.plan(subject, Settings(labels=10, batch_size=4))
    assert (planned.batch, planned.rates) == (4, (0.01 * 4 / 256, 0.1 * 4 / 256))
    assert "50 epochs of 3 steps of 4 images" in planned.said  # the last of 2
    assert planned.said.endswith("and 40; both rates are those for 256 images, times 4/256")


def test_a_last_batch_of_one_image_is_left_out(subject):
    assert "50 epochs of 3 steps of 3 images" in semi.plan(subject, Settings(labels=10, batch_size=3)).said


@pytest.mark.parametrize(
    ("size", "batch", "said"),
    [(2, 5, "a batch of 5 images cannot be shared by 2 processes; try 6"), (8, 256, "needs 2 in each"),
     (11, 256, "only 10 labelled images for 11 processes in batches of 10")],
    ids=["odd", "one-image-each", "too-few"],
)  # fmt: skip
def test_a_batch_that_processes_cannot_share_is_refused(subject, size, batch, said):
    subject.world = replace(subject.world, size=size)
    with pytest.raises(LewelError, match=said):
        semi.plan(subject, Settings(batch_size=batch))


@pytest.mark.parametrize(("epochs", "said"), [(1, ""), (2, ""), (3, ", divided by 10 after epoch 2"),
                                              (4, ", divided by 10 after epoch 3"),
                                              (10, ", divided by 10 after epochs 6 and 8")])  # fmt: skip
def test_rates_fall_only_after_epochs_that_others_follow(subject, epochs, said):
    """By the rule of linear evaluation: from 60 % and 80 % of the epochs on."""
    planned = semi.plan(subject, Settings(epochs=epochs))
    assert f"(classifier){said}; there are only" in planned.said
    factors = [0.1 ** sum(epoch >= drop for drop in planned.drops) for epoch in range(epochs)]
    assert factors == [PROTOCOLS["a"].factor(epoch, epochs, 0, 1) for epoch in range(epochs)]


def test_rates_fall_as_in_the_paper(subject, monkeypatch):
    rates: dict[int, list[float]] = {}

    def epoch(self, loader, number, given):
        rates[number] = given
        return 1.0

    monkeypatch.setattr(Tuning, "epoch", epoch)
    monkeypatch.setattr(Tuning, "accuracies", lambda self: (50.0, 90.0))
    semi.evaluate(subject, Settings(labels=10, fc_lr=25.6, lr=256.0))
    assert list(rates) == list(range(50))
    for first, last, factor in ((0, 29, 1), (30, 39, 0.1), (40, 49, 0.01)):
        for number in (first, last):
            assert rates[number] == pytest.approx([10 * factor, factor])


def test_the_published_value_needs_simclr_s_list_and_the_paper_s_settings(subject, monkeypatch):
    subject.run = replace(presets.get("imagenet/lewel_m_200"), preset="imagenet/lewel_m_200")
    subject.epoch = 200
    monkeypatch.setattr(lists, "balanced", lambda labels, *given: lists.Share(torch.arange(48).numpy(), "", True))
    monkeypatch.setattr(lists, "labels_of", lambda sets: torch.arange(48).numpy() % 10)
    monkeypatch.setattr("lewel.evaluation.semi.published.line", lambda run, *given, **more: (given, more))
    for settings, protocol in ((Settings(labels=10), "simclr"), (Settings(labels=10, epochs=20), "own"),
                               (Settings(labels=10, lr=0.01), "own")):  # fmt: skip
        given, more = semi.plan(subject, settings).published
        assert (given, more) == (("semi-10", protocol), {"images": 48, "epoch": 200, "trained": True})


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"labels": 5}, "labels must be 1 or 10"), ({"epochs": 0}, "epochs must be a whole number of 1 or more, got 0"),
     ({"batch_size": -1}, "batch_size must be a whole number of 1 or more"),
     ({"lr": float("nan")}, "lr must be a finite number"),
     ({"fc_lr": -1.0}, "fc_lr must be a finite number"), ({"resume": "yes"}, 'resume must be "auto"'),
     ({"labels": True}, "labels must be 1 or 10"), ({"labels": "1"}, "got '1'"), ({"list": 3}, "list must be the path"),
     ({"epochs": 2.5}, "epochs must be a whole number of 1 or more, got 2.5"), ({"epochs": "3"}, "got '3'"),
     ({"epochs": True}, "got True"), ({"batch_size": 8.0}, "batch_size must be a whole number of 1 or more, got 8.0"),
     ({"lr": "0.1"}, "lr must be a finite number, 0 or more, got '0.1'"), ({"fc_lr": True}, "got True"),
     ({"seed": -1}, "seed must be a whole number of 0 or more, got -1"), ({"seed": 1.5}, "got 1.5")],
    ids=lambda value: "-".join(map(str, *value.items())) if isinstance(value, dict) else "",
)  # fmt: skip
def test_bad_settings_are_refused(settings, said):
    with pytest.raises(LewelError, match=said):
        Settings(**settings)
