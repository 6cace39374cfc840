"""What a call costs where the tensors cost nothing: microseconds of the public function beside eager's single ops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F

from benchmarks import timing
from benchmarks.op.cases import NUM_GROUPS, TEMPERATURE, Case, Inputs, Shape, make_inputs
from benchmarks.op.cost import MODES
from benchmarks.op.measure import call_of, sentence
from benchmarks.op.providers import PROVIDERS, quiet, refusal

# Next to no arithmetic; then one image at the width of LEWEL_M, where it still decides.
CASES = (
    Case(Shape("tiny", N=1, C=16, D=16, K=8, H=2, W=2), "channels_last", "fp32"),
    Case(Shape("M1", N=1, C=2048, D=2048, K=128, H=7, W=7), "channels_last", "fp32"),
)
SINGLE_OPS = "eager's ops one by one"


@dataclass
class Overhead:
    """Microseconds of one call; mode is one of MODES, or SINGLE_OPS for an operator that eager is made of."""

    case: dict[str, object]
    call: str
    mode: str
    p20: float
    p50: float
    p80: float


def single_ops(inputs: Inputs) -> dict[str, Callable[[], object]]:
    """The operators behind the ten lines (providers.py), each alone on what it reads there."""
    features, pixels, weight = (x.detach() for x in inputs.leaves)
    kernel = weight[:, :, None, None]
    heat = F.conv2d(pixels, kernel)
    normal = F.normalize(heat, dim=1).flatten(2)
    scaled = normal / TEMPERATURE
    maps = scaled.softmax(-1).unflatten(1, (NUM_GROUPS, -1)).transpose(2, 3)
    grouped = features.flatten(2).unflatten(1, (NUM_GROUPS, -1))
    pooled = grouped @ maps
    return {
        "conv2d": lambda: F.conv2d(pixels, kernel),
        "normalize": lambda: F.normalize(heat, dim=1),
        "divide": lambda: normal / TEMPERATURE,
        "softmax": lambda: scaled.softmax(-1),
        "matmul": lambda: grouped @ maps,
        "permute and flatten": lambda: pooled.permute(0, 3, 1, 2).flatten(2),
    }


def measure(case: Case, seconds: float) -> list[Overhead]:
    """Every provider that runs here in both modes, and eager's single operators; all take turns."""
    torch.compiler.reset()
    inputs = make_inputs(case)
    calls: dict[tuple[str, str], Callable[[], object]] = {}
    for name, make in PROVIDERS.items():
        if name == "compile-max" or refusal(name, inputs):  # tuning changes nothing where there is nothing to compute
            continue
        op = make()
        own = {(name, mode): call_of(case, op, inputs, mode) for mode in MODES}
        try:
            with quiet(name):
                for call in own.values():
                    call()
        except Exception as error:  # no compiler, say
            print(f"\n{case}\n  {name} is left out, for it cannot run: {sentence(error)}")
            continue
        calls |= own
    with torch.no_grad():
        ops = single_ops(inputs)

    def alone(op: Callable[[], object]) -> Callable[[], object]:
        def call() -> object:
            with torch.no_grad():
                return op()

        return call

    calls |= {(name, SINGLE_OPS): alone(op) for name, op in ops.items()}
    rows = []
    for (name, mode), times in timing.interleave(calls, case.device, seconds).items():
        rows.append(Overhead(asdict(case), name, mode, *(1e6 * q for q in timing.quantiles(times))))
    return rows


def print_rows(rows: list[Overhead]) -> None:
    shape = rows[0].case["shape"]
    assert isinstance(shape, dict)
    print(f"\n{shape['name']}: N={shape['N']} C={shape['C']} D={shape['D']} K={shape['K']} {shape['H']}x{shape['W']}")
    for row in rows:
        print(f"  {row.mode:<24}{row.call:<12}{row.p50:9.1f} us  [{row.p20:8.1f} {row.p80:8.1f}]")
    print(f"  {SINGLE_OPS:<24}{'sum':<12}{sum(r.p50 for r in rows if r.mode == SINGLE_OPS):9.1f} us")
