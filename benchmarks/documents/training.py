"""Tables about whole training steps: what they cost, where their time goes, what the aligned branch adds."""

from __future__ import annotations

from functools import cache

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.documents.tables import NOT_RUN, OUTSIDE, STAR, found_on, latest
from benchmarks.gpu.roofline import GPUS
from benchmarks.heap import MIB
from benchmarks.op.cases import Case, Shape
from benchmarks.op.cost import MODES, least
from benchmarks.op.report import markdown
from benchmarks.recording import Record, circumstances, identity
from benchmarks.training import aligned_loss
from lewel.methods.method import Method
from lewel.recipe import schema

MB, GB = 1e6, 1e9


def step(device: str) -> str:
    """Milliseconds of a training step of each method, what its aligned branch costs and what the fused op saves.

    The peak is what a step needs beside what is held; rows from before that was recorded leave its column out.
    """
    records = latest(device, "step")
    holds = any("held_bytes" in r for r in records)
    lines = []
    for r in records:
        cost = "" if r["overhead"] is None else f"{r['overhead']:+.1f} %"
        speedup = "" if r["speedup"] is None else f"{r['speedup']:.2f}"
        held, peak = ("" if x is None else f"{x / MIB:.0f}" for x in (r.get("held_bytes"), r["peak_bytes"]))
        op = r["variant"] + (f" ({r['backend']})" if r["backend"] else "") + f" {STAR}" * bool(r.get("problem"))
        case, rate = r["case"], f"{r['images_per_second']:.0f}"
        lines.append([r["method"], case["precision"], str(case["batch"]), op, f"{r['p50']:.1f}", rate,
                      *([held] if holds else []), peak, cost, speedup])  # fmt: skip
    c = records[0]["case"]
    header = ["method", "precision", "batch", "aligned op", "ms", "images/s", *(["held MiB"] if holds else []),
              "peak MiB", "aligned branch costs", "step x eager"]  # fmt: skip
    about = f"{c['encoder']} at {c['image_size']}. {circumstances(records)}."
    table = f"{about}\n\n" + markdown(header, lines)
    return table + (f"\n{OUTSIDE}\n" if any(r.get("problem") for r in records) else "")


def parts(device: str) -> str:
    """Where the time of training runs goes, in percent of a step.

    A part that a row does not know, as one of a version before that part, is empty there.
    """
    records = latest(device, "parts")
    most = max((r["shares"] for r in records), key=len)
    names = list(dict.fromkeys([*most, *(name for r in records for name in r["shares"])]))
    lines = []
    for r in records:
        case, shares = r["case"], r["shares"]
        about = [case["run"], f"{case['encoder']} at {case['image_size']}", str(case["batch"]), case["precision"]]
        lines.append([*about, f"{r['p50']:.0f}", *(f"{shares[name]:.2f}" if name in shares else "" for name in names)])
    header = ["run", "encoder", "batch", "precision", "ms", *names]
    return f"Percent of a step. {circumstances(records)}.\n\n" + markdown(header, lines)


