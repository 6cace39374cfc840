"""Files of weights, of whatever library, as tensors by name; none of them is run as a program."""

from __future__ import annotations

import argparse
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from lewel.errors import LewelError

# Parts of a checkpoint that are no network: their tensors may be as large as the weights.
BESIDE = ("optimizer", "scaler", "scheduler", "lr_scheduler")
# What training scripts keep beside the weights, which does nothing when it is read.
HARMLESS = [argparse.Namespace, np.dtype, type(np.dtype("float64")), type(np.dtype("float32")), type(np.dtype("int64"))]
PICKLE = b"\x80"  # the first byte of a pickle
OLD_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"  # of a file of torch.save before its zip archives
ARRAYS = {
    (module, name)
    for module in ("numpy.core", "numpy._core")
    for name in ("multiarray._reconstruct", "multiarray.scalar", "numeric._frombuffer")
}


def read(path: Path) -> dict[str, Tensor]:
    """The tensors in a file of safetensors, of torch.save or in detectron2's pickle, on the CPU, by dotted names.

    Which one it is its first bytes tell, whatever its name.

    Raises LewelError for a file that is none of these, or that holds code or objects beside tensors and numbers.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(len(OLD_TORCH))
        if start[8:9] == b"{":  # after the length of its header
            content: Any = safetensors.torch.load_file(path)
        elif start[:1] == PICKLE and start != OLD_TORCH:
            with open(path, "rb") as file:
                content = _Arrays(file).load()
        else:
            with torch.serialization.safe_globals(HARMLESS + _scalars()), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of TorchScript, which is refused with a sentence
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a foreign file leads the unpicklers to whatever it leads them to
        raise LewelError(f"{path} cannot be read as a file of weights: {_reason(error, path)}") from None
    return flat(content)


def flat(content: Any, prefix: str = "") -> dict[str, Tensor]:
    """The tensors in nested tables and lists by their keys, joined by dots; no optimizer's, and nothing else."""
    if isinstance(content, np.ndarray) and content.dtype.kind in "fiu":
        return {prefix: torch.from_numpy(content.copy())}
    if isinstance(content, Tensor):
        return {prefix: content}
    if isinstance(content, (list, tuple)):
        content = dict(enumerate(content))
    if not isinstance(content, Mapping):
        return {}
    tables = {str(key): value for key, value in content.items() if not str(key).startswith(BESIDE)}
    return {
        name: value
        for key, part in tables.items()
        for name, value in flat(part, f"{prefix}.{key}" if prefix else key).items()
    }


def _scalars() -> list[Any]:
    """numpy's maker of scalars, such as a best accuracy, under the names of numpy 1 and 2."""
    scalar = np.float64(0).__reduce__()[0]
    return [(scalar, f"{module}.multiarray.scalar") for module in ("numpy.core", "numpy._core")]


class _Arrays(pickle.Unpickler):
    """Reads pickles of numpy arrays in tables, as detectron2 has its weights; refuses to make anything else."""

    def find_class(self, module: str, name: str) -> Any:
        package, _, last = module.rpartition(".")
        known = (package, f"{last}.{name}") in ARRAYS or (module, name) in (
            ("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode"), ("collections", "OrderedDict"),
        )  # fmt: skip
        if not known:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, and only arrays are read")
        return super().find_class(module, name)


def _reason(error: Exception, path: Path) -> str:
    text = " ".join(str(error).split())
    if "Unsupported global: GLOBAL" in text:
        what = text.split("Unsupported global: GLOBAL ")[1].split(" ")[0]
        module = ".models." in what or what.startswith(("torch.nn.", "timm."))
        weights = ".state_dict()" if module else '["state_dict"]'
        return (
            f"beside tensors it holds objects of {what}, which could run programs; where you trust it, save its "
            f'weights alone: torch.save(torch.load(FILE, weights_only=False){weights}, "weights.pth")'
        )
    if "TorchScript" in text:
        return (
            "it is a TorchScript program; save its weights alone: "
            'torch.save(torch.jit.load(FILE).state_dict(), "weights.pth")'
        )
    try:
        with open(path, "rb") as file:
            start = file.read(40)
    except OSError as unreadable:
        return str(unreadable.strerror)
    if not start:
        return "it is empty"
    if start.isascii() and start.decode().replace("\n", " ").isprintable():  # a web page, or a pointer of Git LFS
        return f"it is text, which begins with {start.decode()!r}"
    return (
        f"it is whole of none of the kinds that are read (torch.save, safetensors, detectron2's pickle), and has "
        f"{path.stat().st_size:,} bytes ({type(error).__name__}: {text.split('. ')[0][:160]})"
    )
