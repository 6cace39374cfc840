"""How much of the alignment maps lies in the boxes of the objects, where the data set knows these."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lewel import data
from lewel.evaluation import health
from lewel.run.session import Session


class MassInBoxes(NamedTuple):
    """Shares over the test images in percent, and the number of the best map."""

    every: float
    best: float
    area: float
    best_map: int


def mass_in_boxes(session: Session) -> MassInBoxes:
    """How much of the maps' mass lies inside the test images' boxes: of all maps, and of the best one.

    The best map is the one with most mass on the even test images; its mass is measured on the odd ones. The boxes'
    share of the images' area is what maps that look nowhere would have. session.sets.test_boxes must be known.
    """
    boxes = session.sets.test_boxes
    assert boxes is not None
    inside, area = [], []
    for (images, _), known in zip(data.eval_batches(session.sets.test, 256), boxes.split(256), strict=True):
        maps, _, _ = health.maps_of(session.method, images.to(session.device))
        mass, share = shares(maps.cpu(), known, session.run.data.image_size)
        inside.append(mass)
        area.append(share)
    each = torch.cat(inside)  # [N, K]
    best = int(each[::2].mean(0).argmax())
    every, alone, space = (100 * float(x.mean()) for x in (each, each[1::2, best], torch.cat(area)))
    return MassInBoxes(every, alone, space, best)


def shares(maps: Tensor, boxes: Tensor, image_size: int) -> tuple[Tensor, Tensor]:
    """Share of every map's mass inside the image's box (N, K), and the box's share of the image's area (N,).

    maps (N, K, h, w) sum to 1 over positions; boxes (N, 4) are x0 y0 x1 y1 in pixels. A cell that the box covers in
    part counts in part.
    """
    height, width = maps.shape[2:]
    across = _overlap(boxes[:, 0], boxes[:, 2], width, image_size)
    down = _overlap(boxes[:, 1], boxes[:, 3], height, image_size)
    covered = down[:, :, None] * across[:, None, :]  # [N, h, w], 0 to 1
    return (maps * covered[:, None]).sum((2, 3)), covered.mean((1, 2))


def _overlap(low: Tensor, high: Tensor, cells: int, image_size: int) -> Tensor:
    """Share of each of cells equal intervals of [0, image_size] inside [low, high]: (N, cells)."""
    edges = torch.linspace(0, image_size, cells + 1)
    inside = torch.minimum(edges[1:], high[:, None]) - torch.maximum(edges[:-1], low[:, None])
    return inside.clamp_min(0) * cells / image_size
