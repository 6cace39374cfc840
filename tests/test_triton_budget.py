"""The Triton kernels, compiled for sm_80 and sm_90 without a GPU: none spills, each keeps its budget of registers.

After a change that is meant: python -m benchmarks.compiled triton --update.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import kept
import pytest
import torch

triton = pytest.importorskip("triton")

from benchmarks.compiled import budget as budgets  # noqa: E402
from benchmarks.compiled import listings, requests, triton_kernels  # noqa: E402
from benchmarks.compiled.triton_kernels import CAPABILITIES, TritonReport  # noqa: E402
from lewel_kernels.triton import INTERPRETED, configs  # noqa: E402

# The first test that asks for reports compiles everything, unless an earlier run has.
pytestmark = pytest.mark.timeout(900)
ROOT = Path(__file__).parent.parent


@pytest.fixture
def reports() -> list[TritonReport]:
    def write(path: Path) -> None:
        found = triton_kernels.compile_all(CAPABILITIES, processes=2)
        path.write_text(json.dumps([asdict(report) for report in found]))

    versions = (torch.__version__, triton.__version__, triton.knobs.nvidia.ptxas.version)
    path = kept.kept(
        "triton_kernels",
        [*versions, *kept.files("lewel_kernels"), *kept.files("benchmarks/compiled", suffixes=(".py",))],
        write,
    )
    return [TritonReport.from_json(report) for report in json.loads(path.read_text())]


@pytest.fixture
def budget() -> dict[str, Any]:
    return budgets.read("triton")


def test_no_kernel_spills_or_leaves_the_fast_instructions(reports: list[TritonReport]) -> None:
    sentences = [sentence for report in reports for sentence in report.faults()]
    assert not sentences, "\n".join(["", *sentences])


def test_kernels_keep_their_budget(reports: list[TritonReport], budget: dict[str, Any]) -> None:
    if sentences := budgets.other_compilers(reports, budget):
        pytest.skip(sentences[0])
    sentences = budgets.excesses(reports, budget)
    assert not sentences, "\n".join(["", *sentences])


def test_everything_shipped_is_compiled_once(reports: list[TritonReport]) -> None:
    for capability in (80, 90):
        names, dtypes = zip(*(r.key.split()[:2] for r in reports if r.capability == capability), strict=True)
        assert set(names) == set(configs._RULES)
        assert set(dtypes) == set(requests.DTYPES)
    anonymous = [replace(report, request="") for report in reports]
    assert all(report not in anonymous[:i] for i, report in enumerate(anonymous))


@pytest.mark.parametrize("arch", ["sm80", "sm90"])
def test_every_entry_of_a_table_is_compiled(arch: str, reports: list[TritonReport]) -> None:
    compiled = {report.key for report in reports if report.source.startswith(f"configs/{arch}.json")}
    assert compiled == set(configs.table(arch))


@pytest.fixture
def fine() -> TritonReport:
    return TritonReport(
        kernel="some_kernel", key="some bf16 rows K128", config="K128, 4 warps, 3 stages", source="the rule",
        request="M bf16 rows", capability=80, registers=123, shared=1000, precision="ieee",
        tensor_cores={"mma.sync": 4}, loads={4: 1, 16: 8}, buffers=[[3, 3], [4, 3]],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"loads": {2: 32, 16: 1}}, "loads rows by 32 of 2 bytes, 1 of 16 bytes; expected: the most of it 16 bytes"),
        (
            {"buffers": [[2, 3], [3, 3]]},
            "overwrites what products still read, for an operand of theirs has buffers: 2; needed: 3",
        ),
    ],
    ids=["narrow_loads", "race"],
)
def test_faults_are_found(fine: TritonReport, change: dict[str, Any], sentence: str) -> None:
    assert fine.faults() == []
    (found,) = replace(fine, **change).faults()
    assert found.startswith("some_kernel (some bf16 rows K128; M bf16 rows) on sm_80")
    assert sentence in found


def test_float32_needs_no_tensor_cores_unless_tf32_is_allowed(fine: TritonReport) -> None:
    report = replace(fine, key="some fp32 rows K128", tensor_cores={})
    assert report.faults() == []
    assert len(replace(report, precision="tf32").faults()) == 1


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"loads": {2: 2, 16: 8}}, "has narrow loads: 2; allowed: 1"),
        ({"serialized": 1}, "has serialized: 1; allowed: 0"),
    ],
    ids=["narrow_loads", "serialized"],
)
def test_a_budget_that_is_exceeded_is_named(fine: TritonReport, change: dict[str, Any], sentence: str) -> None:
    (found,) = budgets.excesses([fine, replace(fine, **change)], budgets.budget_of([fine]))
    assert found == f"some_kernel (some bf16 rows K128; M bf16 rows) on sm_80 {sentence}"


def test_a_budget_is_that_of_all_calls_of_a_configuration(fine: TritonReport) -> None:
    budget = budgets.budget_of([fine, replace(fine, request="B bf16 rows", registers=200, shared=10)])
    assert budget["sm_80"] == {
        "some bf16 rows K128": {"registers": 200, "shared": 1000, "narrow_loads": 1, "serialized": 0}
    }


def described(*arguments: str) -> Any:
    """What faulty_kernels.py prints as JSON; kernels are not interpreted there."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("faulty_kernels.py"), *arguments],
        cwd=ROOT, env=environment | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_a_kernel_that_spills_is_seen_and_leaves_no_trace(capability: int) -> None:
    """Registers and stack as NVIDIA's tool reads them from the binary; the process can go on to launch on a GPU."""
    found = described("spilling", str(capability))
    report = TritonReport.from_json(found["report"])
    assert report.spill_stores > 0
    assert {"REG": report.registers, "STACK": report.stack} == found["said"]
    (sentence,) = report.faults()
    assert sentence.startswith(f"spilling_kernel (spilling fp32; a test) on sm_{capability} spills registers")
    assert found["is_restored"]
    assert not isinstance(found["device"], int)


