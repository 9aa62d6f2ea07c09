"""The control loop: which step of which run is next, and what each message does to that."""

import queue
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from node_agent.agent import (
    GRACE_SECONDS,
    LIVE_LOG_SECONDS,
    LONGEST_POLL_SECONDS,
    OBSERVE_SECONDS,
    PING_SECONDS,
    POLL_SECONDS,
    PRUNE_PAUSE_SECONDS,
    PRUNE_SECONDS,
    RELIST_SECONDS,
    SWEEP_SECONDS,
    Agent,
    Hands,
    Snapshot,
)
from node_agent.domain.keeping import PulledImage
from node_agent.domain.lifecycle import Advance, Wait
from node_agent.domain.messages import (
    ConfigurationRead,
    ContainerChanged,
    EngineLost,
    EngineWatched,
    ImagePulled,
    KillRequested,
    ListingFailed,
    Message,
    NodeCame,
    NodeFactsReady,
    NodeLeft,
    ParentsWeighed,
    PruneAsked,
    PullProgressed,
    ReloadAsked,
    RunsListed,
    ServerOffline,
    ServerOnline,
    StopAsked,
    StopKind,
    SubtaskCreated,
    SweepDone,
    TaskHinted,
)
from node_agent.domain.ports import OpenRun
from node_agent.domain.run import ContainerId, Outcome, Run, RunId, State, Status
from node_agent.domain.runlogs import LogPiece
from node_agent.domain.task import JobKey, TaskId
from node_agent.domain.turns import MAX_NESTING, Bounds
from node_agent.errors import (
    AccessDenied,
    ContainerLost,
    DiskFull,
    EngineUnreachable,
    NotAllowed,
    RegistryUnreachable,
    RunClosed,
    ServerUnreachable,
)
from node_agent.outbox import LONGEST_PAUSE_SECONDS
from node_agent.progress import MAX_BACKOFF_SECONDS, MAX_REGISTRY_SECONDS, SETTLE_SECONDS
from node_agent.runtable import RunTable
from node_agent.store.journal import SqliteJournal, read_history, read_images
from node_agent.store.pruning import BATCH
from node_agent.stuck import StuckStep
from tests.doubles.clock import ManualClock
from tests.doubles.core import ChannelBook, Faults, PatientPool, make_open_run, make_run, make_task

ADMITTED = Advance(State.ADMITTED, {"claimed_at": 5.0, "announced": Status.INITIALIZING})
PULLED = Advance(State.PULLED, {"image_id": "image-1"})
CREATED = Advance(State.CREATED, {"container": ContainerId("container-1"), "token_hash": "hash-1"})
RUNNING = Advance(State.RUNNING, {"started_at": 6.0})
ANNOUNCED = Wait({"announced": Status.ACTIVE}, seconds=0)
CAPTURED = Advance(State.CAPTURED, {"exit_code": 0})
FINISHED = Advance(State.FINISHED, {"outcome": Outcome.COMPLETED, "finished_at": 7.0})
STOPPED = Advance(State.FINISHED, {"outcome": Outcome.KILLED, "finished_at": 7.0})
REPORTED = Advance(State.REPORTED, {"announced": Status.COMPLETED})
REMOVED = Advance(State.REMOVED, {})
WAY = (ADMITTED, PULLED, CREATED, RUNNING, ANNOUNCED, CAPTURED, FINISHED, REPORTED, REMOVED)


class Whispers:
    """Live logs: which runs are followed, and what they are said to have written."""

    def __init__(self) -> None:
        self.followed: list[RunId] = []
        self.pieces: list[LogPiece] = []

    def keep_up(self, runs: Collection[Run]) -> list[LogPiece]:
        self.followed = [run.id for run in runs]
        given = [piece for piece in self.pieces if piece.run_id in self.followed]
        self.pieces = [piece for piece in self.pieces if piece not in given]
        return given


@dataclass
class NewRules:
    """A configuration that was read again."""

    bounds: Bounds = field(default_factory=lambda: Bounds(slots=2))
    live_logs: Whispers | None = None
    effects: int = 0

    def take_effect(self) -> None:
        self.effects += 1


class FaultyJournal(SqliteJournal):
    """The real journal, on a disk that is full when the test says so."""

    def __init__(self, state_dir: Path) -> None:
        super().__init__(state_dir)
        self.faults = Faults()

    def insert(self, run: Run) -> bool:
        self.faults.meet("insert")
        return super().insert(run)

    def update(self, before: Run, after: Run, *, at: float) -> None:
        self.faults.meet("update")
        super().update(before, after, at=at)

    def prune(self, *, before: float, spare: Collection[RunId]) -> int:
        self.faults.meet("prune")
        return super().prune(before=before, spare=spare)

    def note_image(self, image: PulledImage) -> None:
        self.faults.meet("note_image")
        super().note_image(image)


class Bench:
    """One agent with everything around it under the test's control."""

    def __init__(
        self,
        state_dir: Path,
        *,
        concurrent_runs: int = 2,
        keep_runs: float = float("inf"),
        table: type[RunTable] = RunTable,
    ) -> None:
        self.state_dir = state_dir
        self.table = table
        self.concurrent_runs = concurrent_runs
        self.keep_runs = keep_runs
        self.clock = ManualClock()
        self.journal = FaultyJournal(state_dir)
        self.lists: list[TaskId | None] = []
        self.sweeps = 0
        self.killed: list[RunId] = []
        self.stuck: tuple[StuckStep, ...] = ()
        self.asked_about: list[list[RunId]] = []
        self.shown: list[Snapshot] = []
        self.live_logs = Whispers()
        self.reloads: list[str] = []
        self.start()

    def start(self) -> None:
        """Begin a new process; what lay in the mailbox or was in flight is gone."""
        self.mailbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self.pool = PatientPool(self.mailbox)
        self.channel = ChannelBook()
        self.runs = self.table()
        self.agent = Agent(
            mailbox=self.mailbox,
            runs=self.runs,
            journal=self.journal,
            channel=self.channel,
            hands=Hands(
                submit=self.pool.submit,
                list_runs=self.lists.append,
                sweep=self._sweep,
                show=self.shown.append,
                kill=lambda run: self.killed.append(run.id),
                stuck=lambda: self.stuck,
                weigh=lambda runs: self.asked_about.append([run.id for run in runs]),
                live_logs=self.live_logs,
                reload=lambda: self.reloads.append("begun"),
                reloaded=lambda: self.reloads.append("done"),
            ),
            clock=self.clock,
            bounds=Bounds(slots=self.concurrent_runs),
            keep_runs=self.keep_runs,
        )
        self.agent.load()

    def _sweep(self) -> None:
        self.sweeps += 1

    def tell(self, *messages: Message) -> None:
        for message in messages:
            self.mailbox.put(message)
        self.agent.turn(0)

    def list_(self, *runs: OpenRun, complete: bool = True) -> None:
        self.clock.advance(0.001)
        self.tell(RunsListed(tuple(runs), complete=complete, asked_at=self.clock.monotonic()))

    def receive(self, *numbers: int, **changes: Any) -> None:
        self.list_(*(make_open_run(number, **changes) for number in numbers), complete=False)

    def succeed(self, run_id: int, *results: Advance | Wait) -> None:
        for result in results:
            self.pool.succeed(run_id, result)
            self.agent.turn(0)

    def fail(self, run_id: int, error: BaseException) -> None:
        self.pool.fail(run_id, error)
        self.agent.turn(0)

    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.agent.turn(0)

    def weigh(self, *parents: int, cpu_share: float = 0.0) -> None:
        """Let the engine show twice how much CPU these parents use."""
        for _ in range(2):
            self.clock.advance(1.0)
            now = self.clock.monotonic()
            self.tell(ParentsWeighed({RunId(parent): cpu_share * now for parent in parents}, at=now))

    def step_of(self, run_id: int = 1) -> str | None:
        return self.pool.step_of(run_id)

    def bring_to(self, state: State, run_id: int = 1) -> None:
        """Receive a run and do its steps up to *state*; the step after it is then in flight."""
        self.receive(run_id)
        for result in WAY:
            if self.state_of(run_id) == state.name.lower() and result is not ANNOUNCED:
                return
            self.succeed(run_id, result)

    def state_of(self, run_id: int = 1) -> str:
        state: str = self.row_of(run_id)["state"]
        return state

    def row_of(self, run_id: int = 1) -> dict[str, Any]:
        return next(row for row in read_history(self.state_dir, 100) if row["run_id"] == run_id)

    def snapshot(self) -> Snapshot:
        self.wait(1.1)
        return self.shown[-1]

    def store(self, run: Run) -> None:
        """Put a run into the journal as an earlier life left it."""
        self.journal.insert(run)


