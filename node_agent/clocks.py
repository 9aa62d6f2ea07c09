"""The time by which old things are tidied up: an error in it may keep something too long and must not take it too early.

Must not know what is tidied up.
"""

from node_agent.domain.mark import Mark
from node_agent.domain.ports import Clock


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
