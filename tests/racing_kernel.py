"""A kernel that races with itself on sm_90, compiled and described as JSON where kernels are not interpreted.

For tests/test_triton_budget.py, and for whoever mends Triton: `python tests/racing_kernel.py --ttgir` prints its TTGIR,
docs/backends.md says what to look for.
"""

import json
import sys
from dataclasses import asdict

import torch
import triton
import triton.language as tl

from benchmarks.compiled import triton_kernels
from lewel_kernels.triton.configs import Config
from lewel_kernels.triton.launch import Launch


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


def main() -> None:
    size, block = 128, 64
    x = torch.empty(4096, size, dtype=torch.bfloat16, device="meta")
    y = torch.empty(size, size, device="meta")
    arguments = {"p_a": x, "p_b": x, "p_product": y, "p_sum": y[0], "rows": x.shape[0]}
    config = Config("racing bf16", {}, num_warps=8, num_stages=3, source="a test")
    launch = Launch(config, racing_kernel, (1, 1, 1), arguments, {"SIZE": size, "BLOCK": block})
    report = triton_kernels.compile_launch(launch, 90, "a test")
    if "--ttgir" in sys.argv:
        ((compiled,),) = (caches[0].values() for caches in racing_kernel.device_caches.values())
        print(compiled.asm["ttgir"])
    else:
        print(json.dumps(asdict(report)))


if __name__ == "__main__":
    main()
