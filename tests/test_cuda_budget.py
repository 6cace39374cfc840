"""The CUDA kernels, compiled for GPUs that need not be here: none spills, each keeps its budget of registers.

nvcc compiles for sm_80, NVRTC 12.9 for sm_70; sm_90 is left to the tool. After a change that is meant:
python -m benchmarks.compiled cuda --update.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import kept
import pytest

from benchmarks.compiled import budget as budgets
from benchmarks.compiled import cuda_kernels, cuda_launches, listings, nvrtc
from benchmarks.compiled.cuda_kernels import CudaReport
from lewel_kernels.native import nvcc
from lewel_kernels.native.toolchain import BuildError, find_compiler

ROOT = Path(__file__).parent.parent
CAPABILITIES = (70, 80)


def skip_without(capability: int) -> None:
    if reason := cuda_kernels.unavailable(capability):
        pytest.skip(reason)


@pytest.fixture(params=CAPABILITIES, ids="sm_{}".format)
def reports(request: pytest.FixtureRequest) -> list[CudaReport]:
    capability: int = request.param
    skip_without(capability)

    def write(path: Path) -> None:
        path.write_text(json.dumps([asdict(report) for report in cuda_kernels.compile_all([capability])]))

    compilers = [find_compiler().version]
    if not cuda_kernels.unavailable(80):
        compilers.append(nvcc.find().version)
    if library := nvrtc.find():
        compilers.append(nvrtc.Compiler(library).name)
    sources = kept.files("csrc/cuda", "lewel_kernels/native", "benchmarks/compiled", suffixes=(".py", ".h", ".cu"))
    path = kept.kept(f"cuda_kernels-sm_{capability}", [*compilers, *sources], write)
    return [CudaReport.from_json(report) for report in json.loads(path.read_text())]


@pytest.fixture
def budget() -> dict[str, Any]:
    return budgets.read("cuda")


# The first test that asks for reports compiles everything, unless an earlier run has.
@pytest.mark.timeout(900)
def test_no_kernel_spills_or_leaves_the_tensor_cores(reports: list[CudaReport]) -> None:
    sentences = [sentence for report in reports for sentence in report.faults()]
    assert not sentences, "\n".join(["", *sentences])


@pytest.mark.timeout(900)
def test_kernels_keep_their_budget(reports: list[CudaReport], budget: dict[str, Any]) -> None:
    of = budget[budgets.COMPILERS][reports[0].arch]
    if reports[0].compiler != of:
        pytest.skip(f"the budget is of {of}, and this is {reports[0].compiler}")
    sentences = budgets.excesses(reports, budget)
    assert not sentences, "\n".join(["", *sentences])


@pytest.mark.timeout(900)
def test_every_kernel_that_is_launched_is_compiled(reports: list[CudaReport]) -> None:
    capability = reports[0].capability
    kernels = set(cuda_launches.shared_bytes(capability))
    if capability < 80:
        kernels = {kernel for kernel in kernels if "BFloat16" not in kernel}
    assert {report.kernel for report in reports} == kernels
    templates = {report.template for report in reports}
    assert templates > cuda_kernels.WITHOUT_PRODUCTS


def test_the_budget_has_every_architecture(budget: dict[str, Any]) -> None:
    archs = {f"sm_{capability}" for capability in cuda_kernels.CAPABILITIES}
    assert set(budget) == {budgets.COMPILERS, *archs}
    assert set(budget[budgets.COMPILERS]) == archs
    assert set(budget["sm_80"]) == set(budget["sm_90"])
    assert set(budget["sm_70"]) == {kernel for kernel in budget["sm_80"] if "BFloat16" not in kernel}


# That faults are seen.


@pytest.fixture
def fine() -> CudaReport:
    return CudaReport(kernel="some_kernel<Half, 128>", capability=80, compiler="nvcc", tensor_cores={"HMMA": 4})


@pytest.mark.parametrize(("capability", "limit"), [(70, 96 * 1024), (80, 99 * 1024), (90, 227 * 1024)])
def test_shared_memory_is_limited(fine: CudaReport, capability: int, limit: int) -> None:
    report = replace(fine, capability=capability, shared=limit)
    assert report.faults() == []
    assert len(replace(report, shared=limit + 1).faults()) == 1


@pytest.mark.parametrize(
    ("kernel", "needs"),
    [
        ("some_kernel<BFloat16, 128>", True),
        ("some_kernel<float, 128>", False),
        ("some_kernel<double, 128>", False),
        ("softmax_kernel<Half>", False),
    ],
)
def test_products_in_16_bits_need_tensor_cores(fine: CudaReport, kernel: str, needs: bool) -> None:
    assert bool(replace(fine, kernel=kernel, tensor_cores={}).faults()) == needs


def test_instructions_of_the_tensor_cores_may_not_get_fewer(fine: CudaReport) -> None:
    budget = budgets.budget_of([fine])
    assert budgets.excesses([replace(fine, tensor_cores={"HMMA": 5})], budget) == []
    (found,) = budgets.excesses([replace(fine, tensor_cores={"HMMA": 3})], budget)
    assert found == "some_kernel<Half, 128> on sm_80 has tensor core instructions: 3; expected: 4"


# That what the compilers say is understood.


def test_what_ptxas_says_is_read() -> None:
    log = """
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z1fv' for 'sm_80'
ptxas info    : Function properties for _Z1fv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 50 registers, used 1 barriers, 128 bytes smem, 364 bytes cmem[0]
ptxas info    : Compile time = 7.302 ms
ptxas info    : Compiling entry function '_Z1gv' for 'sm_80'
ptxas info    : Function properties for _Z1gv
ptxas         .     8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 24 bytes cumulative stack size, 364 bytes cmem[0]
ptxas info    : Function properties for _Z6calledv
    16 bytes stack frame, 16 bytes spill stores, 8 bytes spill loads
