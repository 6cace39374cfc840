"""A session on a GPU, scripted: ``check`` (right, then fast), ``tune`` and ``report`` (what else), ten minutes each,
and ``first``, the most valuable of each in nine.

Every part is a command of its own with a limit, so that one that fails or hangs costs the others nothing. On the CPU
the same parts run with the CPU's providers, smaller, so that no minute of a GPU is spent on finding a typing error.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks import machine, recording, timing
from benchmarks.op.providers import KERNELS
from lewel_kernels import dispatch
from lewel_kernels.native import nvcc

ROOT = Path(__file__).parents[2]
MINUTES = 10
FIRST_MINUTES = 9
LEAST_SECONDS = 10  # in which a part can measure anything


@dataclass(frozen=True)
class Part:
    """A command of a session and the minutes it may take; with a reason in ``left_out`` it is not run."""

    name: str
    minutes: float
    command: tuple[str, ...] = ()
    left_out: str = ""
    environment: tuple[tuple[str, str], ...] = ()


def first(device: str) -> list[Part]:
    """The session ``first``: the most valuable parts of the others in that order, from build to a whole step.

    Kernels of two kinds are checked in two processes, for one that breaks the device ends its own.
    """
    if torch.device(device).type != "cuda":
        return _rehearsed_first(device)
    triton = dispatch.refusal("triton", dispatch.Request(torch.device(device), torch.float32))
    dtypes = ("bf16", "fp16") if machine.native_bf16(device) else ("fp16",)
    return [
        Part("build", 1.4, ("-m", "benchmarks", "build", "--device", device)),
        Part("right, triton", 1.1, _right("triton", 0.9, device), left_out=triton or ""),
        Part("right, cuda", 0.7, _right("cuda", 0.5, device)),
        Part("fast", 3.8, _fast("first", 0.5, 3.4, device)),
        Part("step", 2.0, _step(dtypes, 20, device)),
    ]


def _rehearsed_first(device: str) -> list[Part]:
    """The parts of `first` on the CPU: emulated and interpreted kernels on tiny calls, and a suite of its own."""
    threads = ("OMP_NUM_THREADS", "1")  # for tensors too small to be shared out, on a machine that may be busy
    emulated, interpreted = ("tests/emulation", "sm_80"), (threads, ("TRITON_INTERPRET", "1"))
    step = (*_step(("fp32",), 3, device), "--image-size", "16", "--batch", "16")
    return [
        Part("build", 3.0, (*emulated, "-m", "benchmarks", "build", "--device", device), environment=interpreted),
        Part("right, triton", 0.8, _right("triton", 0.5, device), environment=interpreted),
        Part("right, cuda", 0.8, (*emulated, *_right("cuda", 0.5, device)), environment=interpreted),
        Part("fast", 2.0, _fast("rehearsal", 0.1, 1.5, device), environment=(threads,)),
        Part("step", 1.0, step, environment=(threads,)),
    ]


def _right(backend: str, minutes: float, device: str) -> tuple[str, ...]:
    return ("-m", "benchmarks", "right", "--backend", backend, "--minutes", str(minutes), "--device", device)


def _fast(suite: str, seconds: float, minutes: float, device: str) -> tuple[str, ...]:
    return ("-m", "benchmarks", "run", "--suite", suite, "--provider", "eager", "compile", *KERNELS,
            "--seconds", str(seconds), "--minutes", str(minutes), "--device", device)  # fmt: skip


def _step(dtypes: tuple[str, ...], seconds: float, device: str) -> tuple[str, ...]:
    return ("-m", "benchmarks", "step", "--method", "byol", "lewel_b", "--precision", *dtypes,
            "--seconds", str(seconds), "--device", device)  # fmt: skip


def check(device: str) -> list[Part]:
    """The session ``check``: the op's tests on the device, the sanitizer, the suite of the paper."""
    gpu = torch.device(device).type == "cuda"
    # A rehearsal has the contract alone: interpreted, all of them would take far longer than the part may.
    which = (
        ("-k", "test_op_ or test_triton_kernels or test_cuda_kernels or test_cuda_memory", "--large")
        if gpu
        else ("-k", "test_op_contract")
    )
    tests = ("-m", "pytest", "tests", *which, "--device", device, "-q")
    return [
        *_built(gpu),
        Part("tests", 2.5, tests),
        *(_sanitized(tool, device, gpu) for tool in ("memcheck", "racecheck")),
        _speed(device, gpu),
    ]


def tune(device: str) -> list[Part]:
    """The session ``tune``: the triton kernels tuned, then the suite of the paper as in `check`, to compare with."""
    gpu = torch.device(device).type == "cuda"
    command = ("-m", "benchmarks", "tune", "--minutes", "3.7", "--device", device)
    if gpu:
        return [*_built(gpu), Part("tune", 4.1, command), _speed(device, gpu)]
    interpreted = (("TRITON_INTERPRET", "1"),)
    return [
        Part("tune", 4.1, (*command, "--shape", "M", "--dtype", "bf16"), environment=interpreted),
        _speed(device, gpu),
    ]


