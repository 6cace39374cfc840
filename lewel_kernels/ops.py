"""The registered ops: schemas, fake kernels and vmap of align_aggregate, for every backend; autograd.py derives them.

``Library.define`` rather than the custom_op decorator: it has half the overhead per call. The backward is an op of its
own.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from lewel_kernels import autograd, dispatch, reference, tools, tracing
from lewel_kernels.autograd import BWD, FWD
from lewel_kernels.signature import Grads, Inputs, Needs, Options, Saved, outputs

_library = torch.library.Library("lewel_kernels", "DEF")
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


def align_aggregate(inputs: Inputs, options: Options, backend: str, numbers: Tensor | None) -> tuple[Tensor, ...]:
    """The forward op, without the dispatcher where that would only pass the call on.

    ``numbers``: temperature and eps as a tensor (2,), in place of those in ``options``, or None.
    """
    if not tracing.is_plain(inputs):
        args = (*inputs, *options[:5], backend, numbers)
        if not torch.compiler.is_dynamo_compiling():
            if tools.exports_to_onnx():
                return _forward_decomposed(*args)
            tools.prepare(inputs)
        return torch.ops.lewel_kernels.align_aggregate_fwd(*args)
    if autograd.differentiated(inputs):
        return autograd.Forward.apply(*inputs, options, backend, numbers)
    return autograd.run_forward(inputs, options, backend, numbers)


# A schema has options as arguments of their own: (num_groups, temperature, eps, out_dtype, return_maps) of the forward,
# (num_groups, temperature, eps, needs) of the backward.


def _forward_call(args: tuple[Any, ...]) -> tuple[Inputs, Options, str, Tensor | None]:
    return Inputs(*args[:6]), Options(*args[6:11]), args[11], args[12] if len(args) > 12 else None


def _backward_call(args: tuple[Any, ...]) -> tuple[Grads, Inputs, Saved, Options, str, Tensor | None]:
    options = Options(args[10], args[11], args[12], needs=cast(Needs, tuple(args[13])))
    return args[:2], Inputs(*args[2:8]), args[8:10], options, args[14], args[15] if len(args) > 15 else None


def _forward(*args: Any) -> tuple[Tensor, ...]:
    return autograd.run_forward(*_forward_call(args))


def _backward(*args: Any) -> tuple[Tensor, ...]:
    gradients = autograd.run_backward(*_backward_call(args))
    return tuple(args[4].new_empty(0) if gradient is None else gradient for gradient in gradients)


def _forward_fake(*args: Any) -> tuple[Tensor, ...]:
    inputs, options, backend, _ = _forward_call(args)
    return outputs(inputs, options, dispatch.load(backend).heat_rows)


def _forward_decomposed(*args: Any) -> tuple[Tensor, ...]:
    """The forward as PyTorch's operators, for exported programs (ONNX) that run where no backend is."""
    inputs, options, _, numbers = _forward_call(args)
    return reference.forward(inputs, autograd.symbolic(options, numbers))


def _backward_fake(*args: Any) -> tuple[Tensor, ...]:
    _, inputs, _, options, *_ = _backward_call(args)
    return tuple(
        torch.empty_like(x) if need and x is not None else inputs.weight.new_empty(0)
        for x, need in zip(inputs, options.needs, strict=True)
    )


def _forward_autograd(*args: Any) -> tuple[Tensor, ...]:
    inputs, options, backend, numbers = _forward_call(args)
    tools.prepare(inputs)
    _, temperature, eps, *_ = options
    if isinstance(temperature, torch.SymFloat) or isinstance(eps, torch.SymFloat):
        # A compiled graph is given them anew in each call. As numbers each value would be compiled.
        options, numbers = options._replace(temperature=1.0, eps=1.0), as_tensor(temperature, eps)
    if autograd.differentiated(inputs):
        return autograd.apply(autograd.Forward, *inputs, options, backend, numbers)
    return autograd.forward_below(inputs, options, backend, numbers)


def as_tensor(*numbers: float | Tensor) -> Tensor:
    """The numbers, constant or symbolic or tensors of one, as a tensor: float64, on the CPU."""
    one = torch.ones((), dtype=torch.float64, device="cpu")
    return torch.stack([x.to(one) if isinstance(x, Tensor) else one * x for x in numbers])


def _backward_autograd(*args: Any) -> tuple[Tensor, ...]:
    *_, options, backend, numbers = _backward_call(args)
    tensors = args[:10]
    tools.prepare(tensors)
    if autograd.differentiated(tensors):
        return autograd.apply(autograd.Backward, *tensors, options, backend, numbers)
    return autograd.backward_below(tensors, options, backend, numbers)


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


_library.impl("align_aggregate_fwd", _forward, "CompositeExplicitAutograd")
_library.impl("align_aggregate_bwd", _backward, "CompositeExplicitAutograd")
torch.library.register_fake(FWD, _forward_fake, lib=_library)
torch.library.register_fake(BWD, _backward_fake, lib=_library)
_library.impl("align_aggregate_fwd", _forward_autograd, "Autograd")
_library.impl("align_aggregate_bwd", _backward_autograd, "Autograd")
torch.library.register_vmap(FWD, _forward_vmap, lib=_library)
torch.library.register_vmap(BWD, _backward_vmap, lib=_library)
