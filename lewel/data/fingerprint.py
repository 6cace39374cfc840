"""By what a resumed run knows its training images again: their names in order, and what some of the files hold."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

FILES = 10_000  # whose content is looked at, at equal distances where there are more
ENDS = 8192  # bytes at the start and at the end of a file that are looked at
AT_ONCE = 16  # files that are waited for together: of a disk in the network each takes its time
WIDTH = 8  # bytes of a file's hash; zeros for one that cannot be read, which says nothing


class Fingerprint(NamedTuple):
    """Of the images of one split."""

    names: str  # hash of the path of every image below its root, in order
    files: torch.Tensor  # (M, WIDTH) uint8: hash of size and ends of each file at looked_at(N)


def take(paths: Sequence[bytes], roots: Sequence[Path]) -> Fingerprint:
    """The fingerprint of the images at paths, which lie below roots; these may lie elsewhere when the run goes on."""
    names = names_of(paths, roots)
    pool = ThreadPoolExecutor(AT_ONCE)
    try:
        files = b"".join(pool.map(_file, [paths[index] for index in looked_at(len(paths))]))
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C does not wait for the rest
    return Fingerprint(names, torch.frombuffer(bytearray(files), dtype=torch.uint8).view(-1, WIDTH))


def names_of(paths: Sequence[bytes], roots: Sequence[Path] = ()) -> str:
    """The hash of the paths below roots; without these, as an earlier version made it where the root was "."."""
    return hashlib.blake2b(b"\0".join(_below(paths, roots)), digest_size=16).hexdigest()


def stamps(paths: Sequence[bytes]) -> str:
    """A hash of size and time of the last change of every file; files that are copied are others by it."""
    pool = ThreadPoolExecutor(AT_ONCE)
    try:
        return hashlib.blake2b(b" ".join(pool.map(_stamp, paths, chunksize=256)), digest_size=16).hexdigest()
    finally:
        pool.shutdown(cancel_futures=True)


def _stamp(path: bytes) -> bytes:
    try:
        found = os.stat(path)
    except OSError:
        return b"none"
    return b"%d %d" % (found.st_size, found.st_mtime_ns)


def looked_at(count: int) -> np.ndarray:
    """The numbers of the images, of count, whose content is looked at."""
    files = min(count, FILES)
    return np.arange(files) * count // files


def exchanged(before: torch.Tensor, now: torch.Tensor) -> torch.Tensor:
    """(M,) bool: which files hold something else; one that could not be read on either side counts as the same."""
    return (before != now).any(1) & before.any(1) & now.any(1)


def _below(paths: Sequence[bytes], roots: Sequence[Path]) -> Iterator[bytes]:
    """The paths from the deepest of roots on that each lies below.

    Those that a file lists lie anywhere: from the deepest folder on that they share, however the file names them.
    """
    folders = [place for place in (root.expanduser() for root in roots) if place.is_dir()]
    forms = {os.fsencode(form) + b"/" for folder in folders for form in (folder, folder.absolute(), folder.resolve())}
    deepest_first = sorted(forms, key=len, reverse=True)

    def start(path: bytes) -> int:
        return next((len(form) for form in deepest_first if path.startswith(form)), 0)

    paths = [path if start(path) else os.path.abspath(path) for path in paths]  # those below "." do not begin with it
    starts = [start(path) for path in paths]
    beyond = {os.path.dirname(path) for path, begin in zip(paths, starts, strict=True) if not begin}
    shared = len(os.path.join(os.path.commonpath(beyond), b"")) if beyond else 0
    for path, begin in zip(paths, starts, strict=True):
        yield path[begin or shared :]


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
