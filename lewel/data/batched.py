"""Two-view augmentation of whole batches that live in memory as uint8.

Every draw is a hash of (seed, epoch, index, view, number of the draw), so a sample's views do not depend on its batch,
on the number of workers or on the state of a generator. The distributions are torchvision's (reference.py is the path
that takes a sample at a time), and a test holds the two against each other.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from lewel.recipe.schema import Augmentation

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LUMA = (0.2989, 0.587, 0.114)
Change = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # images (n, 3, S, S), value (n, 1, 1, 1) -> images
ASPECT = (3 / 4, 4 / 3)
CROP_TRIES = 10


def hashed(seed: int, epoch: int, indices: np.ndarray, view: int, count: int) -> np.ndarray:
    """(len(indices), count) uint64, a pure function of the arguments: splitmix64 chained over them."""
    state = np.zeros((len(indices), 1), dtype=np.uint64)
    for part in (seed, epoch, view, indices[:, None], np.arange(count)[None]):
        state = _mix(state + np.asarray(part).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15))
    return state


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@dataclass(frozen=True)
class Draws:
    """The random choices of B views, made by draw and carried out by apply."""

    crop: np.ndarray  # (B, 4) float64, whole numbers: top, left, height, width in pixels
    flip: np.ndarray  # (B,) bool
    order: np.ndarray  # (B, 4) int64: position of brightness, contrast, saturation, hue; -1 = not jittered
    factors: np.ndarray  # (B, 4) float64: three factors about 1 and a share of the hue circle
    gray: np.ndarray  # (B,) bool
    sigma: np.ndarray  # (B,) float64 in pixels, 0 = not blurred
    solarize: np.ndarray  # (B,) bool


def blur_sigma(size: int) -> tuple[float, float]:
    """Lowest and highest sigma in pixels: 0.1 and 2.0 at 224, in proportion to the image size."""
    return 0.1 * size / 224, 2.0 * size / 224


def blur_radius(size: int) -> int:
    """Taps on each side of the blur's centre: three of the highest sigma, rounded up."""
    return math.ceil(3 * blur_sigma(size)[1])


