"""How csrc/cuda cuts sizes into tiles, and moves, multiplies and writes tiles: each piece alone, and beyond 32 bits.

The checks are C++, in cuda_tiling_test.cpp, one per name, run on the emulator that test_cuda_emulation.py tests.
"""

from __future__ import annotations

import pytest
from cuda_checks import ARCHS, each, names, needs_compiler, program, run

pytestmark = needs_compiler
SOURCE = "tests/cuda_tiling_test.cpp"


@each(SOURCE)
def test_check(arch: int, name: str) -> None:
    assert run(program(SOURCE, arch, "-O1"), name) == f"{name}: ok\n"


@pytest.mark.parametrize("arch", ARCHS)
def test_no_check_is_forgotten(arch: int) -> None:
    assert run(program(SOURCE, arch, "-O1")).split() == names(SOURCE, arch)
