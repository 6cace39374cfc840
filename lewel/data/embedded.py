"""The embedded set: handwritten digits at random places among fragments of other digits on textured canvases.

The handwriting is scikit-learn's (1,797 digits of 8x8 pixels, in the package). Every image holds one whole digit, its label, and
several cut pieces of others that have its colours and stroke but belong to no class: a pooling that looks at the digit
knows more than one that averages the canvas. The handwriting is split before anything is composed, so no stroke of the
test set was seen in training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F

CLASS_NAMES = tuple(str(digit) for digit in range(10))
GLYPH = 40  # side of a smoothed glyph in pixels: 8 handwriting pixels of 4, and a margin
FRAGMENTS = 5
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
    """count canvases of size x size pixels with the handwriting of a split ("train" or "test"); seed fixes every pixel."""
    glyphs, digits = handwriting(split)
    rng = np.random.default_rng([seed, ("train", "test").index(split)])
    # Every class as often as any other, and every glyph of a class about as often as its neighbours.
    labels = rng.permutation(np.arange(count) % 10)
    chosen = np.empty(count, dtype=np.int64)
    for digit in range(10):
        places = np.flatnonzero(labels == digit)
        chosen[places] = np.resize(rng.permutation(np.flatnonzero(digits == digit)), len(places))
    parts = [_compose(glyphs, chosen[i : i + _CHUNK], size, rng) for i in range(0, count, _CHUNK)]
    images, masks = (torch.cat(column) for column in zip(*parts, strict=True))
    return Canvases(images, torch.from_numpy(labels), boxes_of(masks), masks)


def handwriting(split: str) -> tuple[torch.Tensor, np.ndarray]:
    """(glyphs (n, 40, 40) float32 coverage in [0, 1], digits (n,) int64) of a split."""
    source = load_digits()
    order = np.random.default_rng(0).permutation(len(source.target))
    mine = order[np.arange(len(order)) % _TEST_EVERY == 0] if split == "test" else order[np.arange(len(order)) % _TEST_EVERY != 0]
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


def _compose(glyphs: torch.Tensor, chosen: np.ndarray, size: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (n, 3, S, S) uint8 and the digits' masks (n, S, S) bool for the chosen glyphs."""
    n = len(chosen)
    canvas, lightness = _textures(n, size, rng)
    place = rng.uniform(-1, 1, (n, 2))
    side = rng.uniform(0.46, 0.62, n)
    digit = _render(glyphs[chosen], side, place * (1 - side[:, None]), rng.uniform(-0.25, 0.25, n), size)
    for _ in range(FRAGMENTS):
        piece = glyphs[rng.integers(len(glyphs), size=n)] * _half_planes(n, rng)
        side = rng.uniform(0.3, 0.5, n)
        ink = _render(piece, side, rng.uniform(-0.9, 0.9, (n, 2)), rng.uniform(-math.pi, math.pi, n), size)
        canvas = _paint(canvas, ink, _ink_colours(lightness, rng))
    canvas = _paint(canvas, digit, _ink_colours(lightness, rng))
    canvas = canvas + torch.from_numpy(rng.normal(0, 0.02, canvas.shape)).float()
    return (canvas.clamp(0, 1) * 255).round().to(torch.uint8), digit > 0.5


def _paint(canvas: torch.Tensor, ink: torch.Tensor, colour: torch.Tensor) -> torch.Tensor:
    """Ink (n, S, S) coverage of colour (n, 3) over canvas (n, 3, S, S), with a soft shadow that lifts it off the texture."""
    shadow = F.avg_pool2d(F.pad(ink, (3, 1, 3, 1)), 3, stride=1)[:, None, : canvas.shape[2], : canvas.shape[3]]
    canvas = canvas * (1 - 0.35 * shadow)
    return canvas + ink[:, None] * (colour[:, :, None, None] - canvas)


def _render(glyphs: torch.Tensor, side: np.ndarray, place: np.ndarray, angle: np.ndarray, size: int) -> torch.Tensor:
    """Coverage (n, S, S) of glyphs (n, g, g): side is the share of the canvas, place the centre in [-1, 1] (x, y), angle in radians."""
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


def _textures(n: int, size: int, rng: np.random.Generator) -> tuple[torch.Tensor, np.ndarray]:
    """Canvases (n, 3, S, S) float32 in [0, 1] of two related colours, and their lightness (n,)."""
    x = np.linspace(-1, 1, size)[None, None, :]
    y = np.linspace(-1, 1, size)[None, :, None]
    angle, phase = rng.uniform(0, math.pi, (2, n, 1, 1)), rng.uniform(0, 2 * math.pi, (2, n, 1, 1))
    pitch = rng.uniform(5, 16, (n, 1, 1))
    u = np.sin(pitch * (x * np.cos(angle[0]) + y * np.sin(angle[0])) + phase[0])
    v = np.sin(pitch * (y * np.cos(angle[0]) - x * np.sin(angle[0])) + phase[1])
    clouds = sum(
        F.interpolate(torch.from_numpy(rng.uniform(-1, 1, (n, 1, cells, cells))), size=(size, size), mode="bicubic")[:, 0].numpy()
        * weight
        for cells, weight in ((4, 0.9), (9, 0.5))
    )
    stripes, checks, dots = np.tanh(3 * u), np.tanh(6 * u * v), np.tanh(6 * (u + v - 0.9))
    kinds = np.stack([stripes, checks, dots, clouds + 0 * u, 0.4 * stripes + 0.6 * clouds])
    pattern = kinds[rng.integers(len(kinds), size=n), np.arange(n)] + 0.35 * clouds

    lightness = np.where(rng.random(n) < 0.5, rng.uniform(0.2, 0.4, n), rng.uniform(0.62, 0.85, n))
    hue, saturation = rng.random(n), rng.uniform(0.15, 0.6, n)
    first = _hsl(hue, saturation, lightness)[:, :, None, None]
    second = _hsl(hue + rng.uniform(-0.12, 0.12, n), saturation, lightness + rng.uniform(-0.14, 0.14, n))[:, :, None, None]
    mix = np.clip(0.5 + 0.4 * pattern, 0, 1)[:, None]
    return torch.from_numpy(first + mix * (second - first)).float(), lightness


def _ink_colours(lightness: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
    """Colours (n, 3) of ink that stands off canvases of this lightness (n,)."""
    n = len(lightness)
    ink = np.where(lightness < 0.5, rng.uniform(0.72, 0.95, n), rng.uniform(0.08, 0.3, n))
    return torch.from_numpy(_hsl(rng.random(n), rng.uniform(0.3, 0.9, n), ink)).float()


def _hsl(hue: np.ndarray, saturation: np.ndarray, lightness: np.ndarray) -> np.ndarray:
    """RGB (n, 3) in [0, 1] of hue (turns), saturation and lightness, each (n,)."""
    k = (np.array([0, 8, 4])[None] + 12 * hue[:, None]) % 12
    reach = (saturation * np.minimum(lightness, 1 - lightness))[:, None]
    return lightness[:, None] - reach * np.clip(np.minimum(k - 3, 9 - k), -1, 1)
