"""The tables of docs/performance.md: arithmetic on shapes, and beside it what was measured or that nothing was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from itertools import product

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.documents import tables
from benchmarks.documents.tables import KERNELS, circumstances, markdown
from benchmarks.gpu import roofline
from benchmarks.gpu.roofline import GPUS
from benchmarks.op import results
from benchmarks.op.cases import D14, D56, PAPER, SWEEP, Case, Shape
from benchmarks.op.cost import MODES, floor_of, least
from benchmarks.op.prologue import WAYS
from benchmarks.op.results import Record
from benchmarks.training import aligned_loss
from lewel.methods.method import Method
from lewel.recipe import schema

MB, GB = 1e6, 1e9
_BY_NAME = {shape.name: shape for shape in PAPER}
PREDICTED = sorted((shape for shape in PAPER if shape.P == 49), key=lambda shape: (shape.K, shape.N))
M_64, B_256 = _BY_NAME["M64"], _BY_NAME["B256"]
# Maps that the suites paper and sweep measure; the one of 28x28 is narrower than a ResNet-50 has it.
DENSE = (M_64, D14, next(shape for shape in SWEEP["P"] if shape.H == 28), D56)
NOT_RUN = "not yet run"


def _case(shape: Shape, layout: str = "channels_last") -> Case:
    return Case(shape, layout, "bf16")


def _both(forward: float, whole: float) -> str:
    """Microseconds forward / backward."""
    return f"{1e6 * forward:.0f} / {1e6 * (whole - forward):.0f}"


def _found(gpu: roofline.GPU, suites: tuple[str, ...], tell: Callable[[list[Record]], str]) -> str:
    """The first that ``tell`` has to say about the last full run of one of the suites on such a GPU, or nothing."""
    runs = (results.latest(device, suite) for device in results.devices() if gpu.owns(device) for suite in suites)
    return next(filter(None, map(tell, runs)), "")


def _measured(case: Case, gpu: roofline.GPU) -> str:
    """What each provider took in microseconds forward / backward."""
    case = replace(case, dtype=gpu.dtype)  # a GPU without bfloat16 only emulates it

    def tell(records: list[Record]) -> str:
        found = {
            (row.provider, row.mode): row.p50 / 1e3
            for row in results.rows(records)
            if replace(row.case, device=case.device, axis="") == case
            if row.launch == "plain" and row.samples and not row.problem
        }
        return ", ".join(
            f"{name} {_both(found[name, MODES[0]], found[name, MODES[1]])}"
            for name in ("eager", "compile-max", *KERNELS)
            if (name, MODES[0]) in found and (name, MODES[1]) in found
        )

    return _found(gpu, ("paper", "first", "sweep"), tell) or NOT_RUN


def predictions() -> str:
    """Floor, passes of the kernels and eager at the shapes of the paper on each GPU, and the measurement.

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
    """Bytes and flops of each pass of the triton backend at shape B, and of all operators of eager."""
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
    """What is kept between forward and backward beyond the inputs."""
    lines = []
    for shape in PAPER:
        fused = roofline.saved_bytes(_case(shape))
        eager = [roofline.eager(_case(shape, layout)).saved_bytes for layout in ("channels_last", "nchw")]
        inputs = 2 * shape.N * (shape.C + shape.D) * shape.P
        lines.append([str(shape), *(f"{x / MB:.1f}" for x in (inputs, fused, *eager))])
    header = ["shape", "features and pixels", "fused", "eager channels_last", "eager NCHW"]
    return "MB, bfloat16 under autocast, the 16-bit copy of the weight counted.\n\n" + markdown(header, lines)


def growth() -> str:
    """How the least cost of forward + backward grows when one size doubles."""
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
    """Maps from the last stage of a ResNet-50 up to 56x56: what the op costs at least on each, and what it keeps."""
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


