"""The embedded set: reproducible, balanced, boxes and masks as drawn, no handwriting on both sides of the split."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lewel.data import embedded


@pytest.fixture(scope="module")
def canvases() -> embedded.Canvases:
    return embedded.compose("train", 40, 64, seed=0)


def test_the_seed_fixes_every_pixel(canvases):
    again, other = embedded.compose("train", 40, 64, seed=0), embedded.compose("train", 40, 64, seed=1)
    assert torch.equal(again.images, canvases.images)
    assert torch.equal(again.labels, canvases.labels)
    assert not torch.equal(other.images, canvases.images)


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
