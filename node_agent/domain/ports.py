"""What the core needs from outside. Each port is met by one adapter and by one double, held by one contract test.

Every call may raise the errors named in its docstring and no other. All calls may be repeated.
"""

from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO, Protocol

from node_agent.domain.container import (
    UNBOUNDED,
    ContainerReport,
    ContainerSpec,
    NetworkFacts,
    PinnedImage,
    PullBounds,
    PullProgress,
)
from node_agent.domain.database import Database
from node_agent.domain.keeping import DiskUse, PulledImage
from node_agent.domain.mark import Mark
from node_agent.domain.run import BlobId, ContainerId, Run, RunId, Status
from node_agent.domain.runlogs import LiveMark, LogEntry, LogMask, LogPiece
from node_agent.domain.secret import Secret
from node_agent.domain.task import DatabaseRequest, JobKey, OrganizationId, Task, TaskId
from node_agent.domain.turns import Bounds
from node_agent.domain.verdict import Approval

# --- server ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeIdentity:
    """Who this node is at the server."""

    node_id: int
    node_name: str
    organization_id: OrganizationId
    organization_name: str
    collaboration_id: int
    collaboration_name: str
    encrypted: bool
    seen_online: bool = False
    """The server counts this node as present already: by what this agent was before, or by another one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenRun:
    """A run the server lists as open for this node, with its input."""

    id: RunId
    task: Task
    input: Iterable[bytes] = field(default=(), repr=False)
    """Read once, piece by piece, before the next run is asked for. Raises InputUnreadable, also in the middle."""
    input_digest: str = ""
    """SHA-256 of the input, hexadecimal, once it is kept on this machine."""
    input_blob: BlobId | None = None
    """Where the input lies instead, when the server has a blob store."""
    claimed_at: float | None = None
    status: Status = Status.PENDING
    fault: str = ""
    """What is missing or wrong in what the server sent; then *task* and *input* are not to be trusted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FinalReport:
    """The one final message about a run; result and log are files, so that size does not matter."""

    status: Status
    result: Path | None
    log: Path | None
    started_at: float
    finished_at: float
    init_org_id: OrganizationId | None
    stored_as: BlobId | None = None
    """Where the result was stored; None: it goes with the message."""
    is_sealed: bool = False
    """The result is in the form in which it travels: it is sent as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxiedRequest:
    """A call of an algorithm that the proxy found in order."""

    method: str
    path: str
    """Below the API base, without a leading slash, e.g. `task/3/status`."""
    query: str
    token: Secret | None
    """None for the few calls that need none."""
    body: "Body | None" = field(default=None, repr=False)
    content_type: str = "application/json"
    """What the body is, if there is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxiedResponse:
    """The server's answer, its status and text untouched."""

    status: int
    content_type: str
    body: Iterable[bytes] = field(repr=False)
    """Read once, piece by piece, while the answer is open. Raises ServerUnreachable."""


class Body(Protocol):
    """Bytes that may be read several times, and whose number is known before."""

    @property
    def length(self) -> int:
        """Say how many bytes there will be."""

    def __iter__(self) -> Iterator[bytes]:
        """Give the bytes, piece by piece."""


class Origin(Protocol):
    """Where a run came from: what its steps ask and tell there. Every call may raise ServerUnreachable or AccessDenied."""

    def is_open(self, run_id: RunId) -> bool:
        """Tell whether the server still wants this run."""

    def claimed_at(self, run_id: RunId) -> float | None:
        """Say when a node took the run; None when none did yet. Raises RunClosed."""

    def claim(self, run_id: RunId, *, at: float) -> None:
        """Tell the server that this node takes the run. Raises RunClosed, RunFailed."""

    def announce(self, run_id: RunId, status: Status) -> None:
        """Tell the server an intermediate status. Raises RunClosed."""

    def container_token(self, task_id: TaskId, image: str) -> Secret:
        """Get the credential of one algorithm container. Raises RunClosed, RunFailed."""

    def open_input(self, blob: BlobId) -> AbstractContextManager[Iterator[bytes]]:
        """Open an input that lies in the blob store; it can be read within the block.

        Raises InputUnreadable and BlobUnreadable, also while it is read.
        """

    def store_result(self, run_id: RunId, final: FinalReport) -> BlobId:
        """Store the result in the blob store, before it is reported. Raises RunClosed when that is refused for good."""

    def report(self, run_id: RunId, final: FinalReport) -> None:
        """Deliver the final message. Raises RunClosed when the server refuses it for good."""

    def find_task(self, task_id: TaskId) -> Task | None:
        """Look a task up; None when the server has none or does not show it."""

    def organization_name(self, organization_id: OrganizationId) -> str | None:
        """Look the name of an organization up; None when the server has none or does not show it."""

    def store_url(self, store_id: int) -> str | None:
        """Look the address of an algorithm store up; None when the server has none or does not show it."""


