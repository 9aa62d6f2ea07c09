"""Whose claim of a run the server shows: this agent's, or that of another one with the same API key.

Owns the mark by which an agent knows its own claims again, also after it died before it could write one down: the
fraction of the second of a claim is that of the moment at which the run was received, which stands in the journal. Two
agents that receive a run at the same microsecond are out of this world's reach.
"""

import math
from typing import Final

PRECISION: Final = 5e-6
"""Seconds: times travel as microseconds."""
SETTLE_SECONDS: Final = 2.0
"""So long a claim is left alone before it is believed, when another agent may claim the same run."""


def claim_time(received_at: float, *, now: float) -> float:
    """Give the moment a run is claimed at: now, less than a second early, and marked as ours."""
    marked = math.floor(now) + math.fmod(received_at, 1.0)
    return marked if marked <= now else marked - 1.0


def is_own_claim(received_at: float, claimed_at: float) -> bool:
    """Tell whether the claim that the server shows bears our mark."""
    apart = abs(math.fmod(received_at, 1.0) - math.fmod(claimed_at, 1.0))
    return min(apart, 1.0 - apart) <= PRECISION
