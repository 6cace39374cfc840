"""Kernels with a fault, compiled and described as JSON by a process in which kernels are not interpreted.

For tests/test_triton_budget.py: `spilling 80` (a capability), or `racing`. For whoever mends Triton, `racing --ttgir`
prints the TTGIR of the kernel that races with itself on sm_90; docs/backends.md says what to look for.
"""

import json
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict
from typing import Any

import torch
import triton
import triton.language as tl

from benchmarks.compiled.triton_kernels import TritonReport, compile_launch
from lewel_kernels.plan import Array
from lewel_kernels.triton.configs import Config
from lewel_kernels.triton.launch import Launch


@triton.jit
def spilling_kernel(p_x, p_y, SIZE: tl.constexpr):
    """All of x is at hand when its sum is known: 512 registers of each thread, where 255 is the most there are."""
    o_x = tl.arange(0, SIZE)
    b_x = tl.load(p_x + o_x)
    tl.store(p_y + o_x, b_x / tl.sum(b_x))


@triton.jit
def racing_kernel(p_a, p_b, p_product, p_sum, rows, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """A^T B and the column sums of A, both (rows, SIZE): a block of A feeds a product and a sum."""
    o_x = tl.arange(0, SIZE)
    b_product = tl.zeros([SIZE, SIZE], tl.float32)
    b_sum = tl.zeros([SIZE], tl.float32)
    for i_r in range(0, rows, BLOCK):
        o_rx = (i_r + tl.arange(0, BLOCK))[:, None] * SIZE + o_x[None, :]
        b_a = tl.load(p_a + o_rx)
        b_b = tl.load(p_b + o_rx)
        b_product = tl.dot(tl.trans(b_a), b_b, b_product)
        b_sum += tl.sum(b_a.to(tl.float32), 0)
    tl.store(p_product + o_x[:, None] * SIZE + o_x[None, :], b_product)
    tl.store(p_sum + o_x, b_sum)


def compiled(
    kernel: Any, config: Config, capability: int, arguments: Any, **constants: int
) -> tuple[TritonReport, str, Any]:
    """The report of a kernel, the device it is kept for, and what Triton made of it."""
    report = compile_launch(Launch("", (1, 1, 1), arguments, 0, config, kernel, constants), capability, "a test")
    ((device, caches),) = kernel.device_caches.items()
    (made,) = caches[0].values()
    return report, device, made


def spilling(capability: int) -> dict[str, Any]:
    """Its report, and what the NVIDIA tool says of the binary."""
    x = Array.new("x", (16384,), torch.float32)
    before = triton.runtime.driver._active
    config = Config("spilling fp32", {}, num_warps=1, num_stages=1, source="a test")
    report, device, made = compiled(spilling_kernel, config, capability, {"p_x": x, "p_y": x}, SIZE=x.shape[0])
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        usage = subprocess.run(command, check=True, capture_output=True, text=True)
    said = {name: int(number) for name, number in re.findall(r"(REG|STACK):(\d+)", usage.stdout + usage.stderr)}
    is_restored = triton.runtime.driver._active is before
    return {"report": asdict(report), "said": said, "is_restored": is_restored, "device": device}


def racing() -> tuple[TritonReport, Any]:
    size, block = 128, 64
    x = Array.new("x", (4096, size), torch.bfloat16)
    product, total = Array.new("product", (size, size), torch.float32), Array.new("total", (size,), torch.float32)
    arguments = {"p_a": x, "p_b": x, "p_product": product, "p_sum": total, "rows": x.shape[0]}
    config = Config("racing bf16", {}, num_warps=8, num_stages=3, source="a test")
    report, _, made = compiled(racing_kernel, config, 90, arguments, SIZE=size, BLOCK=block)
    return report, made


if __name__ == "__main__":
    if sys.argv[1] == "spilling":
        print(json.dumps(spilling(int(sys.argv[2]))))
    else:
        report, made = racing()
        print(made.asm["ttgir"] if "--ttgir" in sys.argv else json.dumps(asdict(report)))
