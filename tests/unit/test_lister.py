"""The lister: one listing per wish, inputs to disk, and no answer but a whole one."""

import hashlib
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from node_agent.domain.messages import ListingFailed, RunsListed
from node_agent.domain.ports import OpenRun
from node_agent.domain.run import BlobId, RunId
from node_agent.domain.task import TaskId
from node_agent.errors import (
    AccessDenied,
    DiskFull,
    InputUnreadable,
    ListingShifted,
    ServerUnreachable,
    Transient,
)
from node_agent.lister import BATCH, LISTING_SECONDS, Lister
from node_agent.store.rundir import DiskRunFolders
from tests.doubles.clock import ManualClock
from tests.doubles.core import ServerBook, make_open_run


class Bench:
    def __init__(self, state_dir: Path) -> None:
        self.server = ServerBook()
        self.folders = DiskRunFolders(state_dir, user=(0, 0))
        self.clock = ManualClock()
        self.known: set[RunId] = set()
        self.over: set[RunId] = set()
        self.posted: list[Any] = []
        self.lister = Lister(
            server=self.server,
            folders=self.folders,
            clock=self.clock,
            is_open=lambda run_id: run_id in self.known,
            was_open=lambda run_id: run_id in self.over,
            post=self.posted.append,
        )


class LastWord(BaseException):
    """Ends a loop that has no end of its own."""


@pytest.fixture
def bench(quick_dir: Path) -> Bench:
    return Bench(quick_dir)


def test_a_listing_of_everything_is_complete_and_says_when_it_was_asked_for(bench: Bench) -> None:
    bench.server.add(make_open_run(2))
    bench.server.add(make_open_run(1))
    bench.lister.serve_one(None)
    (listed,) = bench.posted
    assert isinstance(listed, RunsListed)
    assert [run.id for run in listed.runs] == [1, 2]
    assert listed.complete
    assert listed.asked_at == bench.clock.monotonic()


def test_a_listing_of_one_task_is_not_complete(bench: Bench) -> None:
    bench.server.add(make_open_run(1))
    bench.server.add(make_open_run(2))
    bench.lister.serve_one(TaskId(2))
    (listed,) = bench.posted
    assert [run.id for run in listed.runs] == [2]
    assert not listed.complete


def test_a_list_that_shifted_is_passed_on_as_one_that_is_not_complete(bench: Bench) -> None:
    class Busy(ServerBook):
        def open_runs(self, task_id: TaskId | None = None) -> Generator[OpenRun, None, None]:
            yield from super().open_runs(task_id)
            raise ListingShifted("changed")

    server = bench.lister._server = Busy()
    for number in (1, 2):
        server.add(make_open_run(number))
    bench.lister.serve_one(None)
    (listed,) = bench.posted
    assert [run.id for run in listed.runs] == [1, 2]
    assert not listed.complete


def test_of_a_long_list_what_is_new_is_passed_on_before_the_end_is_reached(bench: Bench) -> None:
    for number in range(1, 2 * BATCH + 3):
        bench.server.add(make_open_run(number))
    bench.known.update(map(RunId, range(1, BATCH + 1)))
    bench.lister.serve_one(None)
    early, whole = bench.posted
    assert [run.id for run in early.runs] == list(range(BATCH + 1, 2 * BATCH + 1))
    assert not early.complete
    assert len(whole.runs) == 2 * BATCH + 2
    assert whole.complete


def test_an_input_in_the_blob_store_stays_there_while_runs_are_listed(bench: Bench) -> None:
    bench.server.add(make_open_run(1, input=(), input_blob=BlobId("input")))
    bench.lister.serve_one(None)
    assert bench.posted[0].runs[0].input_blob == "input"
    assert not bench.folders.has_input(RunId(1))


def test_inputs_go_to_disk_and_not_into_the_mailbox(bench: Bench) -> None:
    bench.server.add(make_open_run(1, input=(b"sec", b"ret")))
    bench.lister.serve_one(None)
    assert bench.posted[0].runs[0].input == ()
    assert bench.folders.has_input(RunId(1))


