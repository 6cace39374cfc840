"""The reference augmentation, one sample at a time by torchvision, and the batched one: views alike in distribution."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lewel.data import batched
from lewel.data.per_sample import View
from lewel.recipe.schema import Augmentation

SIZE = 32
CHANGES = ("crop_scale", "flip", "jitter", "gray", "blur", "solarize")  # in this order
NOTHING = Augmentation((1.0, 1.0), flip=0, jitter=(0, 0, 0, 0), jitter_p=0.8, gray=0, blur=(0, 0), solarize=(0, 0))


def constant(*colour: int) -> Tensor:
    return torch.tensor(colour, dtype=torch.uint8).view(3, 1, 1).expand(3, SIZE, SIZE)


def ramps() -> Tensor:
    """Red rises from left to right, green from top to bottom."""
    ramp = (torch.arange(SIZE) * 8).to(torch.uint8).expand(SIZE, SIZE)
    return torch.stack([ramp, ramp.T, torch.zeros_like(ramp)])


def halves(left: int, right: int) -> Tensor:
    image = constant(left, left, left).clone()
    image[:, :, SIZE // 2 :] = right
    return image


def chequered() -> Tensor:
    """Large enough for a blur of up to 0.57 pixels, in proportion to the size."""
    places = torch.arange(64)
    return ((places[:, None] + places) % 2 * 255).to(torch.uint8).expand(3, -1, -1)


def coarse() -> Tensor:
    noise = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    return (torch.nn.functional.interpolate(noise, size=SIZE, mode="bilinear")[0] * 255).to(torch.uint8)


def pixels(views: Tensor) -> Tensor:
    """Normalised views (B, 3, S, S) as 0 to 255, in whole numbers as the reference path keeps them."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return ((views * std + mean) * 255).round()


def of_reference(config: Augmentation, image: Tensor, view: int, count: int) -> Tensor:
    one, picture = View(config, image.shape[-1], view), Image.fromarray(image.permute(1, 2, 0).numpy())
    return pixels(torch.stack([one(picture, seed=5, epoch=2, index=i) for i in range(count)]))


def of_batches(config: Augmentation, image: Tensor, view: int, count: int) -> Tensor:
    draws = batched.draw(config, image.shape[-1], view, seed=5, epoch=2, indices=np.arange(count))
    return pixels(batched.apply(image.expand(count, -1, -1, -1), draws))


def distance(a: Tensor, b: Tensor) -> float:
    """Kolmogorov-Smirnov distance between two samples."""
    points = torch.cat([a, b])
    shares = [torch.searchsorted(x.sort().values, points, right=True) / len(x) for x in (a, b)]
    return float((shares[0] - shares[1]).abs().max())


def sides(views: Tensor) -> Tensor:
    """Width and height of the crops of ramps(), in pixels: (2, B)."""
    across, down = views[:, 0].mean(1), views[:, 1].mean(2)
    return torch.stack([((x.amax(1) - x.amin(1)) / 8 + 1).round() for x in (across, down)])


def bright(views: Tensor) -> Tensor:
    """Whether no value of the image is dark.

    Brightness of up to 31 leaves black black and makes the rest white, mostly: it matters what was mixed before.
    """
    return (views.amin((1, 2, 3)) > 128).float()


def chroma(views: Tensor) -> Tensor:
    return (views.amax(1) - views.amin(1)).mean((1, 2))


@pytest.mark.parametrize(
    ("changes", "image", "view", "statistic"),
    [
        pytest.param({"crop_scale": (0.2, 1)}, ramps(), 0, lambda x: sides(x).prod(0), id="crop-area"),
        pytest.param({"crop_scale": (0.2, 1)}, ramps(), 0, lambda x: sides(x)[0] - sides(x)[1], id="crop-aspect"),
        pytest.param({"crop_scale": (0.2, 0.5)}, ramps(), 1, lambda x: x[:, 0].amin((1, 2)).round(), id="crop-left"),
        pytest.param({"crop_scale": (0.2, 0.5)}, ramps(), 1, lambda x: x[:, 1].amin((1, 2)).round(), id="crop-top"),
        pytest.param({"flip": 0.3}, ramps(), 0, lambda x: (x[:, 0, 0, 0] > x[:, 0, 0, -1]).float(), id="flip"),
        pytest.param({"jitter": (0.4, 0, 0, 0)}, constant(99, 99, 99), 0, lambda x: x.mean((1, 2, 3)), id="brightness"),
        pytest.param({"jitter": (0, 0.4, 0, 0)}, halves(60, 180), 0, lambda x: x.amax((1, 2, 3)), id="contrast"),
        pytest.param({"jitter": (0, 0, 0.5, 0)}, constant(180, 99, 60), 0, chroma, id="saturation"),
        pytest.param({"jitter": (0, 0, 0, 0.1)}, constant(200, 40, 40), 0, lambda x: x[:, 1, 0, 0], id="hue"),
        pytest.param(
            {"jitter": (30, 0, 1, 0)}, constant(255, 0, 0), 0, bright, id="order-of-brightness-and-saturation"
        ),
        pytest.param({"jitter": (30, 1, 0, 0)}, halves(0, 255), 0, bright, id="order-of-brightness-and-contrast"),
        pytest.param(
            {"jitter": (0.4, 0, 0, 0)}, constant(99, 99, 99), 1, lambda x: (x[:, 0, 0, 0] != 99).float(), id="jittered"
        ),
        pytest.param({"gray": 0.3}, constant(180, 99, 60), 0, lambda x: (chroma(x) < 2).float(), id="gray"),
        pytest.param({"blur": (0.8, 0.2)}, chequered(), 0, lambda x: x.std((1, 2, 3)).round(), id="blur-first-view"),
        pytest.param({"blur": (0.8, 0.2)}, chequered(), 1, lambda x: x.std((1, 2, 3)).round(), id="blur-second-view"),
        pytest.param({"solarize": (0.2, 0.7)}, constant(140, 9, 9), 0, lambda x: x[:, 0, 0, 0], id="solarize-first"),
        pytest.param({"solarize": (0.2, 0.7)}, constant(140, 9, 9), 1, lambda x: x[:, 0, 0, 0], id="solarize-second"),
    ],
)
def test_one_change_alone(changes: dict, image: Tensor, view: int, statistic: Callable[[Tensor], Tensor]):
    config = replace(NOTHING, **changes)
    theirs, ours = (statistic(path(config, image, view, 300)) for path in (of_reference, of_batches))
    assert theirs.unique().numel() > 1  # the change is seen
    assert distance(theirs, ours) < 0.15


