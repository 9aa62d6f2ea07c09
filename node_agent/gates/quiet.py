"""Keeps what strangers can cause from flooding the log."""

import threading
import time
from collections.abc import Callable

SECONDS = 60.0
LINES = 20


class Quiet:
    """Lets so many lines a minute through and counts the others."""

    def __init__(
        self, *, lines: int = LINES, seconds: float = SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._lines = lines
        self._seconds = seconds
        self._clock = clock
        self._until = clock() + seconds
        self._said = 0
        self._lock = threading.Lock()

    def left_out(self) -> int | None:
        """Give how many lines the past minute went unsaid, or None when this one must go unsaid too."""
        with self._lock:
            unsaid = 0
            if self._clock() >= self._until:
                unsaid = max(0, self._said - self._lines)
                self._until, self._said = self._clock() + self._seconds, 0
            self._said += 1
            return unsaid if self._said <= self._lines else None
