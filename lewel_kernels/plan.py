"""The description of a call without its numbers: backends plan from it; explain, roofline and reports read the plans.

A description is frozen, hashable and made of shapes alone: tensors on meta and fake tensors have one too. What a
backend does in a call is a list of passes. The triton backend plans them in triton/forward_launches.py and
backward_launches.py; the cuda backend in C++, in csrc/cuda/forward.h and backward.h, and lewel_kernels/cuda.py asks it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from lewel_kernels.signature import EVERY, Inputs, Needs, Options, accumulator, gradients, outputs


class Sizes(NamedTuple):
    """Sizes in the notation of docs/math.md, and the multiplications and additions that they imply."""

    N: int
    C: int
    D: int
    K: int
    L: int
    P: int

    @property
    def projection(self) -> int:
        """Flops of E1, and of each of the two products of E10."""
        return 2 * self.N * self.P * self.D * self.K

    @property
    def pooling(self) -> int:
        """Flops of E5, of E6 and of E7."""
        return 2 * self.N * self.P * self.C * self.L


class Array(NamedTuple):
    """Shape, strides and dtype of a tensor, without its values. Arrays of one name in a plan are the same tensor."""

    name: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    offset: int = 0  # its address modulo 16 bytes: loads of 16 bytes need 0

    @classmethod
    def of(cls, name: str, x: Tensor | None) -> Array | None:
        """The array of a tensor, which may be on meta or fake; None for None."""
        if x is None:
            return None
        has_no_address = type(x) not in _PLAIN_TYPES and hasattr(x, "fake_mode")
        offset = 0 if has_no_address else x.data_ptr() % 16
        return tuple.__new__(cls, (name, x.shape, x.stride(), x.dtype, offset))  # half the time of cls(...)

    @classmethod
    def new(cls, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Array:
        """A contiguous array."""
        return cls(name, shape, tuple(math.prod(shape[i + 1 :]) for i in range(len(shape))), dtype)

    def like(self, name: str, dtype: torch.dtype) -> Array:
        """An array with another name and dtype, and the same shape and strides."""
        return self._replace(name=name, dtype=dtype, offset=0)

    @property
    def nbytes(self) -> int:
        """Bytes of its elements; one that a stride of 0 repeats is counted each time."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def layout(self) -> str:
        """Only for (N, C, P): "rows" if the channels of a position lie together (channels_last), else "planes"."""
        return "rows" if self.stride[1] <= self.stride[2] or self.shape[2] == 1 else "planes"

    def empty(self, device: torch.device | str) -> Tensor:
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=device)


