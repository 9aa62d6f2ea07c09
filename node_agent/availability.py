"""Whether something outside answers: says so once per change, and remembers why not."""

import structlog

from node_agent.errors import AccessDenied, EngineUnreachable, NodeAgentError, ServerUnreachable

log = structlog.get_logger()


class Availability:
    """The view of one outside party; *lost_event* and *back_event* are its words in the log."""

    def __init__(self, *, lost_event: str, back_event: str) -> None:
        self._lost_event = lost_event
        self._back_event = back_event
        self._problem = ""

    @property
    def problem(self) -> str:
        """Why it is away; empty while it answers."""
        return self._problem

    def lost(self, reason: str) -> None:
        """Note that it does not answer."""
        if not self._problem:
            log.warning(self._lost_event, reason=reason)
        self._problem = reason or "no reason given"

    def back(self) -> bool:
        """Note that it answers; True when that is news."""
        if not self._problem:
            return False
        self._problem = ""
        log.info(self._back_event)
        return True


class Outside:
    """The two parties every run needs."""

    def __init__(self) -> None:
        self.server = Availability(lost_event="server_lost", back_event="server_back")
        self.engine = Availability(lost_event="engine_lost", back_event="engine_back")

    def trouble(self, error: NodeAgentError) -> None:
        """Put an error down to whoever is away."""
        if isinstance(error, ServerUnreachable | AccessDenied):
            self.server.lost(str(error))
        elif isinstance(error, EngineUnreachable):
            self.engine.lost(str(error))
        else:
            log.warning("trouble", reason=str(error))