class Server(Origin, Protocol):
    """The coordinating server's REST side. Every call may raise ServerUnreachable or AccessDenied."""

    def knock(self) -> None:
        """Find out, at little cost to anybody, whether the server answers."""

    def identify(self) -> NodeIdentity:
        """Log in and learn who this node is."""

    def open_runs(self, task_id: TaskId | None = None) -> Generator[OpenRun, None, None]:
        """List the open runs of this node (of one task, if given), oldest first, page by page.

        Ends normally only when the listing was complete.
        """

    def forward(self, request: ProxiedRequest) -> AbstractContextManager[ProxiedResponse]:
        """Pass an algorithm's call on with the algorithm's own token; the answer is open within the block.

        Raises ServerUnreachable only, also while the answer is read.
        """


class Seal(Protocol):
    """How results are closed for everybody but the organization that asked; only encrypted collaborations have one."""

    def reader_key(self, reader: OrganizationId | None) -> str:
        """Ask for the public key of who will read a result. Raises KeyMissing, ServerUnreachable, AccessDenied."""

    def sealed(self, result: Path, key: str) -> Iterable[bytes]:
        """Give a result as it travels within a report, piece by piece; asks nobody. Raises KeyMissing."""

    def sealed_blob(self, result: Path, key: str) -> Iterable[bytes]:
        """Give a result as it travels to the blob store, piece by piece; asks nobody. Raises KeyMissing."""


@dataclass(frozen=True, slots=True)
class PinnedKey:
    """The public key, as it travels, that this node uses for an organization; *offered*: another one at the server."""

    organization: OrganizationId
    key: str
    offered: str | None = None


class KeyPins(Protocol):
    """The public keys of organizations this node holds to."""

    def pinned(self, organization: OrganizationId) -> PinnedKey | None:
        """Return what is pinned for an organization; None when nothing is."""

    def pin(self, organization: OrganizationId, key: str) -> None:
        """Pin the first key of an organization; one that is pinned stays."""

    def offer(self, organization: OrganizationId, key: str | None) -> bool:
        """Record which other key the server shows, None for none any more; True when that is news."""


class Stores(Protocol):
    """The algorithm stores; which of them may be asked is decided before."""

    def approval(self, url: str, *, image: str, digest: str) -> Approval:
        """Ask a store whether it approved this image with this very content. Raises StoreUnreachable.

        A store that stays silent for too long gives no approval.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusChange:
    """A broadcast for user interfaces; not kept by the server."""

    run: Run
    status: Status


class Channel(Protocol):
    """The server's Socket.IO side; nothing said here is an obligation, and nothing here raises."""

    def ping(self) -> None:
        """Say that this node is present."""

    def tell_status(self, change: StatusChange) -> None:
        """Broadcast a status change."""

    def tell_node(self, facts: Mapping[str, object]) -> None:
        """Share what the owner allows to be known of this node."""

    def tell_log(self, run: Run, piece: LogPiece) -> None:
        """Send what a running algorithm wrote; the server adds it to the log it has."""

    def hurry(self) -> None:
        """Connect now if there is no connection: the server has just answered elsewhere."""


class LiveLogs(Protocol):
    """The logs of running algorithms while they are written."""

    def keep_up(self, runs: Collection[Run]) -> list[LogPiece]:
        """Follow exactly these runs, and give what was read of them since the last time; does not wait."""