def test_the_input_of_a_run_that_is_over_here_and_taken_by_somebody_else_is_not_stored(bench: Bench) -> None:
    bench.over.update({RunId(1), RunId(2)})
    bench.server.add(make_open_run(1))
    bench.server.claim(RunId(1), at=5.0)
    # this number was given to another run: it is nobody's yet
    bench.server.add(make_open_run(2))
    bench.lister.serve_one(None)
    assert [bench.folders.has_input(RunId(number)) for number in (1, 2)] == [False, True]


def test_an_input_that_cannot_be_read_is_a_fault_of_its_run_alone(bench: Bench) -> None:
    def unreadable() -> Iterator[bytes]:
        yield b"half"
        raise InputUnreadable("encrypted for another key")

    bench.server.add(make_open_run(1, input=unreadable()))
    bench.server.add(make_open_run(2))
    bench.lister.serve_one(None)
    assert [run.fault for run in bench.posted[0].runs] == ["encrypted for another key", ""]
    assert [bench.folders.has_input(RunId(number)) for number in (1, 2)] == [False, True]


def test_the_input_of_a_known_run_is_not_even_read(bench: Bench) -> None:
    read: list[int] = []
    bench.known.add(RunId(1))
    bench.server.add(make_open_run(1, input=(read.append(1) or b"" for _ in range(1))))
    bench.lister.serve_one(None)
    assert read == []


def test_a_listing_is_closed_when_an_input_cannot_be_stored(bench: Bench) -> None:
    def failing() -> Iterator[bytes]:
        yield b"half"
        raise DiskFull("full")

    class Listing(ServerBook):
        closed = False

        def open_runs(self, task_id: TaskId | None = None) -> Generator[OpenRun, None, None]:
            try:
                yield from super().open_runs(task_id)
            finally:
                self.closed = True

    server = Listing()
    server.add(make_open_run(1, input=failing()))
    bench.lister._server = server
    bench.lister.serve_one(None)
    assert isinstance(bench.posted[0], ListingFailed)
    assert server.closed


def test_the_input_of_a_known_run_is_not_stored_again(bench: Bench) -> None:
    bench.known.add(RunId(1))
    bench.server.add(make_open_run(1))
    bench.lister.serve_one(None)
    assert not bench.folders.has_input(RunId(1))
    assert [run.id for run in bench.posted[0].runs] == [1]


def test_the_input_of_a_faulty_run_is_not_stored(bench: Bench) -> None:
    bench.server.add(make_open_run(1, fault="no input"))
    bench.lister.serve_one(None)
    assert not bench.folders.has_input(RunId(1))
    assert bench.posted[0].runs[0].fault == "no input"


@pytest.mark.parametrize("error", [ServerUnreachable("away"), AccessDenied("key"), DiskFull("full")])
def test_a_listing_that_fails_says_why(bench: Bench, error: Exception) -> None:
    bench.server.faults.plan("open_runs", error)
    bench.lister.serve_one(TaskId(3))
    assert bench.posted == [ListingFailed(error, TaskId(3))]  # type: ignore[arg-type]


def test_a_listing_that_meets_a_bug_is_not_the_last_one(bench: Bench) -> None:
    bench.server.faults.plan("open_runs", PermissionError("odd"))
    with capture_logs() as logged:
        bench.lister.serve_one(None)
    assert isinstance(bench.posted[0].error, Transient)
    assert "PermissionError" in str(bench.posted[0].error)
    assert [entry["event"] for entry in logged] == ["listing_bug"]


def test_wishes_that_wait_are_not_repeated_and_later_ones_are_new(quick_dir: Path) -> None:
    bench = Bench(quick_dir)
    lists: list[object] = []

    def post(message: RunsListed) -> None:
        lists.append(message)
        if len(lists) == 1:
            # while the first listing is under way: its wish is a new one, the other still waits
            bench.lister.ask()
            bench.lister.ask(TaskId(1))
        if len(lists) == 3:
            raise LastWord

    bench.lister._post = post  # type: ignore[assignment]
    bench.lister.ask()
    bench.lister.ask()
    bench.lister.ask(TaskId(1))
    with pytest.raises(LastWord):
        bench.lister.serve_forever()
    assert [message.complete for message in lists] == [True, False, True]  # type: ignore[attr-defined]
    assert bench.lister._wishes.empty()


