"""Argument checks: each failure is one sentence that names the argument, what was expected and what was found."""

from __future__ import annotations

import math
import operator
from numbers import Real

import torch
from torch import Tensor
from torch.autograd import forward_ad

from lewel_kernels import tracing
from lewel_kernels.signature import accumulator

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_DTYPES = "float64, float32, bfloat16 or float16"
_LARGEST = 3.4e38  # of float32, in which the constants are used


def check_call(
    features: Tensor,
    pixels: Tensor | None,
    pixels_affine: tuple[Tensor, Tensor] | None,
    weight: Tensor,
    bias: Tensor | None,
    num_groups: int,
    temperature: float,
    eps: float,
    out_dtype: torch.dtype | None,
) -> int:
    """Everything about the arguments of fused_align_aggregate except that dtypes agree, which autocast may change.

    Returns K.
    """
    p = _check_map("features", features, "C")
    n, c = features.shape[:2]
    if pixels is not None:
        found = _check_map("pixels", pixels, "D")
        if pixels.shape[0] != n:
            raise ValueError(f"pixels must hold the {n} images of features; got {pixels.shape[0]}")
        if found != p:
            raise ValueError(
                f"pixels must hold the {p} positions of features; got {found} "
                f"(features {_shape(features)}, pixels {_shape(pixels)})"
            )
    if pixels_affine is not None:
        _check_affine(pixels_affine, features, pixels)
    _check_tensor("weight", weight)
    size = weight.shape
    if len(size) not in (2, 3, 4) or math.prod(size[2:]) != 1:
        raise ValueError(f"weight must be (K, D), (K, D, 1) or (K, D, 1, 1); got {_shape(weight)}")
    if size[1] == 0:
        raise ValueError(f"weight must have at least one column; got {_shape(weight)}")
    d, owner = (c, "features (pixels is None)") if pixels is None else (pixels.shape[1], "pixels")
    if size[1] != d:
        read_as = (features if pixels is None else pixels).dim()
        hint = "; a 3-D tensor is (N, channels, P), so an image alone needs a leading 1" if read_as == 3 else ""
        raise ValueError(
            f"weight must have D = {d} columns, the channels of {owner}; got {size[1]} ({_shape(weight)}){hint}"
        )
    k = size[0]
    if bias is not None:
        _check_tensor("bias", bias)
        if bias.shape != (k,):
            raise ValueError(f"bias must be ({k},), one value per map of weight; got {_shape(bias)}")
    check_groups(num_groups, k, "weight rows")
    _check_divides(num_groups, c, "the channels C of features")
    check_constants(temperature, eps, out_dtype)
    device = features.device
    for name, x in (("pixels", pixels), ("weight", weight), ("bias", bias)):
        if x is not None and x.device != device:
            raise ValueError(f"{name} must be on {device}, the device of features; got {x.device}")
    # As a number, which it also is where torch.compile holds sizes for symbols: the backend is a constant of the graph.
    return operator.index(k)


def _check_affine(pixels_affine: tuple[Tensor, Tensor], features: Tensor, pixels: Tensor | None) -> None:
    if pixels is None:
        raise ValueError("pixels_affine needs pixels, which it is applied to; got pixels None")
    if not isinstance(pixels_affine, (tuple, list)) or len(pixels_affine) != 2:
        items = f" of {len(pixels_affine)}" if isinstance(pixels_affine, (tuple, list)) else ""
        found = type(pixels_affine).__name__ + items
        raise TypeError(f"pixels_affine must be a tuple of two tensors, (scale, shift); got {found}")
    acc = accumulator(features.dtype)
    for name, x in zip(("scale of pixels_affine", "shift of pixels_affine"), pixels_affine, strict=True):
        _check_tensor(name, x)
        if x.shape != pixels.shape[1:2]:
            raise ValueError(f"{name} must be ({pixels.shape[1]},), one value per channel of pixels; got {_shape(x)}")
        if x.dtype != acc:
            raise TypeError(
                f"{name} must be {acc}, in which {features.dtype} features are summed; got {x.dtype}: convert it with "
                f".to({acc}), or where FSDP has cast it set cast_forward_inputs=False in its mixed precision policy, "
                "for the root of FSDP1 cast_root_forward_inputs=False too"
            )
        if x.device != features.device:
            raise ValueError(f"{name} must be on {features.device}, the device of features; got {x.device}")


