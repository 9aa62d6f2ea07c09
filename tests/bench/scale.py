"""How much the bench measures: the whole of it, or as much as a few minutes give.

Owns the numbers. Must not know what they are spent on.
"""

from dataclasses import dataclass

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
    result_sizes: tuple[int, ...]
    input_sizes: tuple[int, ...]
    size_rounds: int
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


WHOLE = Scale(
    name="whole",
    warm_up=2,
    rounds=10,
    burst=100,
    burst_rounds=3,
    peer_burst_rounds=1,
    average_rounds=3,
    result_sizes=(KB, MB, 20 * MB, 200 * MB, 500 * MB),
    input_sizes=(KB, MB, 20 * MB, 100 * MB),
    size_rounds=2,
    starts=3,
    settle=10,
    idle=60,
    few=10,
    few_rounds=3,
    many=1000,
    journal=100_000,
    callers=(1, 50),
    calling=6,
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
    result_sizes=(KB, 20 * MB),
    input_sizes=(KB, 5 * MB),
    size_rounds=1,
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