def test_a_kernel_that_races_is_seen(budget: dict[str, Any]) -> None:
    report = TritonReport.from_json(described("racing"))
    if report.compiler != (of := budget["compilers"]["sm_90"]):
        pytest.skip(f"it races with {of}; {report.compiler} may have mended it")
    assert report.buffers == [[2, 3], [3, 3]]
    (sentence,) = report.faults()
    assert sentence.startswith("racing_kernel (racing bf16; a test) on sm_90 races with itself")


# A loop as the compiler writes it: two copies of each operand are under way before it.
LOOP = """
    %a = ttg.local_alloc : () -> !ttg.memdesc<{a}x64x128xbf16, #shared, #smem, mutable>
    %b = ttg.local_alloc : () -> !ttg.memdesc<{b}x64x128xbf16, #shared, #smem, mutable>
    %s = ttg.local_alloc : () -> !ttg.memdesc<2x128xf32, #shared1, #smem, mutable>
    %once = ttg.local_alloc %x : (tensor<64x128xbf16, #blocked>) -> !ttg.memdesc<64x128xbf16, #shared, #smem>
    %a0 = ttg.memdesc_index %a[%c0] : !ttg.memdesc<{a}x64x128xbf16> -> !ttg.memdesc<64x128xbf16>
    %1 = ttg.async_copy_global_to_local %p, %a0 mask %m : tensor<64x128x!tt.ptr<bf16>> -> <64x128xbf16>
    %b0 = ttg.memdesc_index %b[%c0] : !ttg.memdesc<{b}x64x128xbf16> -> !ttg.memdesc<64x128xbf16>
    %2 = ttg.async_copy_global_to_local %p#1, %b0 mask %m : tensor<64x128x!tt.ptr<bf16>> -> <64x128xbf16>
    %a1 = ttg.memdesc_index %a[%c1] : !ttg.memdesc<{a}x64x128xbf16> -> !ttg.memdesc<64x128xbf16>
    %3 = ttg.async_copy_global_to_local %p, %a1 mask %m : tensor<64x128x!tt.ptr<bf16>> -> <64x128xbf16>
    %b1 = ttg.memdesc_index %b[%c1] : !ttg.memdesc<{b}x64x128xbf16> -> !ttg.memdesc<64x128xbf16>
    %4 = ttg.async_copy_global_to_local %p#1, %b1 mask %m : tensor<64x128x!tt.ptr<bf16>> -> <64x128xbf16>
    %loop:3 = scf.for %i = %c0 to %n step %c1 iter_args(%sum = %zero) -> (tensor<128x128xf32, #mma>)  : i32 {{
      %registers:2 = tt.split %z : tensor<128x64x2xbf16, #linear> -> tensor<128x64xbf16, #dot>
      %each = ttg.local_alloc %y : (tensor<64x128xbf16, #blocked>) -> !ttg.memdesc<64x128xbf16, #shared, #smem>
      %ai = ttg.memdesc_index %a[%j] : !ttg.memdesc<{a}x64x128xbf16> -> !ttg.memdesc<64x128xbf16>
      %at = ttg.memdesc_trans %ai {{order = array<i32: 1, 0>}} : !ttg.memdesc<64x128xbf16> -> !ttg.memdesc<128x64xbf16>
      %bi = ttg.memdesc_index %b[%j] : !ttg.memdesc<{b}x64x128xbf16> -> !ttg.memdesc<64x128xbf16>
{products}
      %w:3 = ttng.warp_group_dot_wait %d, %at, %bi {{pendings = {pending} : i32}} : tensor<128x128xf32, #mma>
      %an = ttg.memdesc_index %a[%k] : !ttg.memdesc<{a}x64x128xbf16> -> !ttg.memdesc<64x128xbf16>
      %5 = ttg.async_copy_global_to_local %p, %an mask %m : tensor<64x128x!tt.ptr<bf16>> -> <64x128xbf16>
      scf.yield %w#0 : tensor<128x128xf32, #mma>
    }}
    %end = ttng.warp_group_dot_wait %loop#0 {{pendings = 0 : i32}} : tensor<128x128xf32, #mma>
"""
PRODUCT = "      %d = ttng.warp_group_dot {}, {}, %sum {{isAsync = true}} : ..."


