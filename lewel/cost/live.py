"""Which tensors are alive, by counting after every operator."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveStorages(TorchDispatchMode):
    """Counts the bytes of all storages that operators made and that are alive, except those of the tensors in own.

    now is their sum, most its largest value after any operator.
    """

    def __init__(self, own: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self._own = {weakref.ref(x.untyped_storage()) for x in own}
        self._bytes: dict[weakref.ref[torch.UntypedStorage], int] = {}
        self.now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, Tensor):
                self._count(x.untyped_storage())
        self.most = max(self.most, self.now)
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        ref = weakref.ref(storage, self._forget)
        if ref not in self._own:
            self.now += storage.nbytes() - self._bytes.get(ref, 0)
            self._bytes[ref] = storage.nbytes()

    def _forget(self, ref: weakref.ref[torch.UntypedStorage]) -> None:
        self.now -= self._bytes.pop(ref, 0)
