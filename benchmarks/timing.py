"""Seconds of a call on this machine: what is compared takes turns, so that drift of the machine falls on all alike."""

from __future__ import annotations

import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TypeVar

import torch

Call = Callable[[], object]
Key = TypeVar("Key")
Item = TypeVar("Item")
SAMPLE_SECONDS = 0.005
LEAST_ROUNDS = 5


def device_name(device: str) -> str:
    """The name of the accelerator, or of the processor."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.M) if cpuinfo.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def busy_cores(seconds: float = 0.5) -> float | None:
    """How many cores other processes keep busy while this one sleeps, or None where the system does not tell."""

    def ticks() -> int:
        # user nice system idle iowait irq softirq ...; guest time, further right, is already part of user time.
        fields = [int(x) for x in stat.read_text().split("\n", 1)[0].split()[1:8]]
        return sum(fields) - fields[3] - fields[4]

    if not (stat := Path("/proc/stat")).exists():
        return None
    start = ticks()
    time.sleep(seconds)
    return (ticks() - start) / os.sysconf("SC_CLK_TCK") / seconds


def synchronise(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def taking_turns(calls: Sequence[Call], first: int = 0) -> Call:
    """One call that runs the next of ``calls`` each time, round and round, beginning with number ``first``."""
    turns = cycle([*calls[first % len(calls) :], *calls[: first % len(calls)]])
    return lambda: next(turns)()


def sample(call: Call, device: str, repeats: int) -> float:
    """Mean seconds of ``repeats`` calls in a row: of the device on a GPU, which is the host's where that is slower."""
    synchronise(device)
    if torch.device(device).type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(repeats):
            call()
        end.record()
        synchronise(device)
        return start.elapsed_time(end) / 1e3 / repeats
    before = time.perf_counter()
    for _ in range(repeats):
        call()
    synchronise(device)
    return (time.perf_counter() - before) / repeats


def interleave(calls: Mapping[Key, Call], device: str, seconds: float) -> dict[Key, list[float]]:
    """Seconds of each call, one sample of every one in each round; a sample lasts SAMPLE_SECONDS or one call."""
    repeats = {}
    for name, call in calls.items():
        sample(call, device, 3)
        repeats[name] = max(1, round(SAMPLE_SECONDS / sample(call, device, 3)))
    times: dict[Key, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    while calls and (time.perf_counter() < end or len(next(iter(times.values()))) < LEAST_ROUNDS):
        for name, call in calls.items():
            times[name].append(sample(call, device, repeats[name]))
    return times


def quantiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The 20th, 50th and 80th percentile."""
    fifths = statistics.quantiles(values, n=5, method="inclusive")
    return fifths[0], statistics.median(values), fifths[3]


def ratio(base: Sequence[float], own: Sequence[float]) -> float:
    """How many times faster than the base: the median over rounds, each against its own neighbour."""
    return statistics.median(b / t for b, t in zip(base, own, strict=True))


def within(minutes: float, items: Sequence[Item], kind: str = "cases", since: float | None = None) -> Iterator[Item]:
    """The items one by one, as long as the next, if it takes as long as the longest so far, ends within the minutes.

    Minutes count from ``since`` (of `time.monotonic`), else from now. Prints the items that are left out; ``kind`` says
    what they are.
    """
    start, longest = time.monotonic() if since is None else since, 0.0
    for done, item in enumerate(items):
        began = time.monotonic()
        if began - start + longest > 60 * minutes:
            left = "; ".join(map(str, items[done:]))
            print(f"\n{minutes:g} minutes are not enough for these {len(items) - done} {kind}: {left}")
            return
        yield item
        longest = max(longest, time.monotonic() - began)
