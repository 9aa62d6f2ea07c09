"""Whether another agent works with this node's API key, and how runs are shared with it without starting one twice.

Owns the suspicion and the careful way to take a run. The protocol has no lock: a server takes any claim of a run, the last
one counts, and both agents hear of every run. So whoever knows of the other looks before it claims and again a moment
later, and leaves the run to whoever claimed it last. Must not know how the other was noticed.
"""

import structlog

from node_agent.domain.claims import SETTLE_SECONDS, claim_time, is_own_claim
from node_agent.domain.lifecycle import Wait
from node_agent.domain.ports import Clock, Origin
from node_agent.domain.run import Run
from node_agent.errors import RunClosed

log = structlog.get_logger()

PROBLEM = (
    "Another agent is online with this node's API key: two must not work for one node."
    " Stop one of them, or give it a key of its own."
)


class Company:
    """Whether there is another agent; written by whoever notices it, asked by any thread."""

    def __init__(self) -> None:
        self.problem = ""
        """What is wrong; empty while this agent is alone."""

    def is_there(self) -> bool:
        """Tell whether another agent was noticed, and was not seen to leave."""
        return bool(self.problem)

    def came(self, sign: str) -> None:
        """Note a sign of another agent."""
        if not self.problem:
            log.warning("another_agent_noticed", sign=sign, reason=PROBLEM)
        self.problem = PROBLEM

    def left(self) -> None:
        """Note that whoever had this key besides us is gone."""
        if self.problem:
            log.info("another_agent_left")
        self.problem = ""


def take_beside_another(run: Run, *, server: Origin, clock: Clock) -> float | Wait:
    """Take a run that another agent may take too: give when it was claimed, once the claim has stood for a moment.

    Raises RunClosed when it is the other's.
    """
    claimed_at = server.claimed_at(run.id)
    now = clock.now()
    if claimed_at is None:
        server.claim(run.id, at=claim_time(run.received_at, now=now))
        return Wait({}, seconds=SETTLE_SECONDS)
    if not is_own_claim(run.received_at, claimed_at):
        raise RunClosed(f"Another agent with this node's API key has taken run {run.id}.")
    if now - claimed_at < SETTLE_SECONDS:
        return Wait({}, seconds=SETTLE_SECONDS)
    return claimed_at
