"""In-memory stand-ins for the ports of the core: a server's book, an engine's book, a channel, pools under control.

Nothing here opens a socket, starts a thread or sleeps. Faults are scripted: the next calls of a name raise what they
were told to raise. A `Fuse` can stop the world before or after any call of any port.
"""

import queue
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from io import IOBase
from pathlib import Path
from typing import Any, BinaryIO

from node_agent.domain.container import (
    UNBOUNDED,
    ContainerReport,
    ContainerSpec,
    EndedBy,
    Mount,
    Phase,
    PinnedImage,
    PullBounds,
    PullProgress,
)
from node_agent.domain.contract import DATA_FOLDER, task_folder
from node_agent.domain.database import Database
from node_agent.domain.lifecycle import StepResult
from node_agent.domain.messages import Message, StepDone
from node_agent.domain.ports import (
    FinalReport,
    NodeIdentity,
    OpenRun,
    ProxiedRequest,
    ProxiedResponse,
    StatusChange,
)
from node_agent.domain.run import BlobId, ContainerId, Run, RunId, Status
from node_agent.domain.runlogs import LogEntry, LogMask, LogPiece
from node_agent.domain.secret import Secret
from node_agent.domain.task import DatabaseRequest, JobId, OrganizationId, Task, TaskId
from node_agent.domain.verdict import Approval
from node_agent.errors import (
    ContainerLost,
    DatabaseMissing,
    ImageMissing,
    InputUnreadable,
    KeyMissing,
    NamespaceLost,
    RegistryUnreachable,
    RunClosed,
)

IMAGE = "registry.example.org/approved/average"
DIGEST = "sha256:" + "a" * 64


class PowerCut(BaseException):
    """The world stops here; nothing may catch it."""


class Fuse:
    """Counts the calls at the edges and stops the world at one of them."""

    def __init__(self, *, blows_at: int | None = None) -> None:
        self.places: list[str] = []
        self._blows_at = blows_at

    def pass_(self, place: str) -> None:
        if self._blows_at == len(self.places):
            raise PowerCut(place)
        self.places.append(place)


class Fused:
    """A port behind a fuse: the world may stop just before and just after each of its calls."""

    def __init__(self, name: str, port: Any, fuse: Fuse) -> None:
        self._name = name
        self._port = port
        self._fuse = fuse

    def __getattr__(self, call: str) -> Any:
        method = getattr(self._port, call)

        def fused(*args: Any, **kwargs: Any) -> Any:
            self._fuse.pass_(f"before {self._name}.{call}")
            answer = method(*args, **kwargs)
            try:
                self._fuse.pass_(f"after {self._name}.{call}")
            except PowerCut:
                if isinstance(answer, IOBase):
                    answer.close()  # as the end of a process does
                raise
            return answer

        return fused


class Faults:
    """What the next calls raise, by the name of the call."""

    def __init__(self) -> None:
        self._planned: dict[str, deque[Exception]] = defaultdict(deque)

    def plan(self, call: str, error: Exception, *, times: int = 1) -> None:
        self._planned[call].extend([error] * times)

    def meet(self, call: str) -> None:
        if self._planned[call]:
            raise self._planned[call].popleft()


# --- values ---------------------------------------------------------------------------------------------------


def make_task(number: int = 1, **changes: Any) -> Task:
    usual = Task(
        id=TaskId(number),
        job_id=JobId(7),
        image=IMAGE,
        collaboration_id=1,
        init_org_id=OrganizationId(3),
    )
    return replace(usual, **changes)


def make_run(number: int = 1, **changes: Any) -> Run:
    usual = Run(id=RunId(number), task=make_task(number), received_at=1_700_000_000.0)
    return replace(usual, **changes)


def make_open_run(number: int = 1, **changes: Any) -> OpenRun:
    usual = OpenRun(id=RunId(number), task=make_task(number), input=(b'{"method": "average"}',))
    return replace(usual, **changes)


# --- server ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Delivered:
    """A final report as it arrived: the files are read, since the agent deletes them."""

    status: Status
    result: bytes | None
    stored_as: BlobId | None
    log: str
    started_at: float
    finished_at: float
    is_sealed: bool = False


@dataclass
class Entry:
    """One run in the server's book."""

    listed: OpenRun
    status: Status = Status.PENDING
    said: list[Status] = field(default_factory=list)
    accepted: list[Delivered] = field(default_factory=list)
    closed: bool = False
    claimed_at: float | None = None


