"""From its arrival to its start: why a run waits for its turn, and what ends one that takes too long to begin."""

import queue
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from node_agent import space
from node_agent.agent import PHASE_SECONDS, PLACES_SHOWN, Agent, Hands
from node_agent.config import LimitsSection
from node_agent.domain.lifecycle import Advance, Wait
from node_agent.domain.messages import (
    EngineLost,
    EngineWatched,
    Message,
    RunsListed,
    SpaceFell,
    SpaceSeen,
    SpaceTaken,
    StepDone,
    SubtaskCreated,
)
from node_agent.domain.run import Outcome, Run, RunId, State, Status
from node_agent.domain.task import TaskId
from node_agent.domain.turns import Bounds
from node_agent.errors import DiskFull, EngineUnreachable, RegistryUnreachable, ServerUnreachable
from node_agent.runtable import RunTable
from node_agent.store.journal import SqliteJournal
from tests.doubles.clock import ManualClock
from tests.doubles.core import ChannelBook, EagerPool, make_open_run, make_task
from tests.unit.test_agent import ADMITTED, CREATED, PULLED, RUNNING, STOPPED, Bench

GIB = 2**30
HOUR = 3600.0
FAILED = Advance(State.FINISHED, {"outcome": Outcome.TIME_LIMIT, "finished_at": 7.0})


@pytest.fixture
def logged() -> Iterator[list[Any]]:
    with capture_logs() as entries:
        yield entries


@pytest.fixture
def bench(quick_dir: Path, logged: list[Any]) -> Iterator[Bench]:
    made = Bench(quick_dir)
    yield made
    made.journal.close()


