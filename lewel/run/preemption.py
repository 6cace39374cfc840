"""SIGTERM, the notice that a scheduler gives before it takes a machine away."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType


class Preemption:
    """While this context is open SIGTERM only sets requested; the loop looks at it between steps."""

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> Preemption:
        self._in_main = threading.current_thread() is threading.main_thread()  # no other may take signals
        if self._in_main:
            self._before = signal.signal(signal.SIGTERM, self._request)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._in_main:
            signal.signal(signal.SIGTERM, self._before)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
