"""The batched augmentation against torchvision: its operations one by one, and the distributions of its draws."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from lewel.data import batched
from lewel.recipe.schema import Augmentation

SIZE = 64
NOTHING = Augmentation(
    crop_scale=(1.0, 1.0), flip=0, jitter=(0.4, 0.4, 0.2, 0.1), jitter_p=0, gray=0, blur=(0, 0), solarize=(0, 0)
)


def pictures(count: int, size: int = SIZE) -> torch.Tensor:
    """Smooth random colour images (count, 3, size, size) uint8."""
    coarse = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    return (torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear") * 255).to(torch.uint8)


def no_draws(count: int, size: int = SIZE) -> batched.Draws:
    """Draws that change nothing: the whole image."""
    zeros = np.zeros(count)
    return batched.Draws(
        crop=np.tile([0.0, 0.0, size, size], (count, 1)),
        flip=zeros > 0,
        order=np.full((count, 4), -1),
        factors=np.ones((count, 4)),
        gray=zeros > 0,
        sigma=zeros,
        solarize=zeros > 0,
    )


def in_unit(views: torch.Tensor) -> torch.Tensor:
    """Views without their normalisation."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (batched.MEAN, batched.STD))
    return views * std + mean


def draws_of(config: Augmentation, count: int = 20_000, view: int = 0) -> batched.Draws:
    return batched.draw(config, SIZE, view, seed=5, epoch=2, indices=np.arange(count))


