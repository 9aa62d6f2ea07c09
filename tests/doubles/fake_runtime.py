"""A container engine and its registry in memory, which a test moves by hand.

Passes the same contract tests as the real engine. A container does what `behaviour` says when it starts: ends at once,
or runs until the test calls `end`.
"""

import itertools
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from queue import SimpleQueue
from typing import BinaryIO

from node_agent.domain.container import (
    UNBOUNDED,
    ContainerReport,
    ContainerSpec,
    NetworkFacts,
    Phase,
    PinnedImage,
    PullBounds,
    PullProgress,
    run_container_name,
)
from node_agent.domain.policy import parse_image
from node_agent.domain.run import ContainerId, RunId
from node_agent.domain.runlogs import LogEntry, LogMask
from node_agent.errors import (
    ContainerLost,
    EngineUnreachable,
    ImageMissing,
    NodeAgentError,
    RunClosed,
    StartFailed,
)
from node_agent.runtime.logcut import copy_cut

KILLED = 137
IMAGE_BYTES = 1000


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a container ends."""

    exit_code: int = 0
    log: bytes = b""
    out_of_memory: bool = False


@dataclass
class FakeContainer:
    """One container, and how often it was started."""

    spec: ContainerSpec
    report: ContainerReport
    starts: int = 0
    log: bytes = b""


Behaviour = Callable[[ContainerSpec], Ending | None]


def runs_on(_spec: ContainerSpec) -> Ending | None:
    """Run until the test says otherwise."""
    return None


class FakeRuntime:
    """Implements the port `Runtime`; everything public below it is for the test."""

    def __init__(self, name: str = "alpha", *, behaviour: Behaviour = runs_on) -> None:
        self.name = name
        self.behaviour = behaviour
        self.offered: dict[str, PinnedImage] = {}
        """What the registry has, by reference."""
        self.present: dict[str, PinnedImage] = {}
        """What is on this machine, by reference."""
        self.registry_fault: NodeAgentError | None = None
        self.engine_fault: EngineUnreachable | None = None
        self.pulled: list[str] = []
        self.during_pull: Callable[[str], None] = lambda _reference: None
        self.containers: dict[ContainerId, FakeContainer] = {}
        self.now: Callable[[], float] = itertools.count(1_700_000_000.0).__next__
        self._ids = itertools.count(1)
        self._lock = threading.RLock()
        self._watchers: list[SimpleQueue[RunId | None]] = []

    # --- for the test -----------------------------------------------------------------------------------------

    def offer(self, reference: str, content: bytes = b"an algorithm") -> PinnedImage:
        """Put an image into the registry."""
        digest = f"sha256:{sha256(b'manifest of ' + content).hexdigest()}"
        image = PinnedImage(image_id=f"sha256:{sha256(content).hexdigest()}", digest=digest)
        self.offered[reference] = image
        return image

    def keep(self, reference: str, content: bytes = b"an algorithm") -> PinnedImage:
        """Put an image on this machine that no registry knows."""
        image = PinnedImage(image_id=f"sha256:{sha256(content).hexdigest()}", digest=None)
        self.present[reference] = image
        return image

    def container_of(self, run_id: int) -> FakeContainer:
        """Give the container of a run."""
        return next(c for c in self.containers.values() if c.spec.run_id == run_id)

    def end(self, run_id: int, ending: Ending = Ending()) -> None:
        """Let the container of a run end."""
        with self._lock:
            self._end(self.container_of(run_id), ending)

    def lose(self, run_id: int) -> None:
        """Let the container of a run disappear, as if somebody had removed it."""
        self.remove(self.container_of(run_id).report.id)

    def break_events(self) -> None:
        """Let all streams of events end, as when the engine restarts."""
        with self._lock:
            for watcher in self._watchers:
                watcher.put(None)
            self._watchers.clear()

    # --- images -----------------------------------------------------------------------------------------------

    def find_image(self, reference: str) -> PinnedImage | None:
        self._answer()
        return self.present.get(reference)

    def registry_digest(self, reference: str) -> str:
        digest = self._ask_registry(reference).digest
        assert digest is not None
        return digest

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
        self.pulled.append(reference)
        if not wanted():
            raise RunClosed(f"The pull of {reference} was called off.")
        image = self._ask_registry(reference)
        self.during_pull(reference)
        progress(PullProgress(current=IMAGE_BYTES, total=IMAGE_BYTES))
        if not wanted():
            raise RunClosed(f"The pull of {reference} was called off.")
        self.present[reference] = image
        return image

    def _ask_registry(self, reference: str) -> PinnedImage:
        self._answer()
        if self.registry_fault is not None:
            raise self.registry_fault
        found = self.offered.get(reference) or self._offered_by_digest(reference)
        if found is None:
            raise ImageMissing(f"There is no image {reference}.")
        return found

    def _offered_by_digest(self, reference: str) -> PinnedImage | None:
        image = parse_image(reference)
        if image is None or image.digest is None:
            return None
        return next((found for found in self.offered.values() if found.digest == image.digest), None)

    # --- containers -------------------------------------------------------------------------------------------

    def ensure_container(self, spec: ContainerSpec) -> ContainerId:
        self._answer()
        with self._lock:
            if spec.image_id not in {image.image_id for image in self.present.values()}:
                raise StartFailed("The image is no longer on this machine.")
            there = next((c for c in self.containers.values() if c.spec.name == spec.name), None)
            if there is None:
                return self._create(spec)
            if there.spec == spec:
                return there.report.id
            if there.starts:
                raise StartFailed("The engine did not make the container as it was asked to.")
            self.remove(there.report.id)
            return self._create(spec)

    def _create(self, spec: ContainerSpec) -> ContainerId:
        made = ContainerId(f"{next(self._ids):064x}")
        report = ContainerReport(id=made, run_id=spec.run_id, phase=Phase.CREATED)
        self.containers[made] = FakeContainer(spec, report)
        return made

    def ensure_started(self, container: ContainerId) -> None:
        self._answer()
        with self._lock:
            found = self.containers.get(container)
            if found is None:
                raise ContainerLost("The container is gone.")
            if found.starts:
                return
            ending = self.behaviour(found.spec)
            found.starts += 1
            found.report = replace(found.report, phase=Phase.RUNNING, started_at=self.now())
            if ending is not None:
                self._end(found, ending)

    def _end(self, container: FakeContainer, ending: Ending) -> None:
        container.log += ending.log
        container.report = replace(
            container.report,
            phase=Phase.EXITED,
            exit_code=ending.exit_code,
            out_of_memory=ending.out_of_memory,
            finished_at=self.now(),
        )
        self._tell(container.spec.run_id)

    def inspect(self, container: ContainerId) -> ContainerReport | None:
        self._answer()
        found = self.containers.get(container)
        return found.report if found else None

    def stop(self, container: ContainerId) -> None:
        self._answer()
        with self._lock:
            found = self.containers.get(container)
            if found is not None and found.report.phase is Phase.RUNNING:
                self._end(found, Ending(exit_code=KILLED))

    def find_container(self, run_id: RunId) -> ContainerId | None:
        self._answer()
        name = run_container_name(self.name, run_id)
        return next((c.report.id for c in self.containers.values() if c.spec.name == name), None)

    def copy_log(self, container: ContainerId, into: BinaryIO, *, limit: int, mask: LogMask) -> None:
        self._answer()
        found = self.containers.get(container)
        copy_cut(mask([found.log] if found else []), into, limit=limit)

    def follow_log(self, container: ContainerId, *, since: str) -> Generator[LogEntry, None, None]:
        self._answer()
        found = self.containers.get(container)
        lines = found.log.splitlines(keepends=True) if found else []
        entries = (LogEntry(f"{at:06d}", line) for at, line in enumerate(lines, start=1))
        return (entry for entry in entries if entry.at > since)

    def remove(self, container: ContainerId) -> None:
        self._answer()
        with self._lock:
            found = self.containers.pop(container, None)
            if found is not None:
                self._tell(found.spec.run_id)

    def list_containers(self) -> tuple[ContainerReport, ...]:
        self._answer()
        with self._lock:
            return tuple(container.report for container in self.containers.values())

    # --- events -----------------------------------------------------------------------------------------------

    def events(self) -> Iterator[RunId]:
        self._answer()
        watcher: SimpleQueue[RunId | None] = SimpleQueue()
        with self._lock:
            self._watchers.append(watcher)
        return self._events_of(watcher)

    def _events_of(self, watcher: "SimpleQueue[RunId | None]") -> Iterator[RunId]:
        while (run_id := watcher.get()) is not None:
            yield run_id
        raise EngineUnreachable("The stream of engine events ended.")

    def _tell(self, run_id: RunId | None) -> None:
        for watcher in self._watchers if run_id is not None else []:
            watcher.put(run_id)

    def _answer(self) -> None:
        if self.engine_fault is not None:
            raise self.engine_fault


@dataclass
class FakeNetwork:
    """The isolated network, always as it must be."""

    facts: NetworkFacts = field(
        default_factory=lambda: NetworkFacts(
            id="f" * 64, name="node-agent-alpha", bridge="na-0", subnet="10.213.0.0/24", gateway="10.213.0.1"
        )
    )
    fault: NodeAgentError | None = None

    def ensure_network(self) -> NetworkFacts:
        if self.fault is not None:
            raise self.fault
        return self.facts


def behaviour_by_command(endings: Mapping[tuple[str, ...], Ending | None]) -> Behaviour:
    """Let each container end the way its command says; a command that is not listed cannot be started."""

    def behave(spec: ContainerSpec) -> Ending | None:
        if spec.command not in endings:
            raise StartFailed("The container could not be started: no such program.")
        return endings[spec.command]

    return behave
