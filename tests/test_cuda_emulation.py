"""The emulator that runs the CUDA kernels on a CPU: its numbers, its layouts, and every mistake that it must find.

The checks are C++, in cuda_emulation_test.cpp, one per name. For sm_70 they are compiled as for a processor of which
nothing is known, for sm_80 as for this one, so that both sorts of conversions and of context switches are tested.
"""

from __future__ import annotations

import pytest
from cuda_checks import ARCHS, each, names, needs_compiler, program, run

pytestmark = needs_compiler

FLAGS = {70: ("-O0", "-DLEWEL_EMULATION_PORTABLE"), 80: ("-O2", "-march=native")}
SOURCE = "tests/cuda_emulation_test.cpp"


@each(SOURCE)
def test_check(arch: int, name: str) -> None:
    assert run(program(SOURCE, arch, *FLAGS[arch]), name) == f"{name}: ok\n"


@pytest.mark.parametrize("arch", ARCHS)
def test_no_check_is_forgotten(arch: int) -> None:
    assert run(program(SOURCE, arch, *FLAGS[arch])).split() == names(SOURCE, arch)
