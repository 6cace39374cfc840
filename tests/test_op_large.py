"""More than 2^31 elements: images beyond what 32-bit offsets reach give what they give alone. Runs with --large."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from op_cases import OpCase, OpInputs, kernels, make, run_op
from torch import Tensor

# What nobody wrote must not pass for the zero gradient of an image that gets none.
pytestmark = pytest.mark.usefixtures("poisoned")

# Where signed 32-bit offsets end, and in 16 bits per element those in unsigned bytes; signed bytes end halfway.
BOUNDARY = 2**31
C, SPACE = 512, (14, 14)
IMAGE = C * 14 * 14
ACROSS = BOUNDARY // IMAGE  # the image that the boundary cuts in two
N = ACROSS + 9
ROWS = [0, ACROSS // 2, ACROSS - 1, ACROSS, ACROSS + 1, N - 1]
CASES = (
    OpCase("pixels", N=N, C=C, D=16, K=8, G=4, space=SPACE, bias=True),
    OpCase("shared", N=N, C=C, D=None, K=8, G=4, space=SPACE, bias=True),
)
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
# Features and their gradient, and room for everything else.
NEEDED = 2 * (N * IMAGE * 2) + (3 << 30)


def free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    file = Path("/proc/meminfo")  # elsewhere than on Linux, --large is taken at its word
    return int(file.read_text().split("MemAvailable:")[1].split()[0]) << 10 if file.exists() else sys.maxsize


def draw(channels: int, layout: str, device: torch.device) -> Tensor:
    """Images without a detour through float64, as op_cases.make takes."""
    x = torch.empty(N, channels, *SPACE, dtype=torch.bfloat16, device=device, memory_format=LAYOUTS[layout])
    return x.uniform_(-1, 1)


def rows_of(x: Tensor, layout: str) -> Tensor:
    """The images ROWS, in memory of their own."""
    return torch.stack([x.detach()[i] for i in ROWS]).contiguous(memory_format=LAYOUTS[layout]).requires_grad_()


@kernels
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_images_beyond_32_bits(
    case: OpCase, layout: str, backend: str, device: torch.device, request: pytest.FixtureRequest
) -> None:
    if not request.config.getoption("--large"):
        pytest.skip(f"it takes {NEEDED >> 30} GiB of memory; run it with --large")
    if (free := free_bytes(device)) < NEEDED:
        pytest.skip(f"it takes {NEEDED >> 30} GiB of memory; {device} has {free >> 30} GiB to spare")
    torch.manual_seed(0)
    small = make(replace(case, N=0), dtype=torch.bfloat16, device=device)  # for its parameters
    features = draw(C, layout, device).requires_grad_()
    assert features.numel() > BOUNDARY
    pixels = None if case.D is None else draw(case.D, layout, device).requires_grad_()
    # Only ROWS get a gradient, so that each of them shows in the sums over images.
    grad_pooled = torch.zeros(N, case.K // case.G, C, dtype=torch.bfloat16, device=device)
    grad_pooled[ROWS] = torch.randn_like(grad_pooled[ROWS])
    unused = small.grad_maps
    inputs = OpInputs(case, features, pixels, small.weight, small.bias, grad_pooled, unused)
    alone = OpInputs(
        case, rows_of(features, layout), None if pixels is None else rows_of(pixels, layout),
        small.weight, small.bias, grad_pooled[ROWS], unused,
    )  # fmt: skip
    found, expected = run_op(inputs, backend), run_op(alone, backend)
    for name in ("d_weight", "d_bias"):
        x, wanted = found.pop(name), expected.pop(name)
        torch.testing.assert_close(x, wanted, rtol=0, atol=2**-7 * wanted.abs().max().item(), msg=name)
    for name, x in found.items():
        for i, row in enumerate(ROWS):
            assert torch.equal(x[row], expected[name][i]), f"{name} of image {row}"
            if name != "pooled":
                x[row] = 0
        if name != "pooled":
            assert not any(part.any() for part in x.split(1024)), f"{name} of an image whose result has no gradient"
