"""Tables of docs/performance.md about the op: arithmetic on shapes, beside what was measured, or that nothing was."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from benchmarks import recording
from benchmarks.documents import tables
from benchmarks.documents.tables import found_on
from benchmarks.gpu import roofline
from benchmarks.gpu.roofline import GPUS
from benchmarks.op.cases import D14, D56, PAPER, SWEEP, Case, Shape
from benchmarks.op.cost import MODES, floor_of, least
from benchmarks.op.measure import rows_of
from benchmarks.op.prologue import WAYS
from benchmarks.op.providers import KERNELS
from benchmarks.op.report import markdown
from benchmarks.recording import Record

MB, GB = 1e6, 1e9
_BY_NAME = {shape.name: shape for shape in PAPER}
PREDICTED = sorted((shape for shape in PAPER if shape.P == 49), key=lambda shape: (shape.K, shape.N))
M_64, B_256 = _BY_NAME["M64"], _BY_NAME["B256"]
# Maps that the suites paper and sweep measure; the one of 28x28 is narrower than a ResNet-50 has it.
DENSE = (M_64, D14, next(shape for shape in SWEEP["P"] if shape.H == 28), D56)


def _case(shape: Shape, layout: str = "channels_last") -> Case:
    return Case(shape, layout, "bf16")


def _both(forward: float, whole: float) -> str:
    """Text "forward / backward" in microseconds, from the seconds of a forward and of forward + backward."""
    return f"{1e6 * forward:.0f} / {1e6 * (whole - forward):.0f}"


def _measured(case: Case, gpu: roofline.GPU) -> str:
    """The cell of a case on a GPU: microseconds forward / backward of each provider, or that nothing was run."""
    case = replace(case, dtype=gpu.dtype)  # a GPU without bfloat16 only emulates it

    def tell(records: list[Record]) -> str:
        found = {
            (row.provider, row.mode): row.p50 / 1e3
            for row in rows_of(records)
            if replace(row.case, device=case.device, axis="") == case
            if row.launch == "plain" and row.samples and not row.problem
        }
        return ", ".join(
            f"{name} {_both(found[name, MODES[0]], found[name, MODES[1]])}"
            for name in ("eager", "compile-max", *KERNELS)
            if (name, MODES[0]) in found and (name, MODES[1]) in found
        )

    return found_on(gpu, ("paper", "first", "sweep"), tell)


def predictions() -> str:
    """Table of the paper's shapes on each GPU: floor, passes of the kernels, eager, and what was measured.

    Eager in NCHW is left out: cuDNN transposes inside its convolutions, in passes that are not counted here.
    """
    lines = []
    for shape in PREDICTED:
        case = _case(shape)
        for gpu in GPUS:
            floors = [floor_of(case, mode, gpu.rates) for mode in MODES]
            kernels = roofline.predicted_seconds(case, gpu)
            eager = [roofline.eager(case).seconds(mode, gpu.rates) for mode in MODES]
            cells = [_both(*times) for times in (floors, kernels.values(), eager)]
            lines.append([str(shape), gpu.name, *cells, _measured(case, gpu)])
    header = ["shape", "GPU", "floor", "kernels", "eager", "measured"]
    kinds = ", ".join(f"{gpu.name} {gpu.dtype}" for gpu in GPUS)
    return f"Microseconds forward / backward, channels_last, 16 bits ({kinds}).\n\n" + markdown(header, lines)


def passes() -> str:
    """Table of bytes and flops of each pass of the triton backend at shape B, and of all operators of eager."""
    case = _case(B_256)
    lines = [
        [f"triton, {way}", name, f"{cost.bytes / MB:.0f}", f"{cost.flops / GB:.1f}"]
        for way, ps in roofline.passes(case).items()
        for name, cost in ps
    ]
    least_cost = least(case, MODES[1])
    every = [cost for ps in roofline.passes(case).values() for _, cost in ps]
    for name, costs in (("triton, all", every), ("at least", [least_cost])):
        lines.append([name, "", f"{sum(c.bytes for c in costs) / MB:.0f}", f"{sum(c.flops for c in costs) / GB:.1f}"])
    eager = roofline.eager(case)
    total, count = eager.total(MODES[1]), len(eager.operators[MODES[1]])
    lines.append(["eager", f"{count} operators", f"{total.bytes / MB:.0f}", f"{total.flops / GB:.1f}"])
    return f"{B_256}, channels_last, 16 bits.\n\n" + markdown(["design", "pass", "MB", "GFLOP"], lines)


def saved() -> str:
    """Table of the MB kept between forward and backward beyond the inputs, at the paper's shapes."""
    lines = []
    for shape in PAPER:
        fused = roofline.saved_bytes(_case(shape))
        eager = [roofline.eager(_case(shape, layout)).saved_bytes for layout in ("channels_last", "nchw")]
        inputs = 2 * shape.N * (shape.C + shape.D) * shape.P
        lines.append([str(shape), *(f"{x / MB:.1f}" for x in (inputs, fused, *eager))])
    header = ["shape", "features and pixels", "fused", "eager channels_last", "eager NCHW"]
    return "MB, bfloat16 under autocast, the 16-bit copy of the weight counted.\n\n" + markdown(header, lines)


