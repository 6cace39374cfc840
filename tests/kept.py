"""What takes long to make and depends on sources and compilers alone: kept between runs, beside the builds."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

from filelock import FileLock

from lewel_kernels.native import builder

ROOT = Path(__file__).parent.parent


def kept(name: str, inputs: Iterable[str | Path], make: Callable[[Path], object]) -> Path:
    """The file that ``make`` writes to the path it is given, made once for these inputs: words, and files' contents.

    Of processes that ask at once, one makes it and the others wait. What fails leaves nothing.
    """
    digest = hashlib.sha256()
    for each in inputs:
        text = each.encode() if isinstance(each, str) else str(each.relative_to(ROOT)).encode() + each.read_bytes()
        digest.update(len(text).to_bytes(8, "big") + text)
    path = builder.cache() / "tests" / f"{name}-{digest.hexdigest()[:16]}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.exists():
            partial = path.with_name(f"{path.name}.partial")
            make(partial)
            partial.rename(path)
    return path


def files(*folders: str, suffixes: tuple[str, ...] = (".py", ".json", ".h", ".cpp", ".cu")) -> list[Path]:
    """The sources below folders of the repository, in order."""
    found = (path for folder in folders for path in (ROOT / folder).rglob("*"))
    return sorted(path for path in found if path.suffix in suffixes)
