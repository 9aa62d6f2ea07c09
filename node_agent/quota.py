"""How many runs of a listing are taken in: more of them wait at the server until some of those here have had their turn.

So a server, or a researcher, that lists any number of runs costs a bounded amount of time and journal.
"""

from collections import Counter

import structlog

from node_agent.domain.ports import OpenRun
from node_agent.domain.run import State
from node_agent.domain.turns import Researcher, researcher_of
from node_agent.runtable import RunTable

log = structlog.get_logger()

MOST_OF_ONE = 1000
"""Runs of one researcher that wait here at a time."""
MOST_OF_ALL = 3000
"""Runs that wait here at a time."""


class Quota:
    """Counts the runs that wait while one listing is taken in."""

    def __init__(self, runs: RunTable) -> None:
        self._runs = runs
        self._waiting: Counter[Researcher] | None = None
        self._total = 0
        self._left_out = 0

    def allows(self, listed: OpenRun) -> bool:
        """Check whether another run may be taken in, and count it."""
        if self._waiting is None:
            self._waiting = Counter(researcher_of(run) for run in self._runs if run.state is State.RECEIVED)
            self._total = self._waiting.total()
        who = researcher_of(listed)
        if self._total >= MOST_OF_ALL or self._waiting[who] >= MOST_OF_ONE:
            self._left_out += 1
            return False
        self._waiting[who] += 1
        self._total += 1
        return True

    def tell(self) -> None:
        """Log how many runs were left at the server."""
        if self._left_out:
            log.warning("runs_left_at_server", runs=self._left_out, waiting=self._total)