def growth() -> str:
    """Table of how the least cost of forward + backward grows when one size doubles."""
    lines = []
    for shape in (M_64, D56):
        base = least(_case(shape), MODES[1])
        doubled = {
            "N": replace(shape, N=2 * shape.N),
            "P": replace(shape, H=2 * shape.H),
            "K": replace(shape, K=2 * shape.K),
            "D": replace(shape, D=2 * shape.D),
            "C": replace(shape, C=2 * shape.C),
        }
        for axis, larger in doubled.items():
            cost = least(_case(larger), MODES[1])
            kept = [roofline.saved_bytes(_case(s)) for s in (shape, larger)]
            ratios = (cost.bytes / base.bytes, cost.flops / base.flops, kept[1] / kept[0])
            lines.append([str(shape), f"{axis} doubled", *(f"x {ratio:.2f}" for ratio in ratios)])
    return markdown(["shape", "", "bytes", "flops", "saved"], lines)


def dense() -> str:
    """Tables of feature maps from 7x7 to 56x56: what the op costs at least on each, and what it keeps."""
    sizes, times = [], []
    for s in DENSE:
        cost, kept = least(case := _case(s), MODES[1]), roofline.saved_bytes(case)
        name, share = f"{s.H}x{s.W}, N={s.N} C=D={s.C}", 1e3 * cost.bytes / 2 / cost.flops
        sizes.append([name, f"{cost.bytes / MB:.0f}", f"{cost.flops / GB:.1f}", f"{share:.1f}", f"{kept / MB:.1f}"])
        for gpu in GPUS:
            floors = [floor_of(case, mode, gpu.rates) for mode in MODES]
            times.append([name, gpu.name, _both(*floors), _measured(case, gpu)])
    return (
        "K=128, channels_last, 16 bits; forward + backward.\n\n"
        + markdown(["map", "MB", "GFLOP", "values / 1000 flops", "MB saved"], sizes)
        + "\nMicroseconds forward / backward.\n\n"
        + markdown(["map", "GPU", "floor", "measured"], times)
    )


def prologue() -> str:
    """Tables of batch normalisation, ReLU and the op in each of four ways: on GPUs, and on processors that ran it."""
    lines = []
    for shape in (B_256, _BY_NAME["M256"]):
        for gpu in GPUS:
            case = replace(_case(shape), dtype=gpu.dtype)
            lines.append([str(shape), gpu.name, *(found_on(gpu, ("prologue",), partial(_way, case, way))
                                                  for way in WAYS)])  # fmt: skip
    text = "Microseconds forward / backward, channels_last, 16 bits.\n\n" + markdown(["shape", "GPU", *WAYS], lines)
    for device in recording.devices():
        records = recording.latest(device, "prologue")
        if records and records[0]["instructions"] is not None:
            text += "\n" + tables.prologue(device)
    return text


def _way(case: Case, way: str, records: list[Record]) -> str:
    found = {
        r["mode"]: r["p50"] / 1e3
        for r in records
        if r["provider"] == way and r["launch"] == "plain" and r["samples"] and not r["problem"]
        if r["case"]["dtype"] == case.dtype and r["case"]["shape"]["name"] == case.shape.name
    }
    return _both(found[MODES[0]], found[MODES[1]]) if len(found) == len(MODES) else ""
