"""The error tree, named by who must act.

Adapters translate the errors of the libraries below them once, at their edge, and keep the cause. Nothing here
knows how an error is shown: the command line chooses the exit code by class, the control loop chooses the reaction.

    NodeAgentError
      ConfigError            the operator edits a file            exit 78
      AccessDenied           the operator fixes a key             exit 77
      Transient              nobody: the same thing is tried again
        ServerUnreachable
        ListingShifted
        EngineUnreachable
        RegistryUnreachable
        StoreUnreachable
        BlobUnreadable
        KeyChanged            the operator accepts a key (`node-agent key accept`)
        DiskUnwritable
          DiskFull
            EngineDiskFull
        FolderBusy
      RunFailed              the researcher: the run is over and the text says why
        NotAllowed, ImageMissing, DatabaseMissing, InputUnreadable, InputChanged, KeyMissing,
        StartFailed, OutputTooLarge, TimeLimit, ContainerLost
      RunClosed              nobody: the server has already closed the run
      IllegalTransition      we do: a bug
"""

from typing import ClassVar

from node_agent.domain.run import Outcome


class NodeAgentError(Exception):
    """Any error the agent raises on purpose; *hint* says what to do next."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip()


class ConfigError(NodeAgentError):
    """The configuration or the machine is not as it must be; *faults* lists every reason found."""

    def __init__(self, message: str, *, hint: str = "", faults: tuple[str, ...] = ()) -> None:
        super().__init__(message, hint=hint)
        self.faults = faults


class AccessDenied(NodeAgentError):
    """The server does not accept the API key."""


class Transient(NodeAgentError):
    """Something outside is away for now; the same step is tried again later.

    *after*: whoever refused asked to be left alone for so many seconds.
    """

    def __init__(self, message: str, *, hint: str = "", after: float = 0.0) -> None:
        super().__init__(message, hint=hint)
        self.after = after


class ServerUnreachable(Transient):
    """The coordinating server does not answer, or answers with nonsense or a 5xx."""


class ListingShifted(Transient):
    """A list of open runs changed so while it was read that some may be missing from it; those in it are right."""


class EngineUnreachable(Transient):
    """The container engine does not answer."""


class RegistryUnreachable(Transient):
    """The image registry does not answer."""


class StoreUnreachable(Transient):
    """The algorithm store does not answer."""


class BlobUnreadable(Transient):
    """What should lie in the server's blob store is not there now, or came damaged."""


class KeyChanged(Transient):
    """The server shows another public key for an organization than the one this node holds to."""


class DiskUnwritable(Transient):
    """The state directory cannot be written to now: read-only, locked, or broken."""


class DiskFull(DiskUnwritable):
    """A disk cannot take another byte."""


class EngineDiskFull(DiskFull):
    """The disk where the engine keeps its images is full, which need not be that of the state directory."""


class FolderBusy(Transient):
    """A folder cannot be removed now: somebody keeps writing into it, or it holds what this user may not delete."""


class RunFailed(NodeAgentError):
    """The run is over; the message goes into its log and is written for the researcher."""

    outcome: ClassVar[Outcome] = Outcome.FAILED


class NotAllowed(RunFailed):
    """The policy of the data owner refuses the run."""

    outcome = Outcome.NOT_ALLOWED


class ImageMissing(RunFailed):
    """The algorithm image cannot be had."""

    outcome = Outcome.IMAGE_MISSING


class DatabaseMissing(RunFailed):
    """The task asks for a database this node does not have."""

    outcome = Outcome.DATABASE_MISSING


class InputUnreadable(RunFailed):
    """What the server sent for this run cannot be understood."""


class InputChanged(RunFailed):
    """The server sent another input for a run than the one that this node has accepted."""


class KeyMissing(RunFailed):
    """An organization has no public key that anything could be encrypted for."""


class StartFailed(RunFailed):
    """The container could not be created or started."""

    outcome = Outcome.START_FAILED


class OutputTooLarge(RunFailed):
    """The algorithm wrote more than the data owner allows."""

    outcome = Outcome.OUTPUT_TOO_LARGE


class TimeLimit(RunFailed):
    """The algorithm ran longer than the data owner allows."""

    outcome = Outcome.TIME_LIMIT


class ContainerLost(RunFailed):
    """The container disappeared before its result could be read."""

    outcome = Outcome.LOST


class NamespaceLost(Transient):
    """The network namespace that a container was to join is gone: the container has to be made again."""


class RunClosed(NodeAgentError):
    """The server has already closed the run (killed, deleted, finished): nothing is left to say."""


class IllegalTransition(NodeAgentError):
    """A move the lifecycle does not know: a bug."""
