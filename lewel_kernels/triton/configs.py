"""Block sizes, warps and pipeline stages: committed tables by architecture, and a rule where a table has no entry.

Nothing here depends on the number of images, so that an image gives the same bits alone and in a batch, and nothing is
tuned while it runs, so that the ranks of a job agree. ``python -m benchmarks tune`` measures and rewrites the tables.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

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
        sizes = " ".join(f"{name.removeprefix('BLOCK').removeprefix('_')}{size}" for name, size in self.blocks.items())
        return f"{sizes}, {self.num_warps} warps, {self.num_stages} stages"


def power(size: int) -> int:
    """The block that holds ``size`` elements: a power of two, and no less than a matrix product needs."""
    return max(16, next_power(size))


def next_power(size: int) -> int:
    """The least power of two that is at least ``size``. Triton's own function takes six microseconds."""
    return 1 << (size - 1).bit_length()


def architecture(capability: tuple[int, int]) -> str:
    """The name of the table for a device of this compute capability: "sm80", "sm90" or "other".

    "other" has no table and takes the rule, for its shared memory is smaller.
    """
    return {(8, 0): "sm80", (9, 0): "sm90", (10, 0): "sm90"}.get(capability, "other")


def key_of(name: str, dtype: torch.dtype, **sizes: int | str) -> str:
    """The name of an entry of a table: kernel, dtype, and what else its best configuration depends on."""
    words = (x if isinstance(x, str) else n if x is True else f"{n}{x}" for n, x in sizes.items())
    return " ".join([name, NAMES[dtype], *words])


@functools.cache
def table(name: str) -> dict[str, dict[str, Any]]:
    """The entries of configs/NAME.json, NAME being an architecture, by key; {} if there is no such file."""
    path = FOLDER / f"{name}.json"
    entries: dict[str, dict[str, Any]] = json.loads(path.read_text())["entries"] if path.exists() else {}
    return entries


def find(name: str, arch: str, dtype: torch.dtype, **sizes: int | str) -> Config:
    """The configuration of a kernel: the table's, or the rule's."""
    return _find(name, arch, dtype, tuple(sizes.items()))


@functools.cache
def _find(name: str, arch: str, dtype: torch.dtype, sizes: tuple[tuple[str, int | str], ...]) -> Config:
    key = key_of(name, dtype, **dict(sizes))
    if (entry := table(arch).get(key)) is not None:
        source = f"configs/{arch}.json ({entry['provenance']})"
        return Config(key, entry["blocks"], entry["num_warps"], entry["num_stages"], source)
    blocks, num_warps, num_stages = _RULES[name](dtype.itemsize, **{n: s for n, s in sizes if n != "E0"})
    return Config(key, blocks, num_warps, num_stages, RULE)


@contextlib.contextmanager
def in_force(arch: str, key: str, entry: dict[str, Any]) -> Iterator[None]:
    """Inside the block the table of an architecture has this entry, in place of its own if it has one. For tuning."""
    entries = table(arch)
    before = dict(entries)
    entries[key] = entry
    _find.cache_clear()
    try:
        yield
    finally:
        entries.clear()
        entries.update(before)
        _find.cache_clear()


# The rules. The size is that of an element: products of 4 and 8 bytes run without tensor cores, or on small ones, and
# keep their operands in registers. Planes, in loads of two bytes, take more registers than rows. A block of shared
# memory stays below the 99 KB that every GPU from sm_80 on has.
_Rule = tuple[dict[str, int], int, int]


def _by(size: int, *values: int) -> int:
    return values[{2: 0, 4: 1, 8: 2}[size]]


def _project(size: int, layout: str, K: int) -> _Rule:
    if size > 2:
        return {"BLOCK_R": _by(size, 0, 32, 16), "BLOCK_K": min(K, _by(size, 0, 64, 32)), "BLOCK_D": 16}, 4, 2
    wide = K > 128
    blocks = {"BLOCK_R": 64, "BLOCK_K": min(K, 256), "BLOCK_D": 64 if layout == "rows" and wide else 32}
    return blocks, 8 if wide else 4, 2 if wide else 3


