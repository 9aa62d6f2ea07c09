"""How often one address and one peer may ask, and how much of the time of others they may take.

A bucket for each, refilled with time, and a count of long answers. Bounded: who has not asked for a while is forgotten.
Nothing here knows what is asked.
"""

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address

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


class Places:
    """Counts the answers that take long, so that some threads are always left for short ones."""

    def __init__(self, *, most: int, most_each: int) -> None:
        self._most = most
        self._most_each = most_each
        self._lock = threading.Lock()
        self._taken: Counter[str] = Counter()

    def take(self, name: str) -> Callable[[], None]:
        """Take a place for *name*; what is returned gives it back, once. Raises TooFast."""
        with self._lock:
            if self._taken.total() >= self._most or self._taken[name] >= self._most_each:
                raise TooFast(1)
            self._taken[name] += 1
        return _Once(lambda: self._give_back(name))

    def _give_back(self, name: str) -> None:
        with self._lock:
            self._taken[name] -= 1
            if not self._taken[name]:
                del self._taken[name]


class _Once:
    def __init__(self, action: Callable[[], None]) -> None:
        self._actions = [action]

    def __call__(self) -> None:
        if self._actions:
            self._actions.pop()()


def peer_name(remote: str | None) -> str:
    """Name a peer by its address; those of one IPv6 network count as one, since each has as many as it likes."""
    try:
        address = ip_address(remote or "")
    except ValueError:
        return "peer:unknown"
    if isinstance(address, IPv6Address) and address.ipv4_mapped is None:
        return f"peer:{int(address) >> 64:016x}"
    return f"peer:{remote}"