@pytest.fixture
def logged() -> Iterator[list[Any]]:
    with capture_logs() as entries:
        yield entries


@pytest.fixture
def bench(quick_dir: Path, logged: list[Any]) -> Iterator[Bench]:
    made = Bench(quick_dir)
    yield made
    made.journal.close()


@pytest.fixture
def forgetful(quick_dir: Path, logged: list[Any]) -> Iterator[Bench]:
    """An agent that keeps runs for an hour."""
    made = Bench(quick_dir, keep_runs=3600.0)
    yield made
    made.journal.close()


def events(logged: list[Any]) -> list[str]:
    return [entry["event"] for entry in logged]


# --- the way of a run -----------------------------------------------------------------------------------------


def test_a_run_goes_through_every_step_once_in_order(bench: Bench) -> None:
    bench.receive(1)
    bench.succeed(1, *WAY)
    assert [step for _, step in bench.pool.history] == [
        "admit",
        "pull",
        "create",
        "start",
        "announce",
        "observe",
        "filter",
        "report",
        "remove",
    ]
    assert bench.state_of() == "removed"
    assert not bench.runs.is_open(RunId(1))
    assert bench.snapshot().finished == 1


def test_status_changes_are_told_on_the_channel(bench: Bench) -> None:
    bench.receive(1)
    bench.succeed(1, *WAY)
    assert [status for _, status in bench.channel.statuses] == [
        Status.INITIALIZING,
        Status.ACTIVE,
        Status.COMPLETED,
    ]


def test_a_run_listed_twice_is_taken_in_once(bench: Bench) -> None:
    bench.receive(1)
    bench.receive(1)
    assert bench.pool.history == [(1, "admit")]


def test_a_run_listed_after_its_end_stays_ended(bench: Bench, logged: list[Any]) -> None:
    bench.receive(1)
    bench.succeed(1, *WAY)
    bench.receive(1, claimed_at=1.0)
    assert bench.step_of() is None
    assert bench.state_of() == "removed"
    assert "run_listed_after_its_end" in events(logged)


def test_a_listing_overtaken_by_the_end_of_a_run_does_not_start_it_again(bench: Bench) -> None:
    bench.receive(1)
    asked_at = bench.clock.monotonic()
    bench.succeed(1, *WAY)
    bench.tell(RunsListed((make_open_run(1),), complete=True, asked_at=asked_at))
    assert bench.state_of() == "removed"


def test_the_number_of_a_deleted_run_may_be_given_to_another(bench: Bench) -> None:
    bench.receive(1)
    bench.succeed(1, *WAY)
    bench.receive(1)
    assert bench.state_of() == "received"
    assert bench.step_of() == "admit"
    bench.succeed(1, *WAY)
    assert bench.state_of() == "removed"


def test_a_faulty_run_is_taken_in_so_that_it_can_be_reported(bench: Bench) -> None:
    bench.receive(1, fault="no input")
    assert bench.step_of() == "admit"
    assert bench.pool.in_flight[RunId(1)][1].fault == "no input"


def test_a_running_container_is_looked_at_again_and_again(bench: Bench) -> None:
    bench.bring_to(State.RUNNING)
    assert bench.step_of() == "observe"
    bench.succeed(1, Wait({}))
    assert bench.step_of() is None
    bench.wait(OBSERVE_SECONDS)
    assert bench.step_of() == "observe"


def test_a_container_event_has_the_run_looked_at(bench: Bench) -> None:
    bench.bring_to(State.RUNNING)
    bench.succeed(1, Wait({}))
    bench.tell(ContainerChanged(RunId(1)))
    assert bench.step_of() == "observe"


def test_a_container_event_during_a_look_has_it_repeated(bench: Bench) -> None:
    bench.bring_to(State.RUNNING)
    bench.tell(ContainerChanged(RunId(1)))
    bench.succeed(1, Wait({}))
    assert bench.step_of() == "observe"


def test_a_container_event_says_nothing_before_the_start_or_of_strangers(bench: Bench) -> None:
    bench.bring_to(State.CREATED)
    bench.tell(ContainerChanged(RunId(1)), ContainerChanged(RunId(99)))
    bench.fail(1, EngineUnreachable("away"))
    assert bench.step_of() is None


def test_a_step_may_ask_to_be_called_again_later(bench: Bench) -> None:
    bench.bring_to(State.RUNNING)
    bench.succeed(1, Wait({}, seconds=2))
    bench.wait(1.9)
    assert bench.step_of() is None
    bench.wait(0.2)
    assert bench.step_of() == "observe"


# --- slots ----------------------------------------------------------------------------------------------------


def test_the_oldest_runs_get_the_slots(bench: Bench) -> None:
    bench.receive(3, 2, 1)
    assert bench.pool.history == [(1, "admit"), (2, "admit")]


def test_a_slot_is_free_when_the_container_has_ended(bench: Bench) -> None:
    bench.receive(1, 2, 3)
    bench.succeed(1, ADMITTED, PULLED, CREATED, RUNNING, ANNOUNCED)
    assert bench.step_of(3) is None
    bench.succeed(1, CAPTURED)
    assert bench.step_of(3) == "admit"


def test_a_postponed_admission_does_not_hold_a_slot(bench: Bench) -> None:
    bench.receive(1, 2, 3)
    bench.fail(1, ServerUnreachable("away"))
    assert bench.step_of(3) == "admit"


def test_a_parent_that_waits_lends_its_slot_to_its_subtask(quick_dir: Path, logged: list[Any]) -> None:
    bench = Bench(quick_dir, concurrent_runs=1)
    bench.bring_to(State.RUNNING)
    bench.receive(2)
    assert bench.step_of(2) is None
    bench.tell(SubtaskCreated(RunId(1)), SubtaskCreated(RunId(1)), SubtaskCreated(RunId(99)))
    bench.weigh(1)
    assert bench.step_of(2) == "admit"
    assert events(logged).count("slot_lent_to_subtasks") == 1
    bench.start()
    bench.receive(3)
    bench.weigh(1)
    assert bench.step_of(2) == "admit"
    assert bench.step_of(3) is None
    bench.journal.close()


