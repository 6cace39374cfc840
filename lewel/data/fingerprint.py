"""By what a resumed run knows its training images again: their names in order, and what some of the files hold."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

FILES = 10_000  # whose content is looked at, at equal distances where there are more
ENDS = 8192  # bytes at the start and at the end of a file that are looked at
WIDTH = 8  # bytes of a file's hash; zeros for one that cannot be read, which says nothing


class Fingerprint(NamedTuple):
    """Of the images of one split."""

    names: str  # hash of the path of every image below its root, in order
    files: torch.Tensor  # (M, WIDTH) uint8: hash of size and ends of each file at looked_at(N)


def take(paths: Sequence[bytes], roots: Sequence[Path]) -> Fingerprint:
    """The fingerprint of the images at paths, which lie below roots; these may lie elsewhere when the run goes on."""
    names = hashlib.blake2b(b"\0".join(_below(paths, roots)), digest_size=16).hexdigest()
    files = b"".join(_file(paths[index]) for index in looked_at(len(paths)))
    return Fingerprint(names, torch.frombuffer(bytearray(files), dtype=torch.uint8).view(-1, WIDTH))


def looked_at(count: int) -> np.ndarray:
    """The numbers of the images, of count, whose content is looked at."""
    files = min(count, FILES)
    return np.arange(files) * count // files


def exchanged(before: torch.Tensor, now: torch.Tensor) -> torch.Tensor:
    """(M,) bool: which files hold something else; one that could not be read on either side counts as the same."""
    return (before != now).any(1) & before.any(1) & now.any(1)


def _below(paths: Sequence[bytes], roots: Sequence[Path]) -> Iterator[bytes]:
    """The paths from the deepest of roots on that each lies below; whole where it lies below none."""
    places = [root.expanduser() for root in roots]
    folders = [place.parent if place.is_file() else place for place in places]  # a file lists images
    forms = {os.fsencode(form) + b"/" for folder in folders for form in (folder, folder.absolute(), folder.resolve())}
    deepest_first = sorted(forms, key=len, reverse=True)
    for path in paths:
        yield path[next((len(form) for form in deepest_first if path.startswith(form)), 0) :]


def _file(path: bytes) -> bytes:
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if not size:
                return bytes(WIDTH)
            start = file.read(ENDS)
            file.seek(max(size - ENDS, 0))
            ends = b"%d " % size + start + file.read(ENDS)
    except OSError:
        return bytes(WIDTH)
    return hashlib.blake2b(ends, digest_size=WIDTH).digest()
