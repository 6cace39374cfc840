"""The offline tuner of the triton backend: block sizes, warps and pipeline stages, tried on the GPU that is there.

A candidate is dropped untimed when the compiler finds a fault with it (benchmarks/compiled/triton_kernels.py), and
refused when its results are not those of the configuration in force. What is timed is a kernel with the launches that
its configuration decides about: the statistics that it needs where one tile does not hold all positions, the sums of
its parts. No configuration depends on N, so one must be faster over all of `BATCHES`.
"""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import TimeoutError as FutureTimeout  # another one before Python 3.11
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import geometric_mean, median
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import machine, timing
from benchmarks.gpu.tune_compile import Asked, Compiler
from benchmarks.gpu.tune_space import Choice, Problem, kernel_of, stages
from benchmarks.op import graphs
from lewel_kernels.plan import Call

if TYPE_CHECKING:
    from benchmarks.compiled.requests import Request
    from lewel_kernels.triton.launch import Launch

BATCHES = (32, 128, 256)
GAIN = 1.03  # what a candidate must gain to take the place of the configuration in force
SECONDS = 0.08  # spent on a candidate at each N; a winner is timed again for longer
TWINS = 3  # how many of what was best in one 16-bit dtype are tried in the next
TINY_BATCHES, TINY_CHOICES = (1, 2), 2  # of a rehearsal
# What each kernel writes that does not depend on its configuration; of p_delta, in parts, the sum.
WRITTEN = {
    "project": ("p_heat", "p_norm"), "pool": ("p_r",), "dense": ("p_heat", "p_norm"), "dense_sum": ("p_r",),
    "pool_bwd": ("p_df", "p_da", "p_delta"), "maps_bwd": ("p_dm",), "pixels_bwd": ("p_dx",), "sum": ("p_sum",),
}  # fmt: skip


class Wrong(Exception):
    """A candidate's results are not those of the configuration in force."""


@dataclass(frozen=True)
class Field:
    """The calls of a problem at one N, and its launches as they are configured now, one list for each call."""

    n: int
    calls: list[Drawn]
    present: list[list[Launch]]


class Drawn(NamedTuple):
    """A call and its tensors by name."""

    call: Call
    tensors: dict[str, Tensor]


def draw(request: Request, device: str, capability: int, seed: int) -> Drawn:
    """A request's call with random inputs in channels_last, features and pixels as behind a ReLU."""
    from benchmarks.compiled.requests import call_of

    call, generator = call_of(request, capability), torch.Generator(device).manual_seed(seed)
    n, c, d, k, _, p = call.sizes

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, device=device)

    features, pixels = (normal(n, p, channels).relu().to(call.dtype).transpose(1, 2) for channels in (c, d))
    tensors = {"features": features, "pixels": pixels, "weight": (normal(k, d) / d**0.5).to(call.dtype)}
    if request.affine:
        tensors |= {"scale": normal(d).abs(), "shift": 0.1 * normal(d)}
    return Drawn(call, tensors)


def planned(drawn: Drawn, key: str, seed: int = 0) -> list[Launch]:
    """The launches that ``key`` decides about, their tensors filled by one run of the whole call and its backward."""
    from lewel_kernels.triton import backward_launches, forward_launches

    call, tensors = drawn.call, dict(drawn.tensors)
    launches = forward_launches.plan(call).on(tensors)
    pooled = tensors["pooled"]
    generator = torch.Generator(pooled.device).manual_seed(seed)
    tensors["grad_pooled"] = torch.randn(pooled.shape, generator=generator, device=pooled.device).to(call.dtype)
    launches += backward_launches.plan(call.backward()).on(tensors)
    for launch in launches:
        launch.run()
    return stages(launches)[key]


