"""The share of the training images that a rate is chosen by."""

from __future__ import annotations

import pytest
import torch

from lewel.evaluation.held_out import split

SIZES = (40, 20, 7, 1)  # images of each class
LABELS = torch.arange(4).repeat_interleave(torch.tensor(SIZES))[torch.randperm(68, generator=torch.Generator())]


@pytest.mark.parametrize(("share", "counts"), [(0.1, [4, 2, 1, 0]), (0.5, [20, 10, 4, 0]), (0.01, [1, 1, 1, 0])])
def test_of_every_class_the_share_is_held_out_one_at_least_and_one_at_least_is_kept(share, counts):
    kept, held = split(LABELS, share, seed=0)
    assert torch.cat([kept, held]).sort().values.equal(torch.arange(len(LABELS)))  # disjoint, and all there
    assert torch.bincount(LABELS[held], minlength=4).tolist() == counts
    assert all(part.equal(part.sort().values) for part in (kept, held))


def test_a_seed_holds_out_the_same_images_and_another_seed_others():
    first, again, other = (split(LABELS, 0.1, seed)[1] for seed in (3, 3, 4))
    assert first.equal(again)
    assert not first.equal(other)
