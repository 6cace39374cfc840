"""The triton backend: E1-E11 by the kernels of this folder, on NVIDIA GPUs from sm_80 on.

Features and pixels are read in place whatever their strides; channels_last is the fast layout. With TRITON_INTERPRET=1,
set before the first import, the kernels run on CPU tensors, very slowly: for tests. Importing this module imports no
triton; the first question to it does.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
from typing import TYPE_CHECKING, cast

import torch

from lewel_kernels.dispatch import BackendUnavailable
from lewel_kernels.native import toolchain
from lewel_kernels.plan import Call
from lewel_kernels.signature import Inputs, Options, as_rows, contiguous

if TYPE_CHECKING:
    from lewel_kernels.dispatch import Request
    from lewel_kernels.signature import Gradients, Grads, Results, Saved

name = "triton"
heat_rows = True
# Decided once, as triton decides it: where its kernels are defined.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
device_type = "cpu" if INTERPRETED else "cuda"
automatic = not INTERPRETED

_MOST_ROWS = 2**31 - 1  # their indices are 32-bit, unlike the offsets made of them
_MOST_POSITIONS = 2**23  # each 256 of them a program along an axis of the grid that has room for 2^16 - 1
# A program holds a row of them in registers.
MOST_MAPS = {torch.float32: 512, torch.bfloat16: 512, torch.float16: 512, torch.float64: 256}


def refuse(request: Request) -> str | None:
    """Why it cannot run, or None."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed; pip install triton"
    if request.dtype not in MOST_MAPS:
        return f"it stores float32, bfloat16, float16 or float64; the features are {request.dtype}: convert them"
    if request.num_maps > (most := MOST_MAPS[request.dtype]):
        return f"it computes at most {most} maps in {request.dtype}; weight has {request.num_maps} rows"
    if not INTERPRETED:
        if torch.version.hip is not None:
            return "it was written for NVIDIA GPUs and never compiled for AMD's"
        major, minor = _capability(request.device)
        if major < 8:
            return (
                f"it needs a GPU from sm_80 on (A100), and {request.device} is sm_{major}{minor}, for which Triton "
                "would compile matrix products to scalar code"
            )
        return _cannot_launch()
    return None


@functools.cache
def _cannot_launch() -> str | None:
    """Why Triton launches nothing here, or None. Asked once: what launches kernels is compiled when it first does."""
    try:
        from triton.runtime import driver

        driver.active.get_current_target()
    except Exception as error:  # of whatever kind: it says what the first launch would
        if "0 active drivers" in str(error) and not torch.cuda.is_available():
            return None  # a GPU is only spoken of
        return _explained(error)
    return None


def _explained(error: Exception) -> str:
    """What triton/runtime/build.py needs and does not find, else the error itself."""
    needs = "Triton compiles what launches its kernels with a C compiler"
    if (compiler := os.environ.get("CC")) is not None:
        if shutil.which(compiler) is None:
            return f"{needs}, and the variable CC names {compiler!r}, which is not a program; correct or unset it"
    elif not any(map(shutil.which, ("gcc", "clang"))):
        return f"{needs}, and neither gcc nor clang is on the PATH; install gcc (Debian and Ubuntu: apt install gcc)"
    try:
        toolchain.python_headers()
    except toolchain.BuildError as missing:
        return f"{needs}, and {missing}"
    said = " ".join(f"{type(error).__name__}: {error}".split())
    return (
        f"Triton's driver does not start ({said}); set what it misses: TRITON_CACHE_DIR to a folder that is writable "
        "and not mounted noexec, or TRITON_LIBCUDA_PATH to the folder of libcuda.so.1"
    )


@functools.cache
def _capability(device: torch.device) -> tuple[int, int]:
    return (9, 0) if INTERPRETED else torch.cuda.get_device_capability(device)


def _checked(call: Call) -> Call:
    n, _, _, _, _, p = call.sizes
    if n * p > _MOST_ROWS or p > _MOST_POSITIONS:
        raise BackendUnavailable(
            f"the triton backend takes at most {_MOST_POSITIONS} positions in an image and {_MOST_ROWS} in a batch; "
            f"got {p} and {n * p}: split the batch, or use backend='reference'"
        )
    return call


def forward(inputs: Inputs, options: Options) -> Results:
    """E0-E5; see `lewel_kernels.reference.forward`."""
    from lewel_kernels.triton import forward_launches, launch, replay

    inputs, features = contiguous(inputs), inputs.features
    call = Call.of(inputs, options, _capability(features.device), launch.allows_tf32(features.dtype))
    return cast("Results", replay.run(call, inputs, lambda: forward_launches.plan(_checked(call))))


def backward(grads: Grads, inputs: Inputs, saved: Saved, options: Options) -> Gradients:
    """E6-E11; see `lewel_kernels.reference.backward`. The softmax is taken again from heat and norm."""
    from lewel_kernels.triton import backward_launches, launch, replay

    inputs, features = contiguous(inputs), inputs.features
    rest = (*grads, as_rows(saved[0]), saved[1].contiguous())
    call = Call.of(inputs, options, _capability(features.device), launch.allows_tf32(features.dtype), *rest)
    gradients = replay.run(call, (*inputs, *rest), lambda: backward_launches.plan(_checked(call)))
    return cast("Gradients", gradients)


def describe(inputs: Inputs, options: Options) -> str:
    """The design that a call would take; each kernel that it would launch with its configuration and whose that is, its
    grid, bytes and flops; and the workspace.
    """
    from lewel_kernels.triton import backward_launches, forward_launches, launch

    features = inputs.features
    call = _checked(Call.of(inputs, options, _capability(features.device), launch.allows_tf32(features.dtype)))
    first, second = forward_launches.plan(call), backward_launches.plan(call.backward())
    design = "projection kept on chip" if forward_launches.is_dense(call) else "projection, then pooling"
    lines = [f"forward ({design}):", *(f"  {x}" for x in first.launches)]
    lines += ["backward:", *(f"  {x}" for x in second.launches)]
    spaces = " and ".join(f"{x.workspace / 1e6:.1f} MB" for x in (first, second))
    return "\n".join([*lines, f"workspace: {spaces} beside inputs and results"])
