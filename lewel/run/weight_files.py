"""Files of weights, of whatever library, as tensors by name; none of them is run as a program."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from lewel.errors import LewelError
from lewel.run import foreign_files, unpickling
from lewel.run.unpickling import StandIn

# Parts of a checkpoint that are no network: their tensors may be as large as the weights.
BESIDE = ("optimizer", "scaler", "scheduler", "lr_scheduler")
PICKLE = b"\x80"  # the first byte of a pickle
OLD_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"  # of a file of torch.save before its zip archives
# What makes sparse, quantized, sharded and nested tensors.
ODD = ("torch._utils._rebuild_", "torch.distributed.", "torch.nested.")


def read(path: Path | str) -> dict[str, Tensor]:
    """The tensors in a file of safetensors, of torch.save or of pickle, as detectron2's, on the CPU, by dotted names.

    Which one it is its first bytes tell, whatever its name. A tensor whose values cannot be read as they are, such as a
    sparse one, is on the meta device. Objects beside tensors and numbers are passed over.

    Raises LewelError for a file that is none of these, or that holds whole modules, which would run their code.
    """
    path = Path(path)
    loads = "torch.load(FILE, weights_only=False)"
    try:
        with open(path, "rb") as file:
            start = file.read(len(OLD_TORCH))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of TorchScript, which is refused with a sentence
            if start[8:9] == b"{":  # after the length of its header
                content: Any = safetensors.torch.load_file(path)
            elif start[:1] == PICKLE and start != OLD_TORCH:
                content, loads = unpickling.of_pickle(path), 'pickle.load(open(FILE, "rb"))'
            else:
                content = unpickling.of_torch(path)
        tensors = flat(content)
        refusal = _refusal(content, len(tensors), loads)
    except Exception as error:  # a foreign file leads the unpicklers to whatever it leads them to
        refusal = foreign_files.reason(error, path)
    if refusal:
        raise LewelError(f"{path} cannot be read as a file of weights: {refusal}")
    return tensors


def flat(content: Any, prefix: str = "") -> dict[str, Tensor]:
    """The tensors in nested tables and lists by their keys, joined by dots; no optimizer's, and nothing else."""
    if isinstance(content, np.ndarray) and content.dtype.kind in "fiu":
        return {prefix: torch.from_numpy(content.copy())}
    if isinstance(content, Tensor):
        odd = content.is_nested or content.is_quantized or content.layout != torch.strided
        odd = odd or type(content).__module__.startswith(ODD)
        return {prefix: torch.empty(0, device="meta") if odd else content}
    if isinstance(content, StandIn) and content.of.startswith(ODD):
        return {prefix: torch.empty(0, device="meta")}
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


def _refusal(content: Any, count: int, loads: str) -> str:
    """Why the count tensors of a file are not those that its user means, which objects hold, or nothing.

    loads is the code that makes these objects.
    """
    if isinstance(content, (Tensor, np.ndarray)):
        return "it is one tensor, without a name"
    objects = list(unpickling.stand_ins(content))
    where, largest = max(objects, key=lambda each: each[1].size, default=("", StandIn()))
    if largest.size > count:
        return (
            f"it holds objects of {largest.of}, which could run programs; where you trust it, save its weights alone: "
            f'torch.save({loads}{where}.state_dict(), "weights.pth")'
        )
    if objects and not count:
        return (
            f"it holds no table of tensors, but objects of {objects[0][1].of}, which could run programs; where you "
            "trust it, load it with what wrote it, and save the weights alone"
        )
    return ""
