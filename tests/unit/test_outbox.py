"""The outbox: reports go in order of age, several at once, none holds the others, and none is ever given up."""

import queue
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from node_agent.agent import RELIST_SECONDS
from node_agent.availability import server_availability
from node_agent.domain.lifecycle import Wait
from node_agent.domain.messages import StepDone
from node_agent.domain.ports import FinalReport
from node_agent.domain.run import Outcome, Run, RunId, State
from node_agent.errors import (
    ConfigError,
    DiskFull,
    DiskUnwritable,
    EngineDiskFull,
    RunClosed,
    ServerUnreachable,
)
from node_agent.outbox import AT_ONCE, LARGE, LARGE_AT_ONCE, LONGEST_PAUSE_SECONDS, Outbox
from node_agent.pool import StepPool
from node_agent.progress import MAX_BACKOFF_SECONDS, MAX_DISK_SECONDS
from tests.doubles.clock import ManualClock
from tests.doubles.core import ServerBook, make_open_run, make_run
from tests.unit.test_agent import ADMITTED, REMOVED, REPORTED, Bench
from tests.unit.test_steps import Bench as StepsBench

TWO_WEEKS = 14 * 86400.0
PATIENCE = 30


def finished(number: int, *, at: float | None = None) -> Run:
    return make_run(
        number,
        state=State.FINISHED,
        outcome=Outcome.COMPLETED,
        finished_at=float(number) if at is None else at,
        entered=ManualClock().mark(),
    )


