"""A kernel that spills, compiled and described as JSON by a process in which kernels are not interpreted.

For tests/test_triton_budget.py: what is said of it is compared with what the NVIDIA tool says of the binary.
"""

import json
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict

import torch
import triton
import triton.language as tl

from benchmarks.compiled import triton_kernels
from lewel_kernels.triton.configs import Config
from lewel_kernels.triton.launch import Launch


@triton.jit
def spilling_kernel(p_x, p_y, SIZE: tl.constexpr):
    """All of x is at hand when its sum is known: 512 registers of each thread, where 255 is the most there are."""
    o_x = tl.arange(0, SIZE)
    b_x = tl.load(p_x + o_x)
    tl.store(p_y + o_x, b_x / tl.sum(b_x))


def main() -> None:
    capability = int(sys.argv[1])
    x = torch.empty(16384, device="meta")
    config = Config("spilling fp32", {}, num_warps=1, num_stages=1, source="a test")
    launch = Launch(config, spilling_kernel, (1, 1, 1), {"p_x": x, "p_y": x}, {"SIZE": x.numel()})
    before = triton.runtime.driver._active
    report = triton_kernels.compile_launch(launch, capability, "a test")
    (device,) = spilling_kernel.device_caches
    (compiled,) = spilling_kernel.device_caches[device][0].values()
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        usage = subprocess.run(command, check=True, capture_output=True, text=True)
    said = {name: int(number) for name, number in re.findall(r"(REG|STACK):(\d+)", usage.stdout + usage.stderr)}
    is_restored = triton.runtime.driver._active is before
    print(json.dumps({"report": asdict(report), "said": said, "is_restored": is_restored, "device": device}))


if __name__ == "__main__":
    main()
