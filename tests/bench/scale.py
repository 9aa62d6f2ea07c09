"""How much the bench measures: the whole of it, or as much as a few minutes give.

Owns the numbers. Must not know what they are spent on.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

KB, MB = 1000, 1_000_000


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Counts, sizes in bytes, times in seconds."""

    name: str
    warm_up: int
    rounds: int
    burst: int
    burst_rounds: int
    peer_burst_rounds: int
    average_rounds: int
    results: Mapping[int, int]
    """By size, how often it is measured; the largest sizes take long, and no goal names them."""
    inputs: Mapping[int, int]
    starts: int
    settle: float
    idle: float
    few: int
    few_rounds: int
    many: int
    journal: int
    callers: tuple[int, ...]
    calling: float
    log: int

    def with_rounds(self, rounds: int) -> "Scale":
        """Return the same with so many rounds of whatever takes turns or is repeated."""
        return replace(
            self,
            name=f"{self.name}, {rounds} rounds",
            rounds=rounds,
            burst_rounds=rounds,
            average_rounds=rounds,
            few_rounds=rounds,
            results=dict.fromkeys(self.results, rounds),
            inputs=dict.fromkeys(self.inputs, rounds),
        )


WHOLE = Scale(
    name="whole",
    warm_up=2,
    rounds=8,
    burst=100,
    burst_rounds=3,
    peer_burst_rounds=1,
    average_rounds=3,
    results={KB: 3, MB: 3, 20 * MB: 3, 200 * MB: 3, 500 * MB: 1},
    inputs={KB: 3, MB: 3, 20 * MB: 3, 100 * MB: 1},
    starts=3,
    settle=10,
    idle=60,
    few=10,
    few_rounds=3,
    many=1000,
    journal=100_000,
    callers=(1, 50),
    calling=5,
    log=1000 * MB,
)
QUICK = Scale(
    name="quick",
    warm_up=1,
    rounds=2,
    burst=10,
    burst_rounds=1,
    peer_burst_rounds=1,
    average_rounds=1,
    results={KB: 1, 20 * MB: 1},
    inputs={KB: 1, 5 * MB: 1},
    starts=1,
    settle=2,
    idle=8,
    few=5,
    few_rounds=1,
    many=20,
    journal=2000,
    callers=(1, 8),
    calling=2,
    log=20 * MB,
)
