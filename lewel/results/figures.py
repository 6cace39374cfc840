"""Alignment maps over images, and the look of every picture. Tensors in, a PNG out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure  # without pyplot: no display is needed and nothing global is changed
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from torch import Tensor

from lewel.data.batched import MEAN, STD
from lewel.errors import LewelError
from lewel.evaluation.boxes import shares

_TIGHT = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
HEAT = "inferno"
INK, FAINT = "#222222", "#9a9a9a"
STYLE: dict[Any, Any] = {
    "font.size": 9.0,
    "axes.titlesize": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.grid": True,
    "grid.color": "#ececec",
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "savefig.dpi": 110,
}


def alignment_maps(
    path: Path,
    images: Tensor,
    maps: Tensor,
    boxes: Tensor | None = None,
    columns: int = 6,
    title: str = "",
    best: int | None = None,
) -> None:
    """Rows of images; beside each the mean of its maps and the `columns` most telling maps, the same in every row.

    The map best comes first where it is given.

    images (N, 3, S, S) float, normalised; maps (N, K, h, w), each summing to 1; boxes (N, 4) x0 y0 x1 y1 in pixels or
    None. A map is drawn between its own smallest and largest value: with tau = 1 maps differ from uniform by a quarter
    at most, and on a common scale all would look flat.
    """
    telling = [k for k in most_telling(maps, columns) if k != best]
    telling = telling if best is None else [best, *telling[: columns - 1]]
    pictures = viewable(images)
    gray = pictures.mean(dim=1, keepdim=True)
    heats = torch.cat([maps.mean(dim=1, keepdim=True), maps[:, telling]], dim=1)
    heats = F.interpolate(heats, size=images.shape[2:], mode="bilinear", align_corners=False)
    low, high = heats.amin((2, 3), keepdim=True), heats.amax((2, 3), keepdim=True)
    heats = (heats - low) / (high - low).clamp_min(1e-12)
    names = ["image", "mean map", *(f"map {k}" for k in telling)]
    if boxes is not None:
        inside, area = shares(maps, boxes, images.shape[-1])
        names[0] += f"\nbox: {100 * float(area.mean()):.0f} % of area"
        names[1] += f"\n{100 * float(inside.mean()):.0f} % in box"
        names[2:] = [f"map {k}\n{100 * float(inside[:, k].mean()):.0f} % in box" for k in telling]
    with matplotlib.rc_context(STYLE):
        rows, width = len(images), len(names)
        figure = Figure(figsize=(1.25 * width, 1.25 * rows + 0.75), layout=_TIGHT)
        axes = figure.subplots(rows, width, squeeze=False)
        for row in range(rows):
            for column, axis in enumerate(axes[row]):
                if column == 0:
                    axis.imshow(pictures[row].permute(1, 2, 0).numpy())
                else:
                    heat = torch.from_numpy(matplotlib.colormaps[HEAT](heats[row, column - 1].numpy())[..., :3])
                    axis.imshow((0.38 * gray[row, 0, :, :, None] + 0.62 * heat).numpy())
                if boxes is not None:
                    _outline(axis, boxes[row])
                if row == 0:
                    axis.set_title(names[column], color=INK)
                axis.axis("off")
        if title:
            figure.suptitle(title, fontsize=10, color=INK)
        save(figure, path)


def most_telling(maps: Tensor, count: int) -> list[int]:
    """The channels of maps (N, K, h, w) that vary most over positions, none of them nearly another one again.

    Contrast is the standard deviation over positions, averaged over images. In descending order a map is taken unless
    its correlation with a map taken before exceeds 0.8; if too few are left, the skipped ones follow.
    """
    flat = maps.flatten(2)
    deviation = flat - flat.mean(dim=2, keepdim=True)
    order = deviation.pow(2).mean(dim=2).sqrt().mean(dim=0).argsort(descending=True).tolist()
    rows = F.normalize(deviation.transpose(0, 1).flatten(1), dim=1)  # [K, N*h*w]
    taken: list[int] = []
    for k in order:
        if not taken or float((rows[taken] @ rows[k]).max()) <= 0.8:
            taken.append(k)
    rest = [k for k in order if k not in taken]
    return (taken + rest)[:count]


def viewable(images: Tensor) -> Tensor:
    """Normalised images (N, 3, H, W) as float32 in [0, 1] on the CPU, for drawing."""
    mean, std = (images.new_tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    return (images * std + mean).clamp(0, 1).cpu().float()


def _outline(axis: Axes, box: Tensor) -> None:
    x0, y0, x1, y1 = (float(v) - 0.5 for v in box)  # pixel centres are whole numbers on these axes
    for colour, width in (("black", 2.6), ("white", 1.1)):
        axis.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linewidth=width))


def save(figure: Figure, path: Path) -> None:
    """Writes the figure to path, whose suffix names the kind of file, and makes its folder.

    Raises LewelError where there is no suffix or the file cannot be written.
    """
    if not path.suffix:
        raise LewelError(f"the picture must be named with its kind of file, such as {path}.png, got {path}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise LewelError(f"cannot write the picture {path}: {error}") from None
