"""The numbers and words of the compute API for how far a run is and how it ended.

Numbers only grow: while a run goes on they follow its state, while it fails they stand still, and the last one belongs
to its end. Knows nothing of requests.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from node_agent.domain.run import Outcome, Run, State

QUEUED, STARTED, CONFIGURING, PROVISIONED, RUNNING, FILTERING, PUBLISHING, FINISHED = (
    1,
    10,
    20,
    30,
    40,
    50,
    60,
    70,
)
EXPIRED = 2
"""A job that waited in the queue for longer than its consumer wanted."""

NUMBER_OF_STATE: Mapping[State, int] = MappingProxyType(
    {
        State.RECEIVED: QUEUED,
        State.ADMITTED: STARTED,
        State.PULLED: CONFIGURING,
        State.CREATED: PROVISIONED,
        State.RUNNING: RUNNING,
        State.CAPTURED: FILTERING,
        State.FINISHED: PUBLISHING,
        State.REPORTED: FINISHED,
        State.REMOVED: FINISHED,
    }
)
NUMBER_OF_OUTCOME: Mapping[Outcome, int] = MappingProxyType(
    {
        Outcome.COMPLETED: FINISHED,
        Outcome.KILLED: FINISHED,
        Outcome.CLOSED: FINISHED,
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
        QUEUED: "Warming up",
        EXPIRED: "Job expired in queue",
        STARTED: "Job started",
        CONFIGURING: "Configuring volumes",
        PROVISIONED: "Provisioning success",
        31: "Data provisioning failed",
        32: "Algorithm provisioning failed",
        RUNNING: "Running algorithm",
        41: "Failed to run algorithm",
        42: "Error: disk quota exceeded",
        FILTERING: "Filtering results",
        PUBLISHING: "Publishing results",
        FINISHED: "Job finished",
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
    stop_request: int = _NOT_STOPPED
    """0 when nobody stopped it, 1 when its owner did, 2 when its time was over."""
    exit_code: int | None = None
    out_of_memory: bool = False
    reason: str = ""
    """In words for the consumer; empty when all went well."""
    started_at: float | None = None
    """When its container began, in seconds since the epoch; None when it never did."""


STOPPED_IN_QUEUE = JobEnding(status=FINISHED, text=STOPPED, stop_request=_BY_USER)
EXPIRED_IN_QUEUE = JobEnding(status=EXPIRED, text=WORDS[EXPIRED])


def going_on(run: Run | None) -> int:
    """Give the number of a job that has not ended; None is a job whose run nobody has begun."""
    if run is None:
        return QUEUED
    return min(NUMBER_OF_STATE[run.state], PUBLISHING, _furthest(run))


def _furthest(run: Run) -> int:
    """Say which number a run must not pass before its last one is written, since that may be lower."""
    if run.outcome is None:
        is_bad = run.exit_code not in {None, 0}
        return RUNNING if is_bad else FINISHED
    last = NUMBER_OF_OUTCOME[run.outcome]
    return max(number for number in (_reached(run), QUEUED) if number <= last)


def _reached(run: Run) -> int:
    """Say how far a run came before its outcome was known, from the marks it left on its way."""
    if NUMBER_OF_OUTCOME.get(run.outcome or Outcome.BUG) == FINISHED:
        return PUBLISHING
    if run.container is not None:
        return RUNNING if run.started_at is not None else PROVISIONED
    if run.image_id is not None:
        return CONFIGURING
    return STARTED if run.claimed_at is not None else QUEUED


def number_of(run: Run) -> int:
    """Give the number of any run as it stands; the one of its end from the moment it was reported."""
    if run.outcome is not None and run.state >= State.REPORTED:
        return NUMBER_OF_OUTCOME[run.outcome]
    return going_on(run)


def ending_of(run: Run) -> JobEnding:
    """Say how a job ended whose run is finished."""
    outcome = run.outcome or Outcome.BUG
    status = NUMBER_OF_OUTCOME[outcome]
    stopped = outcome in {Outcome.KILLED, Outcome.CLOSED}
    return JobEnding(
        status=status,
        text=STOPPED if stopped else WORDS[status],
        stop_request=_stop_request(outcome),
        exit_code=run.exit_code,
        out_of_memory=outcome is Outcome.OUT_OF_MEMORY,
        reason=run.reason,
        started_at=run.started_at,
    )


def _stop_request(outcome: Outcome) -> int:
    if outcome in {Outcome.KILLED, Outcome.CLOSED}:
        return _BY_USER
    return _BY_TIME if outcome is Outcome.TIME_LIMIT else _NOT_STOPPED
