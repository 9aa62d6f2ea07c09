"""The world stops at every edge, and the next life of the agent must bring every run to its one end.

The same run is lived again and again; each time the world stops one call later: before or after a call to the server,
the engine, the folders, the journal or the channel. That is every step boundary, and every moment between the effect
of a step and the line in the journal.
"""

import queue
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from node_agent.admission import Admission
from node_agent.agent import Agent, Hands
from node_agent.contracts import Vantage6Contract
from node_agent.domain.container import ContainerLimits, Phase, PullPolicy
from node_agent.domain.messages import KillRequested, Message, ServerOnline, SubtaskCreated, SweepDone
from node_agent.domain.policy import Policy
from node_agent.domain.run import BlobId, RunId, Status
from node_agent.domain.task import DatabaseRequest, OrganizationId, TaskId
from node_agent.domain.turns import Bounds
from node_agent.errors import BlobUnreadable, EngineUnreachable, ServerUnreachable, StartFailed
from node_agent.lister import Lister
from node_agent.parents import weigh
from node_agent.pool import do_step
from node_agent.runtable import RunTable
from node_agent.stepports import Ports, StepSettings
from node_agent.store.journal import SqliteJournal, read_history
from node_agent.store.rundir import DiskRunFolders
from node_agent.sweep import Sweep
from tests.doubles.clock import ManualClock
from tests.doubles.core import (
    ChannelBook,
    ConfiguredDatabases,
    EagerPool,
    EngineBook,
    Fuse,
    Fused,
    PowerCut,
    SealBook,
    ServerBook,
    StoreBook,
    make_open_run,
    make_task,
)

RUN = RunId(1)
INPUT = BlobId("input")
ENOUGH_TURNS = 400
UNTIL_SWEPT = 700.0
SETTINGS = StepSettings(
    log_mask=iter,
    node_name="alpha",
    pull=PullPolicy.ALWAYS,
    relaxations=(),
    limits=ContainerLimits(cpus=1, memory=2**30, pids=100, tmp_size=2**20, file_size=2**20),
    output_size=2**20,
    log_size=2**16,
    disk_size=2**30,
    run_time=60.0,
    registry_patience=20.0,
    proxy_port=7654,
)


POLICY = Policy(algorithms=("registry.example.org/approved/*",))