class Desk:
    """An outbox, and the sizes of the reports in it."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.server = server_availability(self.clock.monotonic)
        self.sizes: dict[RunId, int] = {}
        self.outbox = Outbox(server=self.server, size_of=lambda run_id: self.sizes.get(run_id, 0))

    def enter(self, *runs: Run) -> None:
        for run in runs:
            self.outbox.enter(run)

    def begin(self) -> list[int]:
        return [run.id for run in self.outbox.begin(self.clock.monotonic())]

    def fail(self, run_id: int) -> None:
        self.outbox.came_back(RunId(run_id))
        self.server.lost("away")
        self.outbox.failed(RunId(run_id), "away", now=self.clock.monotonic())


@pytest.fixture
def desk() -> Iterator[Desk]:
    with capture_logs():
        yield Desk()


# --- which go now ---------------------------------------------------------------------------------------------


def test_the_oldest_reports_go_first_and_several_at_once(desk: Desk) -> None:
    desk.enter(*(finished(number, at=100.0 - number) for number in range(1, 8)))
    assert desk.begin() == [7, 6, 5, 4]
    assert desk.begin() == []
    desk.outbox.came_back(RunId(6))
    assert desk.begin() == [3]


def test_large_reports_leave_places_for_small_ones(desk: Desk) -> None:
    desk.sizes = {RunId(number): LARGE for number in range(1, 5)}
    desk.enter(*(finished(number) for number in range(1, 9)))
    assert desk.begin() == [1, 2, 5, 6]
    assert LARGE_AT_ONCE < AT_ONCE
    desk.outbox.came_back(RunId(5))
    assert desk.begin() == [7]
    desk.outbox.came_back(RunId(1))
    assert desk.begin() == [3]


def test_while_the_server_is_away_one_at_a_time_asks_whether_it_is_back(desk: Desk) -> None:
    desk.server.lost("away")
    desk.enter(*(finished(number) for number in range(1, 5)))
    assert desk.begin() == [1]
    desk.fail(1)
    assert desk.begin() == []
    pauses = []
    for number in (2, 3, 4):
        now = desk.clock.monotonic()
        wake = desk.outbox.next_at(now)
        assert wake is not None
        pauses.append(wake - now)
        desk.clock.advance(pauses[-1])
        assert desk.begin() == [number]
        desk.fail(number)
    assert pauses == [1.0, 2.0, 4.0]


def test_the_pause_has_an_end_and_is_forgotten_when_the_server_answers(desk: Desk) -> None:
    for number in range(1, 40):
        desk.enter(finished(number))
        desk.clock.advance(LONGEST_PAUSE_SECONDS)
        assert desk.begin() == [number]
        desk.fail(number)
    desk.enter(*(finished(number) for number in range(1, 5)))
    assert desk.begin() == []
    desk.server.back()
    desk.outbox.hurry()
    assert desk.begin() == [1, 2, 3, 4]


def test_a_delivered_report_leaves_nothing_behind(desk: Desk) -> None:
    desk.enter(finished(1))
    desk.begin()
    desk.fail(1)
    assert desk.outbox.problem == "away"
    desk.outbox.forget(RunId(1))
    assert desk.outbox.problem == ""
    assert desk.outbox.next_at(desk.clock.monotonic()) is None


# --- in the control loop --------------------------------------------------------------------------------------


@pytest.fixture
def logged() -> Iterator[list[Any]]:
    with capture_logs() as entries:
        yield entries


@pytest.fixture
def bench(quick_dir: Path, logged: list[Any]) -> Iterator[Bench]:
    made = Bench(quick_dir)
    yield made
    made.journal.close()


def owing(bench: Bench, *numbers: int) -> None:
    """Let an earlier life leave reports behind, and begin a new one."""
    for number in numbers:
        bench.store(finished(number))
    bench.start()
    bench.wait(0.0)


def test_two_weeks_without_the_server_cost_little_and_lose_nothing(bench: Bench) -> None:
    owing(bench, 1, 2, 3, 4, 5, 6)
    progress, end, tries = bench.agent._progress, bench.clock.monotonic() + TWO_WEEKS, 0
    while bench.clock.monotonic() < end:
        for run_id in list(bench.pool.in_flight):
            bench.pool.in_flight.pop(run_id)
            progress.step_done(StepDone(run_id, "report", None, ServerUnreachable("away")))
            tries += 1
        bench.clock.advance(LONGEST_PAUSE_SECONDS / 10)
        progress.dispatch(draining=False)
    assert TWO_WEEKS / LONGEST_PAUSE_SECONDS <= tries <= TWO_WEEKS / LONGEST_PAUSE_SECONDS + 20
    for run_id in list(bench.pool.in_flight):
        bench.fail(run_id, ServerUnreachable("away"))
    assert not bench.pool.in_flight
    bench.list_()
    assert sorted(bench.pool.in_flight) == [1, 2, 3, 4]
    for run_id in (1, 2, 3, 4, 5, 6):
        bench.succeed(run_id, REPORTED)
    assert bench.snapshot().owed == 0


def test_a_report_that_the_server_takes_brings_all_others_on_their_way(bench: Bench) -> None:
    owing(bench, 1, 2, 3, 4, 5)
    for _ in range(AT_ONCE):
        bench.fail(min(bench.pool.in_flight), ServerUnreachable("away"))
    assert len(bench.pool.in_flight) <= 1
    bench.wait(MAX_BACKOFF_SECONDS)
    (probe,) = bench.pool.in_flight
    bench.succeed(probe, REPORTED)
    reports = [run for run, (step, _) in bench.pool.in_flight.items() if step == "report"]
    assert len(reports) == AT_ONCE


def test_a_report_that_is_refused_again_and_again_does_not_hold_the_others(bench: Bench) -> None:
    owing(bench, 1, 2, 3)
    bench.fail(1, ServerUnreachable("answered with 500"))
    bench.succeed(2, REPORTED, REMOVED)
    bench.succeed(3, REPORTED, REMOVED)
    seen = bench.snapshot()
    assert (seen.owed, seen.owed_problem) == (1, "answered with 500")


def test_a_report_that_only_ever_shows_the_server_away_is_not_hurried_for_ever(bench: Bench) -> None:
    owing(bench, 1)
    tries, end = 0, bench.clock.monotonic() + 3600
    while bench.clock.monotonic() < end:
        if bench.step_of(1) == "report":
            tries += 1
            bench.fail(1, ServerUnreachable("answered with 500"))
        bench.clock.advance(RELIST_SECONDS)
        bench.list_()
    assert tries <= 3600 / MAX_BACKOFF_SECONDS + 10


def test_hanging_reports_keep_no_run_from_starting(bench: Bench) -> None:
    owing(bench, *range(1, 9))
    assert [step for step, _ in bench.pool.in_flight.values()] == ["report"] * AT_ONCE
    bench.receive(20)
    assert bench.step_of(20) == "admit"


def test_the_reason_of_a_refusal_is_kept(bench: Bench) -> None:
    owing(bench, 1)
    bench.fail(1, RunClosed("The server has closed run 1: deleted"))
    assert bench.row_of(1)["refusal"] == "The server has closed run 1: deleted"
    bench.succeed(1, REMOVED)
    assert bench.row_of(1)["refusal"] == "The server has closed run 1: deleted"
    assert bench.row_of(1)["outcome"] == Outcome.COMPLETED


def test_the_snapshot_says_when_a_report_is_tried_next(bench: Bench) -> None:
    owing(bench, 1)
    assert bench.agent._snapshot().next_report_at is None
    bench.fail(1, ServerUnreachable("away"))
    assert bench.agent._snapshot().next_report_at == pytest.approx(bench.clock.now() + 1.0)
    bench.list_()
    bench.succeed(1, REPORTED)
    assert bench.agent._snapshot().next_report_at is None


# --- a disk that takes nothing --------------------------------------------------------------------------------


def events(logged: list[Any], *names: str) -> list[str]:
    return [entry["event"] for entry in logged if entry["event"] in names]


def test_a_full_disk_is_said_once_and_once_when_it_ends(bench: Bench, logged: list[Any]) -> None:
    bench.receive(1, 2)
    for _ in range(5):
        bench.fail(1, DiskFull("no space"))
        bench.fail(2, DiskUnwritable("read-only"))
        assert bench.snapshot().disk_problem
        bench.wait(MAX_BACKOFF_SECONDS)
    bench.succeed(1, ADMITTED)
    assert bench.snapshot().disk_problem == "read-only"
    bench.succeed(2, ADMITTED)
    assert bench.snapshot().disk_problem == ""
    assert events(logged, "disk_lost", "disk_back") == ["disk_lost", "disk_back"]


def test_what_waits_for_the_disk_is_tried_at_once_when_the_last_one_was_served(bench: Bench) -> None:
    bench.receive(1, 2)
    for _ in range(6):
        bench.fail(2, EngineDiskFull("the engine's disk"))
        bench.wait(MAX_BACKOFF_SECONDS)
    bench.fail(2, ServerUnreachable("away"))
    bench.fail(1, DiskFull("no space"))
    bench.wait(MAX_DISK_SECONDS)
    bench.succeed(1, ADMITTED)
    assert bench.step_of(2) is not None


def test_the_state_directory_is_tried_again_sooner_than_what_others_have_to_do(bench: Bench) -> None:
    bench.receive(1)
    for _ in range(8):
        bench.fail(1, DiskFull("no space"))
        bench.wait(MAX_DISK_SECONDS)
        assert bench.step_of(1) == "admit"


def test_pauses_grow_also_when_what_a_step_did_cannot_be_written_down(bench: Bench) -> None:
    bench.receive(1)
    pauses = []
    for _ in range(4):
        bench.journal.faults.plan("update", DiskFull("no space"))
        began = bench.clock.monotonic()
        bench.succeed(1, ADMITTED)
        while bench.step_of(1) is None:
            bench.wait(0.25)
        pauses.append(bench.clock.monotonic() - began)
    assert pauses == [1.0, 2.0, MAX_DISK_SECONDS, MAX_DISK_SECONDS]


def test_a_listing_that_could_not_be_written_down_misses_the_disk_until_one_is(
    bench: Bench, logged: list[Any]
) -> None:
    bench.journal.faults.plan("insert", DiskFull("no space"))
    bench.receive(1)
    assert bench.snapshot().disk_problem == "no space"
    bench.receive(1)
    assert bench.snapshot().disk_problem == ""
    assert events(logged, "disk_lost", "disk_back", "trouble") == ["disk_lost", "disk_back"]


def test_a_result_that_could_not_be_written_down_after_its_delivery_is_sent_again(bench: Bench) -> None:
    owing(bench, 1)
    bench.journal.faults.plan("update", DiskFull("no space"))
    bench.succeed(1, REPORTED)
    assert bench.snapshot().owed == 1
    bench.wait(MAX_DISK_SECONDS)
    assert bench.step_of(1) == "report"


def test_where_a_result_lies_is_written_down_before_it_is_reported(bench: Bench) -> None:
    owing(bench, 1)
    bench.succeed(1, Wait({"result_blob": "blob-1"}, seconds=0))
    assert bench.pool.in_flight[RunId(1)][1].result_blob == "blob-1"


def test_damage_of_the_journal_ends_the_agent(bench: Bench) -> None:
    bench.receive(1)
    bench.journal.faults.plan("update", ConfigError("The journal is damaged."))
    with pytest.raises(ConfigError, match="damaged"):
        bench.succeed(1, ADMITTED)


# --- the threads ----------------------------------------------------------------------------------------------


class HangingServer:
    """Lets some reports wait until the test says otherwise."""

    def __init__(self) -> None:
        self.goes_on = threading.Event()
        self.book = ServerBook()

    def report(self, run_id: RunId, _final: FinalReport) -> None:
        if run_id < AT_ONCE:
            assert self.goes_on.wait(PATIENCE)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.book, name)


def test_reports_that_hang_leave_the_threads_of_other_steps_alone(quick_dir: Path) -> None:
    server, posted = HangingServer(), queue.SimpleQueue[Any]()
    server.book.add(make_open_run(50))
    ports = replace(StepsBench(quick_dir).ports, server=server)
    pool = StepPool(ports_of=lambda _: ports, post=posted.put, threads=1)
    pool.start()
    for number in range(1, AT_ONCE + 1):
        pool.submit("report", finished(number))
    pool.submit("verify", make_run(50))
    done = [posted.get(timeout=PATIENCE) for _ in range(2)]
    assert {(step.run_id, step.error) for step in done} == {(AT_ONCE, None), (50, None)}
    server.goes_on.set()
    rest = [posted.get(timeout=PATIENCE) for _ in range(AT_ONCE - 1)]
    assert {(step.run_id, step.error) for step in rest} == {(number, None) for number in range(1, AT_ONCE)}
