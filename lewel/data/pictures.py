"""Opens one image file as a picture of 8 bits and three colours: the one place that does."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lewel.data.opening import UnreadableImage, in_words, opened
from lewel.data.opening import reason as reason
from lewel.recipe.schema import Data

BLOCK = 256  # rows that are held in float64 at a time
HIGHEST_BIT = 128  # in the upper byte: colours that reach it use all 16 bits, others fewer, as of 14-bit cameras
DARK = 16  # of 255, to which PPM rounds 4095: too few values are left of colours that are not above it
SWAPPED = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}
MOST_OF_12_BITS = 4095
NO_DATA = 3e38  # at the ends of float32, which stand for "nothing was measured here"
ORIENTATION, BITS, PHOTOMETRIC, PLANAR, SAMPLE_FORMAT = 0x0112, 258, 262, 284, 339  # tags of EXIF and of TIFF
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read(path: Path, config: Data) -> Image.Image:
    """The image in a file, of several the first, as RGB of 8 bits; an alpha channel is dropped, as torchvision does.

    Gray values of more than 8 bits are scaled by their own range: the smallest becomes 0, the largest 255. So are
    16-bit colours, and gray with alpha, that do not use the highest bit; of others the upper 8 bits are taken. config
    says whether EXIF turns the image (TIFF is always turned, by Pillow). Raises UnreadableImage for more pixels than
    config.max_pixels, before they are decoded, and for what Pillow cannot decode, or only wrong.
    """
    with opened(path) as file:
        pixels = file.width * file.height
        if pixels > config.max_pixels:
            raise UnreadableImage(
                f"it has {pixels:,} pixels, more than data.max_pixels {config.max_pixels:,}, "
                "which --data.max-pixels sets when a run is trained"
            )
        if any(part[0] == "libtiff" for part in _tiles(file)):
            file.tile = [_swapped_once(part) for part in _tiles(file)]
        lower, wide = _lower_bytes(file), _wide_colours(file)
        with in_words():
            file.load()
        image = to_rgb(file)
        if wide and (highest := _colours(file).max()) < HIGHEST_BIT:
            if not lower and highest <= DARK:
                raise UnreadableImage(
                    f"its 16-bit colours use the lower 12 bits at most, which Pillow leaves out in this form ({wide}); "
                    "save it with 8 bits, or as RGB without alpha in PNG"
                )
            if lower:
                image = _brightened(image, path, lower)
            elif file.mode != "CMYK":  # whose inks are few where an image is bright
                image = _by_own_range(_colours(file))
        return _upright(image, file) if config.exif_rotate else image


def is_wide(file: Any) -> bool:
    """Whether an open file holds more than 8 bits a value, so that a picture of it is scaled."""
    return (_is_deep(file) and file.mode != "L") or bool(_wide_colours(file))


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode in 8 bits and three colours; Pillow itself cuts values off at 255.

    Raises UnreadableImage for a mode that Pillow does not convert.
    """
    if _is_deep(image):
        image = _scaled(image)
    with in_words():
        return image.convert("RGB")


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
    finite = values[(values > -NO_DATA) & (values < NO_DATA)] if values.dtype.kind == "f" else values
    if not finite.size:
        raise UnreadableImage("none of its values is a number")
    low, high = float(finite.min()), float(finite.max())
    if inverted:
        low, high = high, low
    scale = 255 / (high - low) if high != low else 0.0
    scaled = np.empty(values.shape, dtype=np.uint8)
    for top in range(0, len(values), BLOCK):
        rows = (values[top : top + BLOCK].astype(np.float64) - low) * scale
        scaled[top : top + BLOCK] = np.nan_to_num(rows, posinf=255, neginf=0).clip(0, 255).round()
    return Image.fromarray(scaled)


def _tiles(file: Any) -> list[Any]:
    """The parts of a file that a decoder is called for: (decoder, extents, offset, its arguments)."""
    return list(getattr(file, "tile", ()))


def _raw(part: Any) -> str:
    """How the values of a part lie in the file, as Pillow names it; in PPM without their width."""
    return str(part[3][0] if isinstance(part[3], tuple) and part[3] else part[3])


def _other(part: Any, raw: str) -> Any:
    """A part with other raw values; parts are plain tuples before Pillow 11."""
    args = (raw, *part[3][1:]) if isinstance(part[3], tuple) else raw
    return getattr(part, "_make", tuple)((*part[:3], args))


def _swapped_once(part: Any) -> Any:
    """A part of a compressed TIFF whose bytes libtiff has put in order already, so that Pillow leaves them."""
    return _other(part, re.sub(r"(;\d+)B", r"\1N", _raw(part)))


def _wide_colours(file: Any) -> str:
    """How 16-bit colours lie in file, of which Pillow keeps the upper 8 bits; "" where there are none.

    Raises UnreadableImage for those that Pillow takes for colours of 8 bits.
    """
    for part in _tiles(file):
        raw = _raw(part)
        if part[0] == "raw" and _tag(file, PLANAR) == 2 and (_tag(file, BITS) or 8) > 8:
            raise UnreadableImage("Pillow does not read 16-bit colours in planes that are not compressed; save it anew")
        if not _is_deep(file) and (";16" in raw or (part[0].startswith("ppm") and part[3][1] > MOST_OF_12_BITS)):
            return raw
    return ""


def _lower_bytes(file: Any) -> list[Any]:
    """The parts of file so that Pillow decodes the bytes of 16-bit colours that it leaves out else; [] if it cannot."""
    parts = []
    for part in _tiles(file):
        mode, _, order = _raw(part).partition(";16")
        if not mode.startswith("RGB") or order not in SWAPPED or _tag(file, PLANAR) == 2:
            return []
        parts.append(_other(part, f"{mode};16{SWAPPED[order]}"))
    return parts


def _colours(file: Image.Image) -> np.ndarray:
    """(H, W, C) uint8 without alpha."""
    values = np.asarray(file)
    return values if file.mode == "CMYK" else values[..., :3]


def _brightened(upper: Image.Image, path: Path, lower: list[Any]) -> Image.Image:
    """The colours whose upper bytes upper has, by their own range: of 12 bits in 16, an image would be nearly black."""
    with opened(path) as file:
        file.tile = lower
        with in_words():
            file.load()
        values = _colours(file).astype(np.uint16)
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
