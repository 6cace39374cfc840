"""What users call: argument checks, autocast, choice of backend, and the registered op."""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import Literal, overload

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from lewel_kernels import checks, dispatch, ops, reference, tracing
from lewel_kernels.signature import Inputs, Options


@overload
def fused_align_aggregate(
    features: Tensor, weight: Tensor, bias: Tensor | None = ..., *, pixels: Tensor | None = ...,
    pixels_affine: tuple[Tensor, Tensor] | None = ..., num_groups: int = ..., temperature: float = ...,
    eps: float = ..., out_dtype: torch.dtype | None = ..., return_maps: Literal[False] = ..., backend: str | None = ...,
) -> Tensor: ...  # fmt: skip


@overload
def fused_align_aggregate(
    features: Tensor, weight: Tensor, bias: Tensor | None = ..., *, pixels: Tensor | None = ...,
    pixels_affine: tuple[Tensor, Tensor] | None = ..., num_groups: int = ..., temperature: float = ...,
    eps: float = ..., out_dtype: torch.dtype | None = ..., return_maps: Literal[True], backend: str | None = ...,
) -> tuple[Tensor, Tensor]: ...  # fmt: skip


def fused_align_aggregate(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    pixels: Tensor | None = None,
    pixels_affine: tuple[Tensor, Tensor] | None = None,
    num_groups: int = 4,
    temperature: float = 1.0,
    eps: float = 1e-12,
    out_dtype: torch.dtype | None = None,
    return_maps: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """LEWEL's coupled projection, alignment maps and aligned pooling in one differentiable op (paper Sec. 3.2, E0-E5).

    Projects every pixel to K heat maps, L2-normalises them over the maps, takes a softmax over positions, and pools
    channel group g of the features with map ``g*L + l`` into aligned vector l, where L = K / num_groups.

    Args:
        features: (N, C, H, W) or (N, C, P), floating; what is pooled. Any strides; contiguous and channels_last are
            read in place.
        weight: (K, D), (K, D, 1) or (K, D, 1, 1), the dtype of features; the per-pixel projection.
        bias: (K,), the dtype of features.
        pixels: (N, D, H, W) or (N, D, P), the dtype of features; what the projection reads. None: the features
            (then D = C).
        pixels_affine: (scale, shift), both (D,), in float32 (float64 with float64 features) also under autocast. With
            it relu(scale * pixels + shift), rounded once to the dtype of pixels, is projected: a batch normalisation
            and its ReLU, of which a backend need not store the result. Gradients flow to all three.
        num_groups: G, a divisor of K and of C. 1 pools all channels with every map; K gives one aligned vector.
        temperature: softmax temperature tau > 0; normalised heat maps are divided by it. A number, also one of NumPy or
            a tensor of one number, to which no gradient flows.
        eps: lower bound >= 0 of the norm over maps, as in torch.nn.functional.normalize.
        out_dtype: dtype of the results; None: the dtype of features (under autocast, the autocast dtype). With 16-bit
            features float32 is worth its memory: rounding the result to bfloat16 costs about a fifth of its difference
            from plain average pooling.
        return_maps: also return the alignment maps; their gradient flows too.
        backend: the name of a backend, as in `explain`; None chooses.

    Returns:
        The aligned representations (N, L, C), contiguous, and with ``return_maps`` the alignment maps (N, K, P), each
        of which sums to 1 over the P positions. Norms, softmax and sums are in float32 (float64 for float64).

    Raises:
        TypeError: an argument is no dense tensor of float64, float32, bfloat16 or float16, or dtypes disagree.
        ValueError: pixels_affine is given without pixels; a shape, device, num_groups, temperature or eps does not fit,
            or the backend does not exist.
        BackendUnavailable: the demanded backend cannot run these inputs.
    """
    given = (features, weight, bias, pixels, *(pixels_affine if isinstance(pixels_affine, (tuple, list)) else ()))
    if has_torch_function(given):  # what stands for a tensor, such as a Proxy of torch.fx: the call is one node
        return handle_torch_function(
            fused_align_aggregate, given, features, weight, bias, pixels=pixels, pixels_affine=pixels_affine,
            num_groups=num_groups, temperature=temperature, eps=eps, out_dtype=out_dtype, return_maps=return_maps,
            backend=backend,
        )  # fmt: skip
    temperature, eps, numbers = _constants(features, temperature, eps)
    num_maps = tracing.untraced(
        checks.check_call, features, pixels, pixels_affine, weight, bias, num_groups, temperature, eps, out_dtype
    )
    traced = torch.compiler.is_compiling()
    again = None if backend is not None or traced else dispatch.recalled(weight)
    features, pixels, weight, bias = _autocast(features, pixels, weight, bias)
    checks.check_dtypes(features, pixels=pixels, weight=weight, bias=bias)
    scale, shift = pixels_affine or (None, None)
    name = dispatch.choose(features.device, features.dtype, num_maps, backend, again, traced)
    images = features.flatten(2), None if pixels is None else pixels.flatten(2)
    out_dtype = features.dtype if out_dtype is None else out_dtype
    inputs = Inputs(*images, weight.flatten(1), bias, scale, shift)
    options = Options(operator.index(num_groups), temperature, eps, out_dtype, return_maps)
    pooled, maps, *_ = ops.align_aggregate(inputs, options, name, numbers)
    return (pooled, maps) if return_maps else pooled


def align_aggregate(features: Tensor, maps: Tensor, num_groups: int) -> Tensor:
    """Aligned pooling with given maps (paper Eq. 1, E5): uniform maps are average pooling, one-hot maps pick pixels,
    boxes pool regions.

    Plain PyTorch on every device: without the projection and the softmax it is a single batched matrix product.

    Args:
        features: (N, C, H, W) or (N, C, P).
        maps: (N, K, H, W) or (N, K, P), the dtype of features; used as they are, not normalised.
        num_groups: G, a divisor of K and of C.

    Returns:
        (N, K / num_groups, C) in the dtype of features; under autocast, in the autocast dtype.

    Raises:
        TypeError, ValueError: as `fused_align_aggregate`.
    """
    if has_torch_function((features, maps)):
        return handle_torch_function(align_aggregate, (features, maps), features, maps, num_groups)
    tracing.untraced(checks.check_pooling, features, maps, num_groups)
    features, _, maps, _ = _autocast(features, None, maps, None)
    checks.check_dtypes(features, maps=maps)
    return reference.align_aggregate(features.flatten(2), maps.flatten(2), num_groups)


def explain(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    pixels: Tensor | None = None,
    pixels_affine: tuple[Tensor, Tensor] | None = None,
    num_groups: int = 4,
    temperature: float = 1.0,
    eps: float = 1e-12,
    out_dtype: torch.dtype | None = None,
    backend: str | None = None,
) -> dispatch.Explanation:
    """Which backend `fused_align_aggregate` would run for the same arguments, and why each other one does not.

    Returns:
        An `Explanation`; print it. Its ``backend`` is None where the call would raise `BackendUnavailable`; its
        ``plan`` says what the backend would launch, where the backend describes that.

    Raises:
        TypeError, ValueError: as `fused_align_aggregate`.
    """
    temperature, eps, _ = _constants(features, temperature, eps)
    checks.check_call(features, pixels, pixels_affine, weight, bias, num_groups, temperature, eps, out_dtype)
    again = None if backend is not None else dispatch.recalled(weight)
    features, pixels, weight, bias = _autocast(features, pixels, weight, bias)
    checks.check_dtypes(features, pixels=pixels, weight=weight, bias=bias)
    request = dispatch.Request(features.device, features.dtype, weight.shape[0])
    found = dispatch.explain(request, backend, again)
    describe = None if found.backend is None else getattr(dispatch.load(found.backend), "describe", None)
    if describe is None or dispatch.has_no_contents(request, found.backend):
        return found
    scale, shift = pixels_affine or (None, None)
    images = features.flatten(2), None if pixels is None else pixels.flatten(2)
    options = Options(operator.index(num_groups), temperature, eps, out_dtype or features.dtype)
    return replace(found, plan=describe(Inputs(*images, weight.flatten(1), bias, scale, shift), options))


def _constants(
    features: Tensor, temperature: float | Tensor, eps: float | Tensor
) -> tuple[float, float, Tensor | None]:
    """(temperature, eps, None), both floats.

    Or (1.0, 1.0, a float64 tensor (2,) of both) where one is a tensor whose value a compiler cannot know.
    """
    if type(temperature) is float and type(eps) is float:  # the usual ones
        return temperature, eps, None
    temperature, eps = checks.number("temperature", temperature), checks.number("eps", eps)
    if isinstance(features, Tensor) and features.is_meta:  # a meta tensor of one has no value, and none is asked for
        temperature, eps = (1.0 if isinstance(x, Tensor) else x for x in (temperature, eps))
    if isinstance(temperature, Tensor) or isinstance(eps, Tensor):
        return 1.0, 1.0, ops.as_tensor(temperature, eps)
    return temperature, eps, None


def _autocast(
    features: Tensor, pixels: Tensor | None, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    """Under autocast, the inputs in its dtype, as a convolution would see them; float64 is left alone, as there.

    Here and not in register_autocast, which has one dtype fixed at registration.
    """
    kind = features.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):  # meta has no autocast to ask about
        return features, pixels, weight, bias
    dtype = torch.get_autocast_dtype(kind)

    def cast(x: Tensor) -> Tensor:
        return x if x.dtype == torch.float64 else x.to(dtype)

    return (
        cast(features),
        None if pixels is None else cast(pixels),
        cast(weight),
        None if bias is None else cast(bias),
    )