def test_a_subtask_gets_its_parents_slot_even_when_the_agent_died_before_it_noted_it(quick_dir: Path) -> None:
    bench = Bench(quick_dir, concurrent_runs=1)
    bench.bring_to(State.RUNNING)
    bench.start()
    bench.receive(2, task=make_task(2, parent_id=TaskId(1)))
    bench.weigh(1)
    assert bench.step_of(2) == "admit"
    bench.journal.close()


def test_a_parent_that_uses_cpu_keeps_its_slot_and_the_engine_is_asked_only_while_somebody_waits(
    quick_dir: Path,
) -> None:
    bench = Bench(quick_dir, concurrent_runs=1)
    bench.bring_to(State.RUNNING)
    bench.tell(SubtaskCreated(RunId(1)))
    bench.wait(5)
    assert bench.asked_about == []
    bench.receive(2, task=make_task(2, parent_id=TaskId(1)))
    bench.wait(5)
    bench.wait(5)
    assert bench.asked_about == [[1]], "asked again before the engine answered"
    bench.weigh(1, cpu_share=0.9)
    assert bench.step_of(2) is None
    bench.weigh(1, cpu_share=0.9001)
    assert bench.step_of(2) is None
    bench.weigh(1)
    assert bench.step_of(2) == "admit"
    bench.journal.close()


def test_a_task_nested_too_deep_is_refused(quick_dir: Path) -> None:
    bench = Bench(quick_dir, concurrent_runs=1)
    bench.receive(1)
    for number in range(2, MAX_NESTING + 3):
        bench.receive(number, task=make_task(number, parent_id=TaskId(number - 1)))
    assert bench.step_of(MAX_NESTING + 1) is None
    assert bench.step_of(MAX_NESTING + 2) == "stop"
    refused = bench.runs[RunId(MAX_NESTING + 2)]
    assert refused.ending is Outcome.NOT_ALLOWED
    assert refused.reason == "The task is nested 9 levels deep; this node allows 8."
    bench.journal.close()


# --- kill -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [state for state in State if state < State.FINISHED])
def test_a_kill_is_done_right_after_the_step_in_flight(bench: Bench, state: State) -> None:
    bench.bring_to(state)
    step_in_flight = bench.step_of()
    assert step_in_flight is not None
    assert bench.runs.is_wanted(RunId(1))
    bench.tell(KillRequested(frozenset({RunId(1)})))
    assert bench.step_of() == step_in_flight
    assert not bench.runs.is_wanted(RunId(1))
    bench.fail(1, RunClosed("not wanted"))
    assert bench.step_of() == "stop"
    bench.succeed(1, STOPPED, REPORTED, REMOVED)
    assert bench.row_of()["outcome"] is Outcome.KILLED


@pytest.mark.parametrize("state", [state for state in State if state < State.CAPTURED])
def test_a_kill_stands_also_when_the_step_in_flight_succeeds(bench: Bench, state: State) -> None:
    bench.bring_to(state)
    bench.tell(KillRequested(frozenset({RunId(1)})))
    bench.succeed(1, *(result for result in WAY if _follows(result, state)))
    assert bench.step_of() == "stop"


def _follows(result: Advance | Wait, state: State) -> bool:
    return isinstance(result, Advance) and result.to == state + 1


def test_a_kill_during_the_filter_comes_too_late(bench: Bench) -> None:
    bench.bring_to(State.CAPTURED)
    bench.tell(KillRequested(frozenset({RunId(1)})))
    bench.succeed(1, FINISHED)
    assert bench.step_of() == "report"
    assert bench.row_of()["outcome"] is Outcome.COMPLETED


@pytest.mark.parametrize("state", [State.FINISHED, State.REPORTED])
def test_a_kill_after_the_end_changes_nothing(bench: Bench, state: State) -> None:
    bench.bring_to(state)
    step_in_flight = bench.step_of()
    bench.tell(KillRequested(None))
    assert bench.step_of() == step_in_flight
    assert bench.row_of()["outcome"] is Outcome.COMPLETED


def test_a_kill_without_names_means_every_run(bench: Bench) -> None:
    bench.receive(1, 2, 3)
    bench.tell(KillRequested(None))
    assert bench.step_of(3) == "stop"
    bench.fail(1, ServerUnreachable("away"))
    assert bench.step_of(1) == "stop"


def test_a_kill_of_one_run_leaves_the_others_alone(bench: Bench) -> None:
    bench.receive(1, 2)
    bench.tell(KillRequested(frozenset({RunId(2), RunId(77)})))
    assert bench.runs.is_wanted(RunId(1))
    assert not bench.runs.is_wanted(RunId(77))


def test_a_run_without_a_slot_is_killed_at_once(bench: Bench) -> None:
    bench.receive(1, 2, 3)
    bench.tell(KillRequested(frozenset({RunId(3)})))
    assert bench.step_of(3) == "stop"


def test_the_first_ending_stands(bench: Bench) -> None:
    bench.receive(1)
    bench.fail(1, NotAllowed("no rule names it"))
    bench.tell(KillRequested(None))
    assert bench.pool.in_flight[RunId(1)][1].ending is Outcome.NOT_ALLOWED


# --- absence --------------------------------------------------------------------------------------------------


def test_a_run_that_is_closed_at_the_server_is_stopped_and_removed(bench: Bench) -> None:
    bench.bring_to(State.RUNNING)
    bench.succeed(1, Wait({}))
    bench.list_()
    assert bench.step_of() == "verify"
    bench.fail(1, RunClosed("closed"))
    assert bench.step_of() == "stop"
    assert bench.pool.in_flight[RunId(1)][1].ending is Outcome.CLOSED


def test_absence_that_was_only_a_page_shift_changes_nothing(bench: Bench) -> None:
    bench.bring_to(State.RUNNING)
    bench.succeed(1, Wait({}))
    bench.list_()
    bench.succeed(1, Wait({}, seconds=0))
    assert bench.step_of() == "observe"
    bench.succeed(1, CAPTURED)
    assert bench.step_of() == "filter"


def test_absence_is_asked_about_after_the_step_in_flight(bench: Bench) -> None:
    bench.bring_to(State.ADMITTED)
    bench.list_()
    assert bench.step_of() == "pull"
    bench.succeed(1, PULLED)
    assert bench.step_of() == "verify"


def test_an_incomplete_listing_proves_no_absence(bench: Bench) -> None:
    bench.bring_to(State.RUNNING)
    bench.succeed(1, Wait({}))
    bench.list_(make_open_run(2), complete=False)
    assert bench.step_of(1) is None


def test_a_listing_asked_for_before_the_run_was_known_proves_no_absence(bench: Bench) -> None:
    asked_at = bench.clock.monotonic()
    bench.clock.advance(1)
    bench.receive(1)
    bench.tell(RunsListed((), complete=True, asked_at=asked_at))
    bench.succeed(1, ADMITTED)
    assert bench.step_of() == "pull"


def test_a_finished_run_is_not_missed(bench: Bench) -> None:
    bench.bring_to(State.FINISHED)
    bench.list_()
    bench.fail(1, ServerUnreachable("away"))
    bench.wait(MAX_BACKOFF_SECONDS)
    assert bench.step_of() == "report"


def test_when_the_question_fails_the_next_listing_asks_again(bench: Bench) -> None:
    bench.bring_to(State.RUNNING)
    bench.succeed(1, Wait({}))
    bench.list_()
    bench.fail(1, ServerUnreachable("away"))
    bench.wait(OBSERVE_SECONDS)
    assert bench.step_of() == "observe"
    bench.list_()
    bench.succeed(1, Wait({}))
    assert bench.step_of() == "verify"


