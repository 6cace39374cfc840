"""The embedded set: handwritten digits at random places among fragments of other digits on textured canvases.

The handwriting is scikit-learn's (1,797 digits of 8x8 pixels, in the package). Every image holds one whole digit, its
label, and several cut pieces of others that have its stroke but belong to no class: a pooling that looks at the digit
knows more than one that averages the canvas. The handwriting is split before anything is composed, so no stroke of the
test set was seen in training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from lewel import installed

CLASSES = 10
GLYPH = 40  # side of a smoothed glyph in pixels: 8 handwriting pixels of 4, and a margin
FRAGMENTS = 3
_CHUNK = 250  # images composed at once: bounds the memory to about 25 MB at 64 pixels
_TEST_EVERY = 5  # one handwritten digit in five belongs to the test set


@dataclass(frozen=True)
class Canvases:
    """Composed images with what is known about them."""

    images: torch.Tensor  # (N, 3, S, S) uint8
    labels: torch.Tensor  # (N,) int64
    boxes: torch.Tensor  # (N, 4) float32: x0, y0, x1, y1 in pixels, half open, tight around the mask
    masks: torch.Tensor  # (N, S, S) bool: the digit's own pixels


def compose(split: str, count: int, size: int, seed: int) -> Canvases:
    """count canvases of size x size pixels with the handwriting of split "train" or "test"; seed fixes all pixels."""
    glyphs, digits = handwriting(split)
    labels, rng = _labels(split, count, seed)
    # Every glyph of a class about as often as its neighbours.
    chosen = np.empty(count, dtype=np.int64)
    for digit in range(CLASSES):
        places = np.flatnonzero(labels == digit)
        chosen[places] = np.resize(rng.permutation(np.flatnonzero(digits == digit)), len(places))
    parts = [_compose(glyphs, chosen[i : i + _CHUNK], size, rng) for i in range(0, count, _CHUNK)]
    images, masks = (torch.cat(column) for column in zip(*parts, strict=True))
    return Canvases(images, torch.from_numpy(labels), boxes_of(masks), masks)


def labels(split: str, count: int, seed: int) -> torch.Tensor:
    """The labels (N,) int64 of what compose makes."""
    return torch.from_numpy(_labels(split, count, seed)[0])


def _labels(split: str, count: int, seed: int) -> tuple[np.ndarray, np.random.Generator]:
    """Labels (N,) int64, every class as often as any other, and what the pixels are drawn by after them."""
    rng = np.random.default_rng([seed, ("train", "test").index(split)])
    return rng.permutation(np.arange(count) % CLASSES), rng


def handwriting(split: str) -> tuple[torch.Tensor, np.ndarray]:
    """scikit-learn's digits of split "train" or "test", enlarged: glyphs (n, 40, 40) float32 and digits (n,) int64.

    A glyph holds the share of each pixel that ink covers, in [0, 1].
    """
    with installed.needed("the embedded set"):  # imported here, for it takes a second that other images do not need
        from sklearn import datasets
    source = datasets.load_digits()
    order = np.random.default_rng(0).permutation(len(source.target))
    mine = (
        order[np.arange(len(order)) % _TEST_EVERY == 0]
        if split == "test"
        else order[np.arange(len(order)) % _TEST_EVERY != 0]
    )
    ink = torch.from_numpy(source.images[mine]).float().unsqueeze(1) / 16
    smooth = F.interpolate(F.pad(ink, (1, 1, 1, 1)), size=(GLYPH, GLYPH), mode="bicubic", align_corners=False)
    # A steep ramp about a medium level gives strokes with an edge instead of a blur.
    return ((smooth[:, 0] - 0.42) * 6 + 0.5).clamp(0, 1), source.target[mine]


def boxes_of(masks: torch.Tensor) -> torch.Tensor:
    """Tight half-open boxes (N, 4) float32 x0 y0 x1 y1 of masks (N, H, W) bool, none of them empty."""
    columns, rows = masks.any(dim=1).to(torch.int8), masks.any(dim=2).to(torch.int8)
    x0, y0 = columns.argmax(dim=1), rows.argmax(dim=1)
    x1 = masks.shape[2] - columns.flip(1).argmax(dim=1)
    y1 = masks.shape[1] - rows.flip(1).argmax(dim=1)
    return torch.stack([x0, y0, x1, y1], dim=1).float()


def _compose(
    glyphs: torch.Tensor, chosen: np.ndarray, size: int, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (n, 3, S, S) uint8 and the digits' masks (n, S, S) bool for the chosen glyphs."""
    n = len(chosen)
    canvas = _textures(n, size, rng)
    place = rng.uniform(-1, 1, (n, 2))
    side = rng.uniform(0.44, 0.58, n)
    digit = _render(glyphs[chosen], side, place * (1 - side[:, None]), rng.uniform(-0.25, 0.25, n), size)
    for _ in range(FRAGMENTS):
        piece = glyphs[rng.integers(len(glyphs), size=n)] * _half_planes(n, rng)
        side = rng.uniform(0.25, 0.4, n)
        ink = _render(piece, side, rng.uniform(-0.9, 0.9, (n, 2)), rng.uniform(-math.pi, math.pi, n), size)
        canvas = _paint(canvas, ink, _ink_colours(n, rng))
    canvas = _paint(canvas, digit, _ink_colours(n, rng))
    canvas = canvas + torch.from_numpy(rng.normal(0, 0.02, canvas.shape)).float()
    return (canvas.clamp(0, 1) * 255).round().to(torch.uint8), digit > 0.5


