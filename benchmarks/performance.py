"""The tables of docs/performance.md: arithmetic on shapes, and beside it what was measured or that nothing was."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from lewel import config
from lewel.method import Method

from . import aligned_loss, results, roofline
from .cases import D56, PAPER, Case, Shape
from .cost import MODES, floor_of, least
from .roofline import GPUS
from .tables import KERNELS, circumstances, markdown

MB, GB = 1e6, 1e9
_BY_NAME = {shape.name: shape for shape in PAPER}
PREDICTED = [_BY_NAME[name] for name in ("M32", "M64", "M256", "B64", "B256")]
M_64, B_256 = _BY_NAME["M64"], _BY_NAME["B256"]
NOT_RUN = "not yet run"


def _case(shape: Shape, layout: str = "channels_last") -> Case:
    return Case(shape, layout, "bf16")


def _both(forward: float, whole: float) -> str:
    """Microseconds forward / backward."""
    return f"{1e6 * forward:.0f} / {1e6 * (whole - forward):.0f}"


def _measured(case: Case, gpu: roofline.GPU) -> str:
    """What each provider took on the first such GPU with results, in microseconds forward / backward."""
    case = replace(case, dtype=gpu.dtype)  # a GPU without bfloat16 only emulates it
    for device in results.devices():
        if not gpu.owns(device):
            continue
        found = {
            (row.provider, row.mode): row.p50 / 1e3
            for row in results.rows(results.latest(device, "paper"))
            if replace(row.case, device="cpu") == case and row.launch == "plain" and row.samples and not row.problem
        }
        cells = [
            f"{name} {_both(found[name, MODES[0]], found[name, MODES[1]])}"
            for name in ("eager", "compile-max", *KERNELS)
            if (name, MODES[0]) in found and (name, MODES[1]) in found
        ]
        if cells:
            return ", ".join(cells)
    return NOT_RUN


def predictions() -> str:
    """Floor, planned design and eager at the shapes of the paper on three GPUs, and the measurement.

    Eager in NCHW is left out: cuDNN transposes inside its convolutions, in passes that are not counted here.
    """
    lines = []
    for shape in PREDICTED:
        case = _case(shape)
        for gpu in GPUS:
            floors = [floor_of(case, mode, gpu.rates) for mode in MODES]
            planned = roofline.predicted_seconds(case, gpu)
            eager = [roofline.eager(case).seconds(mode, gpu.rates) for mode in MODES]
            cells = [_both(*times) for times in (floors, planned.values(), eager)]
            lines.append([str(shape), gpu.name, *cells, _measured(case, gpu)])
    header = ["shape", "GPU", "floor", "planned kernels", "eager", "measured"]
    kinds = ", ".join(f"{gpu.name} {gpu.dtype}" for gpu in GPUS)
    return f"Microseconds forward / backward, channels_last, 16 bits ({kinds}).\n\n" + markdown(header, lines)


def passes() -> str:
    """Bytes and flops of each pass of the planned design at shape B, and of all operators of eager."""
    case = _case(B_256)
    lines = [
        [f"planned, {way}", name, f"{cost.bytes / MB:.0f}", f"{cost.flops / GB:.1f}"]
        for way, ps in roofline.passes(case).items()
        for name, cost in ps
    ]
    least_cost = least(case, MODES[1])
    planned = [cost for ps in roofline.passes(case).values() for _, cost in ps]
    for name, costs in (("planned, all", planned), ("at least", [least_cost])):
        lines.append([name, "", f"{sum(c.bytes for c in costs) / MB:.0f}", f"{sum(c.flops for c in costs) / GB:.1f}"])
    eager = roofline.eager(case)
    total, count = eager.total(MODES[1]), len(eager.operators[MODES[1]])
    lines.append(["eager", f"{count} operators", f"{total.bytes / MB:.0f}", f"{total.flops / GB:.1f}"])
    return f"{B_256}, channels_last, 16 bits.\n\n" + markdown(["design", "pass", "MB", "GFLOP"], lines)


def saved() -> str:
    """What is kept between forward and backward beyond the inputs."""
    lines = []
    for shape in PAPER:
        heat, norms, weight = 2 * shape.N * shape.K * shape.P, 4 * shape.N * shape.P, 2 * shape.K * shape.D
        eager = [roofline.eager(_case(shape, layout)).saved_bytes for layout in ("channels_last", "nchw")]
        inputs = 2 * shape.N * (shape.C + shape.D) * shape.P
        lines.append([str(shape), *(f"{x / MB:.1f}" for x in (inputs, heat + norms + weight, *eager))])
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
            kept = [2 * s.N * s.K * s.P + 4 * s.N * s.P for s in (shape, larger)]
            ratios = (cost.bytes / base.bytes, cost.flops / base.flops, kept[1] / kept[0])
            lines.append([str(shape), f"{axis} doubled", *(f"x {ratio:.2f}" for ratio in ratios)])
    return markdown(["shape", "", "bytes", "flops", "saved"], lines)


def dense() -> str:
    """The four maps of a ResNet-50 at 224, K = 128: what the op costs at least on each, and what it keeps."""
    lines = []
    for side, width in ((7, 2048), (14, 1024), (28, 512), (56, 256)):
        case = _case(Shape(f"{side}x{side}", N=64, C=width, D=width, K=128, H=side, W=side))
        cost, s = least(case, MODES[1]), case.shape
        kept = 2 * s.N * s.K * s.P + 4 * s.N * s.P
        floors = [f"{1e6 * floor_of(case, MODES[1], gpu.rates):.0f}" for gpu in GPUS]
        share = cost.bytes / 2 / cost.flops * 1e3
        lines.append([f"{side}x{side}, C=D={width}", f"{cost.bytes / MB:.0f}", f"{cost.flops / GB:.1f}", f"{share:.1f}",
                      *floors, f"{kept / MB:.1f}"])  # fmt: skip
    header = ["map", "MB", "GFLOP", "values / 1000 flops", *(f"{gpu.name}, us at least" for gpu in GPUS), "MB saved"]
    return "N=64, forward + backward, 16 bits.\n\n" + markdown(header, lines)


@cache
def _step_flops(loss: str, aligned: bool, hidden: int, maps: int) -> float:
    """Flops of a training step for each image: ResNet-50 at 224, counted on tensors without contents."""
    n = 8
    run = config.Train(
        data=config.Data(image_size=224, batch_size=n),
        encoder=config.Encoder("resnet50", stem="imagenet"),
        heads=config.Heads(hidden=hidden, num_maps=maps, num_groups=4),
        method=config.Method(loss=loss, w_aligned=0.5 * aligned, queue=65536, split_bn=1),  # type: ignore[arg-type]
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


def branch() -> str:
    """What the aligned branch adds to a whole step, by flops, beside the overhead that the paper measured."""
    lines = []
    for loss, names, hidden, maps, paper in (
        ("infonce", ("moco_v2", "lewel_m"), 2048, 128, "0.7 % (1213 to 1222 s)"),
        ("byol", ("byol", "lewel_b"), 4096, 256, "4.4 % (1141 to 1191 s)"),
    ):
        plain, aligned = (_step_flops(loss, on, hidden, maps) for on in (False, True))
        op = _op_flops(loss, hidden, maps)
        aligned += op  # the counter sees into no custom op
        lines.append([f"{names[0]} to {names[1]}", f"{plain / GB:.1f}", f"{aligned / GB:.1f}",
                      f"{100 * (aligned / plain - 1):.1f} %", f"{100 * op / plain:.2f} %", paper])  # fmt: skip
    header = ["methods", "GFLOP an image", "with the branch", "more", "of which the op", "paper, epoch on 8 V100"]
    return markdown(header, lines)


def _largest_batch(memory: float, matrices: float) -> int:
    """Images whose ``matrices`` of (N L)^2 float32 fit into ``memory``."""
    return int((memory / matrices / 4) ** 0.5 / aligned_loss.L)


def infonce(device: str) -> str:
    """Memory of the aligned InfoNCE, and the largest batch on one rank that three GPUs would hold.

    The fit rests on the storages that are counted: peaks measured on the CPU are those of a heap.
    """
    records = results.latest(device, "loss")
    if not records:
        raise ValueError(f"there are no results of loss on {device}")
    lines = [
        [str(n := r["case"]["N"]), f"{r['logits_bytes'] / MB:.1f}", f"{r['saved_bytes'] / MB:.1f}",
         f"{aligned_loss.live_bytes(n) / MB:.1f}",
         "" if r["peak_bytes"] is None else f"{r['peak_bytes'] / MB:.1f}", f"{r['p50']:.1f}"]
        for r in records
    ]  # fmt: skip
    n = 1024  # where what grows with N is small beside what grows with its square
    matrices = aligned_loss.live_bytes(n) / aligned_loss.logits_bytes(n)
    fits = [[f"{gpu.name}, {gpu.memory / GB:.0f} GB", str(_largest_batch(gpu.memory / 2, matrices))] for gpu in GPUS]
    return (
        f"L={aligned_loss.L}; {circumstances(records)}.\n\n"
        + markdown(["N", "logits MB", "saved MB", "live MB", "measured peak MB", "ms forward + backward"], lines)
        + f"\nAt most {matrices:.2f} matrices of logits are live at once. "
        + "Half of a GPU's memory holds at most this many images:\n\n"
        + markdown(["GPU", "N on one rank"], fits)
    )