def test_a_kill_makes_the_question_needless(bench: Bench) -> None:
    bench.bring_to(State.ADMITTED)
    bench.list_()
    bench.tell(KillRequested(None))
    bench.succeed(1, PULLED)
    assert bench.step_of() == "stop"


# --- trouble --------------------------------------------------------------------------------------------------


def test_transient_trouble_is_tried_again_ever_more_slowly(bench: Bench) -> None:
    bench.receive(1)
    bench.succeed(1, ADMITTED)
    pauses = []
    for _ in range(10):
        bench.fail(1, EngineUnreachable("away"))
        began = bench.clock.monotonic()
        while bench.step_of() is None:
            bench.wait(0.25)
        pauses.append(bench.clock.monotonic() - began)
    assert pauses == sorted(pauses)
    assert pauses[0] <= 1.0
    assert pauses[-1] == MAX_BACKOFF_SECONDS


def test_success_makes_the_next_trouble_the_first_again(bench: Bench) -> None:
    bench.receive(1)
    for _ in range(8):
        bench.fail(1, ServerUnreachable("away"))
        bench.wait(MAX_BACKOFF_SECONDS)
    bench.succeed(1, ADMITTED)
    bench.fail(1, EngineUnreachable("away"))
    bench.wait(1.0)
    assert bench.step_of() == "pull"


def test_server_trouble_is_said_once_and_remembered(bench: Bench, logged: list[Any]) -> None:
    bench.receive(1, 2)
    bench.fail(1, ServerUnreachable("no answer"))
    bench.fail(2, AccessDenied("no such key"))
    assert events(logged).count("server_lost") == 1
    assert bench.snapshot().server_problem == "no such key"


def test_everything_postponed_is_tried_at_once_when_the_server_is_back(
    bench: Bench, logged: list[Any]
) -> None:
    bench.bring_to(State.FINISHED)
    for _ in range(8):
        bench.fail(1, ServerUnreachable("away"))
        bench.wait(LONGEST_PAUSE_SECONDS)
    bench.fail(1, ServerUnreachable("away"))
    bench.list_()
    assert bench.step_of() == "report"
    assert "server_back" in events(logged)
    assert bench.snapshot().server_problem == ""


def test_a_listing_while_all_is_well_hurries_nothing(bench: Bench) -> None:
    bench.receive(1)
    bench.succeed(1, ADMITTED)
    bench.fail(1, EngineUnreachable("away"))
    bench.list_(make_open_run(1))
    assert bench.step_of() is None


def test_everything_postponed_is_tried_at_once_when_the_engine_is_watched_again(
    bench: Bench, logged: list[Any]
) -> None:
    bench.receive(1)
    bench.succeed(1, ADMITTED)
    bench.tell(EngineLost("broken pipe"))
    bench.fail(1, EngineUnreachable("away"))
    assert bench.snapshot().engine_problem == "away"
    bench.fail(1, EngineUnreachable("away"))
    bench.tell(EngineWatched())
    assert bench.step_of() == "pull"
    assert bench.snapshot().engine_problem == ""
    assert events(logged).count("engine_lost") == 1


def test_running_containers_are_looked_at_when_the_engine_is_watched_again(bench: Bench) -> None:
    bench.bring_to(State.RUNNING)
    bench.succeed(1, Wait({}))
    bench.tell(EngineWatched())
    assert bench.step_of() == "observe"


def test_one_engine_call_that_failed_is_forgotten_when_the_next_succeeds(
    bench: Bench, logged: list[Any]
) -> None:
    bench.bring_to(State.RUNNING)
    bench.fail(1, EngineUnreachable("time-out"))
    bench.wait(OBSERVE_SECONDS)
    bench.succeed(1, Wait({}))
    assert bench.snapshot().engine_problem == ""
    assert "engine_back" in events(logged)


def test_a_server_step_says_nothing_of_the_engine(bench: Bench) -> None:
    bench.receive(1)
    bench.tell(EngineLost("broken pipe"))
    bench.succeed(1, ADMITTED)
    assert bench.snapshot().engine_problem == "broken pipe"


def test_a_failed_announcement_does_not_hold_the_run_up(bench: Bench) -> None:
    bench.bring_to(State.CREATED)
    bench.succeed(1, RUNNING)
    assert bench.step_of() == "announce"
    bench.fail(1, ServerUnreachable("away"))
    assert bench.step_of() == "observe"
    bench.succeed(1, CAPTURED, FINISHED)
    assert bench.step_of() == "report"


def test_a_failed_announcement_is_tried_again_with_the_next_look(bench: Bench) -> None:
    bench.bring_to(State.CREATED)
    bench.succeed(1, RUNNING)
    bench.fail(1, ServerUnreachable("away"))
    bench.succeed(1, Wait({}))
    bench.wait(OBSERVE_SECONDS)
    assert bench.step_of() == "announce"


def test_a_run_closed_while_it_is_announced_is_stopped(bench: Bench) -> None:
    bench.bring_to(State.CREATED)
    bench.succeed(1, RUNNING)
    bench.fail(1, RunClosed("finished already"))
    assert bench.step_of() == "stop"


def test_the_report_is_tried_without_end(bench: Bench) -> None:
    bench.bring_to(State.FINISHED)
    for error in [ServerUnreachable("away"), AccessDenied("key"), ContainerLost("odd"), OSError("odd")] * 5:
        assert bench.step_of() == "report"
        bench.fail(1, error)
        assert bench.step_of() is None
        bench.wait(LONGEST_PAUSE_SECONDS)
    bench.succeed(1, REPORTED, REMOVED)
    assert bench.state_of() == "removed"


def test_a_report_the_server_refuses_for_good_ends_the_matter(bench: Bench, logged: list[Any]) -> None:
    bench.bring_to(State.FINISHED)
    bench.fail(1, RunClosed("has finished_at"))
    assert bench.step_of() == "remove"
    assert "report_refused" in events(logged)


def test_a_bug_in_the_removal_loses_nothing(bench: Bench, logged: list[Any]) -> None:
    bench.bring_to(State.REPORTED)
    bench.fail(1, OSError("odd"))
    assert bench.step_of() is None
    bench.wait(MAX_BACKOFF_SECONDS)
    assert bench.step_of() == "remove"
    assert "step_bug" in events(logged)


def test_a_bug_in_a_step_ends_its_run_only(bench: Bench, logged: list[Any]) -> None:
    bench.receive(1, 2)
    bench.fail(1, KeyError("secret-of-the-input"))
    assert bench.step_of(1) == "stop"
    assert bench.step_of(2) == "admit"
    run = bench.pool.in_flight[RunId(1)][1]
    assert run.ending is Outcome.BUG
    assert "KeyError" in run.reason
    assert "secret" not in run.reason
    assert "step_bug" in events(logged)


@pytest.mark.parametrize("error", [OSError("odd"), ContainerLost("gone"), RunClosed("closed")])
def test_a_stop_that_fails_is_tried_again_later_and_not_at_once(bench: Bench, error: Exception) -> None:
    bench.receive(1)
    bench.tell(KillRequested(None))
    bench.fail(1, RunClosed("not wanted"))
    bench.fail(1, error)
    assert bench.step_of() is None
    bench.wait(MAX_BACKOFF_SECONDS)
    assert bench.step_of() == "stop"


