"""Block sizes, warps and pipeline stages: committed tables by architecture, and a rule where they are silent.

Nothing here depends on the number of images, so that an image gives the same bits alone and in a batch, and nothing is
tuned while it runs, so that the ranks of a job agree. ``python -m benchmarks tune`` measures and rewrites the tables.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path

import torch
import triton

FOLDER = Path(__file__).with_name("configs")
RULE = "the rule in lewel_kernels/triton/configs.py"
NAMES = {torch.float64: "fp64", torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class Config:
    """How one kernel is launched: its block sizes by constexpr parameter, and what the compiler is told."""

    key: str  # of its entry in a table, whether it has one or not
    blocks: dict[str, int]
    num_warps: int
    num_stages: int
    source: str

    def __str__(self) -> str:
        sizes = " ".join(f"{name.removeprefix('BLOCK_')}{size}" for name, size in self.blocks.items())
        return f"{sizes}, {self.num_warps} warps, {self.num_stages} stages"


def power(size: int) -> int:
    """The block that holds ``size`` elements: a power of two, and no less than a matrix product needs."""
    return max(16, triton.next_power_of_2(size))


def architecture(capability: tuple[int, int]) -> str:
    """The table for a device. sm80 is for whatever has its 99 KB of shared memory in each block, or more."""
    return "sm90" if capability[0] in (9, 10) else "sm80"


def key_of(name: str, dtype: torch.dtype, **sizes: int | str) -> str:
    """The name of an entry of a table: kernel, dtype, and what else its best configuration depends on."""
    return " ".join([name, NAMES[dtype], *(f"{n}{s}" if isinstance(s, int) else s for n, s in sizes.items())])


@functools.cache
def table(name: str) -> dict[str, dict[str, object]]:
    """The committed entries of an architecture by key."""
    path = FOLDER / f"{name}.json"
    entries: dict[str, dict[str, object]] = json.loads(path.read_text())["entries"] if path.exists() else {}
    return entries


def find(name: str, arch: str, dtype: torch.dtype, **sizes: int | str) -> Config:
    """The configuration of a kernel: the table's, or the rule's."""
    return _find(name, arch, dtype, tuple(sizes.items()))


@functools.cache
def _find(name: str, arch: str, dtype: torch.dtype, sizes: tuple[tuple[str, int | str], ...]) -> Config:
    key = key_of(name, dtype, **dict(sizes))
    entry = table(arch).get(key)
    if entry is not None:
        blocks, warps, stages = entry["blocks"], entry["num_warps"], entry["num_stages"]
        return Config(key, blocks, warps, stages, f"configs/{arch}.json")  # type: ignore[arg-type]
    numbers = {n: s for n, s in sizes if isinstance(s, int) and n != "E0"}
    blocks, num_warps, num_stages = _RULES[name](dtype.itemsize, **numbers)
    return Config(key, blocks, num_warps, num_stages, RULE)


# The rules. Sizes are of 16-bit, 32-bit and 64-bit storage: products of the latter two run without tensor cores, and
# their operands sit in registers. A block of shared memory stays below 99 KB, which every GPU from sm_80 on has.
_Rule = tuple[dict[str, int], int, int]


def _by_size(size: int, *values: int) -> int:
    return values[{2: 0, 4: 1, 8: 2}[size]]


def _project(size: int, K: int) -> _Rule:
    block_k = min(K, _by_size(size, 256, 64, 32))
    blocks = {"BLOCK_R": 64, "BLOCK_K": block_k, "BLOCK_D": _by_size(size, 64, 16, 16)}
    if size > 2:
        return {**blocks, "BLOCK_R": 32}, 4, 2
    return blocks, 8 if block_k == 256 else 4, 3 if block_k == 256 else 4


def _tile(size: int, P: int, L: int) -> int:
    """Positions in a tile that has L maps: all of them where registers allow it."""
    most = _by_size(size, 8192, 2048, 1024) // L
    return P if P <= min(most, 256) else max(16, min(64, most))


def _pool(size: int, P: int, L: int) -> _Rule:
    tile = _tile(size, P, L)
    blocks = {"BLOCK_P": tile, "BLOCK_C": _by_size(size, 128 if tile <= 64 else 64, 32, 16), "CHUNKS": 2}
    return blocks, 8 if tile * L > 4096 else 4, 2


def _pool_bwd(size: int, P: int, L: int) -> _Rule:
    tile = _tile(size, P, L)
    blocks = {"BLOCK_P": tile, "BLOCK_C": _by_size(size, 64, 32, 16)}
    return blocks, 8 if tile * L > 4096 else 4, 2


def _project_bwd(size: int, K: int) -> _Rule:
    rows = max(16, min(64, _by_size(size, 8192, 4096, 2048) // K))
    blocks = {"BLOCK_R": rows, "BLOCK_D": _by_size(size, 64, 32, 16), "CHUNKS": 8}
    return blocks, 8 if K >= 256 else 4, 2


def _weight_bwd(size: int, K: int) -> _Rule:
    block_k = min(K, _by_size(size, 256, 64, 32))
    blocks = {"BLOCK_R": _by_size(size, 64, 16, 16), "BLOCK_K": block_k, "BLOCK_D": _by_size(size, 64, 32, 32)}
    return blocks, 8 if block_k == 256 else 4, 3


def _dense(size: int, K: int, C: int) -> _Rule:
    return {"BLOCK_P": _by_size(size, 64, 16, 16), "BLOCK_D": _by_size(size, 64, 16, 16), "TILES": 8}, 8, 2


def _dense_sum(size: int, L: int) -> _Rule:
    return {"BLOCK_C": max(16, 2048 // L)}, 4, 2


def _maps(size: int) -> _Rule:
    return {"BLOCK_P": 64, "BLOCK_K": 32}, 4, 2


def _sum(size: int) -> _Rule:
    return {"BLOCK": 1024}, 4, 2


_RULES = {
    "project": _project,
    "softmax": _maps,
    "pool": _pool,
    "dense": _dense,
    "dense_sum": _dense_sum,
    "maps": _maps,
    "pool_bwd": _pool_bwd,
    "project_bwd": _project_bwd,
    "weight_bwd": _weight_bwd,
    "sum": _sum,
}
