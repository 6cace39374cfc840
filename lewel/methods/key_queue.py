"""The first-in-first-out queue of keys that the global InfoNCE contrasts with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

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
        """Replaces the oldest rows by keys (N, width); N divides the size."""
        self.keys[self.pointer : self.pointer + len(keys)] = unit(keys)
        self.pointer = (self.pointer + len(keys)) % len(self.keys)

    def get_extra_state(self) -> int:
        return self.pointer

    def set_extra_state(self, state: int) -> None:
        self.pointer = state