@pytest.mark.parametrize(
    ("a", "b", "pending", "operands", "found"),
    [
        (3, 3, 1, [("%at", "%bi")], [[3, 3], [3, 3]]),
        (2, 3, 1, [("%at", "%bi")], [[2, 3], [3, 3]]),
        (2, 2, 1, [("%at", "%bi")], [[2, 3], [2, 3]]),
        (2, 3, 0, [("%at", "%bi")], []),
        (4, 3, 2, [("%at", "%bi")], [[3, 4], [4, 4]]),
        (3, 2, 3, [("%registers#0", "%bi"), ("%registers#1", "%bi")], [[1, 3], [2, 4]]),
        (3, 3, 1, [("%before", "%bi")], [[3, 3]]),
        (3, 3, 1, [("%once", "%bi")], [[1, 1], [3, 3]]),
        (3, 3, 1, [("%each", "%bi")], [[1, 2], [3, 3]]),
    ],
    ids=[
        "enough", "a_too_few", "both_too_few", "none_pending", "two_steps_pending", "registers_of_a_step",
        "registers_before_the_loop", "written_before_the_loop", "written_in_the_loop",
    ],
)  # fmt: skip
def test_buffers_are_counted(a: int, b: int, pending: int, operands: list[tuple[str, str]], found: list[Any]) -> None:
    products = "\n".join(PRODUCT.format(*pair) for pair in operands)
    assert listings.buffers(LOOP.format(a=a, b=b, pending=pending, products=products)) == found


@pytest.mark.skipif(not INTERPRETED, reason="kernels are interpreted with --device cpu only")
def test_what_is_interpreted_cannot_be_compiled() -> None:
    launch, *_ = requests.launches_of(requests.SHIPPED[0], 80)
    with pytest.raises(RuntimeError, match="unset TRITON_INTERPRET"):
        triton_kernels.compile_launch(launch, 80)


def test_accesses_are_counted_by_their_bytes() -> None:
    ptx = """
    @%p1 ld.global.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd1 + 0 ];
    ld.global.L1::evict_last.v2.b64 { %rd5, %rd6 }, [ %rd1 + 0 ];
    @%p1 ld.global.b16 { %rs1 }, [ %rd1 + 0 ];
    ld.shared.v4.b32 { %r1, %r2, %r3, %r4 }, [ %r9 + 0 ];
    cp.async.cg.shared.global [ %r1 + 0 ], [ %rd1 + 0 ], 0x10, %r5;
    cp.async.ca.shared.global [ %r1 + 0 ], [ %rd1 + 0 ], 0x4, %r5;
    cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%r1], [%rd1, {%r2, %r3}], [%r4];
    st.global.v2.b32 [ %rd7 + 0 ], { %r1, %r2 };
    mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 { %f1 }, { %r1 }, { %r2 }, { %f1 };
    wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%f1}, %rd1, %rd2, p, 1, 1, 0, 1;
    wgmma.commit_group.sync.aligned;
    """
    found = listings.instructions(ptx)
    assert found == {"tensor_cores": {"mma.sync": 1, "wgmma": 1}, "loads": {2: 1, 4: 1, 16: 4}, "stores": {8: 1}}