class World:
    """Everything that outlives the agent: the disk, the engine, the server, time."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        # Folders carry the machine's own times, so the world begins now.
        self.clock = ManualClock(wall_start=time.time())
        self.server = ServerBook()
        self.engine = EngineBook()
        self.seal: SealBook | None = None
        self.life: Life | None = None

    def say(self, message: Message) -> None:
        """Send an event; nobody hears it while the agent is down."""
        if self.life is not None:
            self.life.mailbox.put(message)

    def is_running(self, run_id: RunId) -> bool:
        return any(
            box.spec.run_id == run_id and box.phase is Phase.RUNNING for box in self.engine.boxes.values()
        )

    def owes_nothing(self) -> bool:
        closed = all(entry.closed for entry in self.server.entries.values())
        return closed and all(run["state"] == "removed" for run in read_history(self.state_dir, 100))

    def is_clean(self) -> bool:
        return not self.engine.boxes and not list((self.state_dir / "runs").iterdir())


class Life:
    """One process of the agent in that world; ends with it or by a power cut."""

    def __init__(self, world: World, fuse: Fuse) -> None:
        self._world = world
        self.mailbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._journal = SqliteJournal(world.state_dir)
        folders = Fused("folders", DiskRunFolders(world.state_dir, user=(65534, 65534)), fuse)
        server = Fused("server", world.server, fuse)
        engine = Fused("engine", world.engine, fuse)
        self._runs = runs = RunTable()
        ports = Ports(
            server=server,
            runtime=engine,
            folders=folders,
            databases=ConfiguredDatabases(),
            admission=Admission(
                policy=POLICY,
                own_organization_id=OrganizationId(3),
                server=server,
                stores=StoreBook(),
                folders=folders,
                clock=world.clock,
            ),
            contract=Vantage6Contract(),
            clock=world.clock,
            settings=SETTINGS,
            wanted=runs.is_wanted,
            progress=lambda *_: None,
            seal=None if world.seal is None else Fused("seal", world.seal, fuse),
        )
        self._lister = Lister(
            server=server,
            folders=folders,
            clock=world.clock,
            is_open=runs.is_open,
            was_open=runs.was_open,
            post=self.mailbox.put,
        )
        self._agent = Agent(
            mailbox=self.mailbox,
            runs=runs,
            journal=Fused("journal", self._journal, fuse),
            channel=Fused("channel", ChannelBook(), fuse),
            hands=Hands(
                submit=EagerPool(lambda step, run: do_step(step, run, lambda _: ports), self.mailbox).submit,
                list_runs=self._lister.serve_one,
                sweep=lambda: self._sweep(ports),
                show=lambda _: None,
                weigh=lambda parents: self.mailbox.put(weigh(parents, ports.runtime, world.clock.monotonic)),
            ),
            clock=world.clock,
            bounds=Bounds(slots=1),
        )

    def live(self, outside: Callable[[World], None]) -> None:
        """Work until every run is over; *outside* is what the rest of the world does meanwhile."""
        self._world.life = self
        try:
            self._agent.load()
            self.mailbox.put(ServerOnline())
            for _ in range(ENOUGH_TURNS):
                self._agent.turn(0)
                if not self.mailbox.empty():
                    continue
                if self._world.owes_nothing():
                    if self._world.is_clean():
                        return
                    self._world.clock.advance(UNTIL_SWEPT)
                self._world.clock.advance(1.0)
                outside(self._world)
            raise AssertionError(f"never ends: {read_history(self._world.state_dir, 10)}")
        finally:
            self._world.life = None
            self._journal.close()

    def _sweep(self, ports: Ports) -> None:
        swept = Sweep(
            runtime=ports.runtime,
            folders=ports.folders,
            clock=ports.clock,
            run_is_open=self._runs.is_open,
            job_is_open=self._runs.job_is_open,
        ).do()
        self.mailbox.put(SweepDone(len(swept.removed), swept.error))


# --- stories --------------------------------------------------------------------------------------------------


def let_it_finish(world: World) -> None:
    if world.is_running(RUN):
        world.engine.finish(RUN, output=b"42", log=b"hello\n")


def let_it_crash(world: World) -> None:
    if world.is_running(RUN):
        world.engine.finish(RUN, output=b"", exit_code=3, log=b"Traceback\n")


def let_it_run(world: World) -> None:
    """Leave the algorithm at work for ever."""


def kill_it_while_it_runs(world: World) -> None:
    if world.is_running(RUN) and not world.server.entries[RUN].closed:
        world.server.close(RUN)
        world.say(KillRequested(frozenset({RUN})))


def kill_it_on_arrival(world: World) -> None:
    if not world.server.entries[RUN].closed:
        world.server.close(RUN)
        world.say(KillRequested(None))


def wait_for_the_subtask(world: World) -> None:
    """Run 1 asks run 2 on the same node for its part and ends when it has it; there is one slot only."""
    child = RunId(2)
    if world.is_running(RUN):
        if child not in world.server.entries:
            world.server.add(make_open_run(2, task=make_task(2, parent_id=TaskId(1))))
        world.say(SubtaskCreated(RUN))
        if world.server.entries[child].closed:
            world.engine.finish(RUN)
    if world.is_running(child):
        world.engine.finish(child)


def nothing_special(world: World) -> None:
    """The usual world."""


def forbidden_image(world: World) -> None:
    world.server.add(make_open_run(1, task=make_task(1, image="registry.example.org/evil/image")))


def unknown_image(world: World) -> None:
    world.server.add(make_open_run(1, task=make_task(1, image="registry.example.org/approved/other")))


def unknown_database(world: World) -> None:
    world.server.add(make_open_run(1, task=make_task(1, databases=(DatabaseRequest(label="none"),))))


def unreadable(world: World) -> None:
    world.server.add(make_open_run(1, fault="The server sent no input.", input=b""))


def start_refused(world: World) -> None:
    world.engine.faults.plan("ensure_started", StartFailed("exec format error"), times=20)


def trouble_everywhere(world: World) -> None:
    for call in ("open_runs", "claim", "announce", "container_token", "report"):
        world.server.faults.plan(call, ServerUnreachable("away"), times=2)
    for call in ("find_image", "ensure_container", "ensure_started", "inspect", "copy_log", "remove"):
        world.engine.faults.plan(call, EngineUnreachable("away"), times=2)


def in_the_blob_store(world: World) -> None:
    """Input and result lie in the server's blob store, which has its bad moments."""
    world.server.blobs[INPUT] = b"{}"
    world.server.add(make_open_run(1, input=(), input_blob=INPUT))
    world.server.faults.plan("open_input", BlobUnreadable("away"), times=2)
    world.server.faults.plan("store_result", ServerUnreachable("away"), times=2)