class Call(NamedTuple):
    """The description of a forward, or of a backward, which also has the arrays after ``tf32``.

    The triton backend makes one in each call, to look up its plan. That is why it is no frozen dataclass, which takes
    several times as long to make.
    """

    features: Array
    pixels: Array | None
    weight: Array
    bias: Array | None
    scale: Array | None
    shift: Array | None
    options: Options
    capability: tuple[int, int] = (0, 0)  # of the GPU that it is planned for
    tf32: bool = False  # whether products of float32 may be rounded to TF32
    grad_pooled: Array | None = None
    grad_maps: Array | None = None
    heat: Array | None = None
    norm: Array | None = None

    @classmethod
    def of(
        cls, inputs: Inputs, options: Options, capability: tuple[int, int] = (0, 0), tf32: bool = False,
        *backward: Tensor | None,
    ) -> Call:  # fmt: skip
        """The description of a call on these tensors.

        ``backward`` is grad_pooled, grad_maps, heat and norm, or nothing for a forward.
        """
        arrays = [*map(Array.of, TENSORS, (*inputs, *backward))]
        return tuple.__new__(cls, (*arrays[:6], options, capability, tf32, *(arrays[6:] or _NO_BACKWARD)))

    @classmethod
    def sized(
        cls, *, N: int, C: int, K: int, P: int, G: int, dtype: torch.dtype, D: int | None = None, layout: str = "rows",
        bias: bool = False, affine: bool = False, temperature: float = 1.0, return_maps: bool = False,
        capability: tuple[int, int] = (0, 0), tf32: bool = False,
    ) -> Call:  # fmt: skip
        """A forward by its sizes. Images are dense, in ``layout`` "rows" or "planes"; without D the features are
        projected. Results have the dtype of the features.
        """

        def image(channels: int) -> Tensor:
            return new(N, P, channels).mT if layout == "rows" else new(N, channels, P)

        def new(*size: int, of: torch.dtype = dtype) -> Tensor:
            return torch.empty(size, dtype=of, device="meta")

        d = C if D is None else D
        scale, shift = (new(d, of=accumulator(dtype)) if affine else None for _ in range(2))
        pixels = None if D is None else image(D)
        inputs = Inputs(image(C), pixels, new(K, d), new(K) if bias else None, scale, shift)
        return cls.of(inputs, Options(G, temperature, 1e-12, dtype, return_maps), capability, tf32)

    @property
    def inputs(self) -> tuple[Array | None, ...]:
        return self[:6]

    @property
    def projected(self) -> Array:
        """What E1 reads: the pixels, or the features where there are none."""
        return self.features if self.pixels is None else self.pixels

    @property
    def dtype(self) -> torch.dtype:
        return self.features.dtype

    @property
    def acc(self) -> torch.dtype:
        return accumulator(self.dtype)

    @property
    def sizes(self) -> Sizes:
        (n, c, p), (k, d) = self.features.shape, self.weight.shape
        return Sizes(n, c, d, k, k // self.options.num_groups, p)

    def outputs(self) -> tuple[Array, Array, Array, Array]:
        """pooled, maps, heat and norm of a forward, heat in rows of K maps as both GPU backends store it."""
        made = outputs(self._on_meta(), self.options, True)
        return cast(Any, tuple(map(Array.of, ("pooled", "maps", "heat", "norm"), made)))

    def gradients(self) -> tuple[Array | None, ...]:
        """The gradients that a backward returns, None where none is needed or there is no input."""
        return tuple(map(Array.of, (f"d_{name}" for name in TENSORS), gradients(self._on_meta(), self.options.needs)))

    def backward(self, needs: Needs = EVERY) -> Call:
        """The description of this forward's backward; incoming gradients have the strides of its outputs."""
        pooled, maps, heat, norm = self.outputs()
        return self._replace(
            options=self.options._replace(needs=needs), grad_pooled=pooled._replace(name="grad_pooled"),
            grad_maps=maps._replace(name="grad_maps") if self.options.return_maps else None, heat=heat, norm=norm,
        )  # fmt: skip

    def _on_meta(self) -> Inputs:
        return Inputs(*(x if x is None else x.empty("meta") for x in self.inputs))  # type: ignore[arg-type]


# The names of the tensors of a call, in the order in which backends are given them.
TENSORS = (*Inputs._fields, "grad_pooled", "grad_maps", "heat", "norm")
_NO_BACKWARD = (None,) * 4


_PLAIN_TYPES = frozenset({Tensor, torch.nn.Parameter})


@dataclass(frozen=True)
class Pass:
    """One kernel of a plan and the arrays that it reads and writes. ``nbytes`` counts each of them once."""

    equations: str
    grid: tuple[int, ...]
    arguments: dict[str, Any]  # by parameter; arrays among them
    flops: int

    @property
    def arrays(self) -> list[Array]:
        return [x for x in self.arguments.values() if isinstance(x, Array)]

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in self.arrays)


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def parts(tiles: int, columns: int, *, programs: int, least: int) -> tuple[int, int]:
    """How the sum over rows of dW is split where ``columns`` programs hold all of dW: (tiles of a part, parts).

    ``tiles`` of rows are spread over about ``programs``, as many as a GPU holds at once, each with ``least`` tiles at
    least: every further part writes, and the second stage reads, another (K, D) in the accumulator type.
    csrc/cuda/tiling.h has the same rule as Parts::of.
    """
    each = max(least, cdiv(tiles, max(1, programs // columns)))
    return each, cdiv(tiles, each)