def let_pass(bench: Bench, seconds: float) -> None:
    """Let time pass, with looks in between."""
    bench.wait(PHASE_SECONDS)
    for _ in range(int(seconds // 60)):
        bench.wait(60.0)
    bench.wait(seconds % 60)


# --- waiting --------------------------------------------------------------------------------------------------


def test_nothing_begins_while_a_disk_is_short_and_everything_goes_on_when_there_is_room(bench: Bench) -> None:
    bench.tell(SpaceSeen("only 3 MiB of disk are free"))
    bench.receive(1, 2)
    assert bench.pool.history == []
    assert bench.snapshot().waiting_for == "only 3 MiB of disk are free"
    bench.tell(SpaceSeen(""))
    assert bench.pool.history == [(1, "admit"), (2, "admit")]
    assert bench.snapshot().waiting_for == ""


def test_what_began_goes_on_while_a_disk_is_short(bench: Bench) -> None:
    bench.receive(1)
    bench.tell(SpaceSeen("only 3 MiB of disk are free"))
    bench.succeed(1, ADMITTED)
    assert bench.step_of(1) == "pull"


def test_a_run_that_has_to_make_space_is_ended_while_it_works_and_not_otherwise(bench: Bench) -> None:
    bench.receive(1)
    bench.tell(SpaceTaken(RunId(1), "it filled the disk"), SpaceTaken(RunId(9), "it is not here"))
    assert bench.runs[RunId(1)].ending is None
    bench.succeed(1, ADMITTED, PULLED, CREATED, RUNNING)
    bench.tell(SpaceTaken(RunId(1), "it filled the disk"))
    run = bench.runs[RunId(1)]
    assert (run.ending, run.reason) == (Outcome.OUTPUT_TOO_LARGE, "it filled the disk")


def test_space_that_falls_fast_has_every_running_run_looked_at(bench: Bench) -> None:
    bench.receive(1)
    bench.succeed(1, ADMITTED, PULLED, CREATED, RUNNING, Wait({"announced": Status.ACTIVE}))
    assert bench.step_of(1) is None
    bench.tell(SpaceFell())
    assert bench.step_of(1) == "observe"


def test_nothing_is_claimed_while_the_engine_is_away(bench: Bench) -> None:
    bench.tell(EngineLost("gone"))
    bench.receive(1)
    assert bench.step_of(1) is None
    assert bench.snapshot().waiting_for == "the container engine does not answer"
    bench.tell(EngineWatched())
    assert bench.step_of(1) == "admit"


def test_a_run_that_waits_for_a_disk_can_be_killed(bench: Bench) -> None:
    bench.tell(SpaceSeen("full"))
    bench.receive(1)
    bench.tell(RunsListed((), complete=True, asked_at=bench.clock.monotonic() + 1))
    assert bench.step_of(1) == "verify"


def test_the_snapshot_shows_the_queue(bench: Bench) -> None:
    bench.receive(1, 2, 3, 4)
    shown = bench.snapshot()
    assert shown.queue == (3, 4)
    assert shown.waiting_for == "all 2 slots are taken (limits.concurrent_runs)"


def test_of_a_long_queue_only_the_beginning_is_shown(bench: Bench) -> None:
    bench.receive(*range(1, 200))
    assert len(bench.snapshot().queue) == PLACES_SHOWN


def test_a_subtask_gets_the_slot_before_older_runs(bench: Bench) -> None:
    bench.receive(1, 2, 3)
    bench.succeed(1, ADMITTED, PULLED, CREATED, RUNNING)
    bench.tell(SpaceSeen("full"), SubtaskCreated(RunId(1)))
    bench.weigh(1)
    bench.list_(make_open_run(9, task=make_task(9, parent_id=TaskId(1))), complete=False)
    bench.tell(SpaceSeen(""))
    assert bench.step_of(9) == "admit"
    assert bench.step_of(3) is None


class CountedLooks(RunTable):
    """Counts how often anybody looks at a run."""

    looks = 0

    def __iter__(self) -> Iterator[Run]:
        self.looks += len(self)
        return super().__iter__()

    def __getitem__(self, run_id: RunId) -> Run:
        self.looks += 1
        return super().__getitem__(run_id)

    def begun(self) -> list[Run]:
        found = super().begun()
        self.looks += len(found)
        return found


def looks_of_a_turn(state_dir: Path, *, waiting: int) -> int:
    """Say how many runs are looked at when a step of one is done while all slots are taken."""
    state_dir.mkdir()
    bench = Bench(state_dir, table=CountedLooks)
    bench.receive(*range(1, waiting + 3))
    bench.succeed(1, ADMITTED)
    runs = bench.runs
    assert isinstance(runs, CountedLooks)
    before = runs.looks
    bench.succeed(1, PULLED)
    bench.journal.close()
    return runs.looks - before


def test_what_a_turn_of_the_loop_looks_at_does_not_grow_with_those_who_wait(
    quick_dir: Path, logged: list[Any]
) -> None:
    many = looks_of_a_turn(quick_dir / "many", waiting=300)
    assert many == looks_of_a_turn(quick_dir / "few", waiting=3)
    assert many > 0


def test_hundreds_of_runs_that_come_at_once_are_all_done_without_more_at_once_than_allowed(
    quick_dir: Path, logged: list[Any], clock: ManualClock
) -> None:
    mailbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
    runs = RunTable()
    most = 0
    ends = {
        "admit": ADMITTED, "pull": PULLED, "create": CREATED, "start": RUNNING,
        "observe": Advance(State.CAPTURED, {"exit_code": 0}),
        "filter": Advance(State.FINISHED, {"outcome": Outcome.COMPLETED, "finished_at": 7.0}),
        "report": Advance(State.REPORTED, {"announced": Status.COMPLETED}), "remove": Advance(State.REMOVED, {}),
    }  # fmt: skip

    def do(step: str, run: Any) -> StepDone:
        nonlocal most
        if step == "start":
            most = max(most, sum(State.ADMITTED <= run.state <= State.RUNNING for run in runs))
        result = ends.get(step, Advance(State.REMOVED, {}))
        if step == "announce":
            return StepDone(run.id, step, None, ServerUnreachable("a courtesy"))
        return StepDone(run.id, step, result, None)

    journal = SqliteJournal(quick_dir)
    agent = Agent(
        mailbox=mailbox,
        runs=runs,
        journal=journal,
        channel=ChannelBook(),
        hands=Hands(
            submit=EagerPool(do, mailbox).submit,
            list_runs=lambda _task: None,
            sweep=lambda: None,
            show=lambda _: None,
        ),
        clock=clock,
        bounds=Bounds(slots=3),
    )
    flood = tuple(make_open_run(number) for number in range(1, 301))
    mailbox.put(RunsListed(flood, complete=False, asked_at=clock.monotonic()))
    turns = 0
    while turns == 0 or len(runs):
        agent.turn(0)
        turns += 1
        assert turns < 5000
    journal.close()
    assert most == 3


# --- taking too long ------------------------------------------------------------------------------------------


def test_a_pull_that_takes_too_long_ends_the_run_with_its_own_reason(bench: Bench, logged: list[Any]) -> None:
    bench.receive(1)
    bench.succeed(1, ADMITTED)
    let_pass(bench, HOUR - 5)
    assert bench.runs[RunId(1)].ending is None
    let_pass(bench, 10)
    run = bench.runs[RunId(1)]
    assert run.ending is Outcome.TIME_LIMIT
    assert "within 3600 seconds (limits.pull_time)" in run.reason
    assert [entry["phase"] for entry in logged if entry["event"] == "phase_too_long"] == ["pull"]


def test_the_reason_says_what_was_in_the_way(bench: Bench) -> None:
    bench.receive(1)
    bench.succeed(1, ADMITTED)
    bench.fail(1, RegistryUnreachable("The pull made no progress for 120 s."))
    let_pass(bench, HOUR + 5)
    assert bench.runs[RunId(1)].reason.endswith("(limits.pull_time). The pull made no progress for 120 s.")


def test_the_step_in_flight_learns_that_it_is_not_wanted_and_its_late_success_changes_nothing(
    bench: Bench,
) -> None:
    bench.receive(1)
    bench.succeed(1, ADMITTED)
    let_pass(bench, HOUR + 5)
    assert bench.step_of(1) == "pull"
    assert not bench.runs.is_wanted(RunId(1))
    bench.succeed(1, PULLED)
    assert bench.step_of(1) == "stop"
    bench.succeed(1, FAILED)
    assert bench.row_of(1)["status"] == "failed"
    assert bench.step_of(1) == "report"


@pytest.mark.parametrize("began", [(PULLED,), (PULLED, CREATED)])
def test_a_start_that_takes_too_long_ends_the_run_with_its_own_reason(
    bench: Bench, began: tuple[Advance, ...], logged: list[Any]
) -> None:
    bench.receive(1)
    bench.succeed(1, ADMITTED)
    let_pass(bench, HOUR - 60)
    bench.succeed(1, *began)
    let_pass(bench, 290)
    assert bench.runs[RunId(1)].ending is None
    let_pass(bench, 20)
    run = bench.runs[RunId(1)]
    assert run.ending is Outcome.START_FAILED
    assert "within 300 seconds (limits.start_time)" in run.reason
    assert [entry["phase"] for entry in logged if entry["event"] == "phase_too_long"] == ["start"]


def test_creating_and_starting_share_one_limit(bench: Bench) -> None:
    bench.receive(1)
    bench.succeed(1, ADMITTED, PULLED)
    let_pass(bench, 200)
    bench.succeed(1, CREATED)
    let_pass(bench, 200)
    assert bench.runs[RunId(1)].ending is Outcome.START_FAILED


def test_time_in_which_the_server_is_away_does_not_count(bench: Bench) -> None:
    bench.receive(1)
    bench.succeed(1, ADMITTED, PULLED)
    bench.fail(1, ServerUnreachable("away"))
    let_pass(bench, 3 * 24 * HOUR)
    assert bench.runs[RunId(1)].ending is None
    bench.list_(make_open_run(1))
    let_pass(bench, 290)
    assert bench.runs[RunId(1)].ending is None
    let_pass(bench, 30)
    assert bench.runs[RunId(1)].ending is Outcome.START_FAILED


def test_a_clock_that_is_set_ends_nothing(bench: Bench) -> None:
    bench.receive(1)
    bench.succeed(1, ADMITTED)
    bench.clock.set_wall(by=24 * HOUR)
    let_pass(bench, 60)
    assert bench.runs[RunId(1)].ending is None


def test_a_new_process_counts_anew(bench: Bench) -> None:
    bench.receive(1)
    bench.succeed(1, ADMITTED)
    let_pass(bench, HOUR - 60)
    bench.start()
    let_pass(bench, HOUR - 60)
    assert bench.runs[RunId(1)].ending is None
    let_pass(bench, 120)
    assert bench.runs[RunId(1)].ending is Outcome.TIME_LIMIT


def test_what_runs_and_what_waits_has_no_limit_of_these(bench: Bench) -> None:
    bench.receive(1, 2, 3)
    bench.succeed(1, ADMITTED, PULLED, CREATED, RUNNING)
    let_pass(bench, 20 * HOUR)
    assert bench.runs[RunId(1)].ending is None
    assert bench.runs[RunId(3)].ending is None


def test_an_end_that_could_not_be_written_is_decided_at_the_next_look(bench: Bench) -> None:
    bench.receive(1)
    bench.succeed(1, ADMITTED)
    bench.journal.faults.plan("update", DiskFull("no space"))
    let_pass(bench, HOUR + 1)
    bench.wait(PHASE_SECONDS)
    assert bench.runs[RunId(1)].ending is Outcome.TIME_LIMIT


def test_a_run_whose_ending_is_decided_is_not_ended_again(bench: Bench, logged: list[Any]) -> None:
    bench.receive(1)
    bench.succeed(1, ADMITTED)
    let_pass(bench, 3 * HOUR)
    assert [entry["event"] for entry in logged].count("phase_too_long") == 1


def test_a_slot_is_free_again_when_a_hanging_run_is_over(bench: Bench) -> None:
    bench.receive(1, 2, 3)
    bench.succeed(1, ADMITTED, PULLED)
    let_pass(bench, 400)
    assert bench.step_of(3) is None
    bench.fail(1, EngineUnreachable("no answer"))
    bench.succeed(1, STOPPED)
    assert bench.step_of(3) == "admit"


# --- room on this machine -------------------------------------------------------------------------------------


def test_all_runs_together_get_what_the_owner_says() -> None:
    limits = LimitsSection(total_memory="10GiB", memory="2GiB", concurrent_runs=9)
    bounds = space.bounds_of(limits, machine_memory=4 * GIB)
    assert bounds == Bounds(
        slots=9, run_memory=2 * GIB, total_memory=10 * GIB, pull_time=3600, start_time=300, run_time=86400
    )


@pytest.mark.parametrize(
    ("machine", "share"),
    [(None, None), (64 * GIB, 63 * GIB), (4 * GIB, 4 * GIB - 4 * GIB // 10)],
)
def test_otherwise_they_get_what_the_machine_has_less_a_reserve(
    machine: int | None, share: int | None
) -> None:
    assert space.memory_for_runs(LimitsSection(), machine_memory=machine) == share


def test_a_disk_with_too_little_room_is_named_with_the_setting(tmp_path: Path) -> None:
    places = space.places_of(tmp_path, Path("/nonexistent/images"))
    free = shutil.disk_usage(tmp_path).free
    assert space.shortage(places, least=free // 2) == ""
    said = space.shortage(places, least=free * 2)
    assert str(tmp_path) in said
    assert "limits.min_free_disk" in said


def test_an_engine_elsewhere_has_no_disk_of_ours() -> None:
    assert list(space.places_of(Path("/state"), None)) == ["the state directory"]
