"""Which backend runs a request, and why each other one does not.

Precedence: the ``backend`` argument, then `use_backend`, then the variable LEWEL_BACKEND, then the first backend in the
order of `BACKENDS` that does not refuse. A backend that was asked for by name never falls back: its refusal is raised.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from types import FrameType
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from lewel_kernels import env
from lewel_kernels.signature import Gradients, Grads, Inputs, Options, Results, Saved

# In automatic order, fastest first; that triton comes before cuda is not measured yet, and leaves to cuda the GPUs that
# triton refuses (V100). Modules, imported when first asked for: none is needed to import the package.
BACKENDS = {
    "cpu": "lewel_kernels.cpu",
    "triton": "lewel_kernels.triton",
    "cuda": "lewel_kernels.cuda",
    "reference": "lewel_kernels.reference",
}


class BackendUnavailable(RuntimeError):
    """No backend, or not the one that was asked for, can run the request; the message says why."""


class Request(NamedTuple):
    """What a backend needs to know to accept or refuse a call."""

    device: torch.device
    dtype: torch.dtype
    # 1 also where it is not known. N and P are not told: torch.compile chooses once for every batch.
    num_maps: int = 1


class Backend(Protocol):
    """What a module named in `BACKENDS` provides; lewel_kernels/reference.py documents shapes and dtypes.

    It may also have ``describe(inputs, options) -> str``: lines for a person about what it would launch on these
    tensors, the `Explanation.plan`; and ``automatic = False`` if it is there for tests, and runs only when demanded.
    """

    name: str
    device_type: str | None  # the only type of device it runs on; None for any
    # Whether forward stores the heat maps (N, K, P) as rows (N, P, K), strides (P*K, 1, K), instead of contiguous. The
    # backward takes them in any strides: vmap stacks what it saves.
    heat_rows: bool

    def refuse(self, request: Request) -> str | None:
        """A sentence that says why it cannot run the request on its own type of device and what would help, or None."""
        ...

    def forward(self, inputs: Inputs, options: Options) -> Results:
        """(pooled, maps, heat, norm)."""
        ...

    def backward(self, grads: Grads, inputs: Inputs, saved: Saved, options: Options) -> Gradients:
        """The gradients of ``inputs``, given those of pooled and maps; ``saved`` are heat and norm."""
        ...


@dataclass(frozen=True)
class Explanation:
    """Which backend runs a request and why. ``str()`` of it is the report for a person."""

    backend: str | None
    reason: str
    refusals: dict[str, str]
    plan: str = ""  # what the backend would launch, where it says so

    def __str__(self) -> str:
        head = f"backend {self.backend}: {self.reason}" if self.backend else f"no backend: {self.reason}"
        plan = (f"  {line}" for line in self.plan.splitlines())
        return "\n".join([head, *plan, *(f"  not {name}: {reason}" for name, reason in self.refusals.items())])


_context: ContextVar[str | None] = ContextVar("lewel_backend", default=None)


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run every call inside the block on one backend. An explicit ``backend=`` argument still wins.

    A function compiled by torch.compile keeps the backend that was in force when it was traced, and cannot enter the
    block itself. Threads started inside the block do not inherit it. What an activation checkpoint computes again, in
    the backward, runs on the backend that the block demanded of the last call with the same weight (docs/backends.md).

    Raises:
        ValueError: if no backend has that name.
    """
    token = _context.set(check_name(name, "use_backend(name)"))
    try:
        yield
    finally:
        _context.reset(token)


# The parameters of the calls that ran under `use_backend`, for the checkpoints that compute them again in the backward:
# there the block has been left, or another thread runs.
_demanded = WeakTensorKeyDictionary()
# Stands for every weight that is no parameter, for those are made anew, and for those of which compilers know no more.
_DERIVED = torch.empty(0, device="cpu")


def recalled(weight: Tensor) -> str | None:
    """The backend that `use_backend` demanded of a call with this weight, if a checkpoint computes that call again."""
    name = _context.get()
    if name is None and not _demanded:  # the usual case
        return None
    key = weight if isinstance(weight, torch.nn.Parameter) else _DERIVED
    if torch._C._current_graph_task_id() != -1:  # in a backward
        return _demanded.get(key) if name is None and _is_in_a_checkpoint() else None
    if name is None:
        _demanded.pop(key, None)
    else:
        _demanded[key] = name
    return None


def _is_in_a_checkpoint() -> bool:
    """Whether torch.utils.checkpoint is among the callers.

    Not every call in a backward computes something again: a backward also runs hooks.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_globals.get("__name__") != "torch.utils.checkpoint":
        frame = frame.f_back
    return frame is not None


def load(name: str) -> Backend:
    path = BACKENDS.get(name) or BACKENDS[check_name(name, "the backend of the op")]
    if path not in _loaded or _loaded[path] is not sys.modules.get(path):
        _loaded[path] = cast(Backend, importlib.import_module(path))
    return _loaded[path]


_loaded: dict[str, Backend] = {}  # importlib takes some microseconds to find the same


def refusal(name: str, request: Request) -> str | None:
    """Why the named backend cannot run the request, as a sentence, or None."""
    return _elsewhere(name, request) or load(name).refuse(request)


def _elsewhere(name: str, request: Request) -> str | None:
    """Why the named backend does not run on the request's type of device, as a sentence, or None."""
    kind = load(name).device_type
    if kind in (None, request.device.type):
        return None
    return f"it runs on {kind} tensors; the features are on {request.device}"


def _automatic(name: str) -> bool:
    return getattr(load(name), "automatic", True)


def _unoffered(name: str, request: Request) -> str | None:
    """Why the automatic choice passes the named backend over, or None."""
    backend = load(name)
    if not getattr(backend, "automatic", True):
        return "it is there for tests and runs only when demanded"
    if backend.device_type not in (None, request.device.type):
        return _elsewhere(name, request)
    return backend.refuse(request)


