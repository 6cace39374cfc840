"""Opens one image file as a picture of 8 bits and three colours: the one place that does."""

from __future__ import annotations

import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lewel.errors import LewelError
from lewel.recipe.schema import Data

BLOCK = 256  # rows that are held in float64 at a time
DARK = 16  # of 256: 16-bit colours all below it use 12 bits at most
SWAPPED = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}
ORIENTATION, PHOTOMETRIC, SAMPLE_FORMAT = 0x0112, 262, 339  # tags of EXIF and of TIFF
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_opening = threading.Lock()


def read(path: Path, config: Data) -> Image.Image:
    """The image in a file, of several the first, as RGB of 8 bits; an alpha channel is dropped, as torchvision does.

    Gray values of more than 8 bits are scaled by their own range: the smallest becomes 0, the largest 255. So are
    16-bit colours of which only the lower 12 bits are used; of others the upper 8 bits are taken. config says whether
    EXIF turns the image (TIFF is always turned, by Pillow). Raises LewelError for more pixels than config.max_pixels,
    before they are decoded, and whatever a broken file leads Pillow's decoders to.
    """
    # Pillow remarks on transparent palettes and cut EXIF, of which nothing is used here, once for every image.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        with _open(path) as file:
            pixels = file.width * file.height
            if pixels > config.max_pixels:
                raise LewelError(
                    f"it has {pixels:,} pixels, more than data.max_pixels {config.max_pixels:,}, "
                    "which --data.max-pixels sets when a run is trained"
                )
            lower = _lower_bytes(file)
            image = to_rgb(file)
            if lower and np.asarray(image).max() < DARK:
                image = _brightened(image, path, lower)
            return _upright(image, file) if config.exif_rotate else image


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode in 8 bits and three colours; Pillow itself cuts values off at 255."""
    return (_scaled(image) if _is_deep(image) else image).convert("RGB")


def reason(error: Exception) -> str:
    """Why an image could not be read, in words; some decoders raise errors that have none."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "it is no image, or of a kind that Pillow does not read"
    if isinstance(error, OSError) and error.strerror:  # str(error) would name the file again
        return error.strerror
    return str(error) or type(error).__name__


def _open(path: Path) -> Image.Image:
    """Image.open without Pillow's own limits, which other threads of a user's program keep outside of this call."""
    with _opening:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(path)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _is_deep(file: Image.Image) -> bool:
    """Whether its values are no bytes from 0 to 255: they are wider, or TIFF's signed bytes."""
    return (
        file.mode in ("I", "F") or file.mode.startswith("I;") or (file.mode == "L" and _tag(file, SAMPLE_FORMAT) == 2)
    )


def _scaled(file: Image.Image) -> Image.Image:
    """A gray image of wide values as one of 8 bits, by the range of its finite values."""
    values, sample_format = np.asarray(file), _tag(file, SAMPLE_FORMAT)
    if file.mode == "L":
        values = values.view(np.int8)
    elif file.mode == "I" and values.dtype == np.int32 and sample_format == 1:
        values = values.view(np.uint32)  # Pillow has no mode for these: the upper half would be negative
    return _by_own_range(values, inverted=_tag(file, PHOTOMETRIC) == 0)  # 0 is white, which Pillow heeds in 8 bits only


def _by_own_range(values: np.ndarray, inverted: bool = False) -> Image.Image:
    """Values (H, W) or (H, W, 3) as an image, the smallest finite one as 0 and the largest as 255, or inverted."""
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    if inverted:
        low, high = high, low
    scale = 255 / (high - low) if high != low else 0.0
    scaled = np.empty(values.shape, dtype=np.uint8)
    for top in range(0, len(values), BLOCK):
        rows = (values[top : top + BLOCK].astype(np.float64) - low) * scale
        scaled[top : top + BLOCK] = np.nan_to_num(rows, posinf=255, neginf=0).clip(0, 255).round()
    return Image.fromarray(scaled)


def _lower_bytes(file: Image.Image) -> list[Any]:
    """Of 16-bit colours: the parts of file so that Pillow decodes the bytes of each value that it leaves out else."""
    parts = []
    for part in getattr(file, "tile", ()):
        raw, *rest = part.args if isinstance(part.args, tuple) else (part.args,)
        mode, _, order = str(raw).partition(";16")
        if not mode.startswith("RGB") or order not in SWAPPED:
            return []
        other = f"{mode};16{SWAPPED[order]}"
        parts.append(part._replace(args=(other, *rest) if isinstance(part.args, tuple) else other))
    return parts


def _brightened(upper: Image.Image, path: Path, lower: list[Any]) -> Image.Image:
    """The colours whose upper bytes upper has, by their own range: of 12 bits in 16, an image would be nearly black."""
    with _open(path) as file:
        file.tile = lower
        values = np.asarray(file)[..., :3].astype(np.uint16)
    return _by_own_range(values + 256 * np.asarray(upper).astype(np.uint16))


def _tag(file: Image.Image, tag: int) -> int | None:
    """The value of a TIFF's tag, the first of several; None for other kinds of files, and where there is none."""
    value = getattr(file, "tag_v2", {}).get(tag)
    return value[0] if isinstance(value, tuple) else value


def _upright(image: Image.Image, file: Image.Image) -> Image.Image:
    """image turned as the EXIF of its file says."""
    try:
        turn = TURNS.get(file.getexif().get(ORIENTATION, 1))
    except Exception:  # EXIF that cannot be read says nothing, and the picture itself is whole
        return image
    return image if turn is None else image.transpose(turn)
