"""The numbers and words of the compute API for how far a job is and how it ended.

Numbers only grow. While a job goes on they follow its run; the last one is written once, together with the moment of the
end. Knows nothing of requests.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from node_agent.domain.run import Outcome, Run, State

_GOING_ON: Mapping[State, int] = MappingProxyType(
    {
        State.RECEIVED: 1,
        State.ADMITTED: 10,
        State.PULLED: 20,
        State.CREATED: 30,
        State.RUNNING: 40,
        State.CAPTURED: 50,
        State.FINISHED: 60,
        State.REPORTED: 60,
        State.REMOVED: 60,
    }
)
_ENDED: Mapping[Outcome, int] = MappingProxyType(
    {
        Outcome.COMPLETED: 70,
        Outcome.KILLED: 70,
        Outcome.CLOSED: 70,
        Outcome.DATABASE_MISSING: 31,
        Outcome.IMAGE_MISSING: 32,
        Outcome.NOT_ALLOWED: 32,
        Outcome.START_FAILED: 41,
        Outcome.CRASHED: 41,
        Outcome.OUT_OF_MEMORY: 41,
        Outcome.FAILED: 41,
        Outcome.TIME_LIMIT: 41,
        Outcome.OUTPUT_TOO_LARGE: 42,
        Outcome.LOST: 41,
        Outcome.BUG: 41,
    }
)
WORDS: Mapping[int, str] = MappingProxyType(
    {
        1: "Warming up",
        10: "Job started",
        20: "Configuring volumes",
        30: "Provisioning success",
        31: "Data provisioning failed",
        32: "Algorithm provisioning failed",
        40: "Running algorithm",
        41: "Failed to run algorithm",
        42: "Error: disk quota exceeded",
        50: "Filtering results",
        60: "Publishing results",
        70: "Job finished",
    }
)
STOPPED = "Job stopped"
DELETED = "Job deleted successfully"
_NOT_STOPPED, _BY_USER, _BY_TIME = 0, 1, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEnding:
    """How a job ended: what never changes again."""

    status: int
    text: str
    stop_request: int
    exit_code: int | None
    out_of_memory: bool
    reason: str = ""
    """In words for the consumer; empty when all went well."""


def going_on(run: Run | None) -> int:
    """Give the number of a job that has not ended; None is a job whose run nobody has begun."""
    return _GOING_ON[State.RECEIVED if run is None else run.state]


def ending_of(run: Run) -> JobEnding:
    """Say how a job ended whose run is finished."""
    outcome = run.outcome or Outcome.BUG
    status = _ENDED[outcome]
    stopped = outcome in {Outcome.KILLED, Outcome.CLOSED}
    return JobEnding(
        status=status,
        text=STOPPED if stopped else WORDS[status],
        stop_request=_stop_request(outcome),
        exit_code=run.exit_code,
        out_of_memory=outcome is Outcome.OUT_OF_MEMORY,
        reason=run.reason,
    )


def _stop_request(outcome: Outcome) -> int:
    if outcome in {Outcome.KILLED, Outcome.CLOSED}:
        return _BY_USER
    return _BY_TIME if outcome is Outcome.TIME_LIMIT else _NOT_STOPPED