def field(problem: Problem, n: int, device: str, capability: int) -> Field:
    request = replace(problem.request, N=n)
    first = draw(request, device, capability, 0)
    on_gpu = torch.device(device).type == "cuda"
    together = 2 * machine.cache_bytes(device) if on_gpu else 0  # times of the interpreter mean nothing anyhow
    count = max(2, -(-together // (first.call.features.nbytes + first.call.projected.nbytes)))
    calls = [first, *(draw(request, device, capability, seed) for seed in range(1, count))]
    return Field(n, calls, [planned(call, problem.key) for call in calls])


def _results(stage: list[Launch]) -> list[tuple[str, Tensor]]:
    kernels = [kernel_of(launch.config.key) for launch in stage]
    found = []
    for kernel, launch in zip(kernels, stage, strict=True):
        if kernel == "sum" and "pool_bwd" in kernels:  # of the parts of delta, which are summed below
            continue
        for name in WRITTEN.get(kernel, ()):
            x = launch.arguments[name]
            found.append((name, x.sum(0) if name == "p_delta" else x))
    return found


def difference(present: list[Launch], candidate: list[Launch], dtype: torch.dtype) -> str | None:
    """A sentence if results differ by more than another order of sums and one rounding to dtype, else None."""
    eps = torch.finfo(dtype).eps
    for (name, a), (_, b) in zip(_results(candidate), _results(present), strict=True):
        a, b = a.double(), b.double()
        allowed = 2 * eps * (b.abs() + b.square().mean().sqrt())
        if not bool(((a - b).abs() <= allowed).all()):  # written so that a NaN fails
            return f"{name} differs by up to {(a - b).abs().max().item():.2e}"
    return None


def seconds_of(every: Mapping[str, list[list[Launch]]], device: str, seconds: float) -> dict[str, list[float]]:
    """By name, seconds of a call's launches in each round; a GPU replays graphs, for its host is slower than that."""
    calls = {name: [partial(_run, stage) for stage in found] for name, found in every.items()}
    if torch.device(device).type != "cuda":  # a rehearsal
        return {name: [timing.sample(x[0], device, 1)] for name, x in calls.items()}
    replays = {name: graphs.capture(x)[0] for name, x in calls.items()}
    times = timing.interleave(replays, device, seconds)
    return {name: [t / len(calls[name]) for t in ts] for name, ts in times.items()}


def _run(stage: list[Launch]) -> None:
    for launch in stage:
        launch.run()


@dataclass(frozen=True)
class Timed:
    """The times of a choice and of the configuration in force: the gain over all N, seconds at the largest N."""

    choice: Choice
    gain: float
    before: float
    after: float


def compare(key: str, fields: Sequence[Field], choice: Choice, device: str, arch: str, seconds: float) -> Timed:
    """Times a choice against the configuration in force, the two in turns, at the N of each field.

    Raises:
        Wrong: its results differ from those of the configuration in force.
    """
    from lewel_kernels.triton import configs

    ratios = []
    before = after = 0.0
    for f in fields:
        with configs.in_force(arch, key, choice.entry()):
            candidate = [planned(call, key) for call in f.calls]
        for i in {0, len(f.calls) - 1}:
            if told := difference(f.present[i], candidate[i], f.calls[i].call.dtype):
                raise Wrong(f"{told} at N={f.n}")
        times = seconds_of({"present": f.present, "candidate": candidate}, device, seconds)
        ratios.append(timing.ratio(times["present"], times["candidate"]))
        before, after = median(times["present"]), median(times["candidate"])
    return Timed(choice, geometric_mean(ratios), before, after)


@dataclass
class Found:
    """The result of tuning one key."""

    problem: Problem
    present: Choice
    timed: list[Timed]  # fastest first
    winner: Timed | None  # confirmed; None keeps what is in force
    dropped: int

    @property
    def choice(self) -> Choice:
        return self.present if self.winner is None else self.winner.choice

    def verdict(self, batches: Sequence[int]) -> str:
        """Times, gain and number of choices as text, for a person and for the entry's provenance; batches are the N."""
        n, tried = f"N={batches[-1]}", f"{len(self.timed)} timed, {self.dropped} dropped"
        if self.winner is None:
            return f"{1e6 * self.timed[0].before:.1f} us at {n}, kept against {tried}"
        times = f"{1e6 * self.winner.before:.1f} us before and {1e6 * self.winner.after:.1f} us after at {n}"
        over = ", ".join(map(str, batches))
        return f"{times}, x {self.winner.gain:.2f} over N={over}, best of {tried}"


@dataclass
class Tuner:
    """Tunes key after key. ``path`` is the table that is rewritten after each; None writes nothing."""

    device: str
    capability: int
    path: Path | None
    where: str  # the GPU, the day, the commit: the beginning of a provenance
    batches: Sequence[int] = BATCHES
    most: int | None = None  # choices for each key
    deadline: float = float("inf")  # by time.monotonic

    @property
    def arch(self) -> str:
        from lewel_kernels.triton import configs

        return configs.architecture((self.capability // 10, self.capability % 10))

    def left(self) -> float:
        return self.deadline - time.monotonic()

    def run(self, every: Sequence[Problem], compiler: Compiler) -> list[Found]:
        """Tunes the problems in order until the deadline; prints, writes and returns what it finds.

        The best choices of a key are tried for its twins in other dtypes.
        """
        warm = {request: compiler.warm(request) for request in dict.fromkeys(problem.request for problem in every)}
        first: dict[str, Problem] = {}
        for problem in every:
            first.setdefault(problem.twin, problem)
        asked = {problem.key: compiler.submit(problem, problem.choices()[: self.most]) for problem in first.values()}
        found: list[Found] = []
        for problem in every:
            try:
                warm[problem.request].result(_timeout(self.left()))
                new = self.tune(problem, asked.get(problem.key, []))
            except FutureTimeout:
                new = None
            if new is not None:
                found.append(new)
                print(f"{problem.key}: {new.choice}; {new.verdict(self.batches)}", flush=True)
                if self.path is not None:
                    provenance = f"{self.where}: {new.verdict(self.batches)}"
                    write(self.path, self.arch, {problem.key: new.choice.entry(provenance)})
                if first[problem.twin] is problem:
                    best = dict.fromkeys([new.choice, *(timed.choice for timed in new.timed[:TWINS])])
                    twins = (other for other in every if other.twin == problem.twin and other is not problem)
                    asked |= {other.key: compiler.submit(other, list(best)) for other in twins}
            if self.left() <= 0:
                break
        done = {new.problem.key for new in found}
        if left := [problem.key for problem in every if problem.key not in done]:
            print(f"Nothing was timed for these keys, which keep what they have: {'; '.join(left)}")
        return found

    def tune(self, problem: Problem, asked: Iterable[Asked]) -> Found | None:
        """Times the choices of a problem and returns what it found; None where no choice could be timed."""
        fields = [field(problem, n, self.device, self.capability) for n in self.batches]
        found = Found(problem, choice_of(fields[0].present[0], problem.key), [], None, 0)
        for choice, faults in asked:
            if self.left() <= 0:
                break
            if choice == found.present:
                continue
            try:
                sentences = faults(_timeout(self.left()))
            except FutureTimeout:
                break
            if not sentences:
                try:
                    found.timed.append(compare(problem.key, fields, choice, self.device, self.arch, SECONDS))
                except Exception as error:  # a launch that the device refuses costs only itself
                    sentences = [f"{type(error).__name__}: {error}".split("\n", 1)[0]]
            if sentences:
                found.dropped += 1
                print(f"  {problem.key}: {choice} is dropped: {sentences[0]}")
        if not found.timed:
            return None
        found.timed.sort(key=lambda timed: -timed.gain)
        if found.timed[0].gain >= GAIN:
            again = compare(problem.key, fields, found.timed[0].choice, self.device, self.arch, 4 * SECONDS)
            found.winner = again if again.gain >= GAIN else None
        return found


def _timeout(seconds: float) -> float | None:
    return None if seconds == float("inf") else max(0.0, seconds)


def choice_of(stage: list[Launch], key: str) -> Choice:
    """The Choice by which the kernel of the key is launched in a stage."""
    (config,) = (launch.config for launch in stage if launch.config.key == key)
    return Choice(tuple(config.blocks.items()), config.num_warps, config.num_stages)


def table_of(arch: str) -> Path:
    from lewel_kernels.triton import configs

    return configs.FOLDER / f"{arch}.json"


def write(path: Path, arch: str, entries: Mapping[str, dict[str, Any]]) -> None:
    """Puts entries into the table at path, sorted, a line each. The file is replaced at once, never half-written."""
    table: dict[str, Any] = json.loads(path.read_text())["entries"] if path.exists() else {}
    table.update(entries)
    lines = ",\n".join(f"    {json.dumps(key)}: {json.dumps(table[key])}" for key in sorted(table))
    new = path.with_suffix(".new")
    new.write_text(f'{{\n  "architecture": "{arch}",\n  "entries": {{\n{lines}\n  }}\n}}\n')
    new.replace(path)


def refusal(device: str) -> str | None:
    """Why nothing can be tuned on a device, as a sentence, or None."""
    from lewel_kernels import triton as backend

    if importlib.util.find_spec("triton") is None:
        return "triton is not installed; pip install triton"
    if torch.device(device).type == "cpu":
        if backend.INTERPRETED:
            return None
        return (
            "on the CPU kernels are interpreted, which must be said before Python starts: "
            "TRITON_INTERPRET=1 python -m benchmarks tune --device cpu"
        )
    if backend.INTERPRETED:
        return "TRITON_INTERPRET=1 has the kernels interpreted on the CPU; unset it to tune on a GPU"
    from benchmarks.compiled.report import SHARED_LIMITS
    from lewel_kernels.triton import configs

    major, minor = torch.cuda.get_device_capability(device)
    tuned = [c for c in SHARED_LIMITS if (configs.FOLDER / f"{configs.architecture(divmod(c, 10))}.json").exists()]
    if 10 * major + minor not in tuned:
        known = " and ".join(f"sm_{capability}" for capability in tuned)
        return f"there are tables for {known}; this GPU is sm_{major}{minor}, which takes the rule in configs.py"
    return None
