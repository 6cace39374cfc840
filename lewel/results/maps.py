"""Alignment maps of a run over images, as a picture."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from lewel.data import pictures
from lewel.data.per_sample import fit, to_tensor
from lewel.errors import LewelError
from lewel.evaluation import health
from lewel.methods.method import Method
from lewel.recipe.schema import Data
from lewel.results import figures
from lewel.run import checkpoint, folders

BATCH = 64  # images that are encoded at a time


def over_files(folder: Path, paths: list[Path], out: Path) -> list[Path]:
    """Draws the maps of the run in folder over image files, into the PNG out; the run's own data are not needed.

    Returns the pictures that it wrote: many images take more than one.

    Raises:
        LewelError: no image is named, one cannot be read or would be written over, or the run has no alignment maps.
    """
    folder, paths, out = folders.expanded(folder), [folders.expanded(path) for path in paths], folders.expanded(out)
    if not paths:
        raise LewelError(f"no images were given; name some after the run: lewel maps {folder} IMAGES...")
    given = {path.resolve() for path in paths}
    for picture in figures.pictures_of(out, len(paths)):
        if picture.resolve() in given:
            raise LewelError(f"{picture} is one of the images, and the picture would replace it; choose another --out")
    path, state, run = folders.newest(folder)
    if not run.method.aligned:
        raise LewelError(f"{folder} is a {run.method.name} run, which has no alignment maps")
    method = Method(run)
    checkpoint.load_weights(method, state, path)
    images = torch.stack([_image(path, run.data) for path in paths])
    return draw_maps(method, images, out, None, f"{run.method.name} after {state['epoch']} epochs")


def draw_maps(
    method: Method, images: Tensor, out: Path, boxes: Tensor | None, title: str, best: int | None = None
) -> list[Path]:
    """Draws the maps of method over images (N, 3, H, W), with boxes (N, 4) and the best map in front where known.

    Returns the pictures that it wrote.
    """
    device = next(method.parameters()).device
    maps = torch.cat([health.maps_of(method, part.to(device))[0].cpu() for part in images.split(BATCH)])
    return figures.alignment_maps(out, images, maps, boxes=boxes, title=title, best=best)


def _image(path: Path, config: Data) -> Tensor:
    try:
        return to_tensor(fit(pictures.read(path, config), config.image_size))
    except Exception as error:  # a broken file leads decoders to whatever it leads them to
        raise LewelError(f"cannot read {path} as an image: {pictures.reason(error)}") from None
