"""Run by test_triton_kernels.py, without the interpreter: what reaches the driver when a call is launched again.

A pretended driver notes its arguments. The first call goes through Triton's look at them, the second through kernels
that this compiled; both must hand over the same, but for the tensors.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

import lewel_kernels.triton as backend
from benchmarks.compiled import triton_kernels
from benchmarks.compiled.report import SHARED_LIMITS
from lewel_kernels import signature
from lewel_kernels.triton import replay

launched: list[tuple[Any, ...]] = []


class Utilities:
    def load_binary(self, *_: Any) -> tuple[int, ...]:
        return 0, 0, 32, 0, 1024

    def get_device_properties(self, _: Any) -> dict[str, int]:
        return {"max_shared_mem": SHARED_LIMITS[90]}

    def unload_module(self, *_: Any) -> None:
        pass


class Driver(triton_kernels._Driver):
    utils = Utilities()

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        # Grid, stream, function, metadata of the kernel and of the launch, two hooks, and the kernel's own arguments.
        return lambda *arguments: launched.append((metadata.name, *arguments[:6], *arguments[7:]))


def call(features: Tensor, pixels: Tensor, weight: Tensor) -> list[tuple[Any, ...]]:
    launched.clear()
    inputs = signature.Inputs(features, pixels, weight, None, *torch.ones(2, pixels.shape[1]))
    options = signature.Options(4, 0.5, 1e-12, torch.bfloat16, True, (True, True, True, False, True, True))
    pooled, _, *saved = backend.forward(inputs, options)
    backend.backward((pooled, None), inputs, (saved[0], saved[1]), options)
    return [tuple("tensor" if isinstance(x, Tensor) else x for x in each) for each in launched]


def main() -> None:
    triton.runtime.driver.set_active(Driver(90))
    backend._capability = lambda device: (9, 0)  # type: ignore[assignment]
    first, second = (
        call(*(torch.zeros(shape, dtype=torch.bfloat16) for shape in ((2, 64, 49), (2, 32, 49), (16, 32))))
        for _ in range(2)
    )
    assert len(replay._replays) == 2
    assert len(first) == len(second) == 11, [name for name, *_ in first]
    for a, b in zip(first, second, strict=True):
        assert a == b, f"{a}\n{b}"
    print("launched", *(name for name, *_ in second))


if __name__ == "__main__":
    main()
