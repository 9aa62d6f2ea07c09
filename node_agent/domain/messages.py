"""What may lie in the mailbox: facts from producers. They say which run to look at, never what to do."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from node_agent.domain.keeping import PulledImage
from node_agent.domain.lifecycle import StepResult
from node_agent.domain.ports import OpenRun, Renewal
from node_agent.domain.run import RunId
from node_agent.domain.task import TaskId
from node_agent.errors import NodeAgentError


@dataclass(frozen=True, slots=True)
class ServerOnline:
    """The socket is in its rooms (the server said `sync`)."""


@dataclass(frozen=True, slots=True)
class ServerOffline:
    """The socket is gone."""

    reason: str


@dataclass(frozen=True, slots=True)
class NodeCame:
    """The server says that somebody came online with this node's API key, long after this agent did."""


@dataclass(frozen=True, slots=True)
class NodeLeft:
    """The server says that somebody with this node's API key went offline, which this agent did not."""


@dataclass(frozen=True, slots=True)
class TaskHinted:
    """The server created a task that may have a run for this node."""

    task_id: TaskId


@dataclass(frozen=True, slots=True)
class KillRequested:
    """Somebody wants these runs stopped; None means every run of this node."""

    run_ids: frozenset[RunId] | None


@dataclass(frozen=True, slots=True)
class RunsListed:
    """The server's open runs; *complete* when it is all of them, as of a moment after listing number *asked*."""

    runs: tuple[OpenRun, ...]
    complete: bool
    asked_at: float


@dataclass(frozen=True, slots=True)
class JobsHandedOver:
    """The compute API's jobs that may begin now; their inputs are stored."""

    runs: tuple[OpenRun, ...]


@dataclass(frozen=True, slots=True)
class ListingFailed:
    """A listing could not be had."""

    error: NodeAgentError
    task_id: TaskId | None


@dataclass(frozen=True, slots=True)
class ContainerChanged:
    """Something happened to the container of this run."""

    run_id: RunId


@dataclass(frozen=True, slots=True)
class EngineWatched:
    """The stream of engine events stands (again): everything may have changed meanwhile."""


@dataclass(frozen=True, slots=True)
class EngineLost:
    """The stream of engine events broke."""

    reason: str


@dataclass(frozen=True, slots=True)
class SpaceSeen:
    """How the disks were found; *shortage* says which one has too little room, and is empty when all have enough."""

    shortage: str


@dataclass(frozen=True, slots=True)
class SpaceFell:
    """The free space under the runs' folders fell fast: one of the runs may be past its limit."""


@dataclass(frozen=True, slots=True)
class SpaceTaken:
    """The free space under the runs' folders is short, and this run has to end for it."""

    run_id: RunId
    reason: str


@dataclass(frozen=True, slots=True)
class SubtaskCreated:
    """A run created a subtask through the proxy."""

    run_id: RunId


@dataclass(frozen=True, slots=True)
class ParentsWeighed:
    """How many CPU seconds the containers of parents have used at a monotonic time; None where the engine cannot tell."""

    readings: Mapping[RunId, float | None]
    at: float


@dataclass(frozen=True, slots=True)
class PullProgressed:
    """How far the pull of a run's image is, in bytes."""

    run_id: RunId
    current: int
    total: int


@dataclass(frozen=True, slots=True)
class StepDone:
    """A step ended with a result, or with the error it raised."""

    run_id: RunId
    step: str
    result: StepResult | None
    error: BaseException | None


@dataclass(frozen=True, slots=True)
class ImagePulled:
    """A pull brought an image that was not on this machine before."""

    image: PulledImage


@dataclass(frozen=True, slots=True)
class SweepDone:
    """The sweep for strays ended."""

    removed: int
    error: BaseException | None
    left_images: tuple[str, ...] = ()
    """Ids of images that this agent pulled and that are gone, or somebody else's."""


@dataclass(frozen=True, slots=True)
class PruneAsked:
    """Somebody wants everything removed now that may go."""


@dataclass(frozen=True, slots=True)
class NodeFactsReady:
    """What the owner shares of this node was found out."""

    facts: Mapping[str, object]


class StopKind(StrEnum):
    """How the agent is asked to end."""

    STOP = "stop"
    """Leave containers running; they are adopted at the next start."""
    NOW = "now"
    """The same, without waiting for steps in flight."""
    DRAIN = "drain"
    """Take nothing new, finish and report what is here, then end."""


@dataclass(frozen=True, slots=True)
class StopAsked:
    """Somebody wants the agent to end."""

    kind: StopKind


@dataclass(frozen=True, slots=True)
class ReloadAsked:
    """Somebody changed the configuration and wants it to count."""


@dataclass(frozen=True, slots=True)
class ConfigurationRead:
    """The configuration was read again; without a renewal everything stays as it is."""

    renewal: Renewal | None


Message = (
    ServerOnline
    | ServerOffline
    | NodeCame
    | NodeLeft
    | TaskHinted
    | KillRequested
    | RunsListed
    | JobsHandedOver
    | ListingFailed
    | ContainerChanged
    | EngineWatched
    | EngineLost
    | SpaceSeen
    | SpaceFell
    | SpaceTaken
    | SubtaskCreated
    | ParentsWeighed
    | PullProgressed
    | StepDone
    | ImagePulled
    | SweepDone
    | PruneAsked
    | NodeFactsReady
    | StopAsked
    | ReloadAsked
    | ConfigurationRead
)
