"""The machine's time, and the time by which old things are tidied up.

An error in the second may keep something too long and must not take it too early. Must not know who asks for either.
"""

import time
import uuid
from pathlib import Path

from node_agent.domain.mark import Mark
from node_agent.domain.ports import Clock

BOOT_FILE = Path("/proc/sys/kernel/random/boot_id")


class SystemClock:
    """The machine's time."""

    def __init__(self, boot_file: Path = BOOT_FILE) -> None:
        try:
            self._boot = boot_file.read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            self._boot = ""
        # without it no later process can count on: better to count anew than from another start of the machine
        self._boot = self._boot or uuid.uuid4().hex

    def now(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds that never go back."""
        return time.monotonic()

    def mark(self) -> Mark:
        """Give this moment, for a later process to count from."""
        return Mark(self._boot, time.monotonic())


class CautiousClock:
    """The time of day, and never later than it can be: a clock that is set forward makes nothing old at once.

    Set back it is believed: what was written meanwhile would seem old by the other.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._began_at = clock.now()
        self._began = clock.monotonic()

    def now(self) -> float:
        """Give the time of day, or what it would be had nobody set it, whichever is earlier."""
        return min(self._clock.now(), self._began_at + self.monotonic() - self._began)

    def monotonic(self) -> float:
        """Seconds that never go back."""
        return self._clock.monotonic()

    def mark(self) -> Mark:
        """Give this moment, for a later process to count from."""
        return self._clock.mark()