class ServerBook:
    """The coordinating server: a book of runs that refuses updates of closed ones."""

    def __init__(self) -> None:
        self.entries: dict[RunId, Entry] = {}
        self.faults = Faults()
        self.tasks: dict[TaskId, Task] = {}
        self.organizations: dict[OrganizationId, str] = {}
        self.stores: dict[int, str] = {}
        """What can be looked up besides runs."""
        self.tokens_given = 0
        self.blobs: dict[BlobId, bytes] = {}
        """What lies in the blob store."""
        self.hidden: set[RunId] = set()
        """Open runs that the next listings do not show, as when a page shifts."""

    def add(self, listed: OpenRun) -> None:
        self.entries[listed.id] = Entry(listed)

    def close(self, run_id: RunId) -> None:
        self.entries[run_id].closed = True
        self.entries[run_id].status = Status.KILLED

    def knock(self) -> None:
        self.faults.meet("knock")

    def identify(self) -> NodeIdentity:
        return NodeIdentity(
            node_id=1,
            node_name="alpha",
            organization_id=OrganizationId(3),
            organization_name="Alpha",
            collaboration_id=1,
            collaboration_name="Together",
            encrypted=False,
        )

    def open_runs(self, task_id: TaskId | None = None) -> Generator[OpenRun, None, None]:
        self.faults.meet("open_runs")
        for run_id, entry in sorted(self.entries.items()):
            wanted = task_id is None or entry.listed.task.id == task_id
            if wanted and not entry.closed and run_id not in self.hidden:
                yield replace(entry.listed, status=entry.status, claimed_at=entry.claimed_at)

    def is_open(self, run_id: RunId) -> bool:
        self.faults.meet("is_open")
        return run_id in self.entries and not self.entries[run_id].closed

    def claimed_at(self, run_id: RunId) -> float | None:
        self.faults.meet("claimed_at")
        return self._open_entry(run_id).claimed_at

    def claim(self, run_id: RunId, *, at: float) -> None:
        self.faults.meet("claim")
        self._open_entry(run_id).status = Status.INITIALIZING
        self.entries[run_id].said.append(Status.INITIALIZING)
        self.entries[run_id].claimed_at = at

    def announce(self, run_id: RunId, status: Status) -> None:
        self.faults.meet("announce")
        self._open_entry(run_id).status = status
        self.entries[run_id].said.append(status)

    def container_token(self, task_id: TaskId, image: str) -> Secret:
        self.faults.meet("container_token")
        self.tokens_given += 1
        return Secret(f"container-token-{self.tokens_given}")

    @contextmanager
    def open_input(self, blob: BlobId) -> Iterator[Iterator[bytes]]:
        self.faults.meet("open_input")
        if blob not in self.blobs:
            raise InputUnreadable("The server does not give this node the input of this run: no such blob")
        yield iter((self.blobs[blob],))

    def store_result(self, run_id: RunId, final: FinalReport) -> BlobId:
        self.faults.meet("store_result")
        assert final.result is not None
        blob = BlobId(f"result-{len(self.blobs)}-of-run-{run_id}")
        self.blobs[blob] = final.result.read_bytes()
        return blob

    def report(self, run_id: RunId, final: FinalReport) -> None:
        self.faults.meet("report")
        entry = self._open_entry(run_id)
        entry.accepted.append(
            Delivered(
                status=final.status,
                result=final.result.read_bytes() if final.result else None,
                stored_as=final.stored_as,
                log=final.log.read_text() if final.log else "",
                started_at=final.started_at,
                finished_at=final.finished_at,
                is_sealed=final.is_sealed,
            )
        )
        entry.status = final.status
        entry.closed = True

    def forward(self, request: ProxiedRequest) -> AbstractContextManager[ProxiedResponse]:
        return nullcontext(ProxiedResponse(status=200, content_type="application/json", body=[b"{}"]))

    def find_task(self, task_id: TaskId) -> Task | None:
        self.faults.meet("find_task")
        return self.tasks.get(task_id)

    def organization_name(self, organization_id: OrganizationId) -> str | None:
        self.faults.meet("organization_name")
        return self.organizations.get(organization_id)

    def store_url(self, store_id: int) -> str | None:
        self.faults.meet("store_url")
        return self.stores.get(store_id)

    def _open_entry(self, run_id: RunId) -> Entry:
        if not self.is_open(run_id):
            raise RunClosed(f"Run {run_id} is closed.")
        return self.entries[run_id]