# --- configuration --------------------------------------------------------------------------------------------


class Renewal(Protocol):
    """A configuration that was read again and is ready to count."""

    @property
    def bounds(self) -> Bounds:
        """Give what all runs together may take."""

    @property
    def live_logs(self) -> LiveLogs | None:
        """Give the logs of running algorithms; None when the owner does not share them while a run goes on."""

    def take_effect(self) -> None:
        """Let it count for every step from now on; those in flight keep what they began with. Does not wait."""


# --- engine ---------------------------------------------------------------------------------------------------


class Runtime(Protocol):
    """The container engine. Every call may raise EngineUnreachable."""

    def find_image(self, reference: str) -> PinnedImage | None:
        """Look an image up on this machine only."""

    def registry_digest(self, reference: str) -> str:
        """Ask the registry which digest *reference* has now. Raises RegistryUnreachable, ImageMissing."""

    def pull_image(
        self,
        reference: str,
        *,
        wanted: Callable[[], bool],
        progress: Callable[[PullProgress], None],
        here: PinnedImage | None = None,
        bounds: PullBounds = UNBOUNDED,
    ) -> PinnedImage:
        """Pull an image and verify what arrived. Raises RegistryUnreachable, ImageMissing, RunClosed.

        A pull beyond *bounds* is called off with ImageMissing, and what it brought is removed.
        *wanted* is asked between the lines of progress; when it says no, the pull ends with RunClosed. *here* is what was
        just found under the same name on this machine: nothing of it is asked for again.
        """

    def ensure_container(self, spec: ContainerSpec) -> ContainerId:
        """Create the container, or adopt the one of ours that has its name. Raises StartFailed.

        The engine's own description is compared with *spec* first; a difference is StartFailed.
        """

    def ensure_started(self, container: ContainerId) -> None:
        """Start the container unless it ever started. Raises StartFailed, ContainerLost, NamespaceLost."""

    def inspect(self, container: ContainerId) -> ContainerReport | None:
        """Say how the container is; None when there is none."""

    def cpu_seconds(self, container: ContainerId) -> float | None:
        """Return the CPU time that the container has used so far; None when the engine cannot tell."""

    def stop(self, container: ContainerId) -> None:
        """Kill the container's processes at once; already gone is fine."""

    def find_container(self, run_id: RunId) -> ContainerId | None:
        """Find the container of a run by its exact name and our label."""

    def copy_log(self, container: ContainerId, into: BinaryIO, *, limit: int, mask: LogMask) -> None:
        """Write the log (stdout and stderr) into a file: head and tail, at most *limit* bytes, the cut marked.

        *mask* sees the whole log, before anything is left out.
        """

    def follow_log(self, container: ContainerId, *, since: str) -> Generator[LogEntry, None, None]:
        """Yield what the container writes after the moment *since*, as it happens; empty means from the beginning.

        Ends when the container does, or when the engine goes away. Raises EngineUnreachable also while it is read.
        """

    def remove(self, container: ContainerId) -> None:
        """Remove the container and its anonymous volumes, running or not; already gone is fine."""

    def list_containers(self) -> tuple[ContainerReport, ...]:
        """List every container that has our label."""

    def events(self) -> Iterator[RunId]:
        """Yield the run of each container of ours that ended or was removed, as it happens.

        Raises EngineUnreachable when the stream ends, for whatever reason.
        """


class ImageRemoval(StrEnum):
    """What became of an image that was to go."""

    GONE = "gone"
    TAKEN_OVER = "taken over"
    """Somebody else gave it a name: it is theirs, only our names are gone."""
    IN_USE = "in use"
    """A container or a run needs it; it is left as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """Something on the engine that carries this agent's label and belongs to no run."""

    kind: str
    """`container`, `network` or `volume`."""
    id: str
    name: str


