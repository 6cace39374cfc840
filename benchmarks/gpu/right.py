"""Is every shipped configuration right on this device: calls against float64, then again and again for the same bits.

Outputs and gradients of a call keep the contract of docs/backends.md, on memory that held NaN before. A call that
differs from itself in any bit has a race, which numbers that are right once do not exclude.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from benchmarks import timing
from benchmarks.compiled.requests import DTYPES, Request, launches_of
from benchmarks.gpu.tune_space import FIRST, SHAPES, TINY
from benchmarks.op import parity
from benchmarks.op.cases import NUM_GROUPS, TEMPERATURE, Shape
from benchmarks.op.measure import sentence
from benchmarks.op.providers import eager_activated, eager_maps, eager_pool
from lewel_kernels import dispatch, explain, fused_align_aggregate
from lewel_kernels.signature import accumulator
from lewel_kernels.triton import configs

# Each launches other kernels, or the same ones compiled otherwise. A bias first: only with one are its gradient's sums
# taken beside the products of the weight's.
VARIANTS: tuple[dict[str, Any], ...] = (
    {"bias": True, "maps": True},
    {},
    {"bias": True, "affine": True},
    {"bias": True, "maps": True, "layout": "planes"},
    {"bias": True, "maps": True, "shared": True},
)
REPEATS = {"cuda": 100, "cpu": 1}
KINK = 1e-3  # how far from that of the ReLU activations keep: there a rounding decides whether a gradient is zero
Op = Callable[[Mapping[str, Tensor]], list[Tensor]]


@dataclass
class Row:
    """The result of one call on one backend. ``errors``: of `parity.compare` by tensor; a problem is a sentence."""

    case: Request
    call: str  # the case in words
    provider: str
    kernels: list[str] = field(default_factory=list)  # what is launched: grids, blocks, and whose configuration it is
    errors: dict[str, dict[str, float]] = field(default_factory=dict)
    worst: float = 0.0  # the largest of them, in parts of what is allowed
    repeats: int = 0  # that gave the bits of the first call
    seconds: float = 0.0
    problem: str | None = None


# What is checked.


def requests(device: str, backend: str) -> list[Request]:
    """The calls to check, the most valuable first, as a run of limited time may end early; tiny ones on the CPU.

    First the paper's heads at their largest batch, dtype by dtype, then the wider maps. Together they launch every
    entry of the triton backend's tables of configurations.
    """
    gpu = torch.device(device).type == "cuda"
    shapes, dtypes = (SHAPES if gpu else TINY), ["bf16", "fp16", "fp32"]
    if not gpu and backend == "triton":
        dtypes.remove("bf16")  # whose bit patterns Triton's interpreter multiplies
    return [*_requests(shapes, dtypes), *(_rare(shapes) if gpu else ())]


def _rare(shapes: Mapping[str, Shape]) -> Iterator[Request]:
    """Calls for the entries of those tables that no call of `_requests` launches."""

    def plain(name: str) -> Request:
        s = shapes[name]
        return Request(name, s.N, s.C, s.D, s.K, NUM_GROUPS, s.P, "bf16", temperature=TEMPERATURE, bias=True)

    yield replace(plain("M"), name="K512", K=512)
    yield replace(plain("56x56"), layout="planes", affine=True)


def _requests(shapes: Mapping[str, Shape], dtypes: Sequence[str]) -> Iterator[Request]:
    heads = [name for name in shapes if name in FIRST]
    others = [name for name in shapes if name not in FIRST]
    for names, dtype in product((heads, others), dtypes):
        for variant, name in product(VARIANTS, names):
            s = shapes[name]
            if s.C == s.D or not variant.get("shared"):
                yield Request(name, s.N, s.C, s.D, s.K, NUM_GROUPS, s.P, dtype, temperature=TEMPERATURE, **variant)


def entries(requests: Iterable[Request], capability: int) -> set[str]:
    """Keys in the architecture's table of configurations that the triton backend launches for the requests."""
    table = configs.table(configs.architecture(divmod(capability, 10)))
    return {launch.config.key for request in requests for launch in launches_of(request, capability)} & table.keys()


def proven(rows: Iterable[Row], device: str) -> str:
    """A sentence: which entries of the GPU's table calls without a problem have launched; "" without a table."""
    major, minor = torch.cuda.get_device_capability(device)
    arch = configs.architecture((major, minor))
    if not (table := configs.table(arch)):
        return ""
    kept = entries((row.case for row in rows if not row.problem), 10 * major + minor)
    others = sorted(table.keys() - kept)
    told = f"{len(kept)} of {len(table)} entries of configs/{arch}.json were launched by calls without a problem"
    return f"{told}; not {', '.join(others)}." if others else f"{told}."


@dataclass
class Inputs:
    """The tensors of one checked call: leaves by argument name (scale and shift for ``pixels_affine``), and grads.

    grads are the gradients given to its backward.
    """

    leaves: dict[str, Tensor]
    grads: list[Tensor]  # of pooled (N, L, C), and of maps (N, K, P) where they are returned

    def double(self) -> Inputs:
        leaves = {name: x.detach().double().requires_grad_() for name, x in self.leaves.items()}
        return Inputs(leaves, [grad.double() for grad in self.grads])