class SealBook:
    """The keys of readers, and a seal that everybody can read: it says whose key it was."""

    def __init__(self) -> None:
        self.keys: dict[OrganizationId | None, str] = {OrganizationId(3): "key-3"}
        self.faults = Faults()

    def reader_key(self, reader: OrganizationId | None) -> str:
        self.faults.meet("reader_key")
        if reader not in self.keys:
            raise KeyMissing(f"Organization {reader} has no public key.")
        return self.keys[reader]

    def sealed(self, result: Path, key: str) -> Iterator[bytes]:
        self.faults.meet("sealed")
        yield from (f"sealed for {key}: ".encode(), result.read_bytes())

    def sealed_blob(self, result: Path, key: str) -> Iterator[bytes]:
        yield from (f"blob for {key}: ".encode(), result.read_bytes())


class StoreBook:
    """The algorithm stores: what each approved, and what it was asked."""

    def __init__(self) -> None:
        self.approved: set[tuple[str, str, str]] = set()
        self.asked: list[tuple[str, str, str]] = []
        self.faults = Faults()

    def approval(self, url: str, *, image: str, digest: str) -> Approval:
        self.asked.append((url, image, digest))
        self.faults.meet("approval")
        if (url, image, digest) in self.approved:
            return Approval(given=True)
        return Approval(given=False, reason="it has no such algorithm")


class ChannelBook:
    """The socket's sending side: remembers what was said."""

    def __init__(self) -> None:
        self.pings = 0
        self.hurries = 0
        self.statuses: list[tuple[RunId, Status]] = []
        self.facts: list[Any] = []
        self.logs: list[LogPiece] = []

    def ping(self) -> None:
        self.pings += 1

    def tell_status(self, change: StatusChange) -> None:
        self.statuses.append((change.run.id, change.status))

    def tell_node(self, facts: Any) -> None:
        self.facts.append(facts)

    def hurry(self) -> None:
        self.hurries += 1

    def tell_log(self, run: Run, piece: LogPiece) -> None:
        assert piece.run_id == run.id
        self.logs.append(piece)


# --- engine ---------------------------------------------------------------------------------------------------


@dataclass
class Box:
    """One container in the engine's book."""

    spec: ContainerSpec
    phase: Phase = Phase.CREATED
    exit_code: int | None = None
    out_of_memory: bool = False
    paused: bool = False
    ended_by: EndedBy = EndedBy.ITSELF
    log: bytes = b""


class EngineBook:
    """The container engine: images by reference, containers by id, and how often each run was started."""

    def __init__(self) -> None:
        self.local: dict[str, PinnedImage] = {}
        self.registry: dict[str, PinnedImage] = {IMAGE: PinnedImage(image_id="image-1", digest=DIGEST)}
        self.registry_away = False
        self.boxes: dict[ContainerId, Box] = {}
        self.starts: dict[RunId, int] = defaultdict(int)
        self.made = 0
        self.without_namespace: set[ContainerId] = set()
        """Containers whose network namespace is gone before their start."""
        self.faults = Faults()

    def find_image(self, reference: str) -> PinnedImage | None:
        self.faults.meet("find_image")
        return self.local.get(reference)

    def registry_digest(self, reference: str) -> str:
        self.faults.meet("registry_digest")
        return self.registry[reference].digest or ""

    def pull_image(
        self,
        reference: str,
        *,
        wanted: Callable[[], bool],
        progress: Callable[[PullProgress], None],
        here: PinnedImage | None = None,
        bounds: PullBounds = UNBOUNDED,
    ) -> PinnedImage:
        del here, bounds
        self.faults.meet("pull_image")
        if self.registry_away:
            raise RegistryUnreachable("The registry does not answer.")
        progress(PullProgress(current=1, total=2))
        if not wanted():
            raise RunClosed("The pull is not wanted any more.")
        if reference not in self.registry:
            raise ImageMissing(f"The registry has no {reference}.")
        self.local[reference] = self.registry[reference]
        return self.local[reference]

    def ensure_container(self, spec: ContainerSpec) -> ContainerId:
        self.faults.meet("ensure_container")
        for container, box in self.boxes.items():
            if box.spec.name == spec.name:
                return container
        self.made += 1
        container = ContainerId(f"container-{self.made}")
        self.boxes[container] = Box(spec)
        return container

    def ensure_started(self, container: ContainerId) -> None:
        self.faults.meet("ensure_started")
        if container not in self.boxes:
            raise ContainerLost("The container is gone.")
        if container in self.without_namespace:
            self.remove(container)
            raise NamespaceLost("The network namespace is gone.")
        box = self.boxes[container]
        if box.phase is Phase.CREATED:
            box.phase = Phase.RUNNING
            self.starts[_run_of(box)] += 1

    def cpu_seconds(self, container: ContainerId) -> float | None:
        return None

    def inspect(self, container: ContainerId) -> ContainerReport | None:
        self.faults.meet("inspect")
        return self._report(container) if container in self.boxes else None

    def stop(self, container: ContainerId) -> None:
        self.faults.meet("stop")
        box = self.boxes.get(container)
        if box is not None and box.phase is Phase.RUNNING:
            box.phase, box.exit_code = Phase.EXITED, 137

    def find_container(self, run_id: RunId) -> ContainerId | None:
        self.faults.meet("find_container")
        found = [container for container, box in self.boxes.items() if box.spec.run_id == run_id]
        return found[0] if found else None

    def copy_log(self, container: ContainerId, into: BinaryIO, *, limit: int, mask: LogMask) -> None:
        self.faults.meet("copy_log")
        if container in self.boxes:
            into.write(b"".join(mask([self.boxes[container].log]))[:limit])

    def follow_log(self, container: ContainerId, *, since: str) -> Generator[LogEntry, None, None]:
        self.faults.meet("follow_log")
        lines = self.boxes[container].log.splitlines(keepends=True) if container in self.boxes else []
        entries = (LogEntry(f"{at:06d}", line) for at, line in enumerate(lines, start=1))
        return (entry for entry in entries if entry.at > since)

    def remove(self, container: ContainerId) -> None:
        self.faults.meet("remove")
        self.boxes.pop(container, None)

    def list_containers(self) -> tuple[ContainerReport, ...]:
        self.faults.meet("list_containers")
        return tuple(self._report(container) for container in self.boxes)

    def events(self) -> Iterator[RunId]:
        return iter(())

    def box_of(self, run_id: RunId) -> Box:
        return next(box for box in self.boxes.values() if box.spec.run_id == run_id)

    def finish(self, run_id: RunId, *, output: bytes = b"42", exit_code: int = 0, log: bytes = b"") -> None:
        """Let the algorithm of a run write its output and end."""
        box = self.box_of(run_id)
        (data_mount(box.spec) / task_folder(run_id) / "output").write_bytes(output)
        box.phase, box.exit_code, box.log = Phase.EXITED, exit_code, log

    def _report(self, container: ContainerId) -> ContainerReport:
        box = self.boxes[container]
        return ContainerReport(
            id=container,
            run_id=box.spec.run_id,
            phase=box.phase,
            exit_code=box.exit_code,
            out_of_memory=box.out_of_memory,
            paused=box.paused,
            ended_by=box.ended_by,
        )