def explain(request: Request, backend: str | None = None, again: str | None = None) -> Explanation:
    """Decides and reports every backend. May compile the kernels of the one that is chosen, once.

    Raises:
        ValueError: if the demanded backend does not exist.
    """
    demanded, source = _demand(backend, again)
    if has_no_contents(request, demanded):
        return Explanation(demanded or "reference", "these tensors have shapes alone, for which any will do", {})
    # Where one is demanded the others are not asked: to answer, they may have to be compiled.
    if demanded is not None:
        refusals = {demanded: sentence} if (sentence := refusal(demanded, request)) else {}
    else:
        refusals, accepted = {}, None
        for name in BACKENDS:
            if accepted is None:
                if sentence := _unoffered(name, request):
                    refusals[name] = sentence
                else:
                    accepted = name
            else:
                # Not asked whether it could: to answer, it may have to be compiled, for minutes.
                refusals[name] = _elsewhere(name, request) or f"{accepted} comes first in the automatic order"
        if accepted is None:
            return Explanation(None, "every backend refuses these inputs", refusals)
        return Explanation(accepted, "chosen automatically, the first that accepts these inputs", refusals)
    refusals |= {name: f"{source} demands {demanded}" for name in BACKENDS if name != demanded}
    if demanded in refusals:
        return Explanation(None, f"{source} demands {demanded}, which refuses", refusals)
    return Explanation(demanded, f"demanded by {source}", refusals)


def foreseen(device_type: str | None, backend: str | None) -> str:
    """In words, the backend that a call on a device of this type (None: any) would run.

    As far as that is known without asking a backend, which may have to be compiled to answer.
    """
    try:
        demanded, source = _demand(backend)
        if demanded is not None:
            return f"{demanded} (demanded by {source})"
        kinds = {name: load(name).device_type for name in BACKENDS if _automatic(name)}
        names = [name for name, kind in kinds.items() if None in (kind, device_type) or kind == device_type]
    except ValueError as error:  # of a variable; printing a model is no place to fail
        return f"none ({error})"
    return f"the first of {', '.join(names)} that accepts a call" if len(names) > 1 else names[0]


def choose(
    device: torch.device,
    dtype: torch.dtype,
    num_maps: int,
    backend: str | None,
    again: str | None = None,
    traced: bool = False,
) -> str:
    """The name of the backend that runs the request.

    ``again`` is what `recalled` returned for the call; for a call that a compiler traces it is asked for here instead.

    Raises:
        ValueError: if the demanded backend does not exist.
        BackendUnavailable: if the demanded backend refuses, or every backend does.
    """
    request = Request(device, dtype, num_maps)
    if traced and backend is None:
        again = recalled(_DERIVED)
    demanded, source = _demand(backend, again)
    if device.type != "cpu" and has_no_contents(request, demanded):
        return demanded or "reference"
    if demanded is not None:
        if sentence := refusal(demanded, request):
            raise BackendUnavailable(f"backend {demanded!r} was demanded by {source} and cannot run: {sentence}")
        return demanded
    refusals: dict[str, str] = {}
    for name in BACKENDS:
        sentence = _unoffered(name, request)
        if sentence is None:
            if name == "reference":
                _warn_of_the_reference(request, refusals)
            return name
        refusals[name] = sentence
    lines = "\n".join(f"  {name}: {sentence}" for name, sentence in refusals.items())
    raise BackendUnavailable(f"no backend can run {dtype} features on {device}:\n{lines}")


@functools.cache
def _sees_gpu() -> bool:
    return torch.cuda.is_available()


def has_no_contents(request: Request, demanded: str | None = None) -> bool:
    """Whether tensors of the request have shapes alone, so that any backend will do.

    True on meta, and for fake tensors of a GPU that is not there, unless the demanded backend is for other devices.
    """
    if request.device.type == "meta":
        return True
    return request.device.type == "cuda" and not _sees_gpu() and not (demanded and _elsewhere(demanded, request))


# What torch.compiler.assume_constant_result sets: dispatch happens once, while a graph is traced. The decorator itself
# would import the compiler, and with it triton, whenever this package is imported: a second, and a promise broken.
choose.__dict__["_dynamo_marked_constant"] = True


def _demand(argument: str | None, again: str | None = None) -> tuple[str | None, str]:
    """The backend that is demanded, if any, and by what."""
    if argument is not None:
        return check_name(argument, "the backend argument"), "the backend argument"
    if (name := _context.get()) is not None:
        return name, "use_backend"
    if again is not None:
        return again, "use_backend, when the call that is computed again was made"
    if (name := env.BACKEND.get()) is not None:
        return check_name(name, env.BACKEND.name), env.BACKEND.name
    return None, "nothing"


def check_name(name: str, source: str) -> str:
    """The name, if a backend has it; ``source`` says in the error who asked."""
    if not isinstance(name, str) or name not in BACKENDS:
        raise ValueError(f"{source} must be one of {', '.join(BACKENDS)}; got {name!r}")
    return name


_warned: set[str] = set()


def _warn_of_the_reference(request: Request, refusals: dict[str, str]) -> None:
    """Warns that the reference runs although a faster backend for this type of device exists; once per reason."""
    for name, sentence in refusals.items():
        if _automatic(name) and load(name).device_type == request.device.type and sentence not in _warned:
            _warned.add(sentence)
            # Of a standard error that is closed or no file, which is no reason for the call to fail.
            with contextlib.suppress(ValueError, AttributeError):
                warnings.warn(
                    f"fused_align_aggregate runs the plain PyTorch reference because the {name} backend cannot: "
                    f"{sentence}",
                    stacklevel=4,
                )
