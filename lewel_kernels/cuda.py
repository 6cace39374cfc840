"""The cuda backend: E0-E11 by the kernels of csrc/cuda, on NVIDIA GPUs from sm_70 (V100) on.

Features and pixels are read in place whatever their strides; channels_last is the fast layout. Shapes and dtypes are
those of lewel_kernels/reference.py.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch

from lewel_kernels import native
from lewel_kernels.native import nvcc
from lewel_kernels.native.targets import CUDA
from lewel_kernels.plan import Call
from lewel_kernels.signature import as_rows, contiguous, gradients, outputs

if TYPE_CHECKING:
    from types import ModuleType

    from lewel_kernels.dispatch import Request
    from lewel_kernels.plan import Array
    from lewel_kernels.signature import Gradients, Grads, Inputs, Options, Results, Saved

NUMBERS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)  # in the order of csrc/cuda/numbers.h

name = "cuda"
heat_rows = True
device_type = "cuda"
automatic = True


class Gpus:
    """What the backend asks of the machine's GPUs, and the name of the library (see targets.py) that they run."""

    library = "cuda"

    def capability(self, device: torch.device) -> tuple[int, int] | None:
        """The compute capability of a device, such as (8, 0); None where PyTorch sees no GPU."""
        return _capability(device)


gpus = Gpus()  # read in every call


def refuse(request: Request) -> str | None:
    """Why the backend cannot run a request, or None. The first process on a machine to ask compiles the kernels."""
    if request.dtype not in NUMBERS:
        return f"it stores float32, bfloat16, float16 or float64; the features are {request.dtype}: convert them"
    if torch.version.hip is not None:
        return "it was written for NVIDIA GPUs and never compiled for AMD's"
    capability = gpus.capability(request.device)
    if capability is None:
        return "PyTorch sees no GPU"
    if capability < (7, 0):
        return (
            f"it needs the tensor cores that GPUs have from sm_70 on (V100), and {request.device} is {_sm(capability)}"
        )
    if request.dtype == torch.bfloat16 and capability < (8, 0):
        return (
            f"bfloat16 needs a GPU from sm_80 on (A100), and {request.device} is {_sm(capability)}: use float16 "
            "(torch.autocast(dtype=torch.float16) with a GradScaler)"
        )
    if request.dtype == torch.float64 and capability == (7, 5):
        return f"float64 takes more shared memory than a block has on sm_75, which {request.device} is: use float32"
    if reason := native.unavailable(gpus.library):
        return reason
    return _not_compiled_for(gpus.library, capability)


@functools.cache
def _capability(device: torch.device) -> tuple[int, int] | None:
    return torch.cuda.get_device_capability(device) if torch.cuda.is_available() else None


@functools.cache
def _not_compiled_for(library: str, capability: tuple[int, int]) -> str | None:
    """Why the library, which is loaded, has no code for GPUs of this capability, as a sentence, or None."""
    info = native.build_info(library)
    archs = str(info["archs"]).split()
    if nvcc.runs(archs, capability):
        return None
    found = f"it was compiled for {', '.join(archs)} by nvcc {info['nvcc']}, and this GPU is {_sm(capability)}"
    if capability < (7, 5) and int(str(info["nvcc"]).split(".")[0]) >= 13:
        remedy = "CUDA 13 begins with sm_75: install a CUDA 12.x toolkit and PyTorch's CUDA 12.6 build"
    else:
        remedy = f"set {nvcc.ARCHS} to a list that has {capability[0]}.{capability[1]}, or unset it"
    return f"{found}; {remedy}, then run `{CUDA.command}`"


def _sm(capability: tuple[int, int]) -> str:
    return f"sm_{capability[0]}{capability[1]}"


@functools.cache
def _ops(library: str) -> tuple[Any, Any]:
    """Loads a library; returns its ops forward and backward, as overloads, so that no call has to choose one."""
    native.require(library)
    ops = getattr(torch.ops, f"lewel_{library}")
    return ops.forward.default, ops.backward.default


def forward(inputs: Inputs, options: Options) -> Results:
    """E0-E5; see `lewel_kernels.reference.forward`."""
    run, _ = _ops(gpus.library)
    pooled, maps, heat, norm = outputs(inputs, options, True)
    if inputs.features.shape[0]:
        run(
            *contiguous(inputs), options.num_groups, options.temperature, options.eps,
            pooled, maps if options.return_maps else None, heat, norm,
        )  # fmt: skip
    return pooled, maps, heat, norm


def backward(grads: Grads, inputs: Inputs, saved: Saved, options: Options) -> Gradients:
    """E6-E11; see `lewel_kernels.reference.backward`. The softmax is taken again from heat and norm."""
    _, run = _ops(gpus.library)
    found = gradients(inputs, options.needs)
    features, pixels, weight, _, scale, shift = contiguous(inputs)
    if features.shape[0]:
        run(
            *grads, features, pixels, weight, scale, shift, as_rows(saved[0]), saved[1].contiguous(),
            options.num_groups, options.temperature, options.eps, *found,
        )  # fmt: skip
    return found


def describe(inputs: Inputs, options: Options) -> str:
    """Each kernel that a call would launch, with its grid and shared memory, and what the kernels were compiled for."""
    capability = gpus.capability(inputs.features.device)
    assert capability is not None  # nothing is described that was refused
    info = native.build_info(gpus.library)
    origin = f"compiled for {info['archs']} by nvcc {info['nvcc']}"
    call = Call.of(inputs, options, capability)
    if not call.sizes.N:
        return f"nothing is launched for no images; kernels {origin}"
    forward, backward = launches(native.module(gpus.library), call)
    lines = [f"forward, kernels {origin}:", *(f"  {x}" for x in forward), "backward:", *(f"  {x}" for x in backward)]
    return "\n".join(lines)


def launches(library: ModuleType, call: Call) -> tuple[list[str], list[str]]:
    """The launches of a forward, and of a backward for all gradients: a line each.

    Args:
        library: The loaded extension, as csrc/cuda/module.cpp makes it.
        call: A forward; its capability says whose instructions the kernels have, those of sm_70 or from sm_80 on.
    """
    pooled, maps, _, _ = call.outputs()
    arrays = (*call.inputs[:5], pooled, maps if call.options.return_maps else None)
    arch = 80 if call.capability >= (8, 0) else 70
    forward, backward = library.describe(*map(_view, arrays), call.options.num_groups, arch)
    return forward.splitlines(), backward.splitlines()


def _view(x: Array | None) -> tuple[int, int, list[int], list[int]] | None:
    """What library.describe takes for an array: an address, which it never reads, its type, sizes and strides."""
    return None if x is None else (256 + x.offset, NUMBERS.index(x.dtype), list(x.shape), list(x.stride))
