"""Whether something outside answers: says so once per change, remembers why not, and stays quiet about the rest.

A change is one line in the log, an absence one more each hour. What comes and goes all the time is called unsteady, once,
until it has been one or the other for a while.
"""

from collections import deque
from collections.abc import Callable, Hashable

import structlog

from node_agent.errors import (
    AccessDenied,
    DiskUnwritable,
    EngineUnreachable,
    NodeAgentError,
    ServerUnreachable,
)

log = structlog.get_logger()

REMIND_SECONDS = 3600.0
MANY_CHANGES = 6
UNSTEADY_SECONDS = 300.0
"""So many changes in such a time are too many to be told one by one; so long without any is steady again."""


class Availability:
    """The view of one outside party; the events are its words in the log, *problem* why it is away at the beginning."""

    def __init__(
        self,
        *,
        lost_event: str,
        back_event: str,
        still_event: str,
        unsteady_event: str,
        monotonic: Callable[[], float],
        problem: str = "",
    ) -> None:
        self._lost_event = lost_event
        self._back_event = back_event
        self._still_event = still_event
        self._unsteady_event = unsteady_event
        self._monotonic = monotonic
        self._problem = problem
        self._since = monotonic()
        self._remind_at = float("inf") if problem else 0.0
        self._changes: deque[float] = deque(maxlen=MANY_CHANGES)
        self._unsteady = False

    @property
    def problem(self) -> str:
        """Why it is away; empty while it answers."""
        return self._problem

    def lost(self, reason: str) -> None:
        """Note that it does not answer."""
        was_well, self._problem = not self._problem, reason or "no reason given"
        if was_well:
            self._changed()

    def back(self) -> bool:
        """Note that it answers; True when that is news."""
        if not self._problem:
            return False
        self._problem = ""
        self._changed()
        return True

    def look(self) -> None:
        """Let time do its part: remind of an absence, and say how it is once it has settled."""
        now = self._monotonic()
        if self._unsteady and now - self._since >= UNSTEADY_SECONDS:
            self._unsteady = False
            self._changes.clear()
            self._say()
        elif self._problem and now >= self._remind_at:
            self._remind_at = now + REMIND_SECONDS
            log.warning(self._still_event, reason=self._problem, seconds=round(now - self._since))

    def _changed(self) -> None:
        now = self._since = self._monotonic()
        self._remind_at = now + REMIND_SECONDS
        self._changes.append(now)
        if self._unsteady:
            return
        self._unsteady = len(self._changes) == MANY_CHANGES and now - self._changes[0] < UNSTEADY_SECONDS
        if self._unsteady:
            log.warning(self._unsteady_event, reason=self._problem or None)
        else:
            self._say()

    def _say(self) -> None:
        if self._problem:
            log.warning(self._lost_event, reason=self._problem)
        else:
            log.info(self._back_event)


def server_availability(monotonic: Callable[[], float]) -> Availability:
    """Give the view of the coordinating server's calls."""
    return Availability(
        lost_event="server_lost",
        back_event="server_back",
        still_event="server_still_lost",
        unsteady_event="server_unsteady",
        monotonic=monotonic,
    )


def connection_availability(monotonic: Callable[[], float]) -> Availability:
    """Give the view of the connection for events, of which nothing is said before it stood once."""
    return Availability(
        lost_event="server_offline",
        back_event="server_online",
        still_event="server_still_offline",
        unsteady_event="connection_unsteady",
        monotonic=monotonic,
        problem="not connected yet",
    )


def engine_availability(monotonic: Callable[[], float]) -> Availability:
    """Give the view of the container engine."""
    return Availability(
        lost_event="engine_lost",
        back_event="engine_back",
        still_event="engine_still_lost",
        unsteady_event="engine_unsteady",
        monotonic=monotonic,
    )


class Disk(Availability):
    """The view of the disk: it may have room for one thing and not for another, so it is back when nobody misses it."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        super().__init__(
            lost_event="disk_lost",
            back_event="disk_back",
            still_event="disk_still_lost",
            unsteady_event="disk_unsteady",
            monotonic=monotonic,
        )
        self._missed_by: set[Hashable] = set()

    def refused(self, whom: Hashable, reason: str) -> None:
        """Note that something could not be written for *whom*: a run, or a part of the agent."""
        self._missed_by.add(whom)
        self.lost(reason)

    def served(self, whom: Hashable) -> bool:
        """Note that *whom* misses nothing; True when that was the last one."""
        if whom not in self._missed_by:
            return False
        self._missed_by.remove(whom)
        return not self._missed_by and self.back()


JOURNAL = "journal"
"""Who misses the disk when a note could not be made that belongs to nobody else."""


class Outside:
    """The parties every run needs, and the server's connection for events."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self.server = server_availability(monotonic)
        self.connection = connection_availability(monotonic)
        self.engine = engine_availability(monotonic)
        self.disk = Disk(monotonic)

    @property
    def is_online(self) -> bool:
        """Tell whether the server answers and counts this node as present."""
        return not (self.server.problem or self.connection.problem)

    def look(self) -> None:
        """Let time do its part for each of them."""
        for party in (self.server, self.connection, self.engine, self.disk):
            party.look()

    def trouble(self, error: NodeAgentError, *, of: Hashable = JOURNAL) -> None:
        """Put an error down to whoever is away; *of* says whose work it stopped."""
        if isinstance(error, ServerUnreachable | AccessDenied):
            self.server.lost(str(error))
        elif isinstance(error, EngineUnreachable):
            self.engine.lost(str(error))
        elif isinstance(error, DiskUnwritable):
            self.disk.refused(of, str(error))
        else:
            log.warning("trouble", reason=str(error))
