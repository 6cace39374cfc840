"""How csrc/cuda cuts sizes into tiles, and moves, multiplies and writes tiles: each piece alone, and beyond 32 bits.

The checks are C++, in cuda_tiling_test.cpp, one per name, run on the emulator that test_cuda_emulation.py tests.
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

NO_ADDRESSES = 77  # the exit status where memory that is never touched is not to be had
COMMON = """
    ceil_div_rounds_up divider_is_a_division rows_are_images_and_positions strided_takes_64_bits stages_and_depth
    parts_cover_all_steps pool_chunks_keep_a_gpu_busy moves_wide_needs_vectors images_and_weights_are_wide
    workspace_pieces_lie_apart
    shared_memory_fits sums_set_aside_have_memory pitches_avoid_conflicts
    tiles_move_each_number_once tiles_of_shapes_move_each_number_once pipelines_work_on_each_step
    volta_products plain_products block_products sums_are_set_aside_and_recalled
    bands_are_written mixed_numbers
    calls_take_what_they_count
    far_project far_softmax far_pool far_maps far_pool_bwd far_maps_bwd far_pixels_bwd far_weight_bwd far_sum
"""
CHECKS = {70: COMMON.split(), 80: [*COMMON.split(), "tensor_products"]}


@functools.cache
def program(arch: int) -> Path:
    sources = ("tests/cuda_tiling_test.cpp", "tests/emulation/emulation.cpp")
    flags = ("-std=c++17", "-O1", "-Wno-psabi", "-pthread", "-Itests/emulation", "-Icsrc", f"-DLEWEL_EMULATED={arch}")
    return kept.program(f"cuda_tiling-sm_{arch}", sources, flags, kept.files("csrc/cuda", "tests/emulation"))


@pytest.mark.parametrize(
    ("arch", "name"), [pytest.param(arch, name, id=f"{name}-{arch}") for arch in CHECKS for name in CHECKS[arch]]
)
def test_check(arch: int, name: str) -> None:
    result = subprocess.run([program(arch), name], capture_output=True, text=True, timeout=60, check=False)
    if result.returncode == NO_ADDRESSES:
        pytest.skip(result.stdout.strip())
    assert (result.returncode, result.stdout) == (0, f"{name}: ok\n"), result.stdout + result.stderr


@pytest.mark.parametrize("arch", CHECKS)
def test_no_check_is_forgotten(arch: int) -> None:
    result = subprocess.run([program(arch)], capture_output=True, text=True, timeout=60, check=True)
    assert sorted(result.stdout.split()) == sorted(CHECKS[arch])