def _built(gpu: bool) -> list[Part]:
    """The part that compiles the CUDA kernels before anything is measured; later parts find them in the cache."""
    return [Part("build", 1.0, ("-m", "lewel_kernels.build", "--cuda"))] if gpu else []


def _speed(device: str, gpu: bool) -> Part:
    # A rehearsal measures less than a run of the suite does, so that it never takes its place in the documents.
    suite = ["--suite", "paper"] if gpu else ["--suite", "quick", "--provider", "eager", "compile", *KERNELS]
    return Part("speed", 4.9, ("-m", "benchmarks", "run", *suite, "--seconds", "0.5", "--minutes", "4.3",
                               "--device", device))  # fmt: skip


def report(device: str) -> list[Part]:
    """The session ``report``: how it grows, what a call costs, what the prologue and a training step gain."""
    return [
        *_built(torch.device(device).type == "cuda"),
        Part("overhead", 1.0, ("-m", "benchmarks", "overhead", "--device", device)),
        Part("loss", 0.8, ("-m", "benchmarks", "loss", "--device", device)),
        Part("prologue", 1.5, ("-m", "benchmarks", "prologue", "--seconds", "0.3", "--minutes", "1.3",
                               "--device", device)),
        Part("step", 3.2, ("-m", "benchmarks", "step", "--seconds", "27", "--device", device)),
        Part("scaling", 2.5, ("-m", "benchmarks", "run", "--suite", "sweep", "--seconds", "0.2", "--minutes", "2.2",
                              "--provider", "eager", "compile", *KERNELS, "--device", device)),
    ]  # fmt: skip


# What each command of ``python -m benchmarks`` runs.
SESSIONS: dict[str, Callable[[str], list[Part]]] = {
    "first": first, "check": check, "tune-session": tune, "report": report,
}  # fmt: skip


def minutes_of(command: str) -> int:
    return FIRST_MINUTES if command == "first" else MINUTES


def _sanitized(tool: str, device: str, gpu: bool) -> Part:
    """The part that runs compute-sanitizer over the triton and the cuda kernels on one small shape."""
    name = f"compute-sanitizer {tool}"
    if not gpu:
        return Part(name, 0, left_out="it watches kernels on a GPU")
    if (sanitizer := shutil.which("compute-sanitizer")) is None:
        return Part(name, 0, left_out="compute-sanitizer is not on the PATH; it comes with the CUDA toolkit")
    tests = ("-m", "pytest", "tests/test_op_contract.py", "-k", "tall and (triton or cuda)", "--device", device, "-q")
    command = (sanitizer, "--tool", tool, "--error-exitcode", "9", sys.executable, *tests)
    # An access beyond a tensor would else fall into the block that PyTorch keeps for others, unseen.
    return Part(name, 0.8, command, environment=(("PYTORCH_NO_CUDA_MEMORY_CACHING", "1"),))


def run(parts: list[Part], device: str, minutes: float = MINUTES) -> int:
    """Runs the parts in order, prints how each went and where the data are; 1 if any failed or was not ended."""
    start, verdicts = time.monotonic(), []
    if torch.device(device).type == "cuda" and nvcc.ARCHS not in os.environ:
        # No minute of a GPU is spent on compiling what another one would run.
        own = (nvcc.ARCHS, "{}.{}".format(*torch.cuda.get_device_capability(device)))
        parts = [replace(part, environment=(*part.environment, own)) for part in parts]
    for part in parts:
        if part.left_out:
            verdicts.append((part.name, f"left out: {part.left_out}", 0.0))
            continue
        began = time.monotonic()
        left = 60 * minutes - (began - start)
        if left < LEAST_SECONDS:
            verdicts.append((part.name, f"not begun: the parts before it took the {minutes:g} minutes", 0.0))
            continue
        seconds = min(60 * part.minutes, left)
        print(f"\n=== {part.name} (at most {seconds / 60:.1f} min)", flush=True)
        verdicts.append((part.name, _run(part, seconds), time.monotonic() - began))
    print()
    for name, verdict, seconds in verdicts:
        print(f"{name:<28}{seconds:6.0f} s  {verdict}")
    print(f"{'all':<28}{time.monotonic() - start:6.0f} s")
    files = sorted((recording.ROOT / machine.slug(timing.device_name(device))).glob("*.jsonl"))
    print("Data: " + " ".join(os.path.relpath(path, ROOT) for path in files))
    return int(any(not verdict.startswith(("ok", "left out")) for _, verdict, _ in verdicts))


def _run(part: Part, seconds: float) -> str:
    command = part.command if Path(part.command[0]).is_absolute() else (sys.executable, *part.command)
    # A group of its own, so that a limit ends the compilers that it started too; unbuffered, so that what it printed
    # until then is seen.
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **dict(part.environment)}
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, env=environment)
    try:
        status = process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return f"stopped after {seconds:.0f} s; what it had recorded is kept"
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return "ok" if status == 0 else f"failed with exit status {status}"
