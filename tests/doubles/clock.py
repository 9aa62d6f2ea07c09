"""A clock that stands still until a test turns it."""

from node_agent.domain.mark import Mark

WALL_START = 1_700_000_000.0


class ManualClock:
    """Both times at once: wall and monotonic move together, unless somebody sets the wall clock."""

    def __init__(self, *, wall_start: float = WALL_START) -> None:
        self._wall_start = wall_start
        self._elapsed = 0.0
        self._boots = 1

    def now(self) -> float:
        return self._wall_start + self._elapsed

    def monotonic(self) -> float:
        return 1000.0 + self._elapsed

    def advance(self, seconds: float) -> None:
        self._elapsed += seconds

    def mark(self) -> Mark:
        return Mark(f"boot-{self._boots}", self.monotonic())

    def boot(self) -> None:
        """Let the machine start anew: marks made before say nothing any more."""
        self._boots += 1

    def set_wall(self, *, by: float) -> None:
        """Set the wall clock forward or back, as a person or a time server does."""
        self._wall_start += by