def data_mount(spec: ContainerSpec) -> Path:
    """Give the host's side of a container's data folder."""
    mounts: dict[str, Mount] = {mount.target: mount for mount in spec.mounts}
    return Path(mounts[DATA_FOLDER].source)


def _run_of(box: Box) -> RunId:
    assert box.spec.run_id is not None
    return box.spec.run_id


class ConfiguredDatabases:
    """The configured databases, all readable without a group."""

    def __init__(self, *databases: Database) -> None:
        self._databases = {database.label: database for database in databases}

    def choose(self, requests: Iterable[DatabaseRequest]) -> tuple[Database, ...]:
        try:
            return tuple(self._databases[request.label] for request in requests)
        except KeyError as error:
            raise DatabaseMissing(f"This node has no database {error}.") from error

    def groups(self, databases: Iterable[Database]) -> tuple[int, ...]:
        return tuple(1000 + index for index, _ in enumerate(databases))


# --- pools ----------------------------------------------------------------------------------------------------


class EagerPool:
    """Does each step at once, in the control thread."""

    def __init__(self, do: Callable[[str, Run], StepDone], mailbox: "queue.SimpleQueue[Message]") -> None:
        self._do = do
        self._mailbox = mailbox

    def submit(self, step: str, run: Run) -> None:
        self._mailbox.put(self._do(step, run))


class PatientPool:
    """Holds each step until the test says what came of it."""

    def __init__(self, mailbox: "queue.SimpleQueue[Message]") -> None:
        self._mailbox = mailbox
        self.in_flight: dict[RunId, tuple[str, Run]] = {}
        self.history: list[tuple[RunId, str]] = []

    def submit(self, step: str, run: Run) -> None:
        assert run.id not in self.in_flight, f"two steps of run {run.id} at once"
        self.in_flight[run.id] = (step, run)
        self.history.append((run.id, step))

    def step_of(self, run_id: int) -> str | None:
        return self.in_flight[RunId(run_id)][0] if RunId(run_id) in self.in_flight else None

    def succeed(self, run_id: int, result: StepResult) -> None:
        step, _ = self.in_flight.pop(RunId(run_id))
        self._mailbox.put(StepDone(RunId(run_id), step, result, None))

    def fail(self, run_id: int, error: BaseException) -> None:
        step, _ = self.in_flight.pop(RunId(run_id))
        self._mailbox.put(StepDone(RunId(run_id), step, None, error))
