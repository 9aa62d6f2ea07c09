"""What the bench shall show, as numbers: each goal, what was measured for it, and whether it is met.

Owns the goals. Must not know how anything is measured.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

MB = 1_000_000
NAMED_SIZE = 200 * MB
Found = Mapping[str, Any]
"""What one part found."""
_NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Goal:
    """One number that shall be at most, or at least, so large."""

    number: int
    part: str
    what: str
    measured: Callable[[Found], float]
    bound: float
    unit: str = ""
    is_floor: bool = False
    of: Callable[[Found], str] = lambda _: ""
    """What it was measured with, where that depends on the scale."""

    def is_met(self, value: float) -> bool:
        """Tell whether that is good enough."""
        return value >= self.bound if self.is_floor else value <= self.bound

    @property
    def wanted(self) -> str:
        """Return the bound in words."""
        return f"at {'least' if self.is_floor else 'most'} {self.bound:g}{self.unit}"


@dataclass(frozen=True)
class Row:
    """A goal beside what became of it."""

    number: int
    part: str
    what: str
    wanted: str
    measured: str
    is_met: bool | None
    """None: it was not measured."""


def rows_of(parts: Mapping[str, Found]) -> list[Row]:
    """Hold what was found against every goal."""
    return [_row(goal, parts) for goal in GOALS]


def _row(goal: Goal, parts: Mapping[str, Found]) -> Row:
    if goal.part not in parts:
        return Row(goal.number, goal.part, goal.what, goal.wanted, _NOT_MEASURED, None)
    found = parts[goal.part]
    value = goal.measured(found)
    what = f"{goal.what}{goal.of(found)}"
    return Row(goal.number, goal.part, what, goal.wanted, f"{value:.2f}{goal.unit}", goal.is_met(value))


def size_row(found: Found, kind: str) -> Found:
    """Return the row of the size that the goals name, or of the next smaller one that was measured."""
    fitting = [row for row in found[kind] if row["size"] <= NAMED_SIZE]
    return max(fitting, key=lambda row: int(row["size"]))


def _median_ratio(one: str, other: str) -> Callable[[Found], float]:
    return lambda found: float(found["seconds"][one]["median"] / found["seconds"][other]["median"])


def _throughput_ratio(other: str) -> Callable[[Found], float]:
    def measured(found: Found) -> float:
        ways = found["ways"]
        return float(ways["agent"]["per_second"]["median"] / ways[other]["per_second"]["median"])

    return measured


def _above_by_hand(found: Found) -> float:
    return float(found["seconds"]["agent"]["median"] - found["seconds"]["by_hand"]["median"])


def _memory(kind: str) -> Callable[[Found], float]:
    return lambda found: max(size_row(found, kind)["memory"]["samples"])


def _sending(kind: str) -> Callable[[Found], float]:
    def measured(found: Found) -> float:
        row = size_row(found, kind)
        return float(
            row["seconds"]["median"] / (row["plain_send"]["median"] + row["plain_encrypt"]["median"])
        )

    return measured


def _size(kind: str) -> Callable[[Found], str]:
    return lambda found: f", {size_row(found, kind)['size'] / MB:g} MB"


def _per_run(found: Found) -> float:
    return float(found["many"]["per_run"] / found["few"]["per_run"]["median"])


def _grown(found: Found) -> float:
    return float(found["memory"]["highest"] - found["memory"]["idle"])


def _queues(found: Found) -> str:
    return f", {found['many']['runs']:,} and {found['few']['runs']}"


def _runs(found: Found) -> str:
    return f", {found['runs']} runs"


GOALS: tuple[Goal, ...] = (
    Goal(1, "empty", "empty run, ours / vantage6's own node", _median_ratio("agent", "vantage6_node"), 0.25),
    Goal(1, "empty", "the agent's own part of it", lambda found: float(found["own"]["median"]), 0.15, " s"),
    Goal(
        2,
        "burst",
        "burst, throughput ours / vantage6's own node",
        _throughput_ratio("vantage6_node"),
        5,
        is_floor=True,
        of=_runs,
    ),
    Goal(
        2,
        "burst",
        "burst, throughput ours / bare engine",
        _throughput_ratio("engine"),
        0.8,
        is_floor=True,
        of=_runs,
    ),
    Goal(
        3,
        "average",
        "central average, ours / vantage6's own node",
        _median_ratio("agent", "vantage6_node"),
        0.6,
    ),
    Goal(3, "average", "central average, ours above the containers by hand", _above_by_hand, 1.5, " s"),
    *(
        goal
        for kind in ("plain", "encrypted")
        for goal in (
            Goal(4, "result", f"{kind} result, memory above idle", _memory(kind), 40, " MB", of=_size(kind)),
            Goal(4, "result", f"{kind} result, time / plain client", _sending(kind), 1.3, of=_size(kind)),
        )
    ),
    Goal(5, "idle", "idle, resident memory", lambda found: float(found["idle"]["agent"]["rss"]), 60, " MB"),
    Goal(5, "idle", "idle, of a core", lambda found: float(found["idle"]["agent"]["cpu_percent"]), 0.2, " %"),
    Goal(5, "idle", "from start to online", lambda found: float(found["online"]["median"]), 2, " s"),
    Goal(6, "queue", "time per run, many queued / few", _per_run, 1.1, of=_queues),
    Goal(6, "queue", "memory above idle while they run", _grown, 20, " MB"),
)
