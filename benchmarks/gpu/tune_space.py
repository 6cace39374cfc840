"""What the tuner chooses among: the keys that the shapes that matter launch, and the ways to launch each."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

from benchmarks.op.cases import D14, D56, DTYPES, NUM_GROUPS, PAPER, TEMPERATURE, Shape

if TYPE_CHECKING:
    from benchmarks.compiled.requests import Request
    from lewel_kernels.triton.launch import Launch

SHAPES = {"M": next(s for s in PAPER if s.name == "M256"), "B": next(s for s in PAPER if s.name == "B256"),
          "14x14": D14, "56x56": D56}  # fmt: skip
FIRST = ("M", "B")
# The same designs, small enough for the interpreter and wide enough for loads of 16 bytes.
_tiny = partial(Shape, N=2, C=64, D=64, K=64)
TINY = {"M": _tiny("M", H=3, W=3), "B": _tiny("B", D=128, K=128, H=3, W=3), "14x14": _tiny("14x14", H=9, W=10),
        "56x56": _tiny("56x56", H=17, W=17)}  # fmt: skip


@dataclass(frozen=True)
class Choice:
    """One way to launch a kernel."""

    blocks: tuple[tuple[str, int], ...]
    num_warps: int
    num_stages: int

    def entry(self, provenance: str = "being tuned") -> dict[str, Any]:
        return {"blocks": dict(self.blocks), "num_warps": self.num_warps, "num_stages": self.num_stages,
                "provenance": provenance}  # fmt: skip

    def __str__(self) -> str:
        sizes = " ".join(f"{name.removeprefix('BLOCK_')}{size}" for name, size in self.blocks)
        return f"{sizes}, {self.num_warps} warps, {self.num_stages} stages"


# The space: 7 to 22 choices for each key. What a thread sums, in float32 registers, bounds the combinations: too little
# leaves the tensor cores waiting, too much spills. The compiler has the last word.


def _choices(warps: int, stages: int, **blocks: int) -> Choice:
    return Choice(tuple(blocks.items()), warps, stages)


def _project(K: int, **_: int) -> Iterator[Choice]:
    k = min(K, 256)
    for r, (d, s), w in product((32, 64, 128), ((32, 4), (64, 3), (64, 4), (128, 2)), (4, 8)):
        if 32 <= r * k // (32 * w) <= 128:
            yield _choices(w, s, BLOCK_R=r, BLOCK_K=k, BLOCK_D=d)


def _pool(P: int, L: int, width: int, **_: int) -> Iterator[Choice]:
    for p, (c, chunks, s), w in product(
        sorted({P, min(P, 64)}), ((64, 2, 2), (64, 4, 3), (128, 1, 2), (128, 2, 2), (128, 4, 3), (256, 2, 2)), (4, 8)
    ):
        if c * chunks <= max(width, 128) and p * L // (32 * w) <= 64 and L * c // (32 * w) <= 64:
            yield _choices(w, s, BLOCK_P=p, BLOCK_C=c, CHUNKS=chunks)


def _dense(**_: int) -> Iterator[Choice]:
    for p, (d, s), tiles in product((16, 32, 64), ((32, 3), (64, 2), (64, 3)), (8, 16)):
        yield _choices(8, s, BLOCK_P=p, BLOCK_D=d, TILES=tiles)


def _pool_bwd(P: int, L: int, **_: int) -> Iterator[Choice]:
    for p, c, w, s in product(sorted({P, min(P, 64)}), (32, 64, 128), (4, 8), (2, 3)):
        if 16 <= p * (L + c) // (32 * w) <= 128:
            yield _choices(w, s, BLOCK_P=p, BLOCK_C=c)


def _maps_bwd(K: int, **_: int) -> Iterator[Choice]:
    for r, w in product((8, 16, 32, 64), (4, 8)):
        if 8 <= r * K // (32 * w) <= 64:
            yield _choices(w, 2, BLOCK_R=r)


def _pixels_bwd(**_: int) -> Iterator[Choice]:
    for r, (d, chunks), w, s in product((64, 128), ((64, 4), (64, 8), (128, 4)), (4, 8), (2, 3)):
        if r * d // (32 * w) <= 64:
            yield _choices(w, s, BLOCK_R=r, BLOCK_D=d, CHUNKS=chunks)


def _weight_bwd(K: int, **_: int) -> Iterator[Choice]:
    for k, d, w, (r, s) in product(sorted({min(K, 128), min(K, 256)}), (64, 128), (4, 8), ((32, 4), (64, 3), (64, 4))):
        if 32 <= k * d // (32 * w) <= 128:
            yield _choices(w, s, BLOCK_R=r, BLOCK_K=k, BLOCK_D=d)


SPACE: dict[str, Callable[..., Iterator[Choice]]] = {
    "project": _project, "pool": _pool, "dense": _dense, "pool_bwd": _pool_bwd, "maps_bwd": _maps_bwd,
    "pixels_bwd": _pixels_bwd, "weight_bwd": _weight_bwd,
}  # fmt: skip


def kernel_of(key: str) -> str:
    return key.split()[0]


@dataclass(frozen=True)
class Problem:
    """A key to tune in the tables of configurations, and a call that launches it."""

    key: str
    request: Request
    nbytes: int  # of everything that its launches read and write

    @property
    def twin(self) -> str:
        """The key without its dtype; problems that share it differ in dtype alone."""
        return " ".join(word for word in self.key.split() if word not in DTYPES)

    def choices(self) -> list[Choice]:
        sizes = {name: int(size) for name, size in re.findall(r"\b([A-Z])(\d+)", self.key)}
        return list(SPACE[kernel_of(self.key)](**sizes | {"width": self.request.C // self.request.G}))


def problems(shapes: Mapping[str, Shape], dtypes: Sequence[str], capability: int) -> list[Problem]:
    """Problems for all keys that the shapes launch, with and without E0: by dtype, M and B first, most bytes first."""
    from benchmarks.compiled.requests import Request, launches_of

    found: dict[str, tuple[tuple[int, bool, int], Problem]] = {}
    for (i, dtype), affine, (name, s) in product(enumerate(dtypes), (False, True), shapes.items()):
        request = Request(
            name, s.N, s.C, s.D, s.K, NUM_GROUPS, s.P, dtype, affine=affine, temperature=TEMPERATURE
        )  # fmt: skip
        for key, stage in stages(launches_of(request, capability)).items():
            nbytes = sum(launch.nbytes for launch in stage)
            found.setdefault(key, ((i, name not in FIRST, -nbytes), Problem(key, request, nbytes)))
    return [problem for _, problem in sorted(found.values(), key=lambda pair: pair[0])]


def stages(launches: Iterable[Launch]) -> dict[str, list[Launch]]:
    """Launches by tuning key: softmax statistics are put before the kernel that reads them, sums after their kernel."""
    found: dict[str, list[Launch]] = {}
    before: list[Launch] = []
    for launch in launches:
        key = launch.config.key
        if kernel_of(key) in SPACE:
            found[key] = [*before, launch]
            before = []
        elif kernel_of(key) == "softmax":
            before.append(launch)
        else:
            found[list(found)[-1]].append(launch)
    return found