class TestOperations:
    """Each operation equals torchvision's on float images, to rounding."""

    def check(self, draws: batched.Draws, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
        got = in_unit(batched.apply(pictures(len(expected)), draws))
        assert float((got - expected).abs().max()) < tolerance

    def test_no_draws_change_nothing(self):
        self.check(no_draws(4), pictures(4) / 255)

    @pytest.mark.parametrize(
        ("which", "factor", "change"),
        [
            (0, 1.37, tv.adjust_brightness),
            (0, 0.61, tv.adjust_brightness),
            (1, 1.4, tv.adjust_contrast),
            (1, 0.6, tv.adjust_contrast),
            (2, 1.4, tv.adjust_saturation),
            (2, 0.0, tv.adjust_saturation),
            (3, 0.1, tv.adjust_hue),
            (3, -0.37, tv.adjust_hue),
        ],
    )
    def test_jitter(self, which, factor, change):
        order, factors = np.full((4, 4), -1), np.ones((4, 4))
        order[:, which], factors[:, which] = 0, factor
        expected = change(pictures(4) / 255, factor)
        self.check(replace(no_draws(4), order=order, factors=factors), expected, tolerance=2e-5)

    def test_jitter_follows_the_drawn_order(self):
        order = np.array([[3, 2, 1, 0], [0, 1, 2, 3]])
        factors = np.tile([1.4, 0.6, 1.2, 0.08], (2, 1))
        changes = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
        expected = []
        for image, positions in zip(pictures(2) / 255, order, strict=True):
            for which in np.argsort(positions):
                image = changes[which](image, factors[0, which])
            expected.append(image)
        assert float((expected[0] - expected[1]).abs().max()) > 0.02  # the order matters
        self.check(replace(no_draws(2), order=order, factors=factors), torch.stack(expected), tolerance=1e-4)

    @pytest.mark.parametrize("gray", [False, True], ids=["colours", "gray"])
    def test_all_changes_in_their_order(self, gray):
        """Crop, flip, jitter, gray, blur, solarize; a neighbour before the other would be seen."""

        def crop(x: torch.Tensor) -> torch.Tensor:
            return tv.resized_crop(x, 5, 9, 50, 40, size=[SIZE, SIZE], antialias=True)

        def jitter(x: torch.Tensor) -> torch.Tensor:
            for change, factor in zip(
                (tv.adjust_hue, tv.adjust_saturation, tv.adjust_contrast, tv.adjust_brightness),
                (0.1, 0.7, 1.4, 1.3),
                strict=True,
            ):
                x = change(x, factor)
            return x

        def blur(x: torch.Tensor) -> torch.Tensor:
            taps = 2 * batched.blur_radius(SIZE) + 1
            return tv.gaussian_blur(x, [taps, taps], [0.57, 0.57])

        changes = [crop, tv.horizontal_flip, jitter, blur, lambda x: tv.solarize(x, 128 / 255)]
        if gray:
            changes.insert(3, lambda x: tv.rgb_to_grayscale(x, num_output_channels=3))

        def after(changes: list) -> torch.Tensor:
            x = pictures(4) / 255
            for change in changes:
                x = change(x)
            return x

        expected = after(changes)
        blind = {1, 3} if gray else {1}  # a flip commutes with what treats all columns alike, gray with a blur
        for place in set(range(1, len(changes) - 1)) - blind:
            swapped = [*changes[:place], changes[place + 1], changes[place], *changes[place + 2 :]]
            assert float((after(swapped) - expected).abs().max()) > 0.02, place
        draws = replace(
            no_draws(4),
            crop=np.tile([5.0, 9.0, 50.0, 40.0], (4, 1)),
            flip=np.ones(4) > 0,
            order=np.tile([3, 2, 1, 0], (4, 1)),
            factors=np.tile([1.3, 1.4, 0.7, 0.1], (4, 1)),
            gray=np.array([gray] * 4),
            sigma=np.full(4, 0.57),
            solarize=np.ones(4) > 0,
        )
        got = in_unit(batched.apply(pictures(4), draws))
        # Where a value is 128 to rounding it is inverted here and not there.
        assert float(((got - expected).abs() > 1e-4).float().mean()) < 1e-3

    def test_gray(self):
        expected = tv.rgb_to_grayscale(pictures(3) / 255, num_output_channels=3)
        self.check(replace(no_draws(3), gray=np.ones(3) > 0), expected)

    def test_solarize(self):
        expected = tv.solarize(pictures(3) / 255, 128 / 255)
        self.check(replace(no_draws(3), solarize=np.ones(3) > 0), expected)

    @pytest.mark.parametrize("sigma", [0.05, 0.3, 0.57])
    def test_blur(self, sigma):
        taps = 2 * batched.blur_radius(SIZE) + 1
        expected = tv.gaussian_blur(pictures(3) / 255, [taps, taps], [sigma, sigma])
        self.check(replace(no_draws(3), sigma=np.full(3, sigma)), expected)

    @pytest.mark.parametrize("crop", [(0, 0, 64, 64), (3, 17, 40, 31), (20, 0, 44, 64), (63, 63, 1, 1)])
    @pytest.mark.parametrize("flip", [False, True], ids=["as-is", "flipped"])
    def test_crop_and_flip(self, crop, flip):
        expected = tv.resized_crop(pictures(3) / 255, *crop, size=[SIZE, SIZE], antialias=True)
        expected = expected.flip(3) if flip else expected
        draws = replace(no_draws(3), crop=np.tile(np.array(crop, dtype=float), (3, 1)), flip=np.array([flip] * 3))
        self.check(draws, expected, tolerance=1e-4)

    def test_only_the_drawn_samples_change(self):
        solarize = np.array([False, True, False])
        views = in_unit(batched.apply(pictures(3), replace(no_draws(3), solarize=solarize)))
        changed = (views - pictures(3) / 255).abs().amax((1, 2, 3)) > 1e-3
        assert changed.tolist() == solarize.tolist()


class TestDistributions:
    """Draws against torchvision's own on 4,000 of each; bounds are about five standard errors."""

    def test_crop_like_torchvision(self):
        theirs = v2.RandomResizedCrop(SIZE, scale=(0.2, 1.0), ratio=batched.ASPECT)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            drawn = [theirs.make_params([torch.empty(3, SIZE, SIZE)]) for _ in range(4000)]
        expected = np.array([[p["top"], p["left"], p["height"], p["width"]] for p in drawn], dtype=float)
        got = draws_of(Augmentation(crop_scale=(0.2, 1.0)), 4000).crop
        for name, quantity in {
            "top": lambda c: c[:, 0],
            "left": lambda c: c[:, 1],
            "area": lambda c: c[:, 2] * c[:, 3] / SIZE**2,
            "log aspect": lambda c: np.log(c[:, 3] / c[:, 2]),
            "whole": lambda c: (c[:, 2:] == SIZE).all(axis=1),
        }.items():
            assert distance(quantity(got), quantity(expected)) < 0.04, name

    def test_crops_lie_inside(self):
        crop = draws_of(Augmentation(crop_scale=(0.01, 1.0))).crop
        assert crop.min() >= 0
        assert (crop[:, :2] + crop[:, 2:]).max() <= SIZE
        assert crop[:, 2:].min() >= 1

    def test_a_crop_lies_at_the_end_as_often_as_at_the_start(self):
        crop = draws_of(Augmentation(crop_scale=(0.6, 0.8))).crop
        for place, side in ((crop[:, 0], crop[:, 2]), (crop[:, 1], crop[:, 3])):
            free = side < SIZE
            starts, ends = ((place == 0) & free).sum(), ((place + side == SIZE) & free).sum()
            assert abs(int(starts) - int(ends)) < 5 * (starts + ends) ** 0.5

    @pytest.mark.parametrize("which", [0, 1, 2, 3], ids=["brightness", "contrast", "saturation", "hue"])
    def test_jitter_factors_like_torchvision(self, which):
        config = Augmentation(jitter=(0.4, 0.3, 0.2, 0.1))
        theirs = v2.ColorJitter(*config.jitter)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            names = ("brightness_factor", "contrast_factor", "saturation_factor", "hue_factor")
            expected = np.array([theirs.make_params([])[names[which]] for _ in range(4000)])
        assert distance(draws_of(config, 4000).factors[:, which], expected) < 0.04

    def test_a_jitter_stronger_than_one_begins_at_zero(self):
        """As torchvision's: what is below would invert the image."""
        factors = draws_of(Augmentation(jitter=(1.5, 0.3, 0.2, 0.1)), 4000).factors[:, 0]
        assert distance(factors, np.linspace(0, 2.5, 4000)) < 0.04

    def test_every_order_of_the_jitter_is_as_likely(self):
        order = draws_of(Augmentation(jitter_p=1.0), 24_000).order
        _, counts = np.unique(order, axis=0, return_counts=True)
        assert len(counts) == 24
        assert abs(counts - 1000).max() < 5 * 1000**0.5

    @pytest.mark.parametrize(
        ("field", "config", "view", "rate"),
        [
            ("flip", Augmentation(flip=0.5), 0, 0.5),
            ("gray", Augmentation(gray=0.2), 0, 0.2),
            ("jitter", Augmentation(jitter_p=0.8), 0, 0.8),
            ("blur", Augmentation(blur=(1.0, 0.1)), 0, 1.0),
            ("blur", Augmentation(blur=(1.0, 0.1)), 1, 0.1),
            ("solarize", Augmentation(solarize=(0.0, 0.2)), 0, 0.0),
            ("solarize", Augmentation(solarize=(0.0, 0.2)), 1, 0.2),
        ],
    )
    def test_rates(self, field, config, view, rate):
        draws = draws_of(config, view=view)
        happened = {"jitter": draws.order[:, 0] >= 0, "blur": draws.sigma > 0}.get(field, getattr(draws, field, None))
        assert abs(happened.mean() - rate) < 5 * (rate * (1 - rate) / 20_000) ** 0.5 + 1e-9

    def test_blur_sigma_is_uniform_and_scales_with_the_image(self):
        sigma = draws_of(Augmentation(blur=(1.0, 1.0))).sigma * 224 / SIZE
        assert distance(sigma, np.linspace(0.1, 2.0, 20_000)) < 0.02
        assert batched.blur_sigma(224) == pytest.approx((0.1, 2.0))
        assert batched.blur_radius(224) == 6

    def test_draws_are_independent(self):
        draws = draws_of(Augmentation(blur=(0.5, 0.5), solarize=(0.5, 0.5), gray=0.5, jitter_p=0.5))
        other = draws_of(Augmentation(blur=(0.5, 0.5), solarize=(0.5, 0.5), gray=0.5, jitter_p=0.5), view=1)
        columns = [draws.crop[:, 0], *draws.factors.T, draws.flip, draws.order[:, 0] >= 0, draws.gray, draws.sigma > 0]
        columns += [draws.solarize, *other.factors.T, other.flip, other.gray]
        correlation = np.abs(np.corrcoef(np.array(columns, dtype=float)) - np.eye(len(columns)))
        assert correlation.max() < 5 / 20_000**0.5


class TestDeterminism:
    def test_a_sample_does_not_depend_on_its_batch_or_on_threads(self):
        images, config = pictures(12, 224), Augmentation(blur=(1.0, 1.0), solarize=(0.5, 0.5))
        together = batched.apply(images, batched.draw(config, 224, 1, 7, 3, np.arange(12)))
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            alone = [batched.apply(images[[i]], batched.draw(config, 224, 1, 7, 3, np.array([i]))) for i in range(12)]
        finally:
            torch.set_num_threads(threads)
        assert torch.equal(torch.cat(alone), together)

    @pytest.mark.parametrize("changed", [{"seed": 6}, {"epoch": 3}, {"view": 1}])
    def test_seed_epoch_and_view_change_every_sample(self, changed):
        arguments = {
            "config": Augmentation(),
            "size": SIZE,
            "view": 0,
            "seed": 5,
            "epoch": 2,
            "indices": np.arange(100),
        }
        here, there = batched.draw(**arguments), batched.draw(**(arguments | changed))
        assert (here.factors != there.factors).any(axis=1).all()

    def test_no_two_views_of_a_run_or_of_its_neighbours_have_the_same_draws(self):
        every = [
            batched.draw(Augmentation(), SIZE, view, seed, epoch, np.arange(20)).factors
            for seed in range(3)
            for epoch in range(4)
            for view in (0, 1)
        ]
        rows = np.concatenate(every)
        assert len(np.unique(rows, axis=0)) == len(rows) == 3 * 4 * 2 * 20


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Kolmogorov-Smirnov distance between two samples."""
    points = np.concatenate([a, b]).astype(float)
    shares = [np.searchsorted(np.sort(x.astype(float)), points, side="right") / len(x) for x in (a, b)]
    return float(np.abs(shares[0] - shares[1]).max())