class Remains(Protocol):
    """What this agent may have left on the engine beside its runs. Every call may raise EngineUnreachable."""

    def leftovers(self) -> tuple[Leftover, ...]:
        """List what carries our label and nothing needs; young ones are left out."""

    def remove_leftover(self, leftover: Leftover) -> bool:
        """Remove it unless something uses it; say whether it is gone."""

    def image_sizes(self) -> dict[str, int]:
        """Give the bytes of every image on this machine, by its id."""

    def used_images(self) -> frozenset[str]:
        """Give the ids of the images that any container is made from, whoever made it."""

    def disk(self) -> DiskUse | None:
        """Say how full the disk is that the engine keeps images on; None when that cannot be seen from here."""

    def remove_image(self, names: Iterable[PulledImage], *, needed: Callable[[], bool]) -> ImageRemoval:
        """Take the names away that this agent gave one image, and with the last of all names the image.

        *needed* is asked when nobody can look an image up any more: a run that came meanwhile keeps it.
        """


class Network(Protocol):
    """The isolated network of the runs."""

    def ensure_network(self) -> NetworkFacts:
        """Create the network, or adopt ours after checking that it is as it must be. Raises ConfigError."""


# --- this machine ---------------------------------------------------------------------------------------------


class Journal(Protocol):
    """What was decided, promised and said; written by the control thread alone."""

    def load(self) -> list[Run]:
        """Give every run that is not REMOVED, oldest first."""

    def insert(self, run: Run) -> bool:
        """Record a new run; False when the id is known already."""

    def renew(self, run: Run, *, at: float) -> None:
        """Record a new run under the id of one that is over."""

    def update(self, before: Run, after: Run, *, at: float) -> None:
        """Record that *before* became *after*. Raises IllegalTransition when the journal knows otherwise."""

    def knows(self, run_id: RunId) -> bool:
        """Tell whether the run was ever received."""

    def prune(self, *, before: float, spare: Collection[RunId]) -> int:
        """Forget the oldest runs that were over before that time, a bounded number at once, and say how many.

        Only what is REMOVED may go, and nothing in *spare*.
        """

    def note_image(self, image: PulledImage) -> None:
        """Record that this agent pulled an image that was not on this machine before."""

    def forget_images(self, image_ids: Iterable[str]) -> None:
        """Forget that this agent pulled these images: they are gone, or somebody else's."""


