"""The specification of the op: E0-E12 of docs/math.md in plain PyTorch, forward and closed-form derivatives.

Every other backend is checked against this file. It runs on any device in any floating dtype, computes in float32
(float64 for float64 inputs) whatever the storage dtype is, and consists of differentiable PyTorch operations only, so
its backward can itself be differentiated: second-order gradients of every backend go through here.

Shapes: features (N, C, P), pixels (N, D, P) or None for "features are projected", weight (K, D), bias (K,) or None,
with P positions, K maps, G = num_groups channel groups and L = K / G aligned vectors per image. scale and shift are
both (D,) in the accumulator type, with pixels given, or both None for "pixels are projected as they are".
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lewel_kernels.signature import Gradients, Grads, Inputs, Options, Results, Saved, accumulator

if TYPE_CHECKING:
    from lewel_kernels.dispatch import Request

name = "reference"
device_type = None  # any
heat_rows = False


def refuse(request: Request) -> str | None:
    if request.dtype.itemsize == 1:
        return f"PyTorch has no arithmetic for {request.dtype}; convert the inputs to bfloat16 or float32"
    return None


def forward(inputs: Inputs, options: Options) -> Results:
    """E0-E5.

    Returns:
        pooled (N, L, C) in out_dtype; maps (N, K, P) in out_dtype, or an empty (0,) tensor without ``return_maps``;
        and for the backward: heat (N, K, P) in the dtype of features and norm (N, P) in the accumulator type.
    """
    features, pixels, weight, bias, scale, shift = inputs
    num_groups, temperature, eps, out_dtype, return_maps, _ = options
    acc = accumulator(features.dtype)
    with _without_autocast(features):
        heat = project(projection_input(features, pixels, scale, shift), weight, bias)  # E0, E1
        norm = torch.linalg.vector_norm(heat.to(acc), dim=1)  # [N, P]
        unit = heat.to(acc) / norm.clamp_min(eps).unsqueeze(1)  # E2
        maps = torch.softmax(unit / temperature, dim=-1)  # E3, E4
        pooled = align_aggregate(features.to(acc), maps, num_groups)  # E5
    # Contiguous, and no views: a view that leaves an autograd.Function cannot be changed in place.
    pooled = pooled.to(out_dtype, copy=True, memory_format=torch.contiguous_format)
    returned = maps.to(out_dtype) if return_maps else maps.new_empty(0, dtype=out_dtype)
    return pooled, returned, heat, norm


def projection_input(features: Tensor, pixels: Tensor | None, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    """What E1 projects: the pixels after E0, the pixels or the features."""
    if scale is None and shift is None:
        return features if pixels is None else pixels
    if pixels is None or scale is None or shift is None:
        raise ValueError("scale and shift are given together, and with pixels")
    return activate(pixels, scale, shift)


def activate(pixels: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """E0: relu(scale * pixels + shift) in the accumulator type, rounded once to the dtype of pixels (N, D, P)."""
    return _affine(pixels.to(accumulator(pixels.dtype)), scale, shift).relu_().to(pixels.dtype)


def activate_backward(
    d_activated: Tensor, pixels: Tensor, scale: Tensor, shift: Tensor, needs: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """E11: gradients of (pixels, scale, shift), given that of the result of `activate`, in any floating dtype."""
    acc = accumulator(pixels.dtype)
    x = pixels.to(acc)
    # Not "> 0": where the sum is NaN, the gradient of torch.relu is passed on.
    d_sum = torch.where(_affine(x, scale, shift) <= 0, 0.0, d_activated.to(acc))
    needs_pixels, needs_scale, needs_shift = needs
    return (
        _like(d_sum * scale.unsqueeze(1), pixels) if needs_pixels else None,
        _like((d_sum * x).sum(dim=(0, 2)), scale) if needs_scale else None,
        _like(d_sum.sum(dim=(0, 2)), shift) if needs_shift else None,
    )


def _affine(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return (x * scale.unsqueeze(1)).add_(shift.unsqueeze(1))


def project(pixels: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """E1: the heat maps (N, K, P), summed in the accumulator type and rounded once to the storage dtype.

    Everything downstream, backward included, starts from the rounded values, so both directions see the same maps.
    """
    acc = accumulator(pixels.dtype)
    heat = weight.to(acc) @ pixels.to(acc)
    if bias is not None:
        heat = heat + bias.to(acc).unsqueeze(-1)
    return heat.to(pixels.dtype).contiguous()


def align_aggregate(features: Tensor, maps: Tensor, num_groups: int) -> Tensor:
    """E5: channel group g of aligned vector l is the features (N, C, P) pooled with map g*L + l of maps (N, K, P)."""
    # In this order, for sums over positions of the other one may be less exact in PyTorch's products.
    grouped = _groups(features, num_groups) @ _groups(maps, num_groups).transpose(-1, -2)  # [N, G, C/G, L]
    return _ungroup_channels(grouped.transpose(-1, -2))


def backward(grads: Grads, inputs: Inputs, saved: Saved, options: Options) -> Gradients:
    """E6-E11: gradients of (features, pixels, weight, bias, scale, shift).

    A gradient is None where ``needs`` is False or the input is None, else in the dtype and layout of its input. With
    ``pixels`` None, the gradient of features holds both of its terms, E6 and E10.

    Args:
        grads: Those of pooled and of maps; None for maps without one. Any floating dtype.
        inputs: As of the forward.
        saved: heat and norm, as the forward returned them.
        options: As of the forward, and ``needs``.
    """
    (grad_pooled, grad_maps), (heat, norm) = grads, saved
    features, pixels, weight, bias, scale, shift = inputs
    num_groups, temperature, eps, _, _, needs = options
    acc = accumulator(features.dtype)
    needs_features, needs_pixels, needs_weight, needs_bias, needs_scale, needs_shift = needs
    d_features: Tensor | None = None
    d_pixels: Tensor | None = None
    d_weight: Tensor | None = None
    d_bias: Tensor | None = None
    d_scale: Tensor | None = None
    d_shift: Tensor | None = None
    with _without_autocast(features):
        clamped = norm.clamp_min(eps).unsqueeze(1)  # [N, 1, P]
        unit = heat.to(acc) / clamped  # E2
        maps = torch.softmax(unit / temperature, dim=-1)  # E3, E4

        d_grouped = _group_channels(grad_pooled.to(acc), num_groups)  # [N, G, L, C/G]
        if needs_features:
            d_features = (d_grouped.transpose(-1, -2) @ _groups(maps, num_groups)).flatten(1, 2)  # E6
        d_maps = (d_grouped @ _groups(features.to(acc), num_groups)).flatten(1, 2)  # E7
        if grad_maps is not None:
            d_maps = d_maps + grad_maps.to(acc)
        delta = (maps * d_maps).sum(dim=-1, keepdim=True)  # E8
        d_unit = maps * (d_maps - delta) / temperature
        radial = unit * (unit * d_unit).sum(dim=1, keepdim=True)
        radial = torch.where((norm > eps).unsqueeze(1), radial, torch.zeros_like(radial))
        d_heat = (d_unit - radial) / clamped  # E9

        if pixels is None and d_features is not None:  # E10 from here on
            d_features = d_features + weight.to(acc).mT @ d_heat
        elif pixels is not None and (needs_pixels or needs_scale or needs_shift):
            d_pixels = weight.to(acc).mT @ d_heat
            if scale is not None and shift is not None:
                d_pixels, d_scale, d_shift = activate_backward(
                    d_pixels, pixels, scale, shift, (needs_pixels, needs_scale, needs_shift)
                )
        if needs_weight:
            projected = projection_input(features, pixels, scale, shift)
            d_weight = (d_heat @ projected.to(acc).mT).sum(dim=0)
        if needs_bias and bias is not None:
            d_bias = d_heat.sum(dim=(0, 2))
    return (
        _like(d_features, features),
        _like(d_pixels, pixels),
        _like(d_weight, weight),
        _like(d_bias, bias),
        d_scale,
        d_shift,
    )


def jvp(inputs: Inputs, tangents: Sequence[Tensor | None], options: Options) -> tuple[Tensor, Tensor]:
    """E12: tangents of (pooled, maps) in out_dtype, given those of the six inputs; None is zero.

    The derivative of what `forward` computes, for every backend, and itself differentiable.
    """
    features, pixels, weight, bias, scale, shift = inputs
    num_groups, temperature, eps, out_dtype, _, _ = options
    acc = accumulator(features.dtype)
    d_features, d_pixels, d_weight, d_bias, d_scale, d_shift = (x if x is None else x.to(acc) for x in tangents)
    with _without_autocast(features):
        projected = projection_input(features, pixels, scale, shift)
        d_projected = d_features if pixels is None else d_pixels
        if pixels is not None and scale is not None and shift is not None:
            x = pixels.to(acc)
            d_sum = _sum(
                d_pixels if d_pixels is None else d_pixels * scale.unsqueeze(1),
                d_scale if d_scale is None else x * d_scale.unsqueeze(1),
                d_shift if d_shift is None else d_shift.unsqueeze(1).expand_as(x),
            )
            d_projected = d_sum if d_sum is None else torch.where(_affine(x, scale, shift) <= 0, 0.0, d_sum)
        heat = project(projected, weight, bias).to(acc)
        norm = torch.linalg.vector_norm(heat, dim=1, keepdim=True)
        clamped = norm.clamp_min(eps)
        unit = heat / clamped
        maps = torch.softmax(unit / temperature, dim=-1)
        d_heat = _sum(
            d_weight if d_weight is None else d_weight @ projected.to(acc),
            d_projected if d_projected is None else weight.to(acc) @ d_projected,
            d_bias if d_bias is None else d_bias.unsqueeze(-1).expand_as(heat),
        )
        if d_heat is None:
            d_maps = torch.zeros_like(maps)
        else:
            radial = unit * (unit * d_heat).sum(dim=1, keepdim=True)
            d_unit = (d_heat - torch.where(norm > eps, radial, torch.zeros_like(radial))) / clamped
            d_maps = maps * (d_unit - (maps * d_unit).sum(dim=-1, keepdim=True)) / temperature
        d_pooled = align_aggregate(features.to(acc), d_maps, num_groups)
        if d_features is not None:
            d_pooled = d_pooled + align_aggregate(d_features, maps, num_groups)
    return d_pooled.to(out_dtype), d_maps.to(out_dtype)


def _sum(*terms: Tensor | None) -> Tensor | None:
    """The sum of the terms that are not None; None if all are."""
    total = None
    for term in terms:
        total = term if total is None else total if term is None else total + term
    return total


def vjp(grads: Grads, inputs: Inputs, options: Options) -> Gradients:
    """`backward`, with heat and norm computed from the inputs rather than given.

    So it can be differentiated with respect to every input: second-order gradients of all backends go through here.
    """
    _, _, heat, norm = forward(inputs, options._replace(out_dtype=grads[0].dtype, return_maps=False))
    return backward(grads, inputs, (heat, norm), options)


def _without_autocast(x: Tensor) -> contextlib.AbstractContextManager[object]:
    return contextlib.nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)  # meta has none


def _groups(x: Tensor, num_groups: int) -> Tensor:
    """(N, G*X, P) -> (N, G, X, P)."""
    n, channels, p = x.shape
    return x.reshape(n, num_groups, channels // num_groups, p)


def _group_channels(x: Tensor, num_groups: int) -> Tensor:
    """(N, L, C) -> (N, G, L, C/G)."""
    n, l, channels = x.shape
    return x.reshape(n, l, num_groups, channels // num_groups).transpose(1, 2)


def _ungroup_channels(x: Tensor) -> Tensor:
    """(N, G, L, C/G) -> (N, L, C), contiguous."""
    n, num_groups, l, channels = x.shape
    return x.transpose(1, 2).reshape(n, l, num_groups * channels)


def _like(gradient: Tensor | None, input: Tensor | None) -> Tensor | None:
    """The gradient in the dtype and, where it is dense, the memory layout of its input."""
    if gradient is None or input is None:
        return None
    out = gradient.to(input.dtype)
    layout = torch.empty_like(input, device="meta").stride()
    if out.stride() == layout:
        return out
    return torch.empty_strided(input.shape, layout, dtype=input.dtype, device=input.device).copy_(out)
