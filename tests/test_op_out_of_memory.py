"""The backends of the CPU where memory ends: a sentence from whichever thread and pass, and the next call is right."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import emulation
import pytest
import torch

from lewel_kernels import dispatch, fused_align_aggregate

N, C = 3, 8
# K, P: of the one the forward takes much scratch, of the other the backward; more than malloc takes from what it keeps.
SHAPES = [(144, 65536), (1 << 17, 4)]
DTYPES = {"fp32": torch.float32, "fp64": torch.float64}
MIB = 1 << 20
SENTENCE = re.compile(
    r"out of memory: \d{7,} bytes for the (scratch of a thread|workspace of the (?:for|back)ward)(; .+ less.*)?"
)

needs_rlimit = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is bounded by Linux's rlimit")


@contextmanager
def spare(size: int) -> Iterator[None]:
    """This process can take so many bytes more."""
    import resource

    status = Path("/proc/self/status").read_text()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, ((int(status.split("VmSize:")[1].split()[0]) << 10) + size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def passes(dtype: torch.dtype, K: int, P: int) -> dict[str, Callable[[], None]]:
    """Both ops on results that are there, so that all they allocate is their own."""
    features, weight, bias = (torch.randn(shape, dtype=dtype) for shape in ((N, C, P), (K, C), (K,)))
    heat, norm, pooled = features.new_empty(N, K, P), features.new_empty(N, P), features.new_empty(N, K, C)
    gradients = [torch.empty_like(features), None, torch.empty_like(weight), torch.empty_like(bias)]
    ops, numbers = torch.ops.lewel_native, (1, 0.5, 1e-12)
    return {
        "forward": lambda: ops.cpu_forward(features, None, weight, bias, *numbers, pooled, None, heat, norm),
        "backward": lambda: ops.cpu_backward(pooled, None, features, None, weight, heat, norm, *numbers, *gradients),
    }


def measure(dtype: str, threads: int) -> dict[str, list[str]]:
    """What each pass says with ever more memory, until it runs; after each time an ordinary call must be right."""
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    x = torch.randn(2, C, 81, dtype=DTYPES[dtype], requires_grad=True)
    weight = torch.randn(8, C, dtype=DTYPES[dtype])

    def ordinary(backend: str) -> tuple[torch.Tensor, ...]:
        pooled = fused_align_aggregate(x, weight, num_groups=1, backend=backend)
        return pooled.detach(), *torch.autograd.grad(pooled.square().sum(), x)

    before, truth = ordinary("cpu"), ordinary("reference")
    torch.testing.assert_close(before, truth)
    found: dict[str, list[str]] = {}
    for shape in SHAPES:
        for name, run in passes(DTYPES[dtype], *shape).items():
            for size in range(8, 1024, 56):
                try:
                    with spare(size * MIB):
                        run()
                    break
                except RuntimeError as error:
                    found.setdefault(name, []).append(str(error))
                assert all(map(torch.equal, ordinary("cpu"), before))
    return found


def measure_emulated() -> str:
    """What the backward of the cuda backend says without memory for its workspace; an ordinary call must be right."""
    emulation.install()
    K, P = SHAPES[0]
    x, small = torch.randn(2, C, 9), torch.randn(8, C)
    before = fused_align_aggregate(x, small, num_groups=1, backend="cuda")
    features, weight = torch.randn(N, C, P), torch.randn(K, C)
    heat, norm, grad = features.new_empty(N, P, K).mT, features.new_empty(N, P), features.new_empty(N, K, C)
    gradients = torch.empty_like(features), None, torch.empty_like(weight), None, None, None
    said = ""
    try:
        with spare(40 * MIB):
            torch.ops.lewel_emulated_sm80.backward(
                grad, None, features, None, weight, None, None, heat, norm, 1, 0.5, 1e-12, *gradients
            )
    except RuntimeError as error:
        said = str(error)
    assert torch.equal(fused_align_aggregate(x, small, num_groups=1, backend="cuda"), before)
    return said


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """This file in a process of its own."""
    root = str(Path(__file__).parents[1])  # this tree, not one that is installed
    environment = os.environ | {"PYTHONPATH": root}
    command = [sys.executable, __file__, *arguments]
    return subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False)


@needs_rlimit
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sentence_and_then_the_next_call(dtype: str, threads: int) -> None:
    if reason := dispatch.refusal("cpu", dispatch.Request(torch.device("cpu"), DTYPES[dtype])):
        pytest.skip(f"cpu: {reason}")
    done = run(dtype, str(threads))
    assert (done.returncode, done.stderr) == (0, "")  # nothing of torch's either
    found: dict[str, list[str]] = json.loads(done.stdout)
    purposes = {"forward": set(), "backward": {"workspace of the backward"}}  # the forward's is small
    for name, sentences in found.items():
        said = [SENTENCE.fullmatch(sentence) for sentence in sentences]
        assert all(said), sentences
        assert {match[1] for match in said if match} >= {"scratch of a thread", *purposes[name]}
    assert found.keys() == purposes.keys()


@needs_rlimit
def test_a_workspace_of_the_cuda_backend() -> None:
    if reason := dispatch.refusal("cuda", dispatch.Request(torch.device("cpu"), torch.float32)):
        pytest.skip(f"cuda: {reason}")
    done = run("emulated")
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"out of memory: \d{9} bytes for the workspace of a call; a smaller .*", done.stdout.strip())


if __name__ == "__main__":
    print(measure_emulated() if sys.argv[1:] == ["emulated"] else json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