def _paint(canvas: torch.Tensor, ink: torch.Tensor, colour: torch.Tensor) -> torch.Tensor:
    """Ink (n, S, S) coverage of colour (n, 3) over canvas (n, 3, S, S), with a soft shadow that lifts it off."""
    shadow = F.avg_pool2d(F.pad(ink, (3, 1, 3, 1)), 3, stride=1)[:, None, : canvas.shape[2], : canvas.shape[3]]
    canvas = canvas * (1 - 0.35 * shadow)
    return canvas + ink[:, None] * (colour[:, :, None, None] - canvas)


def _render(glyphs: torch.Tensor, side: np.ndarray, place: np.ndarray, angle: np.ndarray, size: int) -> torch.Tensor:
    """Draws glyphs (n, g, g) on empty canvases; returns their coverage (n, S, S).

    side (n,) is a glyph's side as a share of the canvas's, place (n, 2) its centre x, y in [-1, 1], angle (n,) its
    rotation in radians.
    """
    cos, sin = np.cos(angle) / side, np.sin(angle) / side
    x, y = place[:, 0], place[:, 1]
    theta = np.stack([cos, sin, -cos * x - sin * y, -sin, cos, sin * x - cos * y], axis=1).reshape(-1, 2, 3)
    grid = F.affine_grid(torch.from_numpy(theta).float(), [len(glyphs), 1, size, size], align_corners=False)
    return F.grid_sample(glyphs[:, None], grid, mode="bilinear", align_corners=False)[:, 0]


def _half_planes(n: int, rng: np.random.Generator) -> torch.Tensor:
    """Coverage (n, g, g) of half planes at random angles that keep a bit more or less than half of a glyph."""
    angle, offset = rng.uniform(0, 2 * math.pi, (n, 1, 1)), rng.uniform(-0.1, 0.15, (n, 1, 1))
    axis = np.linspace(-1, 1, GLYPH)
    inside = np.cos(angle) * axis[None, None, :] + np.sin(angle) * axis[None, :, None] + offset
    return torch.from_numpy(np.clip(inside * GLYPH / 2, 0, 1)).float()


def _textures(n: int, size: int, rng: np.random.Generator) -> torch.Tensor:
    """Canvases (n, 3, S, S) float32 in [0, 1]: a pattern in two related dark colours.

    Patterns have one pitch and little contrast, so that textures say little about which image they belong to: what
    tells images apart has to be found in the shapes.
    """
    x = np.linspace(-1, 1, size)[None, None, :]
    y = np.linspace(-1, 1, size)[None, :, None]
    slant = rng.choice([-1.0, 1.0], (n, 1, 1)) * math.pi / 4
    phase = rng.uniform(0, 2 * math.pi, (2, n, 1, 1))
    across = np.sin(12 * (x * np.cos(slant) + y * np.sin(slant)) + phase[0])
    p, q = np.sin(10 * x + phase[0]), np.sin(10 * y + phase[1])
    clouds = sum(
        F.interpolate(torch.from_numpy(rng.uniform(-1, 1, (n, 1, cells, cells))), size=(size, size), mode="bicubic")[
            :, 0
        ].numpy()
        * weight
        for cells, weight in ((4, 0.9), (9, 0.5))
    )
    kinds = np.stack([np.tanh(3 * across), np.tanh(6 * p * q), np.tanh(6 * (p + q - 0.9)), clouds])
    pattern = kinds[rng.integers(len(kinds), size=n), np.arange(n)] + 0.35 * clouds

    hue, saturation = rng.random(n), rng.uniform(0.2, 0.5, n)
    first = _hsl(hue, saturation, np.full(n, 0.26))[:, :, None, None]
    second = _hsl(hue + rng.uniform(-0.12, 0.12, n), saturation, np.full(n, 0.35))[:, :, None, None]
    mix = np.clip(0.5 + 0.4 * pattern, 0, 1)[:, None]
    return torch.from_numpy(first + mix * (second - first)).float()


def _ink_colours(n: int, rng: np.random.Generator) -> torch.Tensor:
    """Light colours (n, 3) of ink that stand off the dark canvases."""
    return torch.from_numpy(_hsl(rng.random(n), rng.uniform(0.2, 0.7, n), np.full(n, 0.8))).float()


def _hsl(hue: np.ndarray, saturation: np.ndarray, lightness: np.ndarray) -> np.ndarray:
    """RGB (n, 3) in [0, 1] of hue (turns), saturation and lightness, each (n,)."""
    k = (np.array([0, 8, 4])[None] + 12 * hue[:, None]) % 12
    reach = (saturation * np.minimum(lightness, 1 - lightness))[:, None]
    return lightness[:, None] - reach * np.clip(np.minimum(k - 3, 9 - k), -1, 1)
