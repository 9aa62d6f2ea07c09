"""The run: what this node does for one task, and the words for how far it is and how it ended."""

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import NewType

from node_agent.domain.mark import Mark
from node_agent.domain.task import Task

RunId = NewType("RunId", int)
ContainerId = NewType("ContainerId", str)
BlobId = NewType("BlobId", str)
"""Names what lies in the server's blob store: an input or a result, instead of standing in the server's books."""


FIRST_JOB_RUN = RunId(1 << 40)
"""Runs of the compute API's jobs are counted from here: no coordinating server gives such numbers."""


class State(IntEnum):
    """How far a run is; it only grows."""

    RECEIVED = 1
    ADMITTED = 2
    PULLED = 3
    CREATED = 4
    RUNNING = 5
    CAPTURED = 6
    FINISHED = 7
    REPORTED = 8
    REMOVED = 9


class Goal(StrEnum):
    """What is wanted of a run."""

    RUN = "run"
    STOP = "stop"


class Outcome(StrEnum):
    """How a run ended; written once."""

    COMPLETED = "completed"
    CRASHED = "crashed"
    OUT_OF_MEMORY = "out_of_memory"
    FAILED = "failed"
    NOT_ALLOWED = "not_allowed"
    IMAGE_MISSING = "image_missing"
    DATABASE_MISSING = "database_missing"
    START_FAILED = "start_failed"
    OUTPUT_TOO_LARGE = "output_too_large"
    TIME_LIMIT = "time_limit"
    KILLED = "killed"
    LOST = "lost"
    CLOSED = "closed"
    BUG = "bug"


class Status(StrEnum):
    """The server's words for a run, exactly as they travel."""

    PENDING = "pending"
    INITIALIZING = "initializing"
    ACTIVE = "active"
    COMPLETED = "completed"
    FAILED = "failed"
    START_FAILED = "start failed"
    NO_DOCKER_IMAGE = "non-existing Docker image"
    CRASHED = "crashed"
    KILLED = "killed by user"
    NOT_ALLOWED = "not allowed"
    UNKNOWN_ERROR = "unknown error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run as the journal knows it; all times are seconds since the epoch."""

    id: RunId
    task: Task
    received_at: float
    state: State = State.RECEIVED
    entered: Mark | None = None
    """When it got into its state, on the clock that time limits are measured with; None when nobody knows."""
    ending: Outcome | None = None
    """How it will end once its container is stopped: killed, closed by the server, or a failure; None while it goes on."""
    outcome: Outcome | None = None
    reason: str = ""
    """Why it ended so, in words for the researcher; empty when all went well."""
    fault: str = ""
    """What is wrong with the run as the server sent it; such a run fails when it is admitted."""
    input_blob: BlobId | None = None
    """Where the input lies in the server's blob store, where the result belongs then; None when there is no such store."""
    input_digest: str = ""
    """SHA-256 of the input that was judged, hexadecimal; empty when an older agent accepted the run."""
    result_blob: BlobId | None = None
    """Where the result lies, once it was stored: it is not stored twice."""
    announced: Status = Status.PENDING
    claimed_at: float | None = None
    """When the server was told that this node took the run (its `started_at`)."""
    digest: str | None = None
    """Registry digest the image was pinned to; None for an image that exists only on this machine."""
    image_id: str | None = None
    """Content id of the image the container is made from."""
    container: ContainerId | None = None
    token_hash: str | None = None
    """SHA-256 of the container token, hexadecimal: how the proxy recognises the run."""
    started_at: float | None = None
    exit_code: int | None = None
    out_of_memory: bool = False
    has_subtasks: bool = False
    """The run created subtasks and may be waiting for them: it holds no slot."""
    finished_at: float | None = None
    refusal: str = ""
    """Why the server took no final report of this run, which ends the matter; empty when it took it."""

    @property
    def is_job(self) -> bool:
        """Tell whether the run came from the compute API, and not from the coordinating server."""
        return self.id >= FIRST_JOB_RUN

    @property
    def goal(self) -> Goal:
        """What is wanted of the run: to stop it as soon as its ending is decided."""
        return Goal.RUN if self.ending is None else Goal.STOP
