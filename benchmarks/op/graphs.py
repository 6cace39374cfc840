"""CUDA graphs of the calls that are timed."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from benchmarks.timing import Call


def capture(calls: Sequence[Call]) -> tuple[Call, object]:
    """A call that replays a CUDA graph of all ``calls`` in a row, and where a replay leaves the first one's result."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # libraries allocate their workspaces at the first call, which no graph may hold
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        first = calls[0]()
        for call in calls[1:]:
            call()
    return graph.replay, first