@cache
def _step_flops(loss: str, aligned: bool, hidden: int, maps: int) -> float:
    """Flops of a training step for each image: ResNet-50 at 224, counted on tensors without contents."""
    n = 8
    run = schema.Train(
        data=schema.Data(image_size=224, batch_size=n),
        encoder=schema.Encoder("resnet50", stem="imagenet"),
        heads=schema.Heads(hidden=hidden, num_maps=maps, num_groups=4),
        method=schema.Method(loss=loss, w_aligned=0.5 * aligned, queue=65536, split_bn=1),  # type: ignore[arg-type]
        backend="reference",
    )
    method = Method(run)
    with FakeTensorMode(allow_non_fake_inputs=True):
        views = torch.empty(2, n, 3, 224, 224)
        with FlopCounterMode(display=False) as count:
            method(views[0], views[1], 0.99).loss.backward()
    return count.get_total_flops() / n


def _op_flops(loss: str, hidden: int, maps: int) -> float:
    """Flops of the op in a training step for each image: online with its backward, target without.

    BYOL's loss takes both views through both networks, InfoNCE one view through each.
    """
    case = _case(Shape("", N=1, C=2048, D=hidden, K=maps, H=7, W=7))
    views = 2 if loss == "byol" else 1
    return views * sum(least(case, mode).flops for mode in MODES)


def _branch_measured(method: str) -> str:
    """Percent that the branch added to a step of a ResNet-50 at 224, on each GPU where it was measured."""

    def tell(records: list[Record]) -> str:
        return ", ".join(
            f"{r['variant']} {r['case']['precision']} {r['overhead']:+.1f} %"
            for r in records
            if (r["method"], r["case"]["encoder"], r["case"]["image_size"]) == (method, "resnet50", 224)
            and r["overhead"] is not None
        )

    told = {gpu.name: _found(gpu, ("step",), tell) for gpu in GPUS}
    return "; ".join(f"{name}: {text}" for name, text in told.items() if text) or NOT_RUN


def branch() -> str:
    """What the aligned branch adds to a whole step, by flops, beside what it cost in the paper and here."""
    lines = []
    for loss, names, hidden, maps, paper in (
        ("infonce", ("moco_v2", "lewel_m"), 2048, 128, "0.7 % (1213 to 1222 s)"),
        ("byol", ("byol", "lewel_b"), 4096, 256, "4.4 % (1141 to 1191 s)"),
    ):
        plain, aligned = (_step_flops(loss, on, hidden, maps) for on in (False, True))
        op = _op_flops(loss, hidden, maps)
        lines.append([f"{names[0]} to {names[1]}", f"{plain / GB:.1f}", f"{aligned / GB:.1f}",
                      f"{100 * (aligned / plain - 1):.1f} %", f"{100 * op / plain:.2f} %", paper,
                      _branch_measured(names[1])])  # fmt: skip
    header = ["methods", "GFLOP an image", "with the branch", "more", "of which the op", "paper, epoch on 8 V100",
              "measured step"]  # fmt: skip
    return markdown(header, lines)


def _largest_batch(memory: float, matrices: float) -> int:
    """Images whose ``matrices`` of (N L)^2 float32 fit into ``memory``."""
    return int((memory / matrices / 4) ** 0.5 / aligned_loss.L)


def _formula(record: Record) -> str:
    """Of a record of the loss; the first ones are of the plain formula and do not say so."""
    return record.get("variant", "plain")


def loss(device: str) -> str:
    """Memory and time of the aligned InfoNCE as the batch grows.

    Raises:
        ValueError: nothing was recorded.
    """
    records = results.latest(device, "loss")
    if not records:
        raise ValueError(f"there are no results of loss on {device}")
    lines = [
        [str(n := r["case"]["N"]), f"{r['logits_bytes'] / MB:.1f}", _formula(r), f"{r['saved_bytes'] / MB:.1f}",
         f"{aligned_loss.live_bytes(n, _formula(r)) / MB:.1f}",
         "" if r["peak_bytes"] is None else f"{r['peak_bytes'] / MB:.1f}", f"{r['p50']:.1f}"]
        for r in records
    ]  # fmt: skip
    header = ["N", "logits MB", "formula", "saved MB", "live MB", "measured peak MB", "ms forward + backward"]
    return f"L={aligned_loss.L}; {circumstances(records)}.\n\n" + markdown(header, lines)


