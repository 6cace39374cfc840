"""The batch normalisation and ReLU before the projection: as a layer of their own, and applied by the op (E0, E11).

The statistics of the batch are part of every way, and so are the gradients that flow back through them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import machine, timing
from benchmarks.op import cases, graphs
from benchmarks.op import measure as measure_op
from benchmarks.op.cases import NUM_GROUPS, PAPER, QUICK, TEMPERATURE, Case
from benchmarks.op.cost import MODES
from benchmarks.op.measure import call_of, sentence
from benchmarks.op.providers import COMPILED, eager_align_aggregate, quiet, refusal
from lewel_kernels import BACKENDS, fused_align_aggregate

EPS = 1e-5
TENSORS = ("pooled", "d_features", "d_pixels", "d_gamma", "d_beta", "d_weight")
EAGER, COMPILE, AFTER, AFFINE = "eager", "compile-max", "BN, ReLU, fused op", "fused op with pixels_affine"
WAYS = (EAGER, COMPILE, AFTER, AFFINE)
Way = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass
class Inputs(cases.Inputs):
    """``pixels`` are those before the normalisation; gamma and beta (D,) are its parameters, in float32."""

    gamma: Tensor
    beta: Tensor

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        return self.features, self.pixels, self.gamma, self.beta, self.weight


@dataclass
class Row:
    """One way in one mode of a case, in milliseconds; times are 0 where it could not run."""

    case: Case
    provider: str
    mode: str
    launch: str
    backend: str | None  # of the fused op
    p20: float = 0.0
    p50: float = 0.0
    p80: float = 0.0
    samples: int = 0
    speedup: float | None = None  # times faster than eager
    problem: str | None = None


def suite(device: str) -> list[Case]:
    """The cases of a device: the paper's heads on a GPU, in bf16 or else fp16; the quick shapes on a CPU."""
    if torch.device(device).type == "cpu":
        return [Case(shape, "channels_last", dtype, device) for dtype in ("fp32", "bf16") for shape in QUICK]
    dtype = "bf16" if machine.native_bf16(device) else "fp16"
    chosen = [shape for shape in PAPER if shape.name in ("M128", "B128", "M256", "B256")]
    return [Case(shape, "channels_last", dtype, device) for shape in chosen]


def make_inputs(case: Case, seed: int = 0) -> Inputs:
    """Random tensors of a case, as `cases.make_inputs` makes them, with the gamma and beta of the normalisation.

    The pixels have not gone through a ReLU, and their mean and scale differ from channel to channel.
    """
    made, s = cases.make_inputs(case, seed), case.shape
    generator = torch.Generator(case.device).manual_seed(seed + 1000)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, device=case.device)

    values = normal(s.N, s.D, s.H, s.W) * (0.5 + normal(s.D, 1, 1).abs()) + normal(s.D, 1, 1)
    pixels = values.to(made.pixels.dtype).contiguous(memory_format=cases.LAYOUTS[case.layout])
    gamma, beta = 0.5 + normal(s.D).abs(), 0.5 * normal(s.D)
    # Nothing near the kink of the ReLU: there a rounding decides whether a gradient is what it is, or zero.
    scale, shift = (x[:, None, None] for x in folded(pixels, gamma, beta))
    pixels = torch.where((pixels * scale + shift).abs() < 1e-3, ((0.05 - shift) / scale).to(pixels.dtype), pixels)
    return Inputs(made.features, pixels.requires_grad_(), made.weight, made.grad, gamma.requires_grad_(),
                  beta.requires_grad_())  # fmt: skip


