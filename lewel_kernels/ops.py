"""The registered ops: schemas, fake kernels, autograd and vmap of align_aggregate, for every backend.

``Library.define`` rather than the custom_op decorator: it has half the overhead per call. The backward is an op of its
own whose gradient goes through the reference: second order is right everywhere, at the reference's speed. (A plain
autograd.Function around kernels would return wrong second-order gradients without an error.) The autograd kernels are
registered directly rather than by torch.library.register_autograd, which reads the schema anew in every call: 60 us.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from lewel_kernels import dispatch, reference

NAMESPACE = "lewel_kernels"
FWD = f"{NAMESPACE}::align_aggregate_fwd"
BWD = f"{NAMESPACE}::align_aggregate_bwd"

_library = torch.library.Library(NAMESPACE, "DEF")
_library.define(
    "align_aggregate_fwd(Tensor features, Tensor? pixels, Tensor weight, Tensor? bias, Tensor? scale,"
    " Tensor? shift, int num_groups, float temperature, float eps, ScalarType out_dtype, bool return_maps,"
    " str backend)"
    " -> (Tensor pooled, Tensor maps, Tensor heat, Tensor norm)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
# A gradient that is not needed comes back as an empty (0,) tensor: schemas have no optional results.
_library.define(
    "align_aggregate_bwd(Tensor grad_pooled, Tensor? grad_maps, Tensor features, Tensor? pixels, Tensor weight,"
    " Tensor? bias, Tensor? scale, Tensor? shift, Tensor heat, Tensor norm, int num_groups, float temperature,"
    " float eps, bool[6] needs, str backend)"
    " -> (Tensor d_features, Tensor d_pixels, Tensor d_weight, Tensor d_bias, Tensor d_scale, Tensor d_shift)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def align_aggregate(*args: Any) -> tuple[Tensor, ...]:
    """The forward op on its schema's arguments, without the dispatcher where that would only pass the call on."""
    tensors = args[:6]
    if not _plain(tensors):
        return torch.ops.lewel_kernels.align_aggregate_fwd(*args)
    _refuse_tangents(tensors)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors):
        return _Forward.apply(*args)
    return _forward(*args)


def _plain(tensors: tuple[Tensor | None, ...]) -> bool:
    """Whether nothing but autograd looks at calls on these tensors: no compiler, no mode, no transform, no subclass.

    The dispatcher and its way back into Python cost 40 us in each direction, more than the arithmetic of a small image.
    """
    if torch.compiler.is_compiling():
        return False
    try:
        c = torch._C
        is_batched = c._functorch.is_legacy_batchedtensor  # of torch.autograd.grad(is_grads_batched=True)
        return (
            not c._len_torch_dispatch_stack()
            and not c._is_torch_function_mode_enabled()
            and not c._are_functorch_transforms_active()
            and not c._get_tracing_state()
            and all(x is None or (type(x) in _PLAIN_TYPES and not is_batched(x)) for x in tensors)
        )
    except AttributeError:  # a version of torch that has renamed one of these: the dispatcher is slower, and right
        return False


_PLAIN_TYPES = frozenset({Tensor, torch.nn.Parameter})


def _profiled(op: str, backend: str) -> contextlib.AbstractContextManager[object]:
    """The op and its backend by name in a profile, also of calls that skip the dispatcher."""
    if torch.autograd._profiler_enabled():
        return torch.profiler.record_function(f"{op}[{backend}]")
    return _NOT_PROFILED


_NOT_PROFILED = contextlib.nullcontext()


def _forward(
    features: Tensor, pixels: Tensor | None, weight: Tensor, bias: Tensor | None, scale: Tensor | None,
    shift: Tensor | None, num_groups: int, temperature: float, eps: float, out_dtype: torch.dtype,
    return_maps: bool, backend: str,
) -> tuple[Tensor, ...]:  # fmt: skip
    with _profiled(FWD, backend):
        return dispatch.load(backend).forward(
            features, pixels, weight, bias, scale, shift,
            num_groups=num_groups, temperature=temperature, eps=eps, out_dtype=out_dtype, return_maps=return_maps,
        )  # fmt: skip


def _forward_fake(
    features: Tensor, pixels: Tensor | None, weight: Tensor, bias: Tensor | None, scale: Tensor | None,
    shift: Tensor | None, num_groups: int, temperature: float, eps: float, out_dtype: torch.dtype,
    return_maps: bool, backend: str,
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
    num_groups: int, temperature: float, eps: float, needs: list[bool], backend: str,
) -> tuple[Tensor, ...]:  # fmt: skip
    with _profiled(BWD, backend):
        gradients = dispatch.load(backend).backward(
            grad_pooled, grad_maps, features, pixels, weight, bias, scale, shift, heat, norm,
            num_groups=num_groups, temperature=temperature, eps=eps, needs=_six(needs),
        )  # fmt: skip
    return tuple(weight.new_empty(0) if gradient is None else gradient for gradient in gradients)


def _backward_fake(
    grad_pooled: Tensor, grad_maps: Tensor | None, features: Tensor, pixels: Tensor | None, weight: Tensor,
    bias: Tensor | None, scale: Tensor | None, shift: Tensor | None, heat: Tensor, norm: Tensor,
    num_groups: int, temperature: float, eps: float, needs: list[bool], backend: str,
) -> tuple[Tensor, ...]:  # fmt: skip
    inputs = (features, pixels, weight, bias, scale, shift)
    return tuple(
        torch.empty_like(x) if need and x is not None else weight.new_empty(0)
        for x, need in zip(inputs, needs, strict=True)
    )


