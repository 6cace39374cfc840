"""Calls of a backend, and their derivatives: the functions of autograd behind the registered ops.

The gradient of the backward goes through the reference: second order is right everywhere, at the reference's speed. (A
plain autograd.Function around kernels would return wrong second-order gradients without an error.) The functions are
applied by kernels that ops.py registers directly rather than by torch.library.register_autograd, which reads the schema
anew in every call (60 us) and knows no transforms of torch.func.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from lewel_kernels import checks, dispatch, reference, tracing
from lewel_kernels.signature import Gradients, Grads, Inputs, Options, Saved

FWD = "lewel_kernels::align_aggregate_fwd"
BWD = "lewel_kernels::align_aggregate_bwd"


def run_forward(inputs: Inputs, options: Options, backend: str, numbers: Tensor | None) -> tuple[Tensor, ...]:
    """Calls the forward of a backend, under the op's name in a profile. ``numbers`` as of `ops.align_aggregate`."""
    run, options = dispatch.load(backend).forward, _known(options, numbers)
    if not torch.autograd._profiler_enabled():
        return run(inputs, options)
    with torch.profiler.record_function(f"{FWD}[{backend}]"):
        return run(inputs, options)


def run_backward(
    grads: Grads, inputs: Inputs, saved: Saved, options: Options, backend: str, numbers: Tensor | None
) -> Gradients:
    """Calls the backward of a backend, likewise."""
    run, options = dispatch.load(backend).backward, _known(options, numbers)
    if not torch.autograd._profiler_enabled():
        return run(grads, inputs, saved, options)
    with torch.profiler.record_function(f"{BWD}[{backend}]"):
        return run(grads, inputs, saved, options)


def _known(options: Options, numbers: Tensor | None) -> Options:
    """The options with temperature and eps as floats.

    ``numbers``, a tensor (2,), replaces both where a graph computes them while it runs; its values are then checked.
    """
    _, temperature, eps, *_ = options
    if numbers is not None:
        temperature, eps = numbers.tolist()
        checks.check_constants(temperature, eps, None)
    elif type(temperature) is float and type(eps) is float:  # the usual ones; a graph may hold an int
        return options
    return options._replace(temperature=float(temperature), eps=float(eps))


def symbolic(options: Options, numbers: Tensor | None) -> Options:
    """The options for PyTorch's operators: as given, or with the two elements of ``numbers`` as temperature and eps.

    Those are tensors of one number, whose value need not be known yet.
    """
    if numbers is None:
        return options
    temperature: Any = numbers[0]
    eps: Any = numbers[1]
    return options._replace(temperature=temperature, eps=eps)


def _forward_backward(ctx: Any, grad_pooled: Tensor | None, grad_maps: Tensor | None, *_: None) -> tuple[Any, ...]:
    *saved, stamp = ctx.saved_tensors
    options, backend, numbers = ctx.rest
    if not torch.compiler.is_compiling():
        _check_stamp(stamp, backend)
    if grad_pooled is None:
        if grad_maps is None:
            return _NO_GRADIENTS
        shape, dtype = ctx.pooled_like
        grad_pooled = saved[0].new_zeros(shape, dtype=dtype)
    needs, grads = ctx.needs_input_grad[:6], (grad_pooled, grad_maps)
    if not torch.is_grad_enabled() and tracing.is_plain((*grads, *saved)):
        options = options._replace(needs=needs)
        gradients = run_backward(grads, Inputs(*saved[:6]), saved[6:], options, backend, numbers)
    else:
        gradients = torch.ops.lewel_kernels.align_aggregate_bwd(*grads, *saved, *options[:3], needs, backend, numbers)
    return *(g if need else None for g, need in zip(gradients, needs, strict=True)), None, None, None


_NO_GRADIENTS = (None,) * 9  # of a `Forward`: of its inputs, options, backend and numbers


def _forward_jvp(ctx: Any, *tangents: Any) -> tuple[Tensor | None, ...]:
    options, _, numbers = ctx.rest
    with forward_ad._set_fwd_grad_enabled(True):  # for a derivative of the tangents
        inputs: Any = (x if x is None else forward_ad.unpack_dual(x, level=0).primal for x in ctx.saved_tensors)
        pooled, maps = reference.jvp(Inputs(*inputs), tangents[:6], symbolic(options, numbers))
    return pooled, maps if options.return_maps else None, None, None