def make_inputs(request: Request, device: str, seed: int = 0) -> Inputs:
    """Random tensors for a request. Features and pixels are as behind a ReLU, but for pixels that the op activates."""
    r, dtype = request, DTYPES[request.dtype]
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, device=device)

    leaves = {
        "features": normal(r.N, r.P, r.C).relu().transpose(1, 2),
        "weight": normal(r.K, r.D) / r.D**0.5,
    }
    if not r.shared:
        leaves["pixels"] = normal(r.N, r.P, r.D).transpose(1, 2)
    if r.affine:
        scale, shift = (0.5 + normal(r.D).abs()) * normal(r.D).sign(), 0.5 * normal(r.D)
        columns, stored = (scale[:, None], shift[:, None]), leaves["pixels"].to(dtype)
        near = (columns[0] * stored + columns[1]).abs() < KINK
        leaves["pixels"] = torch.where(near, (50 * KINK - columns[1]) / columns[0], leaves["pixels"])
    elif not r.shared:
        leaves["pixels"] = leaves["pixels"].relu()
    if r.bias:
        leaves["bias"] = 0.3 * normal(r.K)
    leaves = {name: x.to(dtype) for name, x in leaves.items()}
    if r.layout == "planes":
        leaves = {name: x.contiguous() for name, x in leaves.items()}
    if r.affine:
        leaves |= {"scale": scale.to(accumulator(dtype)), "shift": shift.to(accumulator(dtype))}
    grads = [normal(r.N, r.K // r.G, r.C).to(dtype), *([normal(r.N, r.K, r.P).to(dtype)] if r.maps else [])]
    return Inputs({name: x.requires_grad_() for name, x in leaves.items()}, grads)


# How it is checked.


def arguments(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Keyword arguments of `fused_align_aggregate` from leaves by name."""
    others = {name: x for name, x in tensors.items() if name not in ("scale", "shift")}
    return others | {"pixels_affine": (tensors["scale"], tensors["shift"]) if "scale" in tensors else None}


def fused(request: Request, backend: str) -> Op:
    def op(tensors: Mapping[str, Tensor]) -> list[Tensor]:
        result = fused_align_aggregate(
            **arguments(tensors),
            num_groups=request.G, temperature=request.temperature, return_maps=request.maps, backend=backend,
        )  # type: ignore[call-overload]  # fmt: skip
        return list(result) if request.maps else [result]

    return op


def eager(request: Request) -> Op:
    """The plain lines of PyTorch for a request, leaves by name -> outputs; their error is the yardstick."""

    def op(tensors: Mapping[str, Tensor]) -> list[Tensor]:
        features = tensors["features"]
        pixels = tensors.get("pixels", features).unsqueeze(-1)
        if "scale" in tensors:
            pixels = eager_activated(pixels, tensors["scale"], tensors["shift"])
        maps = eager_maps(pixels, tensors["weight"], tensors.get("bias"), temperature=request.temperature)
        pooled = eager_pool(features, maps, num_groups=request.G)
        return [pooled, maps] if request.maps else [pooled]

    return op


def run(op: Op, inputs: Inputs) -> dict[str, Tensor]:
    """Runs op and its backward: detached outputs (pooled, maps) and gradients (d_features ...) by name."""
    outputs = op(inputs.leaves)
    grads = [grad.to(x.dtype) for grad, x in zip(inputs.grads, outputs, strict=True)]
    found = torch.autograd.grad(outputs, list(inputs.leaves.values()), grads)
    named = dict(zip(("pooled", "maps"), outputs, strict=False))
    named |= {f"d_{name}": x for name, x in zip(inputs.leaves, found, strict=True)}
    return {name: x.detach() for name, x in named.items()}


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """A context in which new memory of PyTorch holds NaN, so that what nobody wrote cannot pass for a result."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def refusal(request: Request, device: str, backend: str) -> str | None:
    """Why a backend cannot run a request, as a sentence, or None."""
    return dispatch.refusal(backend, dispatch.Request(torch.device(device), DTYPES[request.dtype], request.K))


def check(request: Request, device: str, backend: str) -> Row:
    """Runs a call against float64, then its repeats, and returns the Row. What it raises becomes the row's problem."""
    row, began = Row(request, str(request), backend), time.perf_counter()
    try:
        _fill(row, make_inputs(request, device), REPEATS[torch.device(device).type])
    except Exception as error:
        row.problem = f"cannot run: {sentence(error)}"
    row.seconds = time.perf_counter() - began
    return row


def _fill(row: Row, inputs: Inputs, repeats: int) -> None:
    request, op = row.case, fused(row.case, row.provider)
    with torch.no_grad():
        plan = explain(**arguments(inputs.leaves), num_groups=request.G, backend=row.provider).plan
    row.kernels = [line.strip() for line in plan.splitlines()]
    truth, theirs = run(eager(request), inputs.double()), run(eager(request), inputs)
    with poisoned():
        first = run(op, inputs)
    row.problem = parity.check(tuple(first), *(list(x.values()) for x in (first, theirs, truth)))
    for name, x in first.items():
        if x.shape == truth[name].shape:
            errors = parity.compare(x, theirs[name], truth[name])
            row.errors[name] = asdict(errors)
            row.worst = max(row.worst, errors.share)
    for _ in range(repeats):
        again = run(op, inputs)
        if others := [name for name, x in again.items() if not torch.equal(x, first[name])]:
            told = f"repeat {row.repeats + 1} has other bits in {', '.join(others)}"
            row.problem = f"{row.problem}; {told}" if row.problem else told
            return
        row.repeats += 1


def lost(device: str) -> str | None:
    """Why the device takes no more work from this process, as after an illegal access of a kernel, or None."""
    try:
        timing.synchronise(device)
    except Exception as error:
        return sentence(error)
    return None


def print_row(row: Row) -> None:
    verdict = row.problem or f"ok: errors at most {row.worst:.2f} of what is allowed, {row.repeats} repeats"
    print(f"{row.call:<34}{row.provider:<8}{row.seconds:6.1f} s  {verdict}", flush=True)
