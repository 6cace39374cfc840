"""Peak memory of the cpu backend beyond its results: workspaces of known size, and no copy of features or pixels."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lewel_kernels import dispatch, fused_align_aggregate

N, C, D, K, G, H = 32, 512, 512, 32, 4, 14
P, L = H * H, K // G
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
# Scratch of two threads, and what the allocator and the interpreter do meanwhile. A copy of one input is 6 or 12 MiB.
SLACK = 4 << 20

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc"
)


def peak_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) << 10


def reset_peak() -> int:
    Path("/proc/self/clear_refs").write_text("5")
    return peak_bytes()


def measure() -> dict[str, list[int]]:
    """The most bytes that forward and backward need beyond what was there before, by dtype and layout."""
    torch.set_num_threads(2)
    found = {}
    for dtype in DTYPES:
        for layout in LAYOUTS:

            def image(n: int, channels: int, dtype: str = dtype, layout: str = layout) -> torch.Tensor:
                x = torch.randn(n, channels, H, H).to(DTYPES[dtype])
                return x.contiguous(memory_format=LAYOUTS[layout]).requires_grad_()

            weight = torch.randn(K, D).to(DTYPES[dtype]).requires_grad_()
            for n in (2, N):  # the first call makes the threads and loads the code
                features, pixels = image(n, C), image(n, D)
                grad = torch.randn(n, L, C).to(DTYPES[dtype])
                before = reset_peak()
                pooled = fused_align_aggregate(features, weight, pixels=pixels, num_groups=G, backend="cpu")
                forward = peak_bytes() - before
                before = reset_peak()
                torch.autograd.grad(pooled, (features, pixels, weight), grad)
                found[f"{dtype}-{layout}"] = [forward, peak_bytes() - before]
    return found


@pytest.fixture(scope="module")
def measured() -> dict[str, list[int]]:
    if sentence := dispatch.refusal("cpu", dispatch.Request(torch.device("cpu"), torch.float32)):
        pytest.skip(f"cpu: {sentence}")
    # Blocks above 64 KiB come from the system and go back to it, so that the peak shows every one of them.
    root = str(Path(__file__).parents[1])  # this tree, not one that is installed
    environment = {
        **os.environ,
        "PYTHONPATH": root,
        "MALLOC_MMAP_THRESHOLD_": str(64 << 10),
        "MALLOC_TRIM_THRESHOLD_": "0",
    }
    done = subprocess.run(
        [sys.executable, __file__],
        env=environment,
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, list[int]] = json.loads(done.stdout)
    return result


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_forward(dtype: str, layout: str, measured: dict[str, list[int]]) -> None:
    size = DTYPES[dtype].itemsize
    results = N * L * C * size + N * K * P * size + N * P * 4
    packed_weight = K * D * 4
    # No bound from below: the kernel counts pages per thread in batches, and these results are no larger than those.
    assert measured[f"{dtype}-{layout}"][0] < results + packed_weight + SLACK


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_backward(dtype: str, layout: str, measured: dict[str, list[int]]) -> None:
    size = DTYPES[dtype].itemsize
    gradients = (N * C * P + N * D * P + K * D) * size
    maps_and_their_gradient = 2 * N * K * P * 4
    packed_weight, partial_sums = K * D * 4, 4 * K * D * 4  # four parts of the rows at this width
    pairs = N * K * ((P + 1) // 2) * 4 if dtype == "bf16" else 0  # the gradient of the heat maps rounded, for dW
    workspace = maps_and_their_gradient + packed_weight + partial_sums + pairs
    assert gradients / 2 < measured[f"{dtype}-{layout}"][1] < gradients + workspace + SLACK


if __name__ == "__main__":
    print(json.dumps(measure()))
