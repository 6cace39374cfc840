"""How fast a run is, and how much of its time it waits."""

from __future__ import annotations

import time
from collections.abc import Iterator

from torch.profiler import record_function

from lewel import ranges
from lewel.data import Views


class Clock:
    """Images per second and the share of time spent waiting for data, since the last lap."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self._restart()

    def waiting(self, batches: Iterator[Views]) -> Iterator[Views]:
        """The same batches; the time that each takes to arrive is counted as waiting."""
        end = object()
        while True:
            before = time.monotonic()
            with record_function(ranges.DATA):
                views = next(batches, end)
            if views is end:
                return
            self.waited += time.monotonic() - before
            self.batches += 1
            yield views  # type: ignore[misc]

    def lap(self) -> dict[str, float]:
        elapsed = time.monotonic() - self.started
        values = {"images_per_s": self.batches * self.batch_size / elapsed, "data_wait": self.waited / elapsed}
        self._restart()
        return values

    def _restart(self) -> None:
        self.started, self.waited, self.batches = time.monotonic(), 0.0, 0
