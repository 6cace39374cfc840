"""The compiler of the tuner, in other processes: beside the GPU's work, and where Triton is not told to interpret."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.gpu.tune_space import Choice, Problem

if TYPE_CHECKING:
    from benchmarks.compiled.requests import Request

ROOT = Path(__file__).parents[2]
# A choice, and a function that waits for the compiler, some seconds at most, and returns the sentences against it.
Asked = tuple[Choice, Callable[[float | None], list[str]]]


class Compiler:
    """Compiles choices in other processes and tells their faults; Triton's cache keeps the kernels for the launch."""

    EACH = 4  # choices for one process: few, so that the first are there soon

    def __init__(self, capability: int, processes: int) -> None:
        self.capability = capability
        self._threads = ThreadPoolExecutor(processes)
        self._running: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()
        self._closed = False

    def __enter__(self) -> Compiler:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._closed = True
            for process in self._running:
                process.kill()
        self._threads.shutdown(cancel_futures=True)

    def warm(self, request: Request) -> Future[list[list[str]]]:
        """Starts to compile all that a call launches, as it is configured now; the result is [] when done."""
        return self._threads.submit(self._work, request, None, [])

    def submit(self, problem: Problem, choices: Sequence[Choice]) -> list[Asked]:
        """Starts to compile the choices; returns each with a function that waits and returns its faults."""
        made: list[Asked] = []
        for start in range(0, len(choices), self.EACH):
            part = choices[start : start + self.EACH]
            future = self._threads.submit(self._work, problem.request, problem.key, part)
            made += [(choice, partial(_sentences, future, i)) for i, choice in enumerate(part)]
        return made

    def _work(self, request: Request, key: str | None, choices: Sequence[Choice]) -> list[list[str]]:
        work = {"request": asdict(request), "capability": self.capability, "key": key,
                "choices": [asdict(choice) for choice in choices]}  # fmt: skip
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        with self._lock:
            if self._closed:
                return []
            process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.gpu.tune_compile"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment,
            )  # fmt: skip
            self._running.add(process)
        out, err = process.communicate(json.dumps(work))
        with self._lock:
            self._running.discard(process)
        if process.returncode:
            raise RuntimeError(f"a process that compiles kernels ended with status {process.returncode}:\n{err}")
        found: list[list[str]] = json.loads(out)
        return found


def _sentences(future: Future[list[list[str]]], index: int, timeout: float | None) -> list[str]:
    return future.result(timeout)[index]


def compiled(work: Mapping[str, Any]) -> list[list[str]]:
    """Runs in a compiler process: compiles each choice in work and returns its faults, a list of sentences per choice.

    If work has no key, compiles all launches of the request and returns [].
    """
    from benchmarks.compiled.requests import Request, launches_of
    from benchmarks.compiled.triton_kernels import compile_launch
    from lewel_kernels.triton import configs

    request = Request.from_json(work["request"])
    capability, key = work["capability"], work["key"]
    arch = configs.architecture((capability // 10, capability % 10))
    if key is None:
        for launch in launches_of(request, capability):
            compile_launch(launch, capability)
        return []
    found = []
    for told in work["choices"]:
        choice = Choice(tuple((name, size) for name, size in told["blocks"]), told["num_warps"], told["num_stages"])
        with configs.in_force(arch, key, choice.entry()):
            (launch,) = (x for x in launches_of(request, capability) if x.config.key == key)
            try:
                found.append(compile_launch(launch, capability, str(request)).faults())
            except Exception as error:  # the compiler's own, ptxas', or any of Python in a kernel
                found.append([f"it does not compile: {str(error).strip() or repr(error)}".split("\n", 1)[0]])
    return found


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):  # Triton prints what ptxas refuses
        answer = compiled(json.load(sys.stdin))
    print(json.dumps(answer))
