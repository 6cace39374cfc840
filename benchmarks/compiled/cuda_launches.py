"""Which kernels calls of the cuda backend launch, and how much shared memory each asks for: on no GPU at all."""

from __future__ import annotations

import itertools
import re
import sys
from pathlib import Path

import torch

from lewel_kernels import native
from lewel_kernels.cuda import launches
from lewel_kernels.plan import Call

# These launch every kernel that there is.
MAPS, GROUPS, POSITIONS = (32, 64, 128, 256, 512), (1, 4), (49, 3136)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
CHANNELS = 256
TESTS = str(Path(__file__).resolve().parents[2] / "tests")


def shared_bytes(capability: int) -> dict[str, int]:
    """By kernel, the most bytes of shared memory that a launch asks for in csrc/cuda/forward.h and backward.h.

    capability is 80 for sm_80. The emulation of the tests is asked, which needs no GPU: its host code is that of the
    library.
    """
    if TESTS not in sys.path:
        sys.path.append(TESTS)
    import emulation

    module, found = native.module(emulation.GPUS["sm_80"].library), dict[str, int]()
    for dtype, k, groups, p in itertools.product(DTYPES, MAPS, GROUPS, POSITIONS):
        for layout, affine, maps in itertools.product(("rows", "planes"), (False, True), (False, True)):
            call = Call.sized(
                N=2, C=CHANNELS, D=CHANNELS, K=k, P=p, G=groups, dtype=dtype, layout=layout, bias=True, affine=affine,
                return_maps=maps, capability=(capability // 10, capability % 10),
            )  # fmt: skip
            for line in itertools.chain(*launches(module, call)):
                match = re.fullmatch(r"(.+): .* blocks of \d+ threads, (\d+) bytes of shared memory", line)
                assert match, line
                found[match[1]] = max(found.get(match[1], 0), int(match[2]))
    return found
