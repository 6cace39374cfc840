"""The registered ops: schemas, fake kernels, autograd and vmap of align_aggregate, for every backend.

``Library.define`` rather than the custom_op decorator: it has half the overhead per call. The backward is an op of its
own whose gradient goes through the reference: second order is right everywhere, at the reference's speed. (A plain
autograd.Function around kernels would return wrong second-order gradients without an error.) The autograd kernels are
registered directly rather than by torch.library.register_autograd, which reads the schema anew in every call (60 us)
and knows no transforms of torch.func.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from lewel_kernels import checks, dispatch, reference, tools, tracing

NAMESPACE = "lewel_kernels"
FWD = f"{NAMESPACE}::align_aggregate_fwd"
BWD = f"{NAMESPACE}::align_aggregate_bwd"

_library = torch.library.Library(NAMESPACE, "DEF")
_library.define(
    "align_aggregate_fwd(Tensor features, Tensor? pixels, Tensor weight, Tensor? bias, Tensor? scale,"
    " Tensor? shift, int num_groups, Scalar temperature, Scalar eps, ScalarType out_dtype, bool return_maps,"
    " str backend, Tensor? numbers=None)"
    " -> (Tensor pooled, Tensor maps, Tensor heat, Tensor norm)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
# A gradient that is not needed comes back as an empty (0,) tensor: schemas have no optional results.
_library.define(
    "align_aggregate_bwd(Tensor grad_pooled, Tensor? grad_maps, Tensor features, Tensor? pixels, Tensor weight,"
    " Tensor? bias, Tensor? scale, Tensor? shift, Tensor heat, Tensor norm, int num_groups, Scalar temperature,"
    " Scalar eps, bool[6] needs, str backend, Tensor? numbers=None)"
    " -> (Tensor d_features, Tensor d_pixels, Tensor d_weight, Tensor d_bias, Tensor d_scale, Tensor d_shift)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def align_aggregate(*args: Any) -> tuple[Tensor, ...]:
    """The forward op on its schema's arguments, without the dispatcher where that would only pass the call on."""
    tensors = args[:6]
    if not tracing.is_plain(tensors):
        if not torch.compiler.is_dynamo_compiling():
            if tools.exports_to_onnx():
                return _forward_decomposed(*args)
            tools.prepare(tensors)
        return torch.ops.lewel_kernels.align_aggregate_fwd(*args)
    if _differentiated(tensors):
        return _Forward.apply(*args)
    return _forward(*args)


def _profiled(op: str, backend: str) -> contextlib.AbstractContextManager[object]:
    """The op and its backend by name in a profile, also of calls that skip the dispatcher."""
    if torch.autograd._profiler_enabled():
        return torch.profiler.record_function(f"{op}[{backend}]")
    return _NOT_PROFILED


_NOT_PROFILED = contextlib.nullcontext()


