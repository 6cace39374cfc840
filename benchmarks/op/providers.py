"""What is timed: the lines a user would write in plain PyTorch, the same compiled, and the op on each backend."""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.op.cases import NUM_GROUPS, TEMPERATURE, Inputs
from lewel_kernels import BACKENDS, dispatch, explain, fused_align_aggregate

Op = Callable[..., Tensor]  # of the leaves of a call's Inputs: features, pixels, weight
KERNELS = [name for name in BACKENDS if name != "reference"]  # the backends with kernels of their own


def eager_maps(
    pixels: Tensor, weight: Tensor, bias: Tensor | None = None, *, temperature: float = TEMPERATURE, eps: float = 1e-12
) -> Tensor:
    """E1-E4 as a PyTorch user writes them: (N, D, H, W), (K, D) -> (N, K, P)."""
    heat = F.conv2d(pixels, weight[:, :, None, None], bias)
    return (F.normalize(heat, dim=1, eps=eps).flatten(2) / temperature).softmax(-1)


def eager_pool(features: Tensor, maps: Tensor, *, num_groups: int = NUM_GROUPS) -> Tensor:
    """E5 as a PyTorch user writes it: (N, C, H, W), (N, K, P) -> (N, K // num_groups, C)."""
    maps = maps.unflatten(1, (num_groups, -1)).transpose(2, 3)  # [N, G, P, L]
    grouped = features.flatten(2).unflatten(1, (num_groups, -1))  # [N, G, C / G, P]
    return (grouped @ maps.to(features.dtype)).permute(0, 3, 1, 2).flatten(2)


def eager_activated(pixels: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """E0 as batch normalisation has it: (N, D, H, W), (D,) twice; computed in the dtype of scale, stored as pixels."""
    return (scale[:, None, None] * pixels + shift[:, None, None]).to(pixels.dtype).relu()


def eager_align_aggregate(features: Tensor, pixels: Tensor, weight: Tensor) -> Tensor:
    """The ten lines that the op replaces: (N, C, H, W), (N, D, H, W), (K, D) -> (N, K // NUM_GROUPS, C).

    Of the twelve natural formulations (convolution, matmul or linear for E1; einsum, either order of matmul, or a loop
    over groups for E5) this one has the smallest forward+backward time over the quick suite on the CPU.
    """
    return eager_pool(features, eager_maps(pixels, weight))


def _compiled(mode: str | None = None) -> Op:
    return torch.compile(eager_align_aggregate, dynamic=False, mode=mode)


def prepare_compiler(names: Iterable[str], device: str) -> None:
    """Loads the compiler and turns its disk caches off where names has a compiled provider.

    So each compilation takes as long as a first one.
    """
    if COMPILED.keys().isdisjoint(names):
        return
    torch.compiler.config.force_disable_caches = True
    # Where it cannot compile, each row of a compiled provider says so.
    with quiet("compile"), contextlib.suppress(Exception):
        torch.compile(lambda x: x + 1)(torch.ones(2, device=device))


def quiet(name: str) -> contextlib.AbstractContextManager[object]:
    """Swallows what torch.compile prints while it compiles: pages on every product that it tunes."""
    return contextlib.redirect_stderr(io.StringIO()) if name in COMPILED else contextlib.nullcontext()


def _fused(features: Tensor, pixels: Tensor, weight: Tensor, *, backend: str) -> Tensor:
    return fused_align_aggregate(
        features, weight, pixels=pixels, num_groups=NUM_GROUPS, temperature=TEMPERATURE, backend=backend
    )


# Without CUDA graphs: torch.compile would copy every input into the graph's own buffers on each call. Graph replays
# are timed for all providers alike, in rows of their own.
COMPILED: dict[str, Callable[[], Op]] = {
    "compile": _compiled,
    "compile-max": functools.partial(_compiled, "max-autotune-no-cudagraphs"),
}
PROVIDERS: dict[str, Callable[[], Op]] = {
    "eager": lambda: eager_align_aggregate,
    **COMPILED,
    **{name: functools.partial(functools.partial, _fused, backend=name) for name in BACKENDS},
}


def refusal(name: str, inputs: Inputs) -> str | None:
    """Why a backend cannot run these inputs, as a sentence; None for whatever may be tried."""
    if name not in BACKENDS:
        return None
    if not getattr(dispatch.load(name), "automatic", True):
        return "its kernels are interpreted or emulated in this process, for tests: their time says nothing"
    explanation = explain(inputs.features, inputs.weight.to(inputs.features.dtype), pixels=inputs.pixels, backend=name)
    return None if explanation.backend else explanation.refusals[name]
