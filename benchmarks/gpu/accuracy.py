"""Errors of small calls in float32 against float64, beside eager PyTorch's: the table of docs/backends.md.

Runs on the CPU; it lies here because it makes the calls of right.py.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import replace

from benchmarks.compiled.requests import Request
from benchmarks.gpu import right
from benchmarks.op import parity

# Sizes at which sums are short, few or long for what is summed, each at the temperature that shows it.
CASES = tuple(
    Request("small", n, c, d, k, g, p, "fp32", temperature=tau, layout="planes", bias=True, maps=True)
    for n, c, d, k, g, p, tau in (
        (1, 8, 8, 16, 2, 196, 1.0),
        (4, 64, 257, 16, 1, 16, 0.1),
        (1, 16, 16, 1, 1, 196, 1.0),
        (1, 256, 256, 128, 4, 49, 0.1),
        (2, 16, 16, 2, 2, 49, 0.05),
        (1, 4, 3, 4, 4, 9, 0.05),
        (4, 3, 3, 3, 1, 50, 0.7),
        (1, 64, 64, 3, 1, 121, 0.02),
        (2, 32, 32, 8, 2, 200, 0.2),
        (2, 33, 17, 9, 3, 31, 0.1),
        (2, 48, 1, 12, 3, 100, 0.5),
        (1, 64, 64, 64, 1, 196, 0.02),
        (1, 8, 8, 8, 1, 784, 1.0),
    )
)
HEADER = ("N, C, D, K, G, P", "tau", "pooled", "of the furthest", "rms", "eager's", "ratio", "draws outside")


def row(request: Request, backend: str, draws: int) -> tuple[str, ...]:
    """The row of the table, in the order of HEADER, for a backend's errors in ``draws`` seeded draws of a request.

    Ratios are typical ones of our rms error to eager's: for pooled, and for the result where the ratio is largest. Of
    that result both median rms follow, and the share of draws in which our rms is more than 1.25 times eager's.
    """
    errors: dict[str, list[parity.Errors]] = {}
    for seed in range(draws):
        inputs = right.make_inputs(request, "cpu", seed)
        truth, eager = right.run(right.eager(request), inputs.double()), right.run(right.eager(request), inputs)
        for name, x in right.run(right.fused(request, backend), inputs).items():
            errors.setdefault(name, []).append(parity.compare(x, eager[name], truth[name], widened=False))
    ratios = {name: 1.25 * parity.typical_share(replace(e, max=0.0) for e in each) for name, each in errors.items()}
    name = max(ratios, key=ratios.__getitem__)
    far = errors[name]
    sizes = ", ".join(map(str, (request.N, request.C, request.D, request.K, request.G, request.P)))
    ours, theirs = (statistics.median(x) for x in zip(*((e.rms, e.rms_allowed / 1.25) for e in far), strict=True))
    outside = f"{sum(e.rms > e.rms_allowed for e in far) / draws:.0%}".replace("%", " %")
    about = (f"{ratios['pooled']:.2f}", name, f"{ours:.1e}", f"{theirs:.1e}", f"{ratios[name]:.2f}", outside)
    return (sizes, f"{request.temperature:g}", *about)


def rows(backend: str, draws: int) -> Iterable[tuple[str, ...]]:
    return (row(request, backend, draws) for request in CASES)