def test_a_failed_run_ends_with_the_outcome_of_its_error(bench: Bench) -> None:
    bench.receive(1)
    bench.fail(1, NotAllowed("no rule names it"))
    assert bench.pool.in_flight[RunId(1)][1].ending is Outcome.NOT_ALLOWED
    assert bench.pool.in_flight[RunId(1)][1].reason == "no rule names it"


# --- a full disk ----------------------------------------------------------------------------------------------


def test_a_step_whose_result_could_not_be_written_is_repeated(bench: Bench) -> None:
    bench.receive(1)
    bench.journal.faults.plan("update", DiskFull("no space"))
    bench.succeed(1, ADMITTED)
    assert bench.state_of() == "received"
    bench.wait(MAX_BACKOFF_SECONDS)
    assert bench.step_of() == "admit"
    bench.succeed(1, ADMITTED)
    assert bench.state_of() == "admitted"


def test_an_ending_that_could_not_be_written_is_decided_again(bench: Bench) -> None:
    bench.receive(1)
    bench.journal.faults.plan("update", DiskFull("no space"))
    bench.fail(1, NotAllowed("no rule names it"))
    bench.wait(MAX_BACKOFF_SECONDS)
    assert bench.step_of() == "admit"


def test_runs_that_could_not_be_written_are_listed_again_soon(bench: Bench) -> None:
    bench.journal.faults.plan("insert", DiskFull("no space"))
    bench.receive(1)
    assert bench.step_of() is None
    bench.lists.clear()
    bench.wait(RELIST_SECONDS)
    assert bench.lists == [None]
    bench.receive(1)
    assert bench.step_of() == "admit"


# --- restart --------------------------------------------------------------------------------------------------

STEP_AFTER_RESTART = {
    State.RECEIVED: "admit",
    State.ADMITTED: "pull",
    State.PULLED: "create",
    State.CREATED: "start",
    State.RUNNING: "observe",
    State.CAPTURED: "filter",
    State.FINISHED: "report",
    State.REPORTED: "remove",
}


@pytest.mark.parametrize(("state", "step"), STEP_AFTER_RESTART.items())
def test_after_a_restart_every_run_goes_on_where_it_was(bench: Bench, state: State, step: str) -> None:
    bench.bring_to(state)
    bench.start()
    bench.agent.turn(0)
    assert bench.step_of() == step


@pytest.mark.parametrize("state", [state for state in State if state < State.FINISHED])
def test_after_a_restart_an_ending_still_stands(bench: Bench, state: State) -> None:
    bench.bring_to(state)
    bench.tell(KillRequested(None))
    bench.start()
    bench.agent.turn(0)
    assert bench.step_of() == "stop"


def test_after_a_restart_the_token_of_a_running_container_is_known(bench: Bench) -> None:
    bench.bring_to(State.RUNNING)
    bench.start()
    assert bench.runs.run_of_token("hash-1") == 1


def test_after_a_restart_a_run_killed_meanwhile_is_found_by_absence(bench: Bench) -> None:
    bench.bring_to(State.RUNNING)
    bench.start()
    bench.agent.turn(0)
    bench.list_()
    bench.succeed(1, Wait({}))
    assert bench.step_of() == "verify"


def test_removed_runs_are_not_taken_up(bench: Bench, logged: list[Any]) -> None:
    bench.receive(1)
    bench.succeed(1, *WAY)
    bench.start()
    assert not bench.runs.is_open(RunId(1))
    assert "runs_taken_up" not in events(logged)


# --- what others may ask --------------------------------------------------------------------------------------


def test_a_token_is_good_only_while_its_container_lives(bench: Bench) -> None:
    bench.bring_to(State.PULLED)
    assert bench.runs.run_of_token("hash-1") is None
    bench.succeed(1, CREATED)
    assert bench.runs.run_of_token("hash-1") == 1
    bench.succeed(1, RUNNING, ANNOUNCED, CAPTURED)
    assert bench.runs.run_of_token("hash-1") is None


def test_a_token_is_worthless_as_soon_as_the_run_is_to_end(bench: Bench) -> None:
    bench.bring_to(State.RUNNING)
    bench.tell(KillRequested(None))
    assert bench.runs.run_of_token("hash-1") is None


def test_a_job_is_open_while_one_of_its_runs_is(bench: Bench) -> None:
    bench.receive(1)
    assert bench.runs.job_is_open(JobKey("7-0"))
    assert not bench.runs.job_is_open(JobKey("7-1"))


# --- the server's messages ------------------------------------------------------------------------------------


def test_coming_online_lists_everything_and_shows_presence(bench: Bench, logged: list[Any]) -> None:
    bench.tell(ServerOnline(), ServerOnline())
    assert bench.lists == [None, None]
    assert bench.channel.pings == 2
    assert bench.snapshot().online
    assert events(logged).count("server_online") == 1


def test_presence_is_shown_only_while_online(bench: Bench, logged: list[Any]) -> None:
    bench.wait(PING_SECONDS)
    assert bench.channel.pings == 0
    bench.tell(ServerOnline())
    bench.wait(PING_SECONDS)
    assert bench.channel.pings == 2
    bench.tell(ServerOffline("closed"), ServerOffline("closed"))
    bench.wait(PING_SECONDS)
    assert bench.channel.pings == 2
    assert events(logged).count("server_offline") == 1


def test_another_agent_with_the_same_key_is_a_problem_until_it_leaves(
    bench: Bench, logged: list[Any]
) -> None:
    bench.tell(ServerOnline(), NodeCame(), NodeCame())
    assert "a key of its own" in bench.snapshot().company_problem
    pings = bench.channel.pings
    bench.tell(NodeLeft())
    assert bench.snapshot().company_problem == ""
    assert bench.channel.pings == pings + 1, "the server takes this node for absent"
    assert events(logged).count("another_agent_noticed") == 1
    assert events(logged).count("another_agent_left") == 1


def test_a_hint_lists_the_runs_of_its_task(bench: Bench) -> None:
    bench.tell(TaskHinted(TaskId(12)))
    assert bench.lists == [TaskId(12)]


def test_everything_is_listed_from_time_to_time(bench: Bench) -> None:
    bench.wait(POLL_SECONDS)
    assert bench.lists == [None]


def listed_slowly(bench: Bench, seconds: float) -> None:
    asked_at = bench.clock.monotonic()
    bench.clock.advance(seconds)
    bench.tell(RunsListed((), complete=True, asked_at=asked_at))
    bench.lists.clear()


def test_a_listing_that_takes_long_takes_at_most_a_tenth_of_the_time(bench: Bench) -> None:
    bench.tell(ServerOnline())
    listed_slowly(bench, 6.0)
    bench.wait(59.0)
    assert bench.lists == []
    bench.wait(1.0)
    assert bench.lists == [None]


def test_however_long_a_listing_takes_the_next_one_comes(bench: Bench) -> None:
    bench.tell(ServerOnline())
    listed_slowly(bench, 1000.0)
    bench.wait(LONGEST_POLL_SECONDS)
    assert bench.lists == [None]


def test_while_no_event_would_tell_of_new_tasks_slow_listings_are_not_put_off(bench: Bench) -> None:
    listed_slowly(bench, 6.0)
    bench.wait(POLL_SECONDS)
    assert bench.lists == [None]