def _backward_backward(ctx: Any, *grad_gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    saved, (options, *_) = ctx.saved_tensors, ctx.rest
    wanted = [i for i, need in enumerate(ctx.needs_input_grad[:8]) if need]
    given = [i for i, x in enumerate(grad_gradients) if x is not None and options.needs[i]]
    results: list[Tensor | None] = [None] * 13  # of grads, inputs, saved, options, backend and numbers

    def first_order(*inputs: Tensor) -> tuple[Tensor | None, ...]:
        every = list(saved)
        for i, x in zip(wanted, inputs, strict=True):
            every[i] = x
        gradients = _reference_vjp(ctx, every)
        return tuple(gradients[i] for i in given)

    if given and wanted:
        # Of torch.func, because these tensors may be those of a transform of it, and an outer one may be at work.
        _, pull = torch.func.vjp(first_order, *(saved[i] for i in wanted))  # type: ignore[misc]
        for i, gradient in zip(wanted, pull(tuple(grad_gradients[i] for i in given)), strict=True):
            results[i] = gradient
    return tuple(results)


def _backward_jvp(ctx: Any, *_: Any) -> tuple[Tensor, ...]:
    """The tangents of the six gradients, by PyTorch's own rules for the reference.

    The saved tensors carry their own tangents.
    """
    saved = ctx.saved_tensors
    with forward_ad._set_fwd_grad_enabled(True):
        return tuple(saved[4].new_zeros(0) if x is None else _tangent(x) for x in _reference_vjp(ctx, saved))


def _tangent(x: Tensor) -> Tensor:
    tangent = forward_ad.unpack_dual(x, level=0).tangent
    return torch.zeros_like(x) if tangent is None else tangent


def _reference_vjp(ctx: Any, inputs: Any) -> Gradients:
    """The gradients of a `Backward`, as a function of its eight inputs."""
    options, _, numbers = ctx.rest
    return reference.vjp(inputs[:2], Inputs(*inputs[2:]), symbolic(options, numbers))


# forward(ctx, ...) and not setup_context: torch binds the signature of the latter's forward in every call, 25 us.
class Forward(torch.autograd.Function):
    """Of the inputs, options, the name of a backend and numbers."""

    backward = staticmethod(_forward_backward)
    jvp = staticmethod(_forward_jvp)

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, ...]:
        inputs, (options, backend, numbers) = Inputs(*args[:6]), args[6:]
        outputs = forward_below(inputs, options, backend, numbers)
        pooled, maps, heat, norm = outputs
        ctx.mark_non_differentiable(heat, norm, *(() if options.return_maps else (maps,)))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs, heat, norm, _STAMPS.get(backend))
        ctx.rest = args[6:]
        ctx.pooled_like = pooled.shape, pooled.dtype
        if _may_have_tangents():
            ctx.save_for_forward(*inputs)
        return outputs


class Backward(torch.autograd.Function):
    """Of two gradients, the inputs, heat, norm, options, the name of a backend and numbers."""

    backward = staticmethod(_backward_backward)
    jvp = staticmethod(_backward_jvp)

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, ...]:
        # The statistics heat and norm are functions of the inputs; their part of the second derivative is taken there.
        ctx.save_for_backward(*args[:8])
        ctx.save_for_forward(*args[:8])
        ctx.rest = args[10:]
        ctx.set_materialize_grads(False)
        return backward_below(args[:10], *args[10:])


def forward_below(inputs: Inputs, options: Options, backend: str, numbers: Tensor | None) -> tuple[Tensor, ...]:
    if tracing.is_plain(inputs):
        return run_forward(inputs, options, backend, numbers)
    with _below_autograd():
        return torch.ops.lewel_kernels.align_aggregate_fwd(*inputs, *options[:5], backend, numbers)


def backward_below(
    tensors: tuple[Any, ...], options: Options, backend: str, numbers: Tensor | None
) -> tuple[Tensor, ...]:
    with _below_autograd():
        return torch.ops.lewel_kernels.align_aggregate_bwd(*tensors, *options[:3], options.needs, backend, numbers)


@contextlib.contextmanager
def _below_autograd() -> Iterator[None]:
    """Inside the block a call of the op skips its autograd kernel, which is where the call comes from."""
    with torch._C._AutoDispatchBelowAutograd():
        if not torch._C._are_functorch_transforms_active():
            yield
            return
        # An autograd.Function has turned them off, also for the transforms further out.
        with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
            yield


def apply(function: Any, *args: Any) -> Any:
    """``function.apply(*args)`` for one torch.func transform: the innermost of those that are active.

    The dispatcher calls the autograd kernels once per transform, and a call inside `_below_autograd` goes on to the
    next one. ``apply`` itself would handle all of them again each time.
    """
    if not torch._C._are_functorch_transforms_active():
        return function.apply(*args)
    functorch = torch._C._functorch
    before = functorch.get_single_level_autograd_function_allowed()
    functorch.set_single_level_autograd_function_allowed(True)
    try:
        return _single_level(function).apply(*args)
    finally:
        functorch.set_single_level_autograd_function_allowed(before)


@functools.cache
def _single_level(function: Any) -> Any:
    """The class that torch._functorch.autograd_function would make of function, to handle one transform."""
    parts = {name: staticmethod(getattr(function, name)) for name in ("forward", "backward", "jvp")}
    return type(function.__name__, (torch.autograd.function._SingleLevelFunction,), parts)


def differentiated(tensors: tuple[Tensor | None, ...]) -> bool:
    """Whether a derivative, backward or forward, may be taken through a call."""
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors):
        return True
    return _may_have_tangents() and any(
        x is not None and forward_ad.unpack_dual(x, level=0).tangent is not None for x in tensors
    )


def _may_have_tangents() -> bool:
    """Whether a tensor may have a tangent: a cheap test that is False where forward mode is not in use.

    Dual numbers have one level, 0, and torch.func may not count it.
    """
    return getattr(forward_ad, "_current_level", 0) >= 0 or torch._C._are_functorch_transforms_active()


# Saved with what a forward leaves to its backward, to tell whose statistics those are: for each backend a tensor of no
# numbers that begin at an offset of its own. What copies saved tensors makes that 0, and then nothing is known.
with torch.inference_mode(False):  # whoever imports: a backward saves no tensors of that mode
    _STAMPS = {
        name: torch.empty(0, device="cpu").as_strided((0,), (1,), i) for i, name in enumerate(dispatch.BACKENDS, 1)
    }


def _check_stamp(stamp: Tensor | None, backend: str) -> None:
    """Raises RuntimeError if the saved statistics are another backend's.

    A checkpoint that was computed again on another backend leaves such statistics.
    """
    found = 0 if stamp is None else stamp.storage_offset()
    if found == 0 or found == _STAMPS[backend].storage_offset():
        return
    raise RuntimeError(
        f"the forward of fused_align_aggregate ran on {backend}, and a checkpoint has computed it again on "
        f"{list(_STAMPS)[found - 1]}, whose statistics the backward of {backend} cannot read: name the backend in the "
        f"call (backend={backend!r}), or enter use_backend({backend!r}) inside the function that is checkpointed"
    )
