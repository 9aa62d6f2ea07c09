"""A clock that stands still until a test turns it."""

WALL_START = 1_700_000_000.0


class ManualClock:
    """Both times at once: wall and monotonic move together."""

    def __init__(self, *, wall_start: float = WALL_START) -> None:
        self._wall_start = wall_start
        self._elapsed = 0.0

    def now(self) -> float:
        return self._wall_start + self._elapsed

    def monotonic(self) -> float:
        return 1000.0 + self._elapsed

    def advance(self, seconds: float) -> None:
        self._elapsed += seconds