@cache
def _step_flops(loss: str, aligned: bool, hidden: int, maps: int) -> float:
    """Flops of a training step for each image: ResNet-50 at 224, counted on fake tensors."""
    n = 8
    run = schema.Train(
        data=schema.Data(image_size=224, batch_size=n),
        encoder=schema.EncoderSettings("resnet50", stem="imagenet"),
        heads=schema.Heads(hidden=hidden, num_maps=maps, num_groups=4),
        method=schema.MethodSettings(loss=loss, w_aligned=0.5 * aligned, queue=65536, split_bn=1),
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
    case = Case(Shape("", N=1, C=2048, D=hidden, K=maps, H=7, W=7), "channels_last", "bf16")
    views = 2 if loss == "byol" else 1
    return views * sum(least(case, mode).flops for mode in MODES)


def _branch_measured(method: str) -> str:
    """Text: by how many percent the branch lengthened a step of a ResNet-50 at 224, on each GPU that ran it."""

    def tell(records: list[Record]) -> str:
        return ", ".join(
            f"{r['variant']} {r['case']['precision']} {r['overhead']:+.1f} %"
            for r in records
            if (r["method"], r["case"]["encoder"], r["case"]["image_size"]) == (method, "resnet50", 224)
            and r["overhead"] is not None
        )

    told = {gpu.name: found_on(gpu, ("step",), tell) for gpu in GPUS}
    return "; ".join(f"{name}: {text}" for name, text in told.items() if text != NOT_RUN) or NOT_RUN


def branch() -> str:
    """Table of what the aligned branch adds to a whole step: by flops, in the paper, and as measured."""
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
    """How many images fit into ``memory`` bytes if ``matrices`` of (N L)^2 float32 have to."""
    return int((memory / matrices / 4) ** 0.5 / aligned_loss.L)


def _formula(record: Record) -> str:
    """The formula of a record of the loss; the oldest records name none, and are of the plain one."""
    return record.get("variant", "plain")


def loss(device: str) -> str:
    """Table of memory and time of the aligned InfoNCE as the batch grows."""
    records = latest(device, "loss")
    lines = [
        [str(n := r["case"]["N"]), f"{r['logits_bytes'] / MB:.1f}", _formula(r), f"{r['saved_bytes'] / MB:.1f}",
         f"{aligned_loss.live_bytes(n, _formula(r)) / MB:.1f}",
         "" if r["peak_bytes"] is None else f"{r['peak_bytes'] / MB:.1f}", f"{r['p50']:.1f}"]
        for r in records
    ]  # fmt: skip
    header = ["N", "logits MB", "formula", "saved MB", "live MB", "measured peak MB", "ms forward + backward"]
    return f"L={aligned_loss.L}; {circumstances(records)}.\n\n" + markdown(header, lines)


def _largest_loss(records: list[Record]) -> str:
    """Text: time and memory of each formula at the largest batch that was measured."""
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
         found_on(gpu, ("loss",), _largest_loss)]
        for gpu in GPUS
    ]  # fmt: skip
    return (
        loss(device)
        + f"\nAt N={n} the plain formula has {plain / GB:.1f} GB alive at once, in blocks it is {blocked / GB:.2f} GB. "
        + f"At most {matrices:.2f} matrices of logits are live at once in the plain one. "
        + "Half of a GPU's memory would hold at most this many images with it:\n\n"
        + markdown(["GPU", "N on one rank, plain", "the largest measured"], fits)
    )


def head_affine(device: str) -> str:
    """Tables of the coupled head with its batch norm eager and inside the op: memory of a step, time of the head."""
    records = latest(device, "head-affine")
    found: dict[str, dict[str, Record]] = {}
    for r in records:
        found.setdefault(identity(r, ("case",)), {})[r["variant"]] = r
    sizes, times, processes = [], [], 0
    for eager, affine in ((pair["eager"], pair["pixels_affine"]) for pair in found.values()):
        case = eager["case"]
        if "preset" in case:
            processes = case["processes"]
            e, a = eager["step_bytes"], affine["step_bytes"]
            sizes.append([case["preset"], f"{e / MIB:,.0f}", f"{a / MIB:,.0f}", f"{100 * (1 - a / e):.1f} %"])
        else:
            about = [case["precision"], str(case["images"])]
            times.append([*about, f"{eager['p50']:.1f}", f"{affine['p50']:.1f}", f"{affine['speedup']:.2f}"])
    header = ["preset", "eager MiB", "pixels_affine MiB", "less"]
    return (
        f"A step of one of {processes} processes in bf16, counted on tensors without contents.\n\n"
        + markdown(header, sizes)
        + f"\nForward and backward of LEWEL_B's head. {circumstances(records)}.\n\n"
        + markdown(["precision", "images", "eager ms", "pixels_affine ms", "x eager"], times)
    )


def projector(device: str) -> str:
    """Table of the semantic projector in several precisions: relative errors against float64, and time."""
    records = latest(device, "projector")
    header = ["projector", "images", "W R, differences", "output, differences", "dR", "dW", "ms"]
    lines = [
        [r["variant"], str(r["case"]["images"]), *(f"{error:.1e}" for error in r["errors"].values()),
         "" if r["p50"] is None else f"{r['p50']:.0f}"]
        for r in records
    ]  # fmt: skip
    c, spread = records[0]["case"], 100 * records[0]["spread"]
    about = f"C={c['C']}, D={c['D']}, K={c['K']}; {c['rows']} rows of an image differ from their mean by {spread:.1f} %"
    return f"{about} of their size. {circumstances(records)}.\n\n" + markdown(header, lines)