def test_many_new_tasks_at_once_are_one_listing(bench: Bench) -> None:
    for number in range(1, 6):
        bench.server.add(make_open_run(number))
        bench.lister.ask(TaskId(number))
    bench.lister.serve_waiting()
    (listed,) = bench.posted
    assert listed.complete
    assert [run.id for run in listed.runs] == [1, 2, 3, 4, 5]
    # what is wished for from now on is listed again
    bench.lister.ask(TaskId(3))
    bench.lister.serve_waiting()
    assert [message.complete for message in bench.posted] == [True, False]


def test_a_few_new_tasks_at_once_are_listed_one_by_one(bench: Bench) -> None:
    for number in (1, 2):
        bench.server.add(make_open_run(number))
        bench.lister.ask(TaskId(number))
    bench.lister.serve_waiting()
    assert [message.complete for message in bench.posted] == [False, False]


# --- while the server is away ---------------------------------------------------------------------------------


AWAY = ServerUnreachable("away")


def test_a_server_that_is_away_is_only_knocked_at_until_it_answers(bench: Bench) -> None:
    bench.server.add(make_open_run(1))
    bench.server.faults.plan("open_runs", AWAY)
    bench.server.faults.plan("knock", AWAY, times=3)
    for _ in range(4):
        bench.lister.serve_one(None)
        bench.clock.advance(2)
    assert [type(message) for message in bench.posted] == [ListingFailed] * 4
    bench.lister.serve_one(None)
    assert isinstance(bench.posted[-1], RunsListed)


def test_a_server_that_only_leaves_knocks_unanswered_is_found_all_the_same(bench: Bench) -> None:
    bench.server.faults.plan("open_runs", AWAY)
    bench.server.faults.plan("knock", AWAY, times=100)
    bench.lister.serve_one(None)
    bench.clock.advance(LISTING_SECONDS - 1)
    bench.lister.serve_one(None)
    assert isinstance(bench.posted[-1], ListingFailed)
    bench.clock.advance(1)
    bench.lister.serve_one(None)
    assert isinstance(bench.posted[-1], RunsListed)


def test_a_server_that_answers_knocks_only_is_still_away(bench: Bench) -> None:
    bench.server.faults.plan("open_runs", ServerUnreachable("500"), times=3)
    for _ in range(3):
        bench.lister.serve_one(None)
    assert [type(message) for message in bench.posted] == [ListingFailed] * 3


def test_a_server_that_asks_to_be_left_alone_is_left_alone(bench: Bench) -> None:
    bench.server.faults.plan("open_runs", ServerUnreachable("busy", after=30))
    bench.lister.serve_one(None)
    bench.server.faults.plan("knock", AWAY)
    bench.clock.advance(29)
    bench.lister.serve_one(TaskId(4))
    bench.clock.advance(1)
    bench.lister.serve_one(None)
    # nobody knocked before the time was over
    assert [message.error.message for message in bench.posted] == ["busy", "busy", "away"]
    bench.lister.serve_one(None)
    assert isinstance(bench.posted[-1], RunsListed)


def test_a_key_that_is_refused_is_not_taken_for_a_server_that_is_away(bench: Bench) -> None:
    bench.server.faults.plan("open_runs", AccessDenied("no such key"))
    bench.server.faults.plan("knock", AWAY)
    bench.lister.serve_one(None)
    bench.lister.serve_one(None)
    assert isinstance(bench.posted[-1], RunsListed)


# --- one run, two inputs ---------------------------------------------------------------------------------------


def test_a_run_that_is_listed_again_with_another_input_before_it_was_taken_in_keeps_the_first(
    bench: Bench,
) -> None:
    bench.server.add(make_open_run(1, input=[b"allowed"]))
    bench.lister.serve_one(None)
    bench.server.add(make_open_run(1, input=[b"forbidden"]))
    with capture_logs() as lines:
        bench.lister.serve_one(None)
    first, second = (message.runs[0] for message in bench.posted)
    assert first.input_digest == hashlib.sha256(b"allowed").hexdigest()
    assert (first.fault, second.input_digest) == ("", "")
    assert "another input" in second.fault
    assert [line["event"] for line in lines] == ["input_changed"]
    assert bench.folders.read_input(RunId(1), limit=100) == b"allowed"
