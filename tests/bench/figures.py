"""The arithmetic of the bench: medians, ratios, and what is left of a stretch of time when others are taken out of it.

Owns pure functions over numbers. Must not know what was measured, nor how.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

Interval = tuple[float, float]
"""Beginning and end, in seconds on one clock."""


def spread(samples: Sequence[float]) -> dict[str, Any]:
    """Say what many measurements of one thing come to; the samples stay beside it."""
    return {"median": statistics.median(samples), "p95": p95(samples), "samples": list(samples)}


def p95(samples: Sequence[float]) -> float:
    """Return what 95 of 100 stay below, as far as so few can tell."""
    if len(samples) == 1:
        return samples[0]
    return statistics.quantiles(samples, n=20, method="inclusive")[-1]


def ratio(one: float, other: float) -> float | None:
    """Divide; nothing is no part of nothing."""
    return one / other if other else None


def medians(samples: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the median of each name over samples that share some names, in the order the names first came."""
    names = dict.fromkeys(name for sample in samples for name in sample)
    return {name: statistics.median(one[name] for one in samples if name in one) for name in names}


def steps_between(moments: Sequence[tuple[str, float]]) -> dict[str, float]:
    """Turn moments, each named after what ends there, into lengths; what came early ends where the one before did."""
    lengths, reached = {}, moments[0][1]
    for name, moment in moments[1:]:
        later = max(reached, moment)
        lengths[name], reached = later - reached, later
    return lengths


def covered(intervals: Iterable[Interval]) -> list[Interval]:
    """Join what overlaps."""
    joined: list[Interval] = []
    for start, end in sorted(pair for pair in intervals if pair[1] > pair[0]):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((start, end))
    return joined


def length_outside(intervals: Iterable[Interval], hole: Interval) -> float:
    """Return how much time the intervals cover together, what lies in the hole left out."""
    first, last = hole
    return sum(
        max(0.0, min(end, first) - start) + max(0.0, end - max(start, last))
        for start, end in covered(intervals)
    )


def own_part(whole: Interval, calls: Iterable[Interval], container: Interval, by_hand: float) -> float:
    """Return what is left of a run when the server's calls and the same container by hand are taken out of it.

    Calls at the same time count once. Those that were made while the engine was busy with the container cost nobody
    anything: its time is taken out already.
    """
    start, end = whole
    within = [(max(start, one), min(end, other)) for one, other in calls]
    return end - start - length_outside(within, container) - by_hand


def tenths(moments: Sequence[float]) -> list[float]:
    """Return the time per item in each tenth of a row of ends, from the first of them to the last."""
    ordered = sorted(moments)
    size = max(1, (len(ordered) - 1) // 10)
    edges = ordered[::size][:11]
    return [(later - earlier) / size for earlier, later in pairwise(edges)]


def running_total(moments: Sequence[float], *, since: float) -> list[Interval]:
    """Return a curve: after so many seconds, so many had ended."""
    return [(moment - since, float(number)) for number, moment in enumerate(sorted(moments), start=1)]