@pytest.mark.parametrize("view", [0, 1], ids=["first", "second"])
def test_all_changes_together(view):
    config = replace(Augmentation(), blur=(0.5, 0.5), solarize=(0.5, 0.5))
    theirs, ours = (path(config, coarse(), view, 700) for path in (of_reference, of_batches))
    for statistic in (lambda x: x.mean((1, 2, 3)), lambda x: x.std((1, 2, 3)), chroma):
        assert distance(statistic(theirs), statistic(ours)) < 0.1


def level(views: Tensor) -> Tensor:
    return views.mean((1, 2, 3)).round()


def gray_level(views: Tensor) -> Tensor:
    """Whether no value is black or white."""
    return ((views > 5) & (views < 250)).flatten(1).all(1).float()


def sharp(views: Tensor) -> Tensor:
    return (views.std((1, 2, 3)) > 47).float()


@pytest.mark.parametrize(
    ("first", "second", "image", "statistic"),
    [
        pytest.param(
            {"crop_scale": (0.1, 0.1)}, {"jitter": (0, 30, 0, 0)}, halves(60, 180), gray_level, id="crop-jitter"
        ),
        pytest.param({"crop_scale": (0.02, 0.02)}, {"blur": (1, 1)}, chequered(), sharp, id="crop-blur"),
        pytest.param({"jitter": (0, 0, 30, 0)}, {"gray": 1.0}, constant(200, 90, 60), level, id="jitter-gray"),
        pytest.param({"jitter": (30, 0, 0, 0)}, {"blur": (1, 1)}, chequered(), level, id="jitter-blur"),
        pytest.param({"jitter": (9, 0, 0, 0)}, {"solarize": (1, 1)}, constant(60, 60, 60), level, id="jitter-solarize"),
        pytest.param({"gray": 1.0}, {"solarize": (1, 1)}, constant(220, 99, 60), level, id="gray-solarize"),
        pytest.param({"blur": (1, 1)}, {"solarize": (1, 1)}, chequered(), level, id="blur-solarize"),
    ],
)
def test_one_change_comes_before_another(first, second, image, statistic):
    """In both paths: what they show is alike, and not what the reference shows with the two changed about."""
    both = replace(NOTHING, jitter_p=1.0, **first, **second)
    swapped, at = View(both, image.shape[-1], 0), [CHANGES.index(key) for change in (first, second) for key in change]
    steps, picture = swapped.transform.transforms, Image.fromarray(image.permute(1, 2, 0).numpy())
    steps[at[0]], steps[at[1]] = steps[at[1]], steps[at[0]]
    views = [path(both, image, 0, 40) for path in (of_reference, of_batches)]
    views.append(pixels(torch.stack([swapped(picture, seed=5, epoch=2, index=i) for i in range(40)])))
    theirs, ours, wrong = map(statistic, views)
    assert distance(theirs, ours) < 0.25
    assert distance(theirs, wrong) > 0.3


def test_views_of_the_reference_follow_seed_epoch_index_and_view():
    picture = Image.fromarray(coarse().permute(1, 2, 0).numpy())
    same, other = (View(replace(Augmentation(), blur=(0, 0), solarize=(0, 0)), SIZE, view) for view in (0, 1))
    start = torch.get_rng_state()
    here = same(picture, seed=5, epoch=2, index=1)
    assert torch.equal(here, same(picture, seed=5, epoch=2, index=1))
    for there in (
        same(picture, seed=6, epoch=2, index=1),
        same(picture, seed=5, epoch=3, index=1),
        same(picture, seed=5, epoch=2, index=2),
        other(picture, seed=5, epoch=2, index=1),
    ):
        assert not torch.equal(here, there)
    assert torch.equal(torch.get_rng_state(), start)
