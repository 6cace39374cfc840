"""The emulator that runs the CUDA kernels on a CPU: its numbers, its layouts, and every mistake that it must find.

The checks are C++, in cuda_emulation_test.cpp, one per name. For sm_70 they are compiled as for a processor of which
nothing is known, for sm_80 as for this one, so that both sorts of conversions and of context switches are tested.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from lewel_kernels.native.toolchain import find_compiler

pytestmark = pytest.mark.skipif(
    not any(shutil.which(name) for name in ("g++", "clang++", "c++")), reason="there is no C++ compiler to test with"
)

ROOT = Path(__file__).parent.parent
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


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    folder = tmp_path_factory.mktemp("cuda_emulation")
    sources = (ROOT / "tests" / "cuda_emulation_test.cpp", ROOT / "csrc" / "cuda" / "emulation" / "emulation.cpp")
    common = ("-std=c++17", "-Wno-psabi", "-pthread", f"-I{ROOT / 'csrc'}")
    programs = {arch: folder / f"sm_{arch}" for arch in FLAGS}
    compilers = [
        subprocess.Popen(
            [*find_compiler().command, *common, *FLAGS[arch], f"-DLEWEL_EMULATED={arch}", "-o", program, *sources],
            stderr=subprocess.PIPE,
            text=True,
        )
        for arch, program in programs.items()
    ]
    for compiler in compilers:
        _, said = compiler.communicate()
        assert compiler.returncode == 0, said
    return programs


@pytest.mark.parametrize(
    ("arch", "name"), [pytest.param(arch, name, id=f"{name}-{arch}") for arch in CHECKS for name in CHECKS[arch]]
)
def test_check(arch: int, name: str, programs: dict[int, Path]) -> None:
    result = subprocess.run([programs[arch], name], capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stdout) == (0, f"{name}: ok\n"), result.stdout + result.stderr


@pytest.mark.parametrize("arch", CHECKS)
def test_no_check_is_forgotten(arch: int, programs: dict[int, Path]) -> None:
    result = subprocess.run([programs[arch]], capture_output=True, text=True, timeout=60, check=True)
    assert sorted(result.stdout.split()) == sorted(CHECKS[arch])