def encrypted(world: World) -> None:
    """The result is sealed for organization 3, whose key the server has trouble to tell."""
    world.seal = SealBook()
    world.seal.faults.plan("reader_key", ServerUnreachable("away"), times=2)
    world.server.faults.plan("report", ServerUnreachable("away"), times=2)


def engine_away(world: World) -> None:
    world.engine.faults.plan("find_image", EngineUnreachable("away"), times=20)


@dataclass(frozen=True)
class Story:
    """What is special about a run, what the world does to it, and how it must end."""

    name: str
    status: Status
    prepare: Callable[[World], None] = nothing_special
    outside: Callable[[World], None] = let_it_finish
    starts: tuple[int, ...] = (1,)
    reports: int = 1
    runs: int = 1


STORIES = (
    Story("completes", Status.COMPLETED),
    Story("crashes", Status.CRASHED, outside=let_it_crash),
    Story("runs too long", Status.FAILED, outside=let_it_run),
    Story("killed while running", Status.KILLED, outside=kill_it_while_it_runs, reports=0),
    Story("not allowed", Status.NOT_ALLOWED, prepare=forbidden_image, starts=(0,)),
    Story("no such image", Status.NO_DOCKER_IMAGE, prepare=unknown_image, starts=(0,)),
    Story("no such database", Status.FAILED, prepare=unknown_database, starts=(0,)),
    Story("unreadable", Status.FAILED, prepare=unreadable, starts=(0,)),
    Story("cannot be started", Status.START_FAILED, prepare=start_refused, starts=(0,)),
    Story("in the blob store", Status.COMPLETED, prepare=in_the_blob_store),
    Story("encrypted", Status.COMPLETED, prepare=encrypted),
    Story("trouble everywhere", Status.COMPLETED, prepare=trouble_everywhere),
    Story("waits for its subtask", Status.COMPLETED, outside=wait_for_the_subtask, runs=2),
    Story(
        "killed before it starts",
        Status.KILLED,
        prepare=engine_away,
        outside=kill_it_on_arrival,
        starts=(0,),
        reports=0,
    ),
)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with capture_logs():
        yield


@pytest.fixture(params=STORIES, ids=lambda story: story.name)
def story(request: pytest.FixtureRequest) -> Story:
    chosen: Story = request.param
    return chosen


@pytest.fixture
def new_world(story: Story, quick_dir: Path) -> Iterator[Callable[[], World]]:
    with tempfile.TemporaryDirectory(dir=quick_dir) as folder:
        places = Path(folder)

        def make() -> World:
            world = World(Path(tempfile.mkdtemp(dir=places)))
            world.server.add(make_open_run(1))
            story.prepare(world)
            return world

        yield make


def assert_one_clean_end(world: World, story: Story, where: str) -> None:
    history = {run["run_id"]: run for run in read_history(world.state_dir, 100)}
    assert len(history) <= story.runs, where
    assert all(run["state"] == "removed" for run in history.values()), where
    assert len(world.server.entries) == story.runs, where
    assert world.engine.boxes == {}, where
    assert list((world.state_dir / "runs").iterdir()) == [], where
    for entry in world.server.entries.values():
        assert len(entry.accepted) == story.reports, where
        assert [report.status for report in entry.accepted] == [story.status] * story.reports, where
    assert all(count <= 1 for count in world.engine.starts.values()), where
    assert world.engine.starts[RUN] in story.starts, where
    assert world.engine.made <= story.runs, where


def test_wherever_the_world_stops_there_is_one_report_one_start_and_nothing_left(
    story: Story, new_world: Callable[[], World]
) -> None:
    whole = Fuse()
    undisturbed = new_world()
    Life(undisturbed, whole).live(story.outside)
    assert_one_clean_end(undisturbed, story, "undisturbed")
    assert len(whole.places) > 5

    for place in range(len(whole.places)):
        world = new_world()
        fuse = Fuse(blows_at=place)
        where = f"stopped at {place}: {whole.places[place]}"
        with suppress(PowerCut):
            Life(world, fuse).live(story.outside)
        # What the world does while the agent is down is seen only by looking.
        story.outside(world)
        Life(world, Fuse()).live(story.outside)
        assert_one_clean_end(world, story, where)


