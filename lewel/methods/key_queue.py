"""The first-in-first-out queue of keys that the global InfoNCE contrasts with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lewel.errors import LewelError
from lewel.methods.losses import unit


class KeyQueue(nn.Module):
    """keys (size, width), rows of length one; random directions until real keys have replaced them."""

    keys: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.register_buffer("keys", unit(torch.randn(size, width)))
        self.pointer = 0

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Replaces the oldest N rows by keys (N, width); raises LewelError where they are more than the queue holds."""
        size, keys = len(self.keys), unit(keys)
        if len(keys) > size:
            raise LewelError(f"a queue of {size} keys cannot take {len(keys)} at once; make it larger or give it fewer")
        fit = min(len(keys), size - self.pointer)
        self.keys[self.pointer : self.pointer + fit] = keys[:fit]
        if fit < len(keys):  # the others go on at the beginning
            self.keys[: len(keys) - fit] = keys[fit:]
        self.pointer = (self.pointer + len(keys)) % size

    def get_extra_state(self) -> int:
        return self.pointer

    def set_extra_state(self, state: int) -> None:
        self.pointer = state
