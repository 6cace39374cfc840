"""How far something slow has come, told while it goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 15


class Progress:
    """Shows a bar on a terminal, or says a line at most every 15 seconds; of what takes less there is nothing."""

    def __init__(self, say: Callable[[str], None], *, bar: bool) -> None:
        self.say, self.has_bar = say, bar
        self.spoke = time.monotonic()
        self.bar = tqdm(disable=True)

    def __call__(self, what: str, done: int, total: int) -> None:
        """done of total images; the first call of each thing has none done."""
        now = time.monotonic()
        if not done:
            self.spoke = now
            self.bar = tqdm(
                total=total, desc=what, unit=" images", leave=False, delay=SECONDS_BETWEEN_LINES,
                disable=not self.has_bar,
            )  # fmt: skip
        if self.has_bar:
            with suppress(OSError):  # the terminal is gone, which is no reason to end
                self.bar.update(done - self.bar.n)
                if done >= total:
                    self.bar.close()
        elif now - self.spoke > SECONDS_BETWEEN_LINES:
            self.spoke = now
            self.say(f"{what}: {done:,} of {total:,} images")