"""
    assert listings.resources(log) == {
        "_Z1fv": {"registers": 50, "shared": 128, "stack": 0, "spill_stores": 0, "spill_loads": 0},
        "_Z1gv": {"registers": 255, "shared": 0, "stack": 24, "spill_stores": 16, "spill_loads": 12},
    }


def test_instructions_are_counted_by_kernel() -> None:
    sass = """
    .section    .text._Z1fv,"ax",@progbits
        /*0130*/                   HMMA.16816.F32 R12, R4.reuse, R8, RZ ;
        /*0150*/              @!P0 HMMA.884.F32.F32.STEP0 R8, R24.reuse.COL, R26.reuse.ROW, RZ ;
        /*0160*/                   FFMA R4, R4, R10, RZ ;
        /*0170*/                   BRA `(.L_x_0) ;
    .section    .text._Z1gv,"ax",@progbits
        /*0160*/                   FADD R4, R4, R10 ;
    """
    assert listings.tensor_cores(sass) == {"_Z1fv": {"HMMA": 2}, "_Z1gv": {}}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("_ZN5lewel4cuda1fINS0_4HalfELi128ELb1EEEvPKT_PS3_i", "f<Half, 128, true>"),
        ("_ZN5lewel4cuda1gILNS0_6NumberE2EEEvi", "g<(Number)2>"),
        ("_ZN5lewel4cuda7doublesEPKdPd", "doubles"),
    ],
)
def test_kernels_are_named_as_in_their_sources(name: str, expected: str) -> None:
    assert listings.short(listings.demangled(name)) == expected


# A library of which nothing is good, to be compiled by the tools themselves.
_KERNELS = """
namespace lewel { namespace cuda {
struct Half { unsigned short bits; };
struct BFloat16 { unsigned short bits; };

template <class T, int COUNT>
__global__ void __launch_bounds__(1024) spilling_kernel(float* x) {
  float kept[COUNT];
#pragma unroll
  for (int i = 0; i < COUNT; ++i) kept[i] = x[i * 1024 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < COUNT; ++i) x[i * 1024 + threadIdx.x] = kept[i] * kept[(7 * i + 3) % COUNT];
}

template <class T>
__global__ void indexing_kernel(float* x, int n) {
  __shared__ float in_shared[256];
  float numbers[32];
  for (int i = 0; i < 32; ++i) numbers[i] = x[i + n];
  for (int i = 0; i < n; ++i) numbers[static_cast<int>(x[i]) % 32] += numbers[i % 32];
  in_shared[threadIdx.x] = numbers[n % 32];
  __syncthreads();
  x[threadIdx.x] = in_shared[n];
}

template <class T>
__global__ void product_kernel(float* x) {
  unsigned int a[8] = {}, b[8] = {};
  float d[8];
  for (int i = 0; i < 8; ++i) a[i] = b[i] = x[8 * threadIdx.x + i], d[i] = 0;
  asm("wmma.mma.sync.aligned.row.col.m16n16k16.f32.f32 {%0, %1, %2, %3, %4, %5, %6, %7}, "
      "{%8, %9, %10, %11, %12, %13, %14, %15}, {%16, %17, %18, %19, %20, %21, %22, %23}, "
      "{%0, %1, %2, %3, %4, %5, %6, %7};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(a[4]), "r"(a[5]), "r"(a[6]), "r"(a[7]), "r"(b[0]),
        "r"(b[1]), "r"(b[2]), "r"(b[3]), "r"(b[4]), "r"(b[5]), "r"(b[6]), "r"(b[7]));
  for (int i = 0; i < 8; ++i) x[8 * threadIdx.x + i] = d[i];
}

template <class T>
__global__ void plain_kernel(T* x) {
  x[threadIdx.x].bits *= 3;
}
}}
"""
_UNIT = """
#include "cuda/bad_kernels.h"
namespace lewel { namespace cuda {
const void* kernels[] = {
  reinterpret_cast<const void*>(spilling_kernel<Half, 96>), reinterpret_cast<const void*>(indexing_kernel<Half>),
  reinterpret_cast<const void*>(product_kernel<Half>), reinterpret_cast<const void*>(plain_kernel<Half>)};
}}
"""


@pytest.fixture
def bad_library(tmp_path: Path) -> Path:
    (tmp_path / "cuda").mkdir()
    (tmp_path / "cuda/bad_kernels.h").write_text(_KERNELS)
    (tmp_path / "cuda/kernels_half.cu").write_text(_UNIT)
    (tmp_path / "cuda/kernels_bfloat16.cu").write_text(
        '#include "cuda/bad_kernels.h"\ntemplate __global__ void lewel::cuda::plain_kernel(lewel::cuda::BFloat16*);'
    )
    return tmp_path


HALF = ["indexing_kernel<Half>", "plain_kernel<Half>", "product_kernel<Half>", "spilling_kernel<Half, 96>"]


@pytest.mark.parametrize("capability", sorted(cuda_kernels.CAPABILITIES))
def test_what_is_wrong_with_a_library_is_seen(bad_library: Path, capability: int) -> None:
    skip_without(capability)
    reports = cuda_kernels.compile_kernels(bad_library, [capability], known=[*HALF, "plain_kernel<BFloat16>"])
    found = {report.kernel: report for report in reports}
    assert set(found) == {*HALF, *(["plain_kernel<BFloat16>"] if capability >= 80 else [])}
    assert all(report.registers and report.capability == capability for report in reports)
    indexing, plain, product, spilling = (found[kernel] for kernel in HALF)
    assert spilling.spill_stores > 0 < spilling.spill_loads
    assert "spills registers" in spilling.faults()[0]
    assert (indexing.spill_stores, indexing.spill_loads) == (0, 0)
    assert indexing.stack >= 128
    assert "a stack of 128; allowed: 0" in indexing.faults()[0]
    assert indexing.shared == 1024
    assert product.tensor_cores == {"HMMA": 16 if capability == 70 else 2}
    assert product.faults() == []
    assert "without tensor cores" in plain.faults()[0]


@pytest.mark.parametrize("capability", [70, 80])
def test_a_kernel_that_does_not_compile_is_named(bad_library: Path, capability: int) -> None:
    skip_without(capability)
    header = bad_library / "cuda/bad_kernels.h"
    header.write_text(header.read_text().replace("bits *= 3;", 'bits *= 3;\n  asm("no instruction;");'))
    reports = cuda_kernels.compile_kernels(bad_library, [capability], threads=1, known=HALF)
    bad = [report for report in reports if report.error]
    # NVRTC compiles the others without it. nvcc does not.
    names = ["plain_kernel<Half>"] if capability == 70 else ["kernels_bfloat16.cu", "kernels_half.cu"]
    assert [report.kernel for report in bad] == names
    (sentence,) = bad[-1].faults()
    assert sentence.startswith(f"{names[-1]} on sm_{capability} does not compile: ")
    assert "no instruction" in sentence or "ptx" in sentence
    assert len(reports) == (4 if capability == 70 else 2)


def test_sm_70_is_compiled_where_there_is_no_nvcc(bad_library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    skip_without(70)

    def none() -> None:
        raise BuildError("there is none")

    monkeypatch.setattr(nvcc, "find", none)
    if reason := cuda_kernels.unavailable(70):  # nvdisasm may be the toolkit's
        pytest.skip(reason)
    assert cuda_kernels.unavailable(80) == "there is none"
    reports = cuda_kernels.compile_kernels(bad_library, [70], known=["product_kernel<Half>", "plain_kernel<BFloat16>"])
    assert [report.kernel for report in reports] == ["product_kernel<Half>"]


def test_a_kernel_that_no_call_launches_is_an_error(fine: CudaReport) -> None:
    assert cuda_kernels._with_shared(replace(fine, shared=24), {fine.kernel: 1000}) == replace(fine, shared=1024)
    (sentence,) = cuda_kernels._with_shared(fine, {}).faults()
    assert sentence.startswith("some_kernel<Half, 128> on sm_80 is launched by no call")
