"""What a call costs at least, on any machine: bytes and flops of E1-E10 (docs/math.md), and the time they imply."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.op.cases import DTYPES, Case

MODES = ("forward", "forward+backward")


@dataclass(frozen=True)
class Cost:
    """Bytes read and written, and flops: each multiplication counts as one, and so does each addition."""

    bytes: float
    flops: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.bytes + other.bytes, self.flops + other.flops)


@dataclass(frozen=True)
class Rates:
    """What a machine reaches: bytes/s of a copy (read and write both counted) and flop/s of a matrix product."""

    copy: float
    matmul: float


def _directions(case: Case, mode: str) -> list[Cost]:
    """The least cost of the forward and, unless ``mode`` leaves it out, of the backward.

    Forward: the flops of E1 and E5. Backward: E6 and E7 are as E5, the two products of E10 as E1; it must read features
    and pixels again, for they do not fit a cache.
    """
    s, size = case.shape, DTYPES[case.dtype].itemsize
    features, pixels, pooled = s.N * s.C * s.P * size, s.N * s.D * s.P * size, s.N * s.L * s.C * size
    weight = s.K * s.D * 4
    projection, pooling = s.flops.projection, s.flops.pooling
    forward = Cost(features + pixels + weight + pooled, projection + pooling)
    if mode == "forward":
        return [forward]
    backward = Cost(2 * features + 2 * pixels + 2 * weight + pooled, 2 * projection + 2 * pooling)
    return [forward, backward]


def least(case: Case, mode: str) -> Cost:
    """The least cost of a mode: each direction reads inputs and writes results once, and no product is done twice."""
    return sum(_directions(case, mode), Cost(0, 0))


def floor_seconds(cost: Cost, rates: Rates) -> float:
    """Least seconds of a cost: the larger of its copy time and its matmul time, the smaller hidden behind it."""
    return max(cost.bytes / rates.copy, cost.flops / rates.matmul)


def floor_of(case: Case, mode: str, rates: Rates) -> float:
    """Least seconds of a case in a mode: the sum over its directions.

    The backward cannot begin before the forward has ended, so neither hides behind the other.
    """
    return sum(floor_seconds(cost, rates) for cost in _directions(case, mode))
