"""Opens image files by Pillow, of the kinds that are read, without its limit, its remarks and its many errors."""

from __future__ import annotations

import contextlib
import functools
import logging
import re
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from lewel.errors import LewelError

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP", "AVIF")  # those of walk.EXTENSIONS, and what the web has
# Pillow remarks on transparent palettes and cut EXIF, of which nothing is used here, once for every image.
REMARKS = ("ignore", None, UserWarning, re.compile(r"PIL\."), 0)
# It logs what is wrong in a TIFF without the file's name, at each opening; the error that follows is told by name.
logging.getLogger("PIL.TiffImagePlugin").setLevel(logging.CRITICAL)
_counting = threading.Lock()
_inside, _limit = 0, Image.MAX_IMAGE_PIXELS  # callers of unlimited, and what was before them


class UnreadableImage(LewelError):
    """An image file that cannot be read; the sentence is the reason."""


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A file as Pillow opens it, of the kinds that are read, without Pillow's limits and remarks while it is open."""
    if REMARKS not in warnings.filters:  # to add it again for each image would have every other warning said again
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
    with unlimited():
        with in_words():
            if not path.stat().st_size:
                raise UnreadableImage("it is empty")
            file = Image.open(path, formats=_formats())
        with file:
            yield file


@contextlib.contextmanager
def unlimited() -> Iterator[None]:
    """Lifts Pillow's limit of pixels, which it asks for at opening and again at each crop; ours is data.max_pixels.

    The limit is of the whole process: it is back where no thread is inside, for what else a user's program opens.
    """
    global _inside, _limit
    with _counting:
        if not _inside:
            _limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        _inside += 1
    try:
        yield
    finally:
        with _counting:
            _inside -= 1
            if not _inside:
                Image.MAX_IMAGE_PIXELS = _limit


def reason(error: Exception) -> str:
    """Why an image could not be read, in words; some decoders raise errors that have none."""
    if isinstance(error, Image.UnidentifiedImageError):
        return f"it is no image of the kinds that are read ({', '.join(_formats())}), or of a form unknown to Pillow"
    if isinstance(error, OSError) and error.strerror:  # str(error) would name the file again
        return error.strerror
    return str(error) or type(error).__name__


@functools.cache
def _formats() -> list[str]:
    """What may be in a file, whatever its suffix says; some of Pillow's other kinds start programs (EPS)."""
    Image.init()
    return [kind for kind in FORMATS if kind in Image.OPEN]


@contextlib.contextmanager
def in_words() -> Iterator[None]:
    """Around Pillow alone: its decoders raise whatever a broken file leads them to, and our own mistakes must show."""
    try:
        yield
    except Exception as error:
        raise UnreadableImage(reason(error)) from error
