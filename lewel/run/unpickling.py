"""Pickles read as data: what they hold beside tensors, arrays and tables becomes a stand-in that does nothing."""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor


class StandIn(dict[Any, Any]):
    """Stands for what another class or function would make. Its items are kept, for it may be a table of tensors."""

    of = ""
    """the dotted name of that class or function"""
    state: Any = None
    """its attributes"""
    dtype = torch.uint8
    """for torch, which asks a storage of bytes for it"""
    __hash__ = object.__hash__  # type: ignore[assignment]  # it may be the key of a table
    __eq__ = object.__eq__

    def __init__(self, *args: Any, **_: object) -> None:
        super().__init__()
        self.args = args

    def __call__(self, *_: object) -> StandIn:
        return self

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def append(self, value: Any) -> None:
        self[len(self)] = value

    def extend(self, values: Iterable[Any]) -> None:
        for value in values:
            self.append(value)

    @property
    def modules(self) -> Mapping[str, Any]:
        """The parts of a torch.nn.Module, and nothing of another object."""
        parts = self.state.get("_modules") if isinstance(self.state, Mapping) else None
        return parts if isinstance(parts, Mapping) else {}

    @property
    def size(self) -> int:
        """How many parameters a torch.nn.Module has; 0 of another object."""
        own = self.state.get("_parameters", ()) if isinstance(self.state, Mapping) else ()
        return len(own) + sum(part.size for part in self.modules.values() if isinstance(part, StandIn))


class _Function:
    """A function that a pickle may call and cannot change."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setstate__(self, state: object) -> None:
        pass


def _tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object) -> Tensor:
    empty = torch.empty(0, dtype=storage.dtype)
    return empty.set_(storage.untyped(), offset, size, stride)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda value, *_: value,
    "torch._utils._rebuild_parameter_with_state": lambda value, *_: value,
    "torch._tensor._rebuild_from_type_v2": lambda function, kind, args, state: function(*args),
    "torch.storage._load_from_bytes": lambda kept: of_torch(io.BytesIO(kept)),
    "_codecs.encode": lambda text, *_: text.encode("latin1"),  # how old pickles hold bytes
    "builtins.bytes": lambda *_: b"",
}
ARRAY = np.zeros(1)
for package in ("numpy.core", "numpy._core"):  # of numpy 1 and 2
    FUNCTIONS[f"{package}.multiarray._reconstruct"] = lambda *_: np.empty(0, np.int8)  # shape and values follow
    FUNCTIONS[f"{package}.multiarray.scalar"] = ARRAY[0].__reduce__()[0]
    FUNCTIONS[f"{package}.numeric._frombuffer"] = ARRAY.__reduce_ex__(5)[0]  # type: ignore[assignment]
MADE: dict[str, Any] = {
    **{name: _Function(function) for name, function in FUNCTIONS.items()},
    "collections.OrderedDict": OrderedDict,
    "numpy.dtype": np.dtype,
}


# What leads to the first argument of a call: of a method that was saved for what it returns, and of torch.compile.
INSIDE = {"builtins.getattr": "__self__", "torch._dynamo.eval_frame.OptimizedModule": "_orig_mod"}


class Unpickler(pickle.Unpickler):
    """Imports nothing, and makes nothing but tensors, arrays, tables and stand-ins."""

    def find_class(self, module: str, name: str) -> Any:
        of = f"{module}.{name}".replace("__builtin__.", "builtins.")  # as Python 2 names them
        return MADE[of] if of in MADE else type(name, (StandIn,), {"of": of})


READER = SimpleNamespace(
    __name__="lewel", Unpickler=Unpickler, load=lambda file, **options: Unpickler(file, **options).load()
)


def of_torch(file: Path | io.BytesIO) -> Any:
    """What torch.save wrote to file, with stand-ins. Raises whatever torch does where it is no such file."""
    try:
        return torch.load(file, "cpu", weights_only=True)
    except (OSError, RuntimeError):  # no such file; a TorchScript program, which torch would run
        raise
    except Exception:  # there is more than tensors in it
        if isinstance(file, io.BytesIO):
            file.seek(0)
        return torch.load(file, "cpu", pickle_module=READER, weights_only=False)


def of_pickle(path: Path) -> Any:
    """What pickle.dump wrote to path, with stand-ins."""
    with open(path, "rb") as file:
        return Unpickler(file, encoding="latin1").load()  # Python 2 wrote arrays as text


def stand_ins(content: Any) -> Iterator[tuple[str, StandIn]]:
    """The stand-ins in content, outer ones first, each with what leads to it in Python: ["model"].net."""
    seen, waiting = set(), deque([("", content)])
    while waiting:
        where, each = waiting.popleft()
        if id(each) in seen or not isinstance(each, (Mapping, list, tuple)):
            continue
        seen.add(id(each))
        if isinstance(each, StandIn):
            yield where, each
            if each.of in INSIDE and each.args:
                waiting.append((f"{where}.{INSIDE[each.of]}", each.args[0]))
            if isinstance(each.state, Mapping) and not each.modules:
                waiting.extend((f"{where}.{name}", part) for name, part in each.state.items())
        parts = each.items() if isinstance(each, Mapping) else enumerate(each)
        waiting.extend((f"{where}[{_quoted(key)}]", part) for key, part in parts)


def _quoted(key: object) -> str:
    return f'"{key}"' if isinstance(key, str) else repr(key)
