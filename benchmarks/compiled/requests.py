"""Calls of the op that stand for all that is shipped, and what the triton backend launches for one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from lewel_kernels.plan import Call
from lewel_kernels.signature import EVERY, Needs

if TYPE_CHECKING:
    from lewel_kernels.triton.launch import Launch

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}


@dataclass(frozen=True)
class Request:
    """A call of the op, forward and backward, without its tensors; another process can get it as JSON."""

    name: str
    N: int
    C: int
    D: int
    K: int
    G: int
    P: int
    dtype: str
    layout: str = "rows"  # of features and pixels: "rows" is channels_last, "planes" contiguous
    bias: bool = False
    affine: bool = False
    shared: bool = False  # the features are projected: no pixels
    maps: bool = False  # also returned, with a gradient
    tf32: bool = False  # allowed for matrix products in float32
    temperature: float = 0.05
    needs: Needs = EVERY
    capabilities: tuple[int, ...] = (80, 90)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Request:
        """The inverse of `dataclasses.asdict` and JSON, which makes lists of tuples."""
        fields: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in values.items()}
        return cls(**fields)

    def __str__(self) -> str:
        extras = [name for name in ("bias", "affine", "shared", "maps", "tf32") if getattr(self, name)]
        return " ".join([self.name, self.dtype, self.layout, *extras])


def _shipped() -> Iterator[Request]:
    m = Request("M", N=256, C=2048, D=2048, K=128, G=4, P=49, dtype="bf16")
    b = Request("B", N=256, C=2048, D=4096, K=256, G=4, P=49, dtype="bf16")
    d14 = Request("14x14", N=64, C=1024, D=1024, K=128, G=4, P=196, dtype="bf16")
    d56 = Request("56x56", N=32, C=256, D=256, K=128, G=4, P=3136, dtype="bf16")
    for shape in (m, b, d14, d56):
        yield from (replace(shape, dtype=dtype) for dtype in DTYPES)
        yield replace(shape, dtype="fp32", tf32=True)
        yield from (replace(shape, layout="planes", dtype=dtype) for dtype in ("bf16", "fp16", "fp32"))
        yield replace(shape, layout="planes", affine=True)
        yield from (replace(shape, affine=True, dtype=dtype) for dtype in ("bf16", "fp16"))
    yield replace(m, shared=True)
    yield replace(d56, name="56x56 G8", G=8)
    # The ablations of the paper, more maps or one group; and GPUs with little shared memory, which have no table.
    every = (80, 89, 90)
    for dtype in ("bf16", "fp32"):
        yield replace(m, name="K512", K=512, dtype=dtype, capabilities=every)
        yield replace(m, name="K256 G1", K=256, G=1, dtype=dtype, capabilities=every)
    for shape in (m, b, d14, d56):
        yield replace(shape, capabilities=(89,))


def _with_more(request: Request) -> Iterator[Request]:
    """The request, and again with bias and returned maps: other kernels. In 32 and 64 bits the second is M's alone."""
    yield request
    if request.name == "M" or request.dtype in ("bf16", "fp16"):
        yield replace(request, bias=True, maps=True)


SHIPPED = tuple(itertools.chain.from_iterable(map(_with_more, _shipped())))


def call_of(request: Request, capability: int) -> Call:
    """The forward of a request, as it is planned for GPUs of that compute capability."""
    r = request
    return Call.sized(
        N=r.N, C=r.C, D=None if r.shared else r.D, K=r.K, P=r.P, G=r.G, dtype=DTYPES[r.dtype], layout=r.layout,
        bias=r.bias, affine=r.affine, temperature=r.temperature, return_maps=r.maps, tf32=r.tf32,
        capability=(capability // 10, capability % 10),
    )  # fmt: skip


def launches_of(request: Request, capability: int) -> list[Launch]:
    """The launches of the triton backend for a request, forward and backward."""
    from lewel_kernels.triton import backward_launches, forward_launches

    call = call_of(request, capability)
    return forward_launches.plan(call).launches + backward_launches.plan(call.backward(request.needs)).launches