def _largest_loss(records: list[Record]) -> str:
    """The largest batch that was measured, in each formula."""
    largest = max((r["case"]["N"] for r in records), default=0)
    told = [
        f"{_formula(r)} {r['p50']:.1f} ms"
        + ("" if r["peak_bytes"] is None else f", peak {r['peak_bytes'] / MB:.0f} MB")
        for r in records
        if r["case"]["N"] == largest
    ]
    return f"N={largest}: {'; '.join(told)}" if told else ""


def infonce(device: str) -> str:
    """Memory of the aligned InfoNCE, and the largest batch on one rank that each GPU would hold without blocks.

    The fit rests on the storages that are counted: a measured peak holds what the CPU's operators need inside.
    """
    n = 1024  # where what grows with N is small beside what grows with its square
    plain, blocked = (aligned_loss.live_bytes(n, formula) for formula in ("plain", "blocked"))
    matrices = plain / aligned_loss.logits_bytes(n)
    fits = [
        [f"{gpu.name}, {gpu.memory / GB:.0f} GB", str(_largest_batch(gpu.memory / 2, matrices)),
         _found(gpu, ("loss",), _largest_loss) or NOT_RUN]
        for gpu in GPUS
    ]  # fmt: skip
    return (
        loss(device)
        + f"\nAt N={n} the plain formula has {plain / GB:.1f} GB alive at once, in blocks it is {blocked / GB:.2f} GB. "
        + f"At most {matrices:.2f} matrices of logits are live at once in the plain one. "
        + "Half of a GPU's memory would hold at most this many images with it:\n\n"
        + markdown(["GPU", "N on one rank, plain", "the largest measured"], fits)
    )


def prologue() -> str:
    """Batch normalisation, ReLU and the op in each of four ways: on the GPUs, and where a processor ran it there."""
    lines = []
    for shape in (B_256, _BY_NAME["M256"]):
        for gpu in GPUS:
            case = replace(_case(shape), dtype=gpu.dtype)
            lines.append([str(shape), gpu.name, *(_found(gpu, ("prologue",), partial(_way, case, way)) or NOT_RUN
                                                  for way in WAYS)])  # fmt: skip
    text = "Microseconds forward / backward, channels_last, 16 bits.\n\n" + markdown(["shape", "GPU", *WAYS], lines)
    for device in results.devices():
        records = results.latest(device, "prologue")
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


# What is told of a GPU: the suite, a heading, and the table.
PARTS: tuple[tuple[str, str, Callable[[str], str]], ...] = (
    *((f"right-{name}", f"Right, {name}", partial(tables.right, backend=name)) for name in ("triton", "cuda")),
    *(
        (suite, f"Suite {suite}, {mode}", partial(tables.speed, suite=suite, mode=mode))
        for suite, mode in product(("paper", "first"), MODES)
    ),
    ("paper", "Suite paper, memory", partial(tables.memory, suite="paper")),
    *(
        (suite, f"Suite {suite}, {MODES[1]}", partial(tables.speed, suite=suite, mode=MODES[1]))
        for suite in ("sweep", "quick")
    ),
    ("overhead", "Overhead of a call", tables.overhead),
    ("prologue", "Batch norm and ReLU before the op", tables.prologue),
    ("step", "A training step", tables.step),
    ("parts", "Where the time of a run goes", tables.parts),
    ("loss", "The aligned InfoNCE", loss),
)


def gpus() -> str:
    """Every table that the results of each GPU allow, of a GPU without a data sheet here too."""
    sections = []
    for device in results.devices():
        latest = {suite: records for suite, _, _ in PARTS if (records := results.latest(device, suite))}
        about = [record for records in latest.values() for record in records]
        if not about or about[0]["instructions"] is not None:  # those of a processor
            continue
        sections.append(f"### {about[0]['device']}\n")
        sections += [f"#### {title}\n\n{table(device)}" for suite, title, table in PARTS if suite in latest]
    return "\n".join(sections) or "Nothing was run on any GPU yet.\n"