def _forward_backward(ctx: Any, grad_pooled: Tensor | None, grad_maps: Tensor | None, *_: None) -> tuple[Any, ...]:
    features, pixels, weight, bias, scale, shift, heat, norm = ctx.saved_tensors
    num_groups, temperature, eps, backend = ctx.constants
    if grad_pooled is None:
        if grad_maps is None:
            return (None,) * 12
        shape, dtype = ctx.pooled_like
        grad_pooled = features.new_zeros(shape, dtype=dtype)
    needs = list(ctx.needs_input_grad[:6])
    tensors = grad_pooled, grad_maps, features, pixels, weight, bias, scale, shift, heat, norm
    direct = not torch.is_grad_enabled() and _plain(tensors)
    run = _backward if direct else torch.ops.lewel_kernels.align_aggregate_bwd
    gradients = run(*tensors, num_groups, temperature, eps, needs, backend)
    return tuple(g if need else None for g, need in zip(gradients, needs, strict=True)) + (None,) * 6


def _backward_backward(ctx: Any, *grad_gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    num_groups, temperature, eps, needs = ctx.constants
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Aliases that stay attached to their tensors, so that with a graph asked for the third order is right too.
        inputs: list[Any] = [x if x is None or not x.requires_grad else x.view_as(x) for x in ctx.saved_tensors]
        gradients = reference.vjp(*inputs, num_groups=num_groups, temperature=temperature, eps=eps, needs=_six(needs))
        pairs = [
            (gradient, grad_gradient)
            for gradient, grad_gradient in zip(gradients, grad_gradients, strict=True)
            if gradient is not None and grad_gradient is not None and gradient.requires_grad
        ]
        wanted = [i for i, x in enumerate(inputs) if x is not None and x.requires_grad]
        results: list[Tensor | None] = [None] * 15
        if pairs and wanted:
            outputs, grad_outputs = zip(*pairs, strict=True)
            found = torch.autograd.grad(
                outputs, [inputs[i] for i in wanted], grad_outputs, create_graph=create_graph, allow_unused=True
            )
            for i, gradient in zip(wanted, found, strict=True):
                results[i] = gradient
    return tuple(results)


# forward(ctx, ...) and not setup_context: torch binds the signature of the latter's forward in every call, 25 us.
class _Forward(torch.autograd.Function):
    backward = staticmethod(_forward_backward)

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, ...]:
        outputs = _forward_below_autograd(*args)
        num_groups, temperature, eps, _, return_maps, backend = args[6:]
        pooled, maps, heat, norm = outputs
        ctx.mark_non_differentiable(heat, norm, *(() if return_maps else (maps,)))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*args[:6], heat, norm)
        ctx.constants = num_groups, temperature, eps, backend
        ctx.pooled_like = pooled.shape, pooled.dtype
        return outputs


class _Backward(torch.autograd.Function):
    backward = staticmethod(_backward_backward)

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, ...]:
        # The statistics heat and norm are functions of the inputs; their part of the second derivative is taken there.
        ctx.save_for_backward(*args[:8])
        ctx.constants = args[10:14]
        ctx.set_materialize_grads(False)
        return _backward_below_autograd(*args)


def _forward_below_autograd(*args: Any) -> tuple[Tensor, ...]:
    if _plain(args[:6]):
        return _forward(*args)
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.lewel_kernels.align_aggregate_fwd(*args)


def _backward_below_autograd(*args: Any) -> tuple[Tensor, ...]:
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.lewel_kernels.align_aggregate_bwd(*args)


def _refuse_tangents(tensors: tuple[Tensor | None, ...]) -> None:
    """Kernels without a rule drop tangents: forward-mode derivatives would be missing, or zero, without an error."""
    if getattr(forward_ad, "_current_level", 0) < 0:  # outside of every dual level, at no cost
        return
    if any(x is not None and forward_ad.unpack_dual(x).tangent is not None for x in tensors):
        raise RuntimeError(
            "fused_align_aggregate has no forward-mode derivative (forward_ad, torch.func.jvp); use "
            "torch.autograd.grad, or backward(), which go to any order"
        )


def _forward_autograd(*args: Any) -> tuple[Tensor, ...]:
    _refuse_tangents(args[:6])
    if not torch.is_grad_enabled():
        return _forward_below_autograd(*args)
    if torch._C._are_functorch_transforms_active():
        raise RuntimeError(
            "fused_align_aggregate cannot be differentiated by torch.func transforms (grad, vjp, jacrev); use "
            "torch.autograd.grad, or backward(), which go to any order"
        )
    return _Forward.apply(*args)


def _backward_autograd(*args: Any) -> tuple[Tensor, ...]:
    return (_Backward.apply if torch.is_grad_enabled() else _backward_below_autograd)(*args)


def _forward_vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """A mapped batch of images is a longer batch of images; mapped parameters are one call each."""
    features, pixels, *rest = args
    if any(dim is not None for dim in in_dims[2:6]):  # of weight, bias, scale, shift
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


_library.impl("align_aggregate_fwd", _forward, "CompositeExplicitAutograd")
_library.impl("align_aggregate_bwd", _backward, "CompositeExplicitAutograd")
torch.library.register_fake(FWD, _forward_fake, lib=_library)
torch.library.register_fake(BWD, _backward_fake, lib=_library)
_library.impl("align_aggregate_fwd", _forward_autograd, "Autograd")
_library.impl("align_aggregate_bwd", _backward_autograd, "Autograd")
torch.library.register_vmap(FWD, _forward_vmap, lib=_library)
torch.library.register_vmap(BWD, _backward_vmap, lib=_library)