def number(name: str, value: object) -> float | Tensor:
    """A number of Python or NumPy, or a tensor of one, as a float; a tensor whose value is not known yet, as it is."""
    if isinstance(value, (float, int, Real)) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return math.inf
    if hasattr(value, "__array__") and not isinstance(value, Tensor):  # of NumPy; torch.compile sees a tensor
        value = torch.as_tensor(value)
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a number; got {type(value).__name__}")
    if value.numel() != 1 or value.dtype == torch.bool or value.is_complex():
        raise TypeError(f"{name} must be a number; got a tensor {_shape(value)} of {value.dtype}")
    if (torch.is_grad_enabled() and value.requires_grad) or _has_tangent(value):
        raise TypeError(f"{name} must be a number, to which no gradient flows; got a tensor with one: detach it")
    if tracing.is_plain((value,)):
        return float(value)
    return value.detach().reshape(())


def known(name: str, value: object) -> float:
    """The value of the argument ``name``, "temperature" or "eps", as a float; for `AlignAggregate`.

    A float, because torch.compile compiles again for each value of an int. Raises TypeError for a tensor whose value is
    not known yet, and ValueError for a value out of range.
    """
    x = number(name, value)
    if isinstance(x, Tensor):
        raise TypeError(f"{name} must be a number whose value is known; got a tensor on {x.device}, traced or mapped")
    check_constants(*((x, 0.0) if name == "temperature" else (1.0, x)), None)
    return x


def _has_tangent(value: Tensor) -> bool:
    if torch.compiler.is_compiling():
        return False
    while torch._C._functorch.is_batchedtensor(value):
        value = torch._C._functorch.get_unwrapped(value)
    return forward_ad.unpack_dual(value, level=0).tangent is not None


def check_constants(temperature: float, eps: float, out_dtype: torch.dtype | None) -> None:
    if not 0 < temperature < _LARGEST:
        raise ValueError(f"temperature must be positive and finite in float32; got {temperature}")
    if not (0 <= eps < _LARGEST or eps == math.inf):
        raise ValueError(f"eps must be at least 0, and finite in float32 or infinite; got {eps}")
    if out_dtype is not None and out_dtype not in DTYPES:
        raise TypeError(f"out_dtype must be {_DTYPES}, or None; got {out_dtype}")


def check_groups(num_groups: int, num_maps: int, owner: str) -> None:
    """Raises TypeError or ValueError unless ``num_groups`` is an int of at least 1 that divides ``num_maps``.

    ``owner`` says in the error where that number of maps is from.
    """
    if isinstance(num_groups, bool) or not (isinstance(num_groups, int) or hasattr(num_groups, "__index__")):
        raise TypeError(f"num_groups must be an int; got {type(num_groups).__name__}")
    if isinstance(num_groups, Tensor) and num_groups.dtype == torch.bool:
        raise TypeError("num_groups must be an int; got a tensor of torch.bool")
    num_groups = operator.index(num_groups)
    if num_groups < 1:
        raise ValueError(f"num_groups must be at least 1; got {num_groups}")
    _check_divides(num_groups, num_maps, f"the number of maps K ({owner})")


def _check_divides(num_groups: int, size: int, what: str) -> None:
    if size == 0 or size % num_groups:
        raise ValueError(f"num_groups must divide {what}; got num_groups {num_groups} and {size}")


def check_dtypes(features: Tensor, **others: Tensor | None) -> None:
    dtype = features.dtype
    for name, x in others.items():
        if x is not None and x.dtype != dtype:
            raise TypeError(f"{name} must be {dtype}, the dtype of features; got {x.dtype}")


def check_pooling(features: Tensor, maps: Tensor, num_groups: int) -> None:
    """Everything about the arguments of align_aggregate except that dtypes agree."""
    p = _check_map("features", features, "C")
    if _check_map("maps", maps, "K") != p or maps.shape[0] != features.shape[0]:
        raise ValueError(f"maps must hold the images and positions of features {_shape(features)}; got {_shape(maps)}")
    check_groups(num_groups, maps.shape[1], "channels of maps")
    _check_divides(num_groups, features.shape[1], "the channels C of features")
    if maps.device != features.device:
        raise ValueError(f"maps must be on {features.device}, the device of features; got {maps.device}")


def _check_tensor(name: str, x: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor; got {type(x).__name__}")
    if x.dtype not in DTYPES:
        raise TypeError(f"{name} must be {_DTYPES}; got {x.dtype}")
    if x.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, of layout torch.strided; got {x.layout}")


def _check_map(name: str, x: Tensor, channels: str) -> int:
    """Returns H W or P."""
    _check_tensor(name, x)
    if x.dim() not in (3, 4):
        raise ValueError(f"{name} must be (N, {channels}, H, W) or (N, {channels}, P); got {_shape(x)}")
    positions = math.prod(x.shape[2:])  # not shape[2:].numel(), which would make constants of symbolic sizes
    if positions == 0:
        raise ValueError(f"{name} must have at least one position; got {_shape(x)}")
    return positions


def _shape(x: Tensor) -> str:
    return f"({', '.join(str(size) for size in x.shape)})"