def test_a_listing_that_failed_is_repeated_soon(bench: Bench, logged: list[Any]) -> None:
    bench.tell(ListingFailed(ServerUnreachable("away"), None))
    bench.wait(RELIST_SECONDS)
    assert bench.lists == [None]
    assert "server_lost" in events(logged)


def test_node_facts_are_shared_as_soon_as_both_are_there(bench: Bench) -> None:
    bench.tell(NodeFactsReady({"database_labels": ["default"]}))
    assert bench.channel.facts == []
    bench.tell(ServerOnline())
    assert bench.channel.facts == [{"database_labels": ["default"]}]
    bench.tell(NodeFactsReady({"database_labels": []}))
    assert len(bench.channel.facts) == 2


def test_progress_of_a_pull_is_logged_for_known_runs(bench: Bench, logged: list[Any]) -> None:
    bench.receive(1)
    bench.tell(PullProgressed(RunId(1), 5, 10), PullProgressed(RunId(9), 5, 10))
    assert events(logged).count("image_pull_progress") == 1


# --- sweep and signs of life ----------------------------------------------------------------------------------


def test_strays_are_swept_after_the_first_complete_listing(bench: Bench) -> None:
    bench.list_(complete=False)
    assert bench.sweeps == 0
    bench.list_()
    bench.list_()
    assert bench.sweeps == 1
    bench.tell(SweepDone(0, None))
    bench.wait(SWEEP_SECONDS)
    assert bench.sweeps == 2


def test_two_sweeps_never_run_at_the_same_time(bench: Bench) -> None:
    bench.list_()
    bench.wait(SWEEP_SECONDS)
    assert bench.sweeps == 1
    assert bench.snapshot().sweeping


def test_a_sweep_asked_for_during_another_one_follows_it(bench: Bench) -> None:
    bench.list_()
    bench.tell(PruneAsked())
    assert (bench.sweeps, bench.snapshot().sweeps) == (1, 0)
    bench.tell(SweepDone(0, None))
    assert (bench.sweeps, bench.snapshot().sweeps) == (2, 1)
    assert bench.snapshot().sweeping
    bench.tell(SweepDone(0, None))
    assert (bench.sweeps, bench.snapshot().sweeps) == (2, 2)
    assert not bench.snapshot().sweeping


def test_a_sweep_that_is_asked_for_begins_at_once(bench: Bench) -> None:
    bench.tell(PruneAsked())
    assert bench.sweeps == 1


def test_old_runs_are_forgotten_batch_by_batch_once_the_server_has_listed_its_own(
    forgetful: Bench, logged: list[Any]
) -> None:
    old = [make_run(number, state=State.REMOVED, finished_at=1.0) for number in range(1, BATCH + 11)]
    for run in old:
        forgetful.store(run)
    forgetful.tell(PruneAsked())
    assert "journal_pruned" not in events(logged)
    forgetful.list_()
    assert [line["runs"] for line in logged if line["event"] == "journal_pruned"] == [BATCH]
    forgetful.wait(PRUNE_PAUSE_SECONDS)
    forgetful.wait(PRUNE_PAUSE_SECONDS)
    assert [line["runs"] for line in logged if line["event"] == "journal_pruned"] == [BATCH, 10]
    assert not any(forgetful.journal.knows(run.id) for run in old)


def test_a_run_the_server_still_lists_is_never_forgotten(forgetful: Bench) -> None:
    for number in (1, 2):
        forgetful.store(make_run(number, state=State.REMOVED, finished_at=1.0, claimed_at=1.0))
    forgetful.list_(make_open_run(1, claimed_at=1.0))
    assert forgetful.journal.knows(RunId(1))
    assert not forgetful.journal.knows(RunId(2))
    assert forgetful.step_of(1) is None


def test_a_run_that_is_not_reported_is_never_forgotten(forgetful: Bench) -> None:
    forgetful.bring_to(State.FINISHED)
    forgetful.list_(make_open_run(1))
    forgetful.wait(1_000_000_000.0)
    forgetful.list_()
    assert forgetful.state_of() == "finished"


def test_a_journal_that_cannot_be_pruned_now_does_not_stop_the_agent(
    forgetful: Bench, logged: list[Any]
) -> None:
    forgetful.list_()
    forgetful.journal.faults.plan("prune", DiskFull("full"))
    forgetful.wait(PRUNE_SECONDS)
    assert "disk_lost" in events(logged)
    forgetful.receive(1)
    assert forgetful.step_of(1) == "admit"


def test_an_image_that_could_not_be_noted_is_noted_later(bench: Bench) -> None:
    image = PulledImage(image_id="a", reference="r/a:1", digest=None, pulled_at=1.0, used_at=1.0)
    bench.journal.faults.plan("note_image", DiskFull("full"))
    bench.tell(ImagePulled(image))
    assert read_images(bench.state_dir) == []
    bench.wait(PRUNE_SECONDS)
    assert read_images(bench.state_dir) == [image]


def test_an_image_that_a_pull_brought_is_noted_and_forgotten_when_it_went(bench: Bench) -> None:
    image = PulledImage(image_id="a", reference="r/a:1", digest="d", pulled_at=1.0, used_at=1.0)
    bench.tell(ImagePulled(image))
    assert read_images(bench.state_dir) == [image]
    bench.tell(SweepDone(1, None, ("a",)))
    assert read_images(bench.state_dir) == []


def test_a_sweep_that_could_not_be_done_is_repeated(bench: Bench, logged: list[Any]) -> None:
    bench.list_()
    bench.tell(SweepDone(0, EngineUnreachable("away")))
    bench.list_()
    assert bench.sweeps == 2
    bench.tell(SweepDone(3, None), SweepDone(0, None), SweepDone(0, OSError("odd")))
    assert events(logged).count("strays_removed") == 1
    assert "sweep_bug" in events(logged)


def test_the_snapshot_counts_waiting_working_and_owed_runs(bench: Bench) -> None:
    bench.receive(1, 2, 3)
    bench.succeed(1, ADMITTED, PULLED, CREATED, RUNNING, ANNOUNCED, CAPTURED, FINISHED)
    bench.succeed(2, ADMITTED)
    seen = bench.snapshot()
    assert (seen.waiting, seen.working, seen.owed, seen.oldest_owed_at) == (1, 1, 1, 7.0)
    bench.succeed(1, REPORTED)
    seen = bench.snapshot()
    assert (seen.waiting, seen.working, seen.owed, seen.oldest_owed_at) == (1, 1, 0, None)


def test_the_heartbeat_carries_the_counters(bench: Bench, logged: list[Any]) -> None:
    bench.receive(1)
    bench.wait(300.0)
    (beat,) = [entry for entry in logged if entry["event"] == "heartbeat"]
    assert beat["waiting"] == 1
    assert beat["server_problem"] is None


def test_every_line_about_a_run_carries_its_ids(bench: Bench, logged: list[Any]) -> None:
    bench.receive(1)
    bench.succeed(1, *WAY)
    lines = [entry for entry in logged if entry["event"].startswith("run_")]
    assert len(lines) == 9
    assert all({"run_id", "task_id", "image"} <= entry.keys() for entry in lines)


# --- stopping -------------------------------------------------------------------------------------------------


def test_stop_waits_for_the_steps_in_flight_and_begins_no_other(bench: Bench) -> None:
    bench.receive(1)
    bench.mailbox.put(StopAsked(StopKind.STOP))
    bench.pool.succeed(1, ADMITTED)
    bench.agent.run()
    assert bench.step_of() is None
    assert bench.state_of() == "admitted"


