"""Files that have their name only once they are whole, or tell why they are not."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO


@contextlib.contextmanager
def written(path: Path) -> Iterator[Path]:
    """A context with the temporary name, of the same suffix, that a file has until it takes the place of path.

    After an error nothing is left of it, and what was at path stays.
    """
    place = Path(os.path.realpath(path))
    temporary = place.with_name(f".{socket.gethostname()}.{os.getpid()}.{place.name}")
    try:
        yield temporary
        os.replace(temporary, place)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


class Told:
    """A file that remembers why it could not be written to: a full disk, a quota. torch does not say."""

    file: BinaryIO
    error: OSError | None = None

    def write(self, content: Any) -> int:
        try:
            return self.file.write(content)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()
