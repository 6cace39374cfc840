"""What the trainer needs beside the op, and the sentence where it is not installed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from lewel.errors import LewelError

# The extra [train], by the modules that are imported of it; Pillow comes with torchvision.
TRAIN = {
    "torchvision": "torchvision",
    "tyro": "tyro",
    "tqdm": "tqdm",
    "yaml": "pyyaml",
    "matplotlib": "matplotlib",
    "sklearn": "scikit-learn",
    "numpy": "numpy",
    "safetensors": "safetensors",
    "PIL": "pillow",
}


class Missing(ModuleNotFoundError, LewelError):
    """The module name, a part of the extra [train], is not installed."""

    def __init__(self, name: str, by: str) -> None:
        super().__init__(f'{by} needs {TRAIN[name]}, which is not installed: pip install "lewel[train]"', name=name)


@contextlib.contextmanager
def needed(by: str) -> Iterator[None]:
    """A context of imports that by needs. Raises Missing, which of contexts in each other names the outermost."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in TRAIN:
            raise
        raise Missing(error.name, by) from error