class RunFolders(Protocol):
    """The private directories of runs and jobs. Every call may raise DiskFull."""

    def store_input(self, run_id: RunId, content: Iterable[bytes]) -> str:
        """Keep the input, unless one is kept, and return its SHA-256. Raises InputChanged when the kept one differs.

        What *content* raises passes through, and nothing is kept then.
        """

    def input_digest(self, run_id: RunId) -> str | None:
        """Return the SHA-256 of the kept input; None when the container's folder has taken it over, or there is none."""

    def has_input(self, run_id: RunId) -> bool:
        """Tell whether the input is kept."""

    def read_input(self, run_id: RunId, *, limit: int) -> bytes | None:
        """Give the input as the algorithm will read it; None when it is larger than *limit* bytes, or is not there."""

    def store_context(self, run_id: RunId, content: bytes) -> None:
        """Keep the run's description, for the container's folder to take over."""

    def has_context(self, run_id: RunId) -> bool:
        """Tell whether the run's description is kept."""

    def prepare(self, run_id: RunId, job: JobKey, *, token: Secret, open_to_all: bool) -> "Folders":
        """Make everything ready that the container mounts; an output that exists already is left alone."""

    def furnish(
        self,
        run_id: RunId,
        *,
        files: Mapping[str, bytes],
        executable: Collection[str],
        writable: Collection[str],
        open_to_all: bool,
    ) -> "PrivateFolder":
        """Make the run's private folder with these files and these writable folders in it, by their names.

        To be called before the container begins: later what lies there is the algorithm's.
        """

    def opened_outputs(self, run_id: RunId, name: str) -> AbstractContextManager[int | None]:
        """Open the folder *name* of the private folder as the algorithm left it; yields None when it is none any more.

        What lies in it is untrusted: links in it lead anywhere, and somebody may still change it.
        """

    def capture_output(self, run_id: RunId, *, limit: int) -> int:
        """Copy the algorithm's output as the result and return its size in bytes.

        What the container left is untrusted: links and devices are not followed, and somebody may still change the file.
        No output counts as empty. Raises OutputTooLarge.
        """

    def used_bytes(self, run_id: RunId, job: JobKey) -> int:
        """Return how much disk the run and its job use now. Raises OutputTooLarge where nobody could count it."""

    def discard_work(self, run_id: RunId) -> None:
        """Delete what the algorithm could write to; what was taken over from it stays. Already gone is fine."""

    def discard_job(self, job: JobKey) -> None:
        """Delete the temporary folder of a job that no run uses, at once for whoever makes it anew."""

    def free_bytes(self) -> int:
        """Say how much disk may still be written."""

    def log_file(self, run_id: RunId) -> AbstractContextManager[BinaryIO]:
        """Open the run's log for writing, from its beginning."""

    def final_log(self, run_id: RunId, note: str) -> Path | None:
        """Give the file with the log as the researcher gets it: the captured log, then *note*; None when both are empty."""

    def final_note(self, run_id: RunId, note: str) -> Path:
        """Give a file with *note* alone, for a researcher who does not get the log."""

    def live_mark(self, run_id: RunId) -> LiveMark:
        """Say how far the run's log was sent while it ran."""

    def keep_live_mark(self, run_id: RunId, mark: LiveMark) -> None:
        """Note how far the run's log was sent; of a run that is gone, nothing is kept."""

    def result_path(self, run_id: RunId) -> Path | None:
        """Give the file with the captured result; None when there is none, or only a sealed one."""

    def keep_reader_key(self, run_id: RunId, key: str) -> None:
        """Keep the public key of the organization that will read the result."""

    def reader_key(self, run_id: RunId) -> str | None:
        """Give the public key that was kept; None when there is none."""

    def seal_result(self, run_id: RunId, sealed: Iterable[bytes]) -> None:
        """Put the sealed result in place of the plain one; does nothing but remove the plain one when it is there already.

        What *sealed* raises passes through, and the plain one stays then.
        """

    def sealed_path(self, run_id: RunId) -> Path | None:
        """Give the file with the result in the form in which it travels; None when it was not sealed."""

    def remove(self, run_id: RunId) -> None:
        """Delete everything of the run; already gone is fine."""

    def retire(self, run_id: RunId) -> None:
        """Take the folder of a reported run out of the way: put aside if the owner keeps them, else deleted."""

    def kept_runs(self, *, before: float) -> Iterable[str]:
        """List the folders that were put aside before that time."""

    def remove_kept(self, name: str) -> None:
        """Delete a folder that was put aside; already gone is fine."""

    def stored_runs(self, *, before: float) -> Iterable[RunId]:
        """List the runs whose directory was last changed before that time."""

    def idle_jobs(self, *, before: float) -> Iterable[JobKey]:
        """List the jobs whose temporary folder was last given to a run before that time."""

    def remove_job(self, job: JobKey) -> None:
        """Delete the temporary folder of a job; already gone is fine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Folders:
    """Host paths that a run's container mounts."""

    private: Path
    """Becomes `/mnt/data`: holds `task-<9 digits>/` with input, output and token."""
    temporary: Path
    """Becomes `/mnt/tmp`, shared by all runs of the job."""
    user: tuple[int, int]
    """The uid and gid whom they are made for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivateFolder:
    """A host path that one run's container mounts."""

    path: Path
    user: tuple[int, int]
    """The uid and gid whom it is made for."""


class Databases(Protocol):
    """The configured databases."""

    def choose(self, requests: Iterable[DatabaseRequest]) -> tuple[Database, ...]:
        """Find the databases a task asks for, each once, in the order asked. Raises DatabaseMissing."""

    def groups(self, databases: Iterable[Database]) -> tuple[int, ...]:
        """Say which groups a container must join to read exactly these databases."""


class Clock(Protocol):
    """Time, so that tests can turn it."""

    def now(self) -> float:
        """Seconds since the epoch, for people: somebody may set it at any time, so nothing is measured with it."""

    def monotonic(self) -> float:
        """Seconds that never go back."""

    def mark(self) -> Mark:
        """Give this moment, for a later process to count from (`seconds_since`); nobody can set it."""
