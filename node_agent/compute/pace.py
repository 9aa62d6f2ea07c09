"""How often one address and one peer may ask: a bucket for each, refilled with time.

Bounded: who has not asked for a while is forgotten. Nothing here knows what is asked.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable

MOST_KNOWN = 10_000


class TooFast(Exception):
    """Somebody asks too often; *seconds* until the next try has a chance."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"Try again in {seconds:.0f} s.")
        self.seconds = seconds


class Pace:
    """Lets each name through *per_second* times a second, and *burst* times at once."""

    def __init__(self, *, per_second: float, burst: int, monotonic: Callable[[], float]) -> None:
        self._per_second = per_second
        self._burst = float(burst)
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, name: str) -> None:
        """Count one call of *name*. Raises TooFast."""
        now = self._monotonic()
        with self._lock:
            left, since = self._buckets.pop(name, (self._burst, now))
            left = min(self._burst, left + (now - since) * self._per_second)
            self._buckets[name] = (max(0.0, left - 1), now) if left >= 1 else (left, now)
            if len(self._buckets) > MOST_KNOWN:
                self._buckets.popitem(last=False)
        if left < 1:
            raise TooFast((1 - left) / self._per_second)
