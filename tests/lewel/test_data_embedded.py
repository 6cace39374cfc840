"""The embedded set: reproducible, balanced, boxes and masks as drawn, no handwriting on both sides of the split."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lewel.data import build, embedded
from lewel.recipe.schema import Data


@pytest.fixture(scope="module")
def canvases() -> embedded.Canvases:
    return embedded.compose("train", 40, 64, seed=0)


def test_the_seed_fixes_every_pixel(canvases):
    again, other = embedded.compose("train", 40, 64, seed=0), embedded.compose("train", 40, 64, seed=1)
    assert torch.equal(again.images, canvases.images)
    assert torch.equal(again.labels, canvases.labels)
    assert torch.equal(embedded.labels("train", 40, seed=0), canvases.labels)
    assert not torch.equal(other.images, canvases.images)


@pytest.mark.parametrize(
    ("split", "labels", "colours", "boxes", "ink"),
    [
        (
            "train", [3, 2, 5, 4, 0, 1],
            [[62.4, 86.3, 114.1], [98.9, 71.5, 86.1], [61.3, 109.9, 116.9]],
            [[32, 18, 53, 45], [11, 4, 27, 27], [21, 10, 39, 40]],
            [274, 154, 288],
        ),
        (
            "test", [1, 4, 3, 0, 2, 5],
            [[98.7, 95.6, 70.2], [90.1, 111.6, 57.3], [92.2, 53.6, 107.5]],
            [[19, 4, 31, 33], [27, 22, 48, 51], [11, 27, 26, 54]],
            [260, 275, 238],
        ),
    ],
)  # fmt: skip
def test_the_images_are_those_that_the_published_numbers_are_of(split, labels, colours, boxes, ink):
    """The first three of six: mean colours to the rounding of another machine, and the digit's box and pixels."""
    canvases = embedded.compose(split, 6, 64, seed=0)
    assert canvases.labels.tolist() == labels
    means = canvases.images[:3].float().mean((2, 3))
    torch.testing.assert_close(means, torch.tensor(colours), rtol=0, atol=0.2)
    torch.testing.assert_close(canvases.boxes[:3], torch.tensor(boxes).float(), rtol=0, atol=1)
    torch.testing.assert_close(canvases.masks[:3].sum((1, 2)), torch.tensor(ink), rtol=0, atol=3)


def test_one_handwritten_digit_in_five_is_kept_for_the_test():
    assert [len(embedded.handwriting(split)[0]) for split in ("train", "test")] == [1437, 360]


def test_images_are_uint8_of_the_demanded_size_and_classes_are_equally_frequent(canvases):
    assert canvases.images.shape == (40, 3, 64, 64)
    assert canvases.images.dtype == torch.uint8
    assert canvases.labels.bincount().tolist() == [4] * 10


def test_boxes_are_tight_around_the_masks(canvases):
    for (x0, y0, x1, y1), mask in zip(canvases.boxes.int().tolist(), canvases.masks, strict=True):
        assert mask[y0:y1, x0:x1].sum() == mask.sum()
        assert mask[y0].any()
        assert mask[y1 - 1].any()
        assert mask[:, x0].any()
        assert mask[:, x1 - 1].any()


def test_the_digit_stands_off_its_surroundings(canvases):
    gray = canvases.images.float().mean(1)
    inside = torch.stack([image[mask].mean() for image, mask in zip(gray, canvases.masks, strict=True)])
    outside = torch.stack([image[~mask].mean() for image, mask in zip(gray, canvases.masks, strict=True)])
    assert (inside - outside).min() > 50


def test_no_handwriting_is_in_both_splits():
    train, train_digits = embedded.handwriting("train")
    test, test_digits = embedded.handwriting("test")
    assert len(train) + len(test) == 1797
    assert not {glyph.numpy().tobytes() for glyph in train} & {glyph.numpy().tobytes() for glyph in test}
    assert len(np.unique(train_digits)) == len(np.unique(test_digits)) == 10


def test_every_split_is_made_of_its_own_handwriting(monkeypatch):
    handwriting, asked = embedded.handwriting, []
    monkeypatch.setattr(embedded, "handwriting", lambda split: asked.append(split) or handwriting(split))
    sets = build(Data(embedded_train=20, embedded_test=10, image_size=32), seed=1)
    assert asked == ["train", "test"]
    for images, split, count in (
        (sets.bank.images, "train", 20),
        (sets.train.images, "train", 20),
        (sets.test.images, "test", 10),
    ):
        assert torch.equal(images, embedded.compose(split, count, 32, seed=0).images)


def test_labels_are_those_of_the_digits_drawn(monkeypatch):
    """Digit d is a square whose side grows with d."""
    glyphs = torch.zeros(10, embedded.GLYPH, embedded.GLYPH)
    for digit in range(10):
        glyphs[digit, 2 : 10 + 3 * digit, 2 : 10 + 3 * digit] = 1
    monkeypatch.setattr(embedded, "handwriting", lambda split: (glyphs, np.arange(10)))
    canvases = embedded.compose("train", 200, 64, seed=0)
    side = canvases.masks.sum((1, 2)).double().sqrt()
    assert np.corrcoef(side, canvases.labels)[0, 1] > 0.9