def _tile(P: int, most: int) -> int:
    """Positions in a tile: all of them where they fit, else a few."""
    return P if min(most, 256) >= P else max(16, min(64, most))


def _pool(size: int, layout: str, P: int, L: int) -> _Rule:
    tile = _tile(P, _by(size, 8192, 2048, 1024) // L)
    rows = layout == "rows"
    channels = _by(size, 128 if tile <= 64 else 64 if rows else 32, 32 if rows else 16, 16)
    channels = min(channels, max(16, _by(size, 8192, 4096, 2048) // L))
    return {"BLOCK_P": tile, "BLOCK_C": channels, "CHUNKS": 2}, 8 if tile * L > 4096 else 4, 2


def _pool_bwd(size: int, layout: str, P: int, L: int) -> _Rule:
    tile = _tile(P, _by(size, 8192 if L <= 32 else 4096, 1024, 1024) // L)
    channels = _by(size, 64 if layout == "rows" and tile <= 64 else 32, 32, 32)
    blocks = {"BLOCK_P": tile, "BLOCK_C": min(channels, max(16, _by(size, 8192, 1024, 2048) // L))}
    if size > 2 and L >= 64:
        return blocks, 4, 1
    if size == 8:
        return blocks, 8, 2
    return blocks, 8 if tile * L >= 4096 else 4, 2


def _maps_bwd(size: int, K: int) -> _Rule:
    return {"BLOCK_R": min(32, _by(size, 4096, 4096, 1024) // K)}, 4, 2


def _pixels_bwd(size: int, layout: str, K: int) -> _Rule:
    rows = _by(size, 64 if K <= 256 else 32, max(16, min(32, 4096 // K)), 16)
    columns = _by(size, 64 if K <= 256 and layout == "rows" else 32, 32, 32)
    blocks = {"BLOCK_R": rows, "BLOCK_D": columns, "CHUNKS": 8}
    return blocks, 8 if K >= 256 or size == 8 else 4, 1 if size == 8 else 2


def _weight_bwd(size: int, layout: str, K: int) -> _Rule:
    if size > 2:
        return {"BLOCK_R": 16, "BLOCK_K": min(K, _by(size, 0, 64, 32)), "BLOCK_D": 32}, 4, 3
    blocks = {"BLOCK_R": 64, "BLOCK_K": min(K, 256), "BLOCK_D": 64 if layout == "rows" else 32}
    return blocks, 8 if K > 128 else 4, 2 if K > 128 else 3


def _dense(size: int, layout: str, K: int, C: int) -> _Rule:
    return {"BLOCK_P": _by(size, 32, 16, 16), "BLOCK_D": _by(size, 64, 16, 16), "TILES": 16}, 8, _by(size, 3, 2, 2)


def _dense_sum(size: int, L: int) -> _Rule:
    return {"BLOCK_C": max(16, 2048 // L)}, 4, 2


def _maps(size: int) -> _Rule:
    return {"BLOCK_P": 64, "BLOCK_K": 32}, 4, 2


def _sum(size: int, tall: bool = False) -> _Rule:
    return {"BLOCK_S": 256 if tall else 1, "BLOCK": 16 if tall else 1024}, 8 if tall else 4, 2


_RULES: dict[str, Callable[..., _Rule]] = {
    "project": _project,
    "softmax": _maps,
    "pool": _pool,
    "dense": _dense,
    "dense_sum": _dense_sum,
    "maps": _maps,
    "pool_bwd": _pool_bwd,
    "maps_bwd": _maps_bwd,
    "pixels_bwd": _pixels_bwd,
    "weight_bwd": _weight_bwd,
    "sum": _sum,
}