def folded(pixels: Tensor, gamma: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """scale and shift (D,) of the normalisation, from the statistics over N, H and W of pixels, in float32."""
    var, mean = torch.var_mean(pixels.float(), (0, 2, 3), correction=0)
    scale = gamma * torch.rsqrt(var + EPS)
    return scale, beta - mean * scale


def _activated(pixels: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    return F.batch_norm(pixels, None, None, gamma, beta, training=True, eps=EPS).relu()


def eager(features: Tensor, pixels: Tensor, gamma: Tensor, beta: Tensor, weight: Tensor) -> Tensor:
    return eager_align_aggregate(features, _activated(pixels, gamma, beta), weight)


def after(features: Tensor, pixels: Tensor, gamma: Tensor, beta: Tensor, weight: Tensor, *, backend: str) -> Tensor:
    """The fused op on what eager's normalisation and ReLU have written to memory."""
    return fused_align_aggregate(
        features, weight, pixels=_activated(pixels, gamma, beta), num_groups=NUM_GROUPS, temperature=TEMPERATURE,
        backend=backend,
    )  # fmt: skip


def affine(features: Tensor, pixels: Tensor, gamma: Tensor, beta: Tensor, weight: Tensor, *, backend: str) -> Tensor:
    """The fused op with pixels_affine: the statistics are PyTorch's, the rest is inside the op."""
    return fused_align_aggregate(
        features, weight, pixels=pixels, pixels_affine=folded(pixels, gamma, beta), num_groups=NUM_GROUPS,
        temperature=TEMPERATURE, backend=backend,
    )  # fmt: skip


def ways(backend: str) -> dict[str, Way]:
    return {
        EAGER: eager,
        COMPILE: torch.compile(eager, dynamic=False, mode="max-autotune-no-cudagraphs"),
        AFTER: functools.partial(after, backend=backend),
        AFFINE: functools.partial(affine, backend=backend),
    }


def find_problem(case: Case, way: Way, inputs: Inputs) -> str | None:
    """A sentence where a way leaves the error budget of parity.py, with gradients or without, else None."""
    return measure_op.find_problem(case, way, inputs, measure_op.expect(case, inputs, eager, TENSORS))


def measure(case: Case, seconds: float) -> list[Row]:
    """Every way in both modes, in turns; on a GPU also as replays of a CUDA graph."""
    torch.compiler.reset()
    sets = cases.input_sets(case, machine.cache_bytes(case.device), make_inputs)
    backend = next(name for name in BACKENDS if refusal(name, sets[0]) is None)
    problems: dict[str, str | None] = {}
    calls: dict[str, dict[str, list[Callable[[], object]]]] = {}
    for name, way in ways(backend).items():
        try:
            with quiet(name if name in COMPILED else EAGER):
                problems[name] = find_problem(case, way, sets[0])
        except Exception as error:
            problems[name] = f"cannot run: {sentence(error)}"
            continue
        calls[name] = {mode: [call_of(case, way, inputs, mode) for inputs in sets] for mode in MODES}
    rows = []
    for mode in MODES:
        plain = {name: timing.taking_turns(c[mode], i) for i, (name, c) in enumerate(calls.items())}
        rows += _rows(case, mode, "plain", backend, problems, timing.interleave(plain, case.device, seconds))
        if case.device_type == "cuda":
            replays, failed = {}, dict(problems)
            for name, c in calls.items():
                try:
                    replays[name] = graphs.capture(c[mode])[0]
                except Exception as error:
                    failed[name] = f"cannot be captured: {sentence(error)}"
            times = timing.interleave(replays, case.device, seconds)
            each = {name: [t / len(sets) for t in ts] for name, ts in times.items()}
            rows += _rows(case, mode, "graph", backend, failed, each)
    return rows


def _rows(
    case: Case, mode: str, launch: str, backend: str, problems: dict[str, str | None], times: dict[str, list[float]]
) -> list[Row]:
    rows = []
    for name, problem in problems.items():
        row = Row(case, name, mode, launch, backend if name in (AFTER, AFFINE) else None, problem=problem)
        if name in times:
            row.samples = len(times[name])
            row.p20, row.p50, row.p80 = (1e3 * q for q in timing.quantiles(times[name]))
            if problem is None and EAGER in times:
                row.speedup = timing.ratio(times[EAGER], times[name])
        rows.append(row)
    return rows


def print_rows(rows: list[Row]) -> None:
    print(f"\n{rows[0].case}")
    for row in rows:
        mode = row.mode if row.launch == "plain" else f"{row.mode} {row.launch}"
        name = row.provider + (f" ({row.backend})" if row.backend else "")
        times = f"{row.p50:9.3f} ms [{row.p20:9.3f} {row.p80:9.3f}]" if row.samples else ""
        print(f"  {mode:<24}{name:<40}{times}" + (f"{row.speedup:7.2f} x eager" if row.speedup else ""))
    for name, problem in {(row.provider, row.problem) for row in rows if row.problem}:
        print(f"  {name}: {problem}")
