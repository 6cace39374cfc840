"""The emulator that runs the CUDA kernels on a CPU: its numbers, its layouts, and every mistake that it must find.

The checks are C++, in cuda_emulation_test.cpp, one per name. For sm_70 they are compiled as for a processor of which
nothing is known, for sm_80 as for this one, so that both sorts of conversions and of context switches are tested.
"""

from __future__ import annotations

import functools
import shutil
import subprocess
from pathlib import Path

import kept
import pytest

pytestmark = pytest.mark.skipif(
    not any(shutil.which(name) for name in ("g++", "clang++", "c++")), reason="there is no C++ compiler to test with"
)

FLAGS = {70: ("-O0", "-DLEWEL_EMULATION_PORTABLE"), 80: ("-O2", "-march=native")}

COMMON = """
    half_to_float float_to_half bfloat16_to_float other_numbers
    places shared_memory_is_nan_and_aligned local_arrays floating_point_registers
    orders_change_at_barriers orders_change_at_collectives orders_are_deterministic missing_barriers_show
    blocks_run_backwards exceptions_pass first_error_is_reported launches_that_cannot_be
    shuffle shuffle_by_too_much barrier_missed_by_return barrier_missed_at_collective barriers_of_two_lines
    collective_missed_by_return collective_in_part_of_a_warp different_collectives collectives_of_two_lines
    writes_behind_shared_memory writes_before_shared_memory
    wmma_rows_rows wmma_rows_columns wmma_columns_rows wmma_columns_columns
    wmma_at_odd_address wmma_of_odd_stride wmma_outside_shared_memory wmma_of_different_matrices
    wmma_loaded_otherwise wmma_not_loaded
"""
OF_80 = """
    float_to_bfloat16
    copies_arrive_when_waited_for copies_read_late copies_of_other_threads copies_fill_with_zeros
    copy_to_odd_address copy_from_odd_address copy_of_odd_size copy_outside_shared_memory copy_never_waited_for
    matrices matrices_transposed matrices_at_odd_address matrices_outside_shared_memory matrices_of_two_kinds
    multiply_half multiply_bfloat16 multiply_all_halves multiply_all_bfloat16s multiplications_of_two_kinds
"""
CHECKS = {70: (COMMON + "functions_of_80").split(), 80: (COMMON + OF_80).split()}


@functools.cache
def program(arch: int) -> Path:
    sources = ("tests/cuda_emulation_test.cpp", "tests/emulation/emulation.cpp")
    flags = (
        "-std=c++17",
        "-Wno-psabi",
        "-pthread",
        "-Itests/emulation",
        "-Icsrc",
        *FLAGS[arch],
        f"-DLEWEL_EMULATED={arch}",
    )
    return kept.program(f"cuda_emulation-sm_{arch}", sources, flags, kept.files("csrc/cuda", "tests/emulation"))


@pytest.mark.parametrize(
    ("arch", "name"), [pytest.param(arch, name, id=f"{name}-{arch}") for arch in CHECKS for name in CHECKS[arch]]
)
def test_check(arch: int, name: str) -> None:
    result = subprocess.run([program(arch), name], capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stdout) == (0, f"{name}: ok\n"), result.stdout + result.stderr


@pytest.mark.parametrize("arch", CHECKS)
def test_no_check_is_forgotten(arch: int) -> None:
    result = subprocess.run([program(arch)], capture_output=True, text=True, timeout=60, check=True)
    assert sorted(result.stdout.split()) == sorted(CHECKS[arch])
