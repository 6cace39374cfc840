"""Alignment maps over images, and the look of every picture. Tensors in, a PNG out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure  # without pyplot: no display is needed and nothing global is changed
from PIL import Image
from torch import Tensor

from lewel.errors import LewelError
from lewel.whole import written

SIDE, GAP = 132, 5  # of the pictures of an image, and between them, in pixels
PIXELS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp")
ROWS = 100  # of a picture at most; beyond 65,535 pixels matplotlib draws none
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
) -> list[Path]:
    """Rows of images; beside each the mean of its maps and the `columns` most telling maps, the same in every row.

    The map best comes first where it is given. More than ROWS images go on in path-2, path-3 and so on; returns the
    pictures written.

    images (N, 3, S, S) float, normalised; maps (N, K, h, w), each summing to 1; boxes (N, 4) x0 y0 x1 y1 in pixels or
    None. A map is drawn between its own smallest and largest value: with tau = 1 maps differ from uniform by a quarter
    at most, and on a common scale all would look flat.
    """
    telling = [k for k in most_telling(maps, columns) if k != best]
    telling = telling if best is None else [best, *telling[: columns - 1]]
    names = ["image", "mean map", *(f"map {k}" for k in telling)]
    if boxes is not None:
        from lewel.evaluation.boxes import shares  # imports torchvision, and curves are drawn without

        inside, area = shares(maps, boxes, images.shape[-1])
        names[0] += f"\nbox: {100 * float(area.mean()):.0f} % of area"
        names[1] += f"\n{100 * float(inside.mean()):.0f} % in box"
        names[2:] = [f"map {k}\n{100 * float(inside[:, k].mean()):.0f} % in box" for k in telling]
    written = pictures_of(path, len(images))
    for start, picture in zip(range(0, len(images), ROWS), written, strict=True):
        part = slice(start, start + ROWS)
        heats = torch.cat([maps[part].mean(dim=1, keepdim=True), maps[part][:, telling]], dim=1)
        cells = (
            cells_of(image, heat, None if boxes is None else boxes[start + row])
            for row, (image, heat) in enumerate(zip(viewable(images[part]), heats, strict=True))
        )
        _grid(picture, [list(row) for row in cells], names, title)
    return written


def pictures_of(path: Path, images: int) -> list[Path]:
    """The pictures that the maps of so many images take: path, path-2 and so on."""
    more = range(2, -(-images // ROWS) + 1)
    return [path, *(path.with_name(f"{path.stem}-{number}{path.suffix}") for number in more)]


def cells_of(image: Tensor, heats: Tensor, box: Tensor | None) -> np.ndarray:
    """Image (3, S, S) in [0, 1] and maps (n, h, w) laid over its gray, with the box: (n + 1, side, side, 3) uint8."""
    heats = F.interpolate(heats[:, None], size=image.shape[1:], mode="bilinear", align_corners=False)[:, 0]
    low, high = heats.amin((1, 2), keepdim=True), heats.amax((1, 2), keepdim=True)
    heats = (heats - low) / (high - low).clamp_min(1e-12)
    colours = torch.from_numpy(matplotlib.colormaps[HEAT](heats.numpy())[..., :3]).float().permute(0, 3, 1, 2)
    cells = torch.cat([image[None], 0.38 * image.mean(0) + 0.62 * colours])
    size, times = image.shape[-1], round(SIDE / image.shape[-1])
    if times > 1:  # pixels stay squares
        cells = F.interpolate(cells, scale_factor=times, mode="nearest-exact")
    elif size != SIDE:
        cells = F.interpolate(cells, size=(SIDE, SIDE), mode="bilinear", antialias=True)
    drawn = (255 * cells.clamp(0, 1)).round().byte().permute(0, 2, 3, 1).numpy()
    if box is not None:
        _outline(drawn, [round(float(v) * drawn.shape[1] / size) for v in box])
    return drawn


def _outline(cells: np.ndarray, box: list[int]) -> None:
    """Draws the edge of a box, x0 y0 x1 y1, onto cells (n, side, side, 3): white between black."""
    for half, colour in ((2, 0), (1, 255)):
        (x0, y0, x1, y1), (left, top, right, bottom) = (
            [max(v + sign * half, 0) for v, sign in zip(box, signs, strict=True)]
            for signs in ((-1, -1, 1, 1), (1, 1, -1, -1))
        )
        within = cells[:, top:bottom, left:right].copy()
        cells[:, y0:y1, x0:x1] = colour
        cells[:, top:bottom, left:right] = within


def _grid(path: Path, rows: list[list[np.ndarray]], names: list[str], title: str) -> None:
    """Writes rows of equal cells (side, side, 3) with a name over each column and a title, as one picture of all.

    One picture, for axes of its own for each cell would take a second a row.
    """
    side = rows[0][0].shape[0]
    pitch, head = side + GAP, 25 * bool(title) + 18 * max(name.count("\n") + 1 for name in names) + GAP
    width, height = pitch * len(names) + GAP, pitch * len(rows)
    grid = np.full((height, width, 3), 255, dtype=np.uint8)
    for row, cells in enumerate(rows):
        for column, cell in enumerate(cells):
            grid[row * pitch :, GAP + column * pitch :][:side, :side] = cell
    with style.context(["default", STYLE]):
        dpi = STYLE["savefig.dpi"]
        figure = Figure(figsize=(width / dpi, (height + head) / dpi), dpi=dpi)
        for column, name in enumerate(names):
            place = ((GAP + column * pitch + side / 2) / width, (height + GAP) / (height + head))
            figure.text(*place, name, color=INK, ha="center", va="bottom", size=9)
        if title:
            figure.text(0.5, 1 - 3 / (height + head), title, color=INK, ha="center", va="top", size=10)
        if path.suffix.lower() in PIXELS:  # to draw the grid into the figure takes matplotlib seconds
            canvas = FigureCanvasAgg(figure)
            canvas.draw()
            pixels = np.asarray(canvas.buffer_rgba())[..., :3].copy()
            pixels[-height:] = grid
            save(figure, path, pixels)
        else:
            figure.figimage(grid, origin="upper")
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
    from lewel.data.batched import MEAN, STD  # as above

    mean, std = (images.new_tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    return (images * std + mean).clamp(0, 1).cpu().float()


def save(figure: Figure, path: Path, pixels: np.ndarray | None = None) -> None:
    """Writes the figure, or pixels (H, W, 3) of it, to path, whose suffix names the kind of file; makes its folder.

    Raises LewelError where there is no suffix or the file cannot be written.
    """
    if not path.suffix:
        raise LewelError(f"the picture must be named with its kind of file, such as {path}.png, got {path}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written(path) as temporary:
            if pixels is None:
                figure.savefig(temporary)
            else:
                Image.fromarray(pixels).save(temporary, compress_level=3)  # half the time of 6, a tenth more bytes
    except (OSError, ValueError) as error:
        raise LewelError(f"cannot write the picture {path}: {getattr(error, 'strerror', None) or error}") from None