def test_however_often_the_world_stops_the_run_ends_once(
    story: Story, new_world: Callable[[], World]
) -> None:
    for calls_per_life in (17, 23, 31):
        world = new_world()
        for _ in range(40):
            with suppress(PowerCut):
                Life(world, Fuse(blows_at=calls_per_life)).live(story.outside)
            story.outside(world)
            if world.owes_nothing() and world.is_clean():
                break
        Life(world, Fuse()).live(story.outside)
        assert_one_clean_end(world, story, f"{calls_per_life} calls a life")


def test_the_result_and_the_log_survive_every_stop(quick_dir: Path) -> None:
    story = STORIES[0]
    count = Fuse()
    _lived(quick_dir, story, count)
    for place in range(len(count.places)):
        world = _lived(quick_dir, story, Fuse(blows_at=place))
        (report,) = world.server.entries[RUN].accepted
        assert (report.result, report.log) == (b"42", "hello\n"), f"stopped at {place}"


def test_wherever_the_world_stops_what_is_owed_lies_sealed_and_arrives_as_it_lay(quick_dir: Path) -> None:
    (story,) = (story for story in STORIES if story.prepare is encrypted)
    count = Fuse()
    _lived(quick_dir, story, count)
    assert {"after folders.keep_reader_key", "after folders.seal_result"} <= set(count.places)
    for place, name in enumerate(count.places):
        world = _stopped(quick_dir, story, Fuse(blows_at=place))
        (run,) = read_history(world.state_dir, 1) or [{"state": "unknown"}]
        owed = run["state"] == "finished" or name == "after folders.seal_result"
        left = sorted(file.name for file in world.state_dir.glob("runs/*/result*"))
        assert left == ["result.sealed"] if owed else left in ([], ["result"], ["result.sealed"]), name
        _lived_on(world, story)
        (report,) = world.server.entries[RUN].accepted
        assert (report.result, report.is_sealed) == (b"sealed for key-3: 42", True), (
            f"stopped at {place}: {name}"
        )


def test_a_result_is_stored_twice_only_when_nobody_could_know_that_it_was(quick_dir: Path) -> None:
    (story,) = (story for story in STORIES if story.prepare is in_the_blob_store)
    count = Fuse()
    _lived(quick_dir, story, count)
    # the last call that stores, not one that fails
    stored_at = max(place for place, name in enumerate(count.places) if name == "after server.store_result")
    written_at = count.places.index("before journal.update", stored_at)
    # a listing that came meanwhile may have had the connection hurried; nothing else may come in between
    assert {name.split()[1] for name in count.places[stored_at + 1 : written_at]} <= {"channel.hurry"}
    for place, name in enumerate(count.places):
        world = _lived(quick_dir, story, Fuse(blows_at=place))
        (report,) = world.server.entries[RUN].accepted
        stored = [content for blob, content in world.server.blobs.items() if blob != INPUT]
        assert report.stored_as is not None, f"stopped at {place}: {name}"
        assert world.server.blobs[report.stored_as] == b"42", f"stopped at {place}: {name}"
        assert len(stored) == 1 + (stored_at <= place <= written_at), f"stopped at {place}: {name}"


def test_a_kill_while_the_agent_is_down_is_found_by_absence(quick_dir: Path) -> None:
    count = Fuse()
    _lived(quick_dir, STORIES[0], count)
    for place in range(len(count.places)):
        world = World(Path(tempfile.mkdtemp(dir=quick_dir)))
        world.server.add(make_open_run(1))
        with suppress(PowerCut):
            Life(world, Fuse(blows_at=place)).live(let_it_run)
        if world.server.entries[RUN].accepted:
            continue
        kill_it_on_arrival(world)
        Life(world, Fuse()).live(let_it_run)
        assert world.server.entries[RUN].accepted == [], f"stopped at {place}"
        assert world.engine.boxes == {}, f"stopped at {place}"
        assert list((world.state_dir / "runs").iterdir()) == [], f"stopped at {place}"


def _lived(folder: Path, story: Story, fuse: Fuse) -> World:
    return _lived_on(_stopped(folder, story, fuse), story)


def _stopped(folder: Path, story: Story, fuse: Fuse) -> World:
    world = World(Path(tempfile.mkdtemp(dir=folder)))
    world.server.add(make_open_run(1))
    story.prepare(world)
    with suppress(PowerCut):
        Life(world, fuse).live(story.outside)
    return world


def _lived_on(world: World, story: Story) -> World:
    story.outside(world)
    Life(world, Fuse()).live(story.outside)
    return world
