"""Which kernels calls of the cuda backend launch, and how much shared memory each asks for: on no GPU at all."""

from __future__ import annotations

import itertools
import re
import sys
from pathlib import Path

import torch
from torch import Tensor

from lewel_kernels import native, reference
from lewel_kernels.cuda import launches

# These launch every kernel that there is.
MAPS, GROUPS, POSITIONS = (32, 64, 128, 256, 512), (1, 4), (49, 3136)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
CHANNELS = 256
TESTS = str(Path(__file__).resolve().parents[2] / "tests")


def shared_bytes(capability: int) -> dict[str, int]:
    """The most bytes of shared memory that launches of each kernel ask for, as csrc/cuda/forward.h and backward.h say.

    The emulation of the tests is asked, which needs no GPU: its host code is that of the library.
    """
    if TESTS not in sys.path:
        sys.path.append(TESTS)
    import emulation

    module, arch = native.module(emulation.GPUS["sm_80"].library), 80 if capability >= 80 else 70
    found: dict[str, int] = {}
    for dtype, k, groups, p in itertools.product(DTYPES, MAPS, GROUPS, POSITIONS):
        for planes, affine, with_maps in itertools.product((False, True), repeat=3):
            pixels = _empty(2, CHANNELS, p, dtype=dtype)
            pixels = pixels if planes else _empty(2, p, CHANNELS, dtype=dtype).mT
            tensors = (
                pixels, pixels, _empty(k, CHANNELS, dtype=dtype), _empty(k, dtype=dtype),
                _empty(CHANNELS, dtype=reference.accumulator(dtype)) if affine else None,
                _empty(2, k // groups, CHANNELS, dtype=dtype),
                _empty(2, k, p, dtype=dtype) if with_maps else None,
            )  # fmt: skip
            for line in itertools.chain(*launches(module, tensors, groups, arch)):
                match = re.fullmatch(r"(.+): .* blocks of \d+ threads, (\d+) bytes of shared memory", line)
                assert match, line
                found[match[1]] = max(found.get(match[1], 0), int(match[2]))
    return found


def _empty(*size: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(size, dtype=dtype, device="meta")