def test_stop_does_not_wait_for_ever(bench: Bench) -> None:
    bench.receive(1)
    bench.tell(StopAsked(StopKind.STOP))
    bench.clock.advance(GRACE_SECONDS)
    bench.agent.run()
    assert bench.state_of() == "received"


def test_now_waits_for_nothing(bench: Bench) -> None:
    bench.receive(1)
    bench.tell(StopAsked(StopKind.NOW))
    bench.agent.run()
    assert bench.state_of() == "received"


def test_drain_takes_nothing_new_and_ends_when_all_is_reported(bench: Bench) -> None:
    bench.bring_to(State.RUNNING)
    bench.tell(StopAsked(StopKind.DRAIN))
    bench.receive(2)
    assert bench.step_of(2) is None
    assert bench.snapshot().draining
    bench.succeed(1, CAPTURED, FINISHED, REPORTED)
    bench.pool.succeed(1, REMOVED)
    bench.agent.run()
    assert bench.state_of(1) == "removed"
    assert bench.state_of(2) == "received"


def test_drain_admits_the_subtasks_that_running_work_waits_for(bench: Bench) -> None:
    bench.bring_to(State.RUNNING)
    bench.tell(SubtaskCreated(RunId(1)), StopAsked(StopKind.DRAIN))
    bench.receive(2, task=make_task(2, parent_id=TaskId(1)))
    bench.receive(3, task=make_task(3, parent_id=TaskId(55)))
    assert bench.step_of(2) == "admit"
    assert bench.step_of(3) is None


def test_a_stop_ends_a_drain(bench: Bench) -> None:
    bench.bring_to(State.RUNNING)
    bench.tell(StopAsked(StopKind.DRAIN), StopAsked(StopKind.STOP))
    bench.pool.succeed(1, Wait({}))
    bench.agent.run()
    assert bench.state_of() == "running"


def test_messages_that_came_together_are_all_taken_in(bench: Bench) -> None:
    bench.mailbox.put(RunsListed((make_open_run(1),), complete=False, asked_at=0.0))
    bench.mailbox.put(StopAsked(StopKind.NOW))
    bench.agent.run()
    assert bench.state_of() == "received"


def test_a_stored_run_is_taken_up_as_it_is(bench: Bench) -> None:
    stored = replace(make_run(5), fault="unreadable", entered=bench.clock.mark())
    bench.store(stored)
    bench.start()
    bench.agent.turn(0)
    assert bench.pool.in_flight[RunId(5)][1] == stored


# --- live logs ------------------------------------------------------------------------------------------------


def test_a_log_is_followed_only_once_the_server_knows_that_the_run_is_active(bench: Bench) -> None:
    bench.tell(ServerOnline())
    bench.bring_to(State.CREATED)
    bench.succeed(1, RUNNING)
    assert bench.step_of() == "announce"
    bench.wait(LIVE_LOG_SECONDS)
    assert bench.live_logs.followed == []
    bench.succeed(1, ANNOUNCED)
    bench.wait(LIVE_LOG_SECONDS)
    assert bench.live_logs.followed == [RunId(1)]


def test_what_a_running_run_wrote_is_sent_while_the_node_is_online(bench: Bench) -> None:
    bench.tell(ServerOnline())
    bench.bring_to(State.RUNNING)
    piece = LogPiece(RunId(1), "half way\n")
    bench.live_logs.pieces = [piece]
    bench.tell(ServerOffline("a cable"))
    bench.wait(LIVE_LOG_SECONDS)
    assert bench.channel.logs == []
    bench.tell(ServerOnline())
    bench.wait(LIVE_LOG_SECONDS)
    assert bench.channel.logs == [piece]


def test_the_final_report_waits_until_the_server_took_in_what_was_sent_live(bench: Bench) -> None:
    bench.tell(ServerOnline())
    bench.bring_to(State.RUNNING)
    bench.live_logs.pieces = [LogPiece(RunId(1), "the last words\n")]
    bench.wait(LIVE_LOG_SECONDS)
    bench.succeed(1, CAPTURED, FINISHED)
    assert bench.step_of() is None
    bench.wait(SETTLE_SECONDS)
    assert bench.step_of() == "report"


def test_nothing_is_sent_live_of_a_run_that_ended_or_shall_end(bench: Bench) -> None:
    bench.tell(ServerOnline())
    bench.bring_to(State.RUNNING)
    bench.live_logs.pieces = [LogPiece(RunId(1), "too late\n")]
    bench.succeed(1, CAPTURED)
    bench.wait(LIVE_LOG_SECONDS)
    assert bench.channel.logs == []
    assert bench.live_logs.followed == []


# --- outages --------------------------------------------------------------------------------------------------


def weekend(bench: Bench, *, seconds: int, every: float) -> None:
    for _ in range(int(seconds / every)):
        for _ in bench.lists:
            bench.tell(ListingFailed(ServerUnreachable("no connection"), None))
        bench.lists.clear()
        if bench.step_of():
            bench.fail(1, ServerUnreachable("no connection"))
        bench.wait(every)


def test_a_server_that_is_away_for_a_weekend_is_asked_at_a_steady_pace_and_gets_everything_in_the_end(
    bench: Bench, logged: list[Any]
) -> None:
    bench.bring_to(State.FINISHED)
    bench.tell(ServerOnline())
    weekend(bench, seconds=60, every=RELIST_SECONDS)
    before, told = len(bench.pool.history), len(logged)
    weekend(bench, seconds=60 * 3600, every=60)
    reports = len(bench.pool.history) - before
    assert reports <= 60 * 3600 / MAX_BACKOFF_SECONDS
    said = events([entry for entry in logged[told:] if entry["log_level"] != "debug"])
    assert said.count("server_lost") == 0
    assert said.count("server_still_lost") == 60
    assert set(said) <= {"server_still_lost", "heartbeat"}
    assert not bench.snapshot().online
    bench.list_()
    if bench.step_of() is None:
        bench.wait(0)
    assert bench.step_of() == "report"
    bench.succeed(1, REPORTED, REMOVED)
    assert bench.snapshot().owed == 0
    assert events(logged).count("server_back") == 1


def test_while_the_server_is_away_it_is_looked_for_every_two_seconds(bench: Bench) -> None:
    bench.receive(1)
    bench.fail(1, ServerUnreachable("no connection"))
    bench.lists.clear()
    for _ in range(30):
        bench.wait(1)
    assert 10 <= len(bench.lists) <= 15


def test_a_server_that_answers_again_is_connected_to_at_once(bench: Bench) -> None:
    bench.tell(ListingFailed(ServerUnreachable("away"), None))
    bench.list_()
    assert bench.channel.hurries == 1
    bench.list_()
    assert bench.channel.hurries == 1


def test_a_node_is_not_online_while_the_servers_calls_fail_although_the_connection_stands(
    bench: Bench,
) -> None:
    bench.tell(ServerOnline())
    assert bench.snapshot().online
    bench.tell(ListingFailed(ServerUnreachable("answers with nonsense"), None))
    assert not bench.snapshot().online
    bench.list_()
    assert bench.snapshot().online


def test_a_server_that_comes_and_goes_every_second_does_not_fill_the_log(
    bench: Bench, logged: list[Any]
) -> None:
    for _ in range(100):
        bench.tell(ServerOnline())
        bench.list_()
        bench.wait(1)
        bench.tell(ServerOffline("closed"))
        bench.tell(ListingFailed(ServerUnreachable("away"), None))
        bench.wait(1)
    said = [event for event in events(logged) if event.startswith(("server_", "connection_"))]
    assert len(said) <= 12
    assert {"server_unsteady", "connection_unsteady"} <= set(said)


