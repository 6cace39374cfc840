"""Which images a folder holds, and which of them a file names: lists of classes (ImageNet-100) and of images (1 %)."""

from __future__ import annotations

import difflib
import os
import re
from collections import defaultdict
from pathlib import Path

from lewel.errors import LewelError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".tif", ".tiff", ".webp")


def images_below(folder: Path) -> list[Path]:
    """Every image below folder, hidden files left out, in an order that does not depend on the file system."""
    found = (Path(where) / name for where, _, names in os.walk(folder, followlinks=True) for name in names)
    return sorted(filter(_is_image, found))


def classes(file: str, names: tuple[str, ...], split: Path) -> set[str]:
    """The class folders that file lists. Raises LewelError for one that is not among names, the folders in split."""
    listed = _lines(file, "data.classes")
    unknown = [name for name in listed if name not in names]
    if unknown:
        near = difflib.get_close_matches(unknown[0], names, n=1, cutoff=0.0)[0]
        raise LewelError(
            f"data.classes {file} lists {len(unknown)} classes that have no folder in {split}, the first "
            f"{unknown[0]!r}; did you mean {near}? Expected one class folder a line"
        )
    return set(listed)


def images(file: str, split: Path) -> set[Path]:
    """The images below split that file lists.

    A line is a path below split or a bare file name. A bare name is looked up in the class before its first "_", then
    among all images. Raises LewelError for a line that names no image, or a bare name that several images have.
    """
    listed = _lines(file, "data.train_list")
    paths = {line: split / line if "/" in line else split / line.partition("_")[0] / line for line in listed}
    found = {line: path for line, path in paths.items() if _is_image(path) and path.is_file()}
    bare = [line for line in listed if line not in found and "/" not in line]
    if bare:
        named = defaultdict(list)
        for path in images_below(split):
            named[path.name].append(path)
        for line in bare:
            if len(named[line]) > 1:
                raise LewelError(
                    f"data.train_list {file} lists {line}, the name of {len(named[line])} images, among them "
                    f"{named[line][0]} and {named[line][1]}; write its path below {split}"
                )
            if named[line]:
                found[line] = named[line][0]
    missing = [line for line in listed if line not in found]
    if missing:
        raise LewelError(
            f"data.train_list {file} lists {len(missing)} images that are not in {split}, the first {missing[0]!r}; "
            "expected one image a line: its path below that folder, or its name"
        )
    return set(found.values())


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")


def _lines(file: str, setting: str) -> list[str]:
    try:
        text = Path(file).expanduser().read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise LewelError(f"cannot read {setting}: {error}") from None
    lines = [re.sub(r"(^|\s)#.*", "", line).strip() for line in text.splitlines()]
    if not any(lines):
        raise LewelError(f"{setting} {file} lists nothing; expected one name a line")
    return [line for line in lines if line]