def _forward(
    features: Tensor, pixels: Tensor | None, weight: Tensor, bias: Tensor | None, scale: Tensor | None,
    shift: Tensor | None, num_groups: int, temperature: float, eps: float, out_dtype: torch.dtype,
    return_maps: bool, backend: str, numbers: Tensor | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    temperature, eps = _numbers(temperature, eps, numbers)
    with _profiled(FWD, backend):
        return dispatch.load(backend).forward(
            features, pixels, weight, bias, scale, shift,
            num_groups=num_groups, temperature=temperature, eps=eps, out_dtype=out_dtype, return_maps=return_maps,
        )  # fmt: skip


def _numbers(temperature: float, eps: float, numbers: Tensor | None) -> tuple[float, float]:
    """temperature and eps as floats.

    ``numbers``, a tensor (2,), replaces both where a graph computes them while it runs; its values are then checked.
    """
    if numbers is None:
        return float(temperature), float(eps)
    temperature, eps = numbers.tolist()
    checks.check_constants(temperature, eps, None)
    return temperature, eps


def _symbols(temperature: float, eps: float, numbers: Tensor | None) -> tuple[float | Tensor, float | Tensor]:
    """temperature and eps for PyTorch's operators: as given, or the two elements of ``numbers``.

    Those are tensors of one number, whose value need not be known yet.
    """
    return (temperature, eps) if numbers is None else (numbers[0], numbers[1])


def _forward_fake(
    features: Tensor, pixels: Tensor | None, weight: Tensor, bias: Tensor | None, scale: Tensor | None,
    shift: Tensor | None, num_groups: int, temperature: float, eps: float, out_dtype: torch.dtype,
    return_maps: bool, backend: str, numbers: Tensor | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    (n, c, p), k = features.shape, weight.shape[0]
    acc = reference.accumulator(features.dtype)
    rows = dispatch.load(backend).heat_rows
    return (
        features.new_empty(n, k // num_groups, c, dtype=out_dtype),
        features.new_empty((n, k, p) if return_maps else (0,), dtype=out_dtype),
        features.new_empty_strided((n, k, p), (p * k, 1, k)) if rows else features.new_empty(n, k, p),
        features.new_empty(n, p, dtype=acc),
    )


def _backward(
    grad_pooled: Tensor, grad_maps: Tensor | None, features: Tensor, pixels: Tensor | None, weight: Tensor,
    bias: Tensor | None, scale: Tensor | None, shift: Tensor | None, heat: Tensor, norm: Tensor,
    num_groups: int, temperature: float, eps: float, needs: list[bool], backend: str, numbers: Tensor | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    temperature, eps = _numbers(temperature, eps, numbers)
    with _profiled(BWD, backend):
        gradients = dispatch.load(backend).backward(
            grad_pooled, grad_maps, features, pixels, weight, bias, scale, shift, heat, norm,
            num_groups=num_groups, temperature=temperature, eps=eps, needs=_six(needs),
        )  # fmt: skip
    return tuple(weight.new_empty(0) if gradient is None else gradient for gradient in gradients)


def _backward_fake(
    grad_pooled: Tensor, grad_maps: Tensor | None, features: Tensor, pixels: Tensor | None, weight: Tensor,
    bias: Tensor | None, scale: Tensor | None, shift: Tensor | None, heat: Tensor, norm: Tensor,
    num_groups: int, temperature: float, eps: float, needs: list[bool], backend: str, numbers: Tensor | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    inputs = (features, pixels, weight, bias, scale, shift)
    return tuple(
        torch.empty_like(x) if need and x is not None else weight.new_empty(0)
        for x, need in zip(inputs, needs, strict=True)
    )


def _forward_backward(ctx: Any, grad_pooled: Tensor | None, grad_maps: Tensor | None, *_: None) -> tuple[Any, ...]:
    features, pixels, weight, bias, scale, shift, heat, norm, stamp = ctx.saved_tensors
    num_groups, temperature, eps, backend, numbers = ctx.constants
    if not torch.compiler.is_compiling():
        _check_stamp(stamp, backend)
    if grad_pooled is None:
        if grad_maps is None:
            return (None,) * 13
        shape, dtype = ctx.pooled_like
        grad_pooled = features.new_zeros(shape, dtype=dtype)
    needs = list(ctx.needs_input_grad[:6])
    tensors = grad_pooled, grad_maps, features, pixels, weight, bias, scale, shift, heat, norm
    direct = not torch.is_grad_enabled() and tracing.is_plain(tensors)
    run = _backward if direct else torch.ops.lewel_kernels.align_aggregate_bwd
    gradients = run(*tensors, num_groups, temperature, eps, needs, backend, numbers)
    return tuple(g if need else None for g, need in zip(gradients, needs, strict=True)) + (None,) * 7


def _forward_jvp(ctx: Any, *tangents: Any) -> tuple[Tensor | None, ...]:
    num_groups, temperature, eps, numbers, out_dtype, return_maps = ctx.forward_constants
    temperature, eps = _symbols(temperature, eps, numbers)
    with forward_ad._set_fwd_grad_enabled(True):  # for a derivative of the tangents
        inputs: list[Any] = [x if x is None else forward_ad.unpack_dual(x, level=0).primal for x in ctx.saved_tensors]
        pooled, maps = reference.jvp(
            *inputs, tangents=tangents[:6],
            num_groups=num_groups, temperature=temperature, eps=eps, out_dtype=out_dtype,
        )  # fmt: skip
    return pooled, maps if return_maps else None, None, None


def _backward_backward(ctx: Any, *grad_gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    saved, (*_, needs) = ctx.saved_tensors, ctx.constants
    wanted = [i for i, need in enumerate(ctx.needs_input_grad[:8]) if need]
    given = [i for i, x in enumerate(grad_gradients) if x is not None and needs[i]]
    results: list[Tensor | None] = [None] * 16

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


def _reference_vjp(ctx: Any, inputs: Any) -> dispatch.Gradients:
    """The gradients of a `_Backward`, as a function of its eight inputs."""
    num_groups, temperature, eps, numbers, needs = ctx.constants
    temperature, eps = _symbols(temperature, eps, numbers)
    return reference.vjp(*inputs, num_groups=num_groups, temperature=temperature, eps=eps, needs=_six(needs))


# forward(ctx, ...) and not setup_context: torch binds the signature of the latter's forward in every call, 25 us.
class _Forward(torch.autograd.Function):
    backward = staticmethod(_forward_backward)
    jvp = staticmethod(_forward_jvp)

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, ...]:
        outputs = _forward_below_autograd(*args)
        num_groups, temperature, eps, out_dtype, return_maps, backend = args[6:12]
        numbers = args[12] if len(args) > 12 else None
        pooled, maps, heat, norm = outputs
        ctx.mark_non_differentiable(heat, norm, *(() if return_maps else (maps,)))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*args[:6], heat, norm, _STAMPS.get(backend))
        ctx.constants = num_groups, temperature, eps, backend, numbers
        ctx.pooled_like = pooled.shape, pooled.dtype
        if _may_have_tangents():
            ctx.save_for_forward(*args[:6])
            ctx.forward_constants = num_groups, temperature, eps, numbers, out_dtype, return_maps
        return outputs


class _Backward(torch.autograd.Function):
    backward = staticmethod(_backward_backward)
    jvp = staticmethod(_backward_jvp)

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, ...]:
        # The statistics heat and norm are functions of the inputs; their part of the second derivative is taken there.
        ctx.save_for_backward(*args[:8])
        ctx.save_for_forward(*args[:8])
        ctx.constants = *args[10:13], args[15] if len(args) > 15 else None, args[13]
        ctx.set_materialize_grads(False)
        return _backward_below_autograd(*args)


def _forward_below_autograd(*args: Any) -> tuple[Tensor, ...]:
    if tracing.is_plain(args[:6]):
        return _forward(*args)
    with _below_autograd():
        return torch.ops.lewel_kernels.align_aggregate_fwd(*args)


def _backward_below_autograd(*args: Any) -> tuple[Tensor, ...]:
    with _below_autograd():
        return torch.ops.lewel_kernels.align_aggregate_bwd(*args)


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


def _apply(function: Any, *args: Any) -> Any:
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


def _differentiated(tensors: tuple[Tensor | None, ...]) -> bool:
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


def _forward_autograd(*args: Any) -> tuple[Tensor, ...]:
    tools.prepare(args[:6])
    if isinstance(args[7], torch.SymFloat) or isinstance(args[8], torch.SymFloat):
        # A compiled graph is given them anew in each call. As numbers each value would be compiled.
        args = (*args[:7], 1.0, 1.0, *args[9:12], as_tensor(args[7], args[8]))
    return _apply(_Forward, *args) if _differentiated(args[:6]) else _forward_below_autograd(*args)


def as_tensor(*numbers: float | Tensor) -> Tensor:
    """The numbers, constant or symbolic or tensors of one, as a tensor: float64, on the CPU."""
    one = torch.ones((), dtype=torch.float64, device="cpu")
    return torch.stack([x.to(one) if isinstance(x, Tensor) else one * x for x in numbers])


def _backward_autograd(*args: Any) -> tuple[Tensor, ...]:
    tools.prepare(args[:10])
    return _apply(_Backward, *args) if _differentiated(args[:10]) else _backward_below_autograd(*args)


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


def _forward_vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """vmap of the forward: mapped images are folded into one longer batch, mapped parameters need a call each."""
    features, pixels, *rest = args
    if any(dim is not None for dim in (*in_dims[2:6], *in_dims[12:])):  # of weight, bias, scale, shift and numbers
        return _one_call_each(torch.ops.lewel_kernels.align_aggregate_fwd, info, in_dims, args)
    size = info.batch_size

    def fold(x: Tensor | None, dim: int | None) -> Tensor | None:
        if x is None:
            return None
        x = x.unsqueeze(0).expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
        return x.flatten(0, 1)

    outputs = torch.ops.lewel_kernels.align_aggregate_fwd(fold(features, in_dims[0]), fold(pixels, in_dims[1]), *rest)
    images = features.shape[0] if in_dims[0] is None else features.movedim(in_dims[0], 0).shape[1]
    pooled, maps, heat, norm = (x.unflatten(0, (size, images)) if x.dim() > 1 else x.expand(size, 0) for x in outputs)
    return (pooled, maps, heat, norm), (0,) * 4


def _backward_vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """Gradients of the weight are sums over one sample's images, so samples cannot share a call."""
    return _one_call_each(torch.ops.lewel_kernels.align_aggregate_bwd, info, in_dims, args)


def _one_call_each(op: Any, info: Any, in_dims: Any, args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    size = info.batch_size

    def sample(x: Any, dim: Any, i: int) -> Any:
        if not isinstance(dim, int):
            return x
        return x.select(dim, i) if size else x.new_zeros(x.movedim(dim, 0).shape[1:])

    # An empty batch runs a sample of zeros, for the shapes of the results.
    rows = [op(*(sample(x, d, i) for x, d in zip(args, in_dims, strict=True))) for i in range(max(size, 1))]
    outputs = tuple(torch.stack(column)[:size] for column in zip(*rows, strict=True))
    return outputs, (0,) * len(outputs)


def _six(needs: list[bool]) -> dispatch.Needs:
    features, pixels, weight, bias, scale, shift = needs
    return features, pixels, weight, bias, scale, shift


def _forward_decomposed(
    features: Tensor, pixels: Tensor | None, weight: Tensor, bias: Tensor | None, scale: Tensor | None,
    shift: Tensor | None, num_groups: int, temperature: float, eps: float, out_dtype: torch.dtype,
    return_maps: bool, backend: str, numbers: Tensor | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The forward as PyTorch's operators, for exported programs (ONNX) that run where no backend is."""
    tau, bound = _symbols(temperature, eps, numbers)
    return reference.forward(
        features, pixels, weight, bias, scale, shift,
        num_groups=num_groups, temperature=tau, eps=bound, out_dtype=out_dtype, return_maps=return_maps,
    )  # fmt: skip


_library.impl("align_aggregate_fwd", _forward, "CompositeExplicitAutograd")
_library.impl("align_aggregate_bwd", _backward, "CompositeExplicitAutograd")
torch.library.register_fake(FWD, _forward_fake, lib=_library)
torch.library.register_fake(BWD, _backward_fake, lib=_library)
_library.impl("align_aggregate_fwd", _forward_autograd, "Autograd")
_library.impl("align_aggregate_bwd", _backward_autograd, "Autograd")
torch.library.register_vmap(FWD, _forward_vmap, lib=_library)
torch.library.register_vmap(BWD, _backward_vmap, lib=_library)