def test_a_pause_the_server_asked_for_is_kept(bench: Bench) -> None:
    bench.bring_to(State.FINISHED)
    bench.fail(1, ServerUnreachable("busy", after=100))
    bench.wait(99)
    assert bench.step_of() is None
    bench.wait(1)
    assert bench.step_of() == "report"


def test_a_registry_that_is_away_is_asked_again_soon(bench: Bench) -> None:
    bench.bring_to(State.ADMITTED)
    for _ in range(6):
        bench.fail(1, RegistryUnreachable("no connection"))
        bench.wait(MAX_REGISTRY_SECONDS)
        assert bench.step_of() == "pull"


@pytest.mark.parametrize("jump", [86_400.0, -86_400.0])
def test_a_wall_clock_that_is_set_moves_no_appointment(bench: Bench, jump: float) -> None:
    bench.bring_to(State.FINISHED)
    bench.fail(1, ServerUnreachable("away"))
    bench.clock.set_wall(by=jump)
    bench.wait(0)
    assert bench.step_of() is None
    bench.wait(2)
    assert bench.step_of() == "report"


def test_a_run_of_a_machine_that_started_anew_counts_its_time_from_now(bench: Bench) -> None:
    bench.bring_to(State.RUNNING)
    began = bench.clock.mark()
    bench.clock.advance(5)
    bench.start()
    bench.agent.turn(0)
    assert bench.runs[RunId(1)].entered == began
    bench.clock.boot()
    bench.start()
    bench.agent.turn(0)
    assert bench.runs[RunId(1)].entered == bench.clock.mark()


# --- a server that was restored from an older backup -----------------------------------------------------------


def another(number: int = 1) -> OpenRun:
    """The server's run with that number, now of another task."""
    return make_open_run(number, task=make_task(77))


@pytest.mark.parametrize("state", [state for state in State if state < State.CAPTURED])
def test_a_run_whose_number_was_given_away_ends_and_nobody_gets_its_result(
    bench: Bench, state: State
) -> None:
    bench.bring_to(state)
    bench.list_(another())
    bench.fail(1, RunClosed("not wanted"))
    assert bench.step_of() == "stop"
    bench.succeed(1, Advance(State.FINISHED, {"outcome": Outcome.CLOSED, "finished_at": 7.0}))
    assert bench.pool.in_flight[RunId(1)][1].outcome is Outcome.CLOSED


def test_a_report_that_is_owed_for_a_number_that_was_given_away_is_not_made(
    bench: Bench, logged: list[Any]
) -> None:
    bench.bring_to(State.FINISHED)
    bench.fail(1, ServerUnreachable("away"))
    bench.list_(another())
    assert bench.step_of() == "remove"
    assert bench.pool.history.count((RunId(1), "report")) == 1
    bench.succeed(1, REMOVED)
    bench.list_(another())
    assert bench.step_of() == "admit"
    assert bench.pool.in_flight[RunId(1)][1].task.id == 77


def test_a_report_on_its_way_is_left_alone_until_it_is_back(bench: Bench) -> None:
    bench.bring_to(State.FINISHED)
    bench.list_(another())
    assert bench.step_of() == "report"
    bench.fail(1, RunClosed("Run 1 is another's."))
    assert bench.step_of() == "remove"


def test_a_run_the_restored_server_does_not_know_is_asked_for_and_closed(bench: Bench) -> None:
    bench.bring_to(State.RUNNING)
    bench.succeed(1, Wait({}))
    bench.list_()
    assert bench.step_of() == "verify"
    bench.fail(1, RunClosed("Run 1 is closed at the server."))
    assert bench.step_of() == "stop"


# --- a configuration that is read again -----------------------------------------------------------------------


def test_new_settings_count_once_they_are_read_and_then_it_is_said(bench: Bench) -> None:
    bench.tell(ReloadAsked())
    assert bench.reloads == ["begun"]
    rules = NewRules(live_logs=bench.live_logs)
    bench.tell(ConfigurationRead(rules))
    assert rules.effects == 1
    assert bench.reloads == ["begun", "done"]


def test_settings_that_are_refused_change_nothing_and_that_is_over_too(bench: Bench) -> None:
    bench.tell(ReloadAsked(), ConfigurationRead(None))
    assert bench.reloads == ["begun", "done"]
    bench.receive(1, 2, 3)
    assert [bench.step_of(run_id) for run_id in (1, 2, 3)] == ["admit", "admit", None]


def test_who_asks_while_the_file_is_read_has_it_read_once_more(bench: Bench) -> None:
    bench.tell(ReloadAsked(), ReloadAsked(), ReloadAsked())
    assert bench.reloads == ["begun"]
    bench.tell(ConfigurationRead(None))
    assert bench.reloads == ["begun", "begun"]
    bench.tell(ConfigurationRead(None))
    assert bench.reloads == ["begun", "begun", "done"]
    bench.tell(ReloadAsked())
    assert bench.reloads[-1] == "begun"


def test_more_slots_begin_what_waits_at_once(bench: Bench) -> None:
    bench.receive(1, 2, 3)
    assert bench.step_of(3) is None
    bench.tell(ConfigurationRead(NewRules(Bounds(slots=3))))
    assert bench.step_of(3) == "admit"


def test_fewer_slots_end_nothing_and_begin_nothing(bench: Bench) -> None:
    bench.bring_to(State.RUNNING, 1)
    bench.bring_to(State.RUNNING, 2)
    bench.tell(ConfigurationRead(NewRules(Bounds(slots=1))))
    bench.receive(3)
    assert [bench.step_of(run_id) for run_id in (1, 2, 3)] == ["observe", "observe", None]


def test_live_logs_that_are_not_shared_any_more_are_left(bench: Bench) -> None:
    bench.tell(ServerOnline())
    bench.bring_to(State.RUNNING)
    bench.wait(LIVE_LOG_SECONDS + 0.1)
    assert bench.live_logs.followed == [RunId(1)]
    bench.tell(ConfigurationRead(NewRules(live_logs=None)))
    assert bench.live_logs.followed == []
    bench.wait(LIVE_LOG_SECONDS + 0.1)
    assert bench.live_logs.followed == []


def test_live_logs_that_are_shared_from_now_on_are_followed(bench: Bench) -> None:
    others = Whispers()
    bench.tell(ServerOnline())
    bench.bring_to(State.RUNNING)
    bench.tell(ConfigurationRead(NewRules(live_logs=others)))
    bench.wait(LIVE_LOG_SECONDS + 0.1)
    assert others.followed == [RunId(1)]
    assert bench.live_logs.followed == []


def test_facts_that_are_not_shared_any_more_are_taken_back(bench: Bench) -> None:
    bench.tell(ServerOnline(), NodeFactsReady({"database_labels": ["default"]}))
    bench.tell(NodeFactsReady({}), NodeFactsReady({}))
    assert bench.channel.facts == [{"database_labels": ["default"]}, {}]


def test_the_sign_of_life_comes_from_the_control_loop_and_only_from_there(bench: Bench) -> None:
    bench.agent.turn(0)
    bench.shown.clear()
    bench.clock.advance(3600.0)
    assert bench.shown == []
    bench.tell(ServerOffline("the server is away"))
    assert len(bench.shown) == 1
