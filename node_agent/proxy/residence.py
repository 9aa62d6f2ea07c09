"""Whether a token is used from the address of its own run's container.

A token is what proves who calls; that it comes from the right place only makes a token that was handed on worthless.
So an engine that cannot be asked, or that does not list a container yet, stops no algorithm. Asks the engine once for
each run; an answer that is not final is asked for again after a few seconds.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping

from node_agent.domain.run import RunId
from node_agent.errors import EngineUnreachable

AGAIN_SECONDS = 5.0
REMEMBERED = 1024

RunsAt = Callable[[], Mapping[str, RunId]]


class Residence:
    """Knows which run may call from which address; may be asked from any thread."""

    def __init__(self, runs_at: RunsAt, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._runs_at = runs_at
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._asking = threading.Lock()
        self._known: OrderedDict[tuple[RunId, str], tuple[bool, float]] = OrderedDict()
        """Whether the run is elsewhere, and until when that counts."""

    def is_elsewhere(self, run: RunId, address: str) -> bool:
        """Check whether the engine says that another run has the address, or that this run has another one."""
        known = self._remembered(run, address)
        if known is None:
            # an engine that is slow to answer keeps only those waiting who need its answer
            with self._asking:
                known = self._remembered(run, address)
                if known is None:
                    known, until = self._looked_up(run, address)
                    self._remember(run, address, (known, until))
        return known

    def _remembered(self, run: RunId, address: str) -> bool | None:
        with self._lock:
            found, until = self._known.get((run, address), (False, 0.0))
            return found if until > self._monotonic() else None

    def _remember(self, run: RunId, address: str, verdict: tuple[bool, float]) -> None:
        with self._lock:
            self._known[run, address] = verdict
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)

    def _looked_up(self, run: RunId, address: str) -> tuple[bool, float]:
        try:
            listed = self._runs_at()
        except EngineUnreachable:
            listed = {}
        again = self._monotonic() + AGAIN_SECONDS
        if address in listed:
            own = listed[address] == run
            return not own, float("inf") if own else again
        return run in listed.values(), again
