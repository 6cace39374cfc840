"""Whether compilers, tracers, modes, transforms or subclasses of tensors take part in a call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def is_plain(tensors: tuple[Tensor | None, ...]) -> bool:
    """Whether nothing but autograd looks at calls on these tensors: no compiler, no mode, no transform, no subclass.

    Such a call skips the dispatcher, which with its way back into Python costs 40 us in each direction, more than the
    arithmetic of a small image.
    """
    if torch.compiler.is_compiling():
        return False
    for x in tensors:
        if x is not None and type(x) not in _PLAIN_TYPES:
            return False
    first, second = (*tensors, None)[:2]
    try:
        c = torch._C
        # Of torch.autograd.grad(is_grads_batched=True), where gradients come first.
        is_batched = c._functorch.is_legacy_batchedtensor
        return not (
            # Every mode sets one of them, also those of fake tensors and of make_fx, which no stack of modes lists.
            c._dispatch_tls_is_dispatch_key_included(c.DispatchKey.Python)
            or c._dispatch_tls_is_dispatch_key_included(c.DispatchKey.PreDispatch)
            or c._are_functorch_transforms_active()
            or c._get_tracing_state()
            or (first is not None and (first.is_meta or is_batched(first)))
            or (second is not None and is_batched(second))
        )
    except AttributeError:  # a version of torch that has renamed one of these: the dispatcher is slower, and right
        return False


_PLAIN_TYPES = frozenset({Tensor, torch.nn.Parameter})


def untraced(function: Callable[..., Any], *args: Any) -> Any:
    """``function(*args)``, called while torch.jit.trace is paused.

    For functions that look at shapes alone: the tracer would record each shape and warn of it.
    """
    if torch.compiler.is_compiling() or (state := torch._C._get_tracing_state()) is None:
        return function(*args)
    torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
    try:
        return function(*args)
    finally:
        torch._C._set_tracing_state(state)  # type: ignore[attr-defined]