def draw(config: Augmentation, size: int, view: int, seed: int, epoch: int, indices: np.ndarray) -> Draws:
    """The draws for one view, 0 or 1, of the images at indices (B,) int64, whose sides are size pixels."""
    u = (hashed(seed, epoch, indices, view, 2 * CROP_TRIES + 16) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    tries, (x, y, flip, jitter), u = u[:, : 2 * CROP_TRIES], u[:, 20:24].T, u[:, 24:]
    strength = np.array(config.jitter)
    low = np.append(np.maximum(1 - strength[:3], 0), -strength[3])
    high = np.append(1 + strength[:3], strength[3])
    order = u[:, 4:8].argsort(axis=1).argsort(axis=1)
    order[jitter >= config.jitter_p] = -1
    sigma = blur_sigma(size)
    return Draws(
        crop=_crops(config.crop_scale, size, tries, x, y),
        flip=flip < config.flip,
        order=order,
        factors=low + (high - low) * u[:, 0:4],
        gray=u[:, 8] < config.gray,
        sigma=np.where(u[:, 9] < config.blur[view], sigma[0] + (sigma[1] - sigma[0]) * u[:, 10], 0.0),
        solarize=u[:, 11] < config.solarize[view],
    )


def _crops(scale: tuple[float, float], size: int, tries: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Crops (B, 4) of B images: top, left, height, width in pixels.

    Of the ten tries of an image the first that fits it is taken, the whole image if none does. All draws are in [0, 1):
    tries (B, 20) fix areas and aspects, x and y (B,) the place.
    """
    area = size * size * (scale[0] + (scale[1] - scale[0]) * tries[:, :CROP_TRIES])
    low, high = np.log(ASPECT)
    aspect = np.exp(low + (high - low) * tries[:, CROP_TRIES:])
    width, height = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (width >= 1) & (width <= size) & (height >= 1) & (height <= size)
    first = fits.argmax(axis=1)[:, None]
    width, height = (np.take_along_axis(np.where(fits, side, size), first, axis=1)[:, 0] for side in (width, height))
    return np.stack([np.floor(y * (size - height + 1)), np.floor(x * (size - width + 1)), height, width], axis=1)


def apply(images: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Views (B, 3, S, S) float32, normalised, of images (B, 3, S, S) uint8, on the images' device.

    Which samples an operation changes is decided on the CPU and copied to the device once a batch; none is read back.
    """
    changes: list[tuple[Change, np.ndarray, np.ndarray]] = [
        (change, draws.order[:, which] == position, draws.factors[:, which])
        for position in range(4)
        for which, change in enumerate((_brightness, _contrast, _saturation, _hue))
    ]
    changes += [
        (_saturation, draws.gray, np.zeros(len(images))),
        (_blur, draws.sigma > 0, draws.sigma),
        (_solarize, draws.solarize, draws.sigma),
    ]
    counts = [int(np.count_nonzero(where)) for _, where, _ in changes]
    crop, flip, chosen, drawn = upload(
        images.device,
        draws.crop,
        draws.flip,
        np.concatenate([np.flatnonzero(where) for _, where, _ in changes]),
        np.concatenate([value[where] for _, where, value in changes]),
    )
    x = _crop_flip(images.float() / 255, crop, flip)
    for (change, _, _), rows, value in zip(
        changes, chosen.long().split(counts), drawn.float().split(counts), strict=True
    ):
        if len(rows):
            x[rows] = change(x[rows], value.view(-1, 1, 1, 1))
    return normalise(x)


def upload(device: torch.device, *arrays: np.ndarray) -> list[torch.Tensor]:
    """The arrays as float64 on device, which holds whole numbers up to 2^53, in one copy that nothing waits for."""
    packed = torch.from_numpy(np.concatenate([array.ravel() for array in arrays], dtype=np.float64))
    if device.type == "cuda":
        packed = packed.pin_memory()  # a copy from other memory would wait until the device has done all its work
    parts = packed.to(device, non_blocking=True).split([array.size for array in arrays])
    return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]


def normalise(x: torch.Tensor) -> torch.Tensor:
    """Images (N, 3, H, W) float32 in [0, 1] by ImageNet's mean and standard deviation, in place."""
    for channel, (mean, std) in enumerate(zip(MEAN, STD, strict=True)):  # plain numbers: nothing to copy to a device
        x[:, channel].sub_(mean).div_(std)
    return x


def _crop_flip(x: torch.Tensor, crop: torch.Tensor, flip: torch.Tensor) -> torch.Tensor:
    """Images x (B, 3, S, S) cropped to crop (B, 4), resized to S x S again, and mirrored where flip (B,) is above 0.

    Bilinear, the border of the crop repeated. No crop is larger than the image: none needs an antialias filter. crop
    and flip are float64.
    """
    size = x.shape[-1]
    steps = (torch.arange(size, dtype=torch.float64, device=x.device) + 0.5) / size
    start, side = crop[:, :2, None], crop[:, 2:, None]  # (B, 2, 1): of rows and of columns
    source = (start + steps * side - 0.5).clamp(start, start + side - 1)
    y, x_ = ((2 * source + 1) / size - 1).float().unbind(1)
    x_ = torch.where(flip[:, None] > 0, x_.flip(1), x_)
    grid = torch.stack([x_[:, None, :].expand(-1, size, -1), y[:, :, None].expand(-1, -1, size)], dim=-1)
    return F.grid_sample(x, grid, mode="bilinear", align_corners=False)


def _luma(x: torch.Tensor) -> torch.Tensor:
    return LUMA[0] * x[:, 0:1] + LUMA[1] * x[:, 1:2] + LUMA[2] * x[:, 2:3]


def _brightness(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    return (x * factor).clamp_(0, 1)


def _contrast(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    # Rows first: the sum over a lone image would be split over the threads, and their number would change its bits.
    mean = _luma(x).mean(dim=3, keepdim=True).mean(dim=2, keepdim=True)
    return torch.lerp(mean, x, factor).clamp_(0, 1)


def _saturation(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    return torch.lerp(_luma(x), x, factor).clamp_(0, 1)


def _hue(x: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
    """Turn the hue of HSV, which keeps the highest and the lowest of the three values."""
    r, g, b = x.unbind(1)
    high, low = torch.maximum(torch.maximum(r, g), b), torch.minimum(torch.minimum(r, g), b)
    spread = high - low
    gain = 1 / spread.clamp_min(1e-6)
    sextant = torch.where(high == r, (g - b) * gain, torch.where(high == g, (b - r) * gain + 2, (r - g) * gain + 4))
    sextant = sextant + 6 * turn[:, 0]
    out = torch.empty_like(x)
    for channel, offset in enumerate((5, 3, 1)):
        k = sextant + offset
        k = k - 6 * torch.floor(k / 6)
        out[:, channel] = high - spread * torch.minimum(k, 4 - k).clamp_(0, 1)
    return out


def _blur(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    size, radius = x.shape[-1], blur_radius(x.shape[-1])
    taps = torch.arange(-radius, radius + 1, device=x.device)
    weights = torch.exp(-0.5 * (taps / sigma) ** 2)  # (n, 1, 1, taps)
    weights = weights / weights.sum(dim=-1, keepdim=True)
    x = F.pad(x, (radius,) * 4, mode="reflect")
    for dim in (3, 2):
        taken = (weights[..., tap : tap + 1] * x.narrow(dim, tap, size) for tap in range(len(taps)))
        x = functools.reduce(torch.Tensor.add_, taken)  # a sum at a time: all taps at once would fill the memory
    return x


def _solarize(x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    return torch.where(x >= 128 / 255, 1 - x, x)
