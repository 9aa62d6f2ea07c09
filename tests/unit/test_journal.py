"""The journal: nothing is recorded twice, nothing from the wrong state, nothing half."""

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from node_agent.domain.lifecycle import EDGES
from node_agent.domain.run import BlobId, ContainerId, Outcome, Run, RunId, State, Status
from node_agent.domain.task import DatabaseRequest, OrganizationId, TaskId
from node_agent.errors import ConfigError, DiskFull, IllegalTransition
from node_agent.store.journal import FILE_NAME, SqliteJournal, read_history
from node_agent.store.schema import MIGRATIONS
from tests.doubles.core import IMAGE, make_run, make_task

FULL_RUN = Run(
    id=RunId(12),
    task=make_task(
        4,
        parent_id=TaskId(3),
        init_org_id=OrganizationId(9),
        init_user_id=8,
        study_id=6,
        store_id=5,
        databases=(
            DatabaseRequest(
                label="default",
                query="SELECT 'half \ud800 pair'",
                sheet_name="Blatt 1",
                preprocessing=({"function": "select_columns", "parameters": {"columns": ["a"]}},),
                arguments={"x": [1, 2]},
            ),
            DatabaseRequest(label="other"),
        ),
    ),
    received_at=1.5,
    state=State.CAPTURED,
    ending=Outcome.KILLED,
    outcome=None,
    reason="because",
    fault="faulty",
    input_blob=BlobId("input"),
    result_blob=BlobId("result"),
    announced=Status.ACTIVE,
    claimed_at=2.5,
    digest="sha256:" + "d" * 64,
    image_id="image",
    container=ContainerId("container"),
    token_hash="hash",
    started_at=3.5,
    exit_code=137,
    out_of_memory=True,
    has_subtasks=True,
    finished_at=4.5,
)


@pytest.fixture
def journal(quick_dir: Path) -> Iterator[SqliteJournal]:
    opened = SqliteJournal(quick_dir)
    yield opened
    opened.close()


def transitions(folder: Path) -> list[tuple[int, float, int, int]]:
    connection = sqlite3.connect(folder / FILE_NAME)
    try:
        return connection.execute("SELECT run_id, at, from_state, to_state FROM transition").fetchall()
    finally:
        connection.close()


@pytest.mark.parametrize("run", [FULL_RUN, make_run(1), make_run(2, task=make_task(2, init_org_id=None))])
def test_a_run_is_read_as_it_was_written(quick_dir: Path, run: Run) -> None:
    first = SqliteJournal(quick_dir)
    assert first.insert(run)
    first.close()
    second = SqliteJournal(quick_dir)
    assert second.load() == [run]
    second.close()


def test_inserting_twice_is_a_no_op(journal: SqliteJournal) -> None:
    assert journal.insert(make_run(1))
    assert not journal.insert(make_run(1, fault="another"))
    assert journal.load() == [make_run(1)]


def test_a_run_is_known_also_after_its_end(journal: SqliteJournal) -> None:
    assert not journal.knows(RunId(1))
    journal.insert(make_run(1, state=State.REMOVED))
    assert journal.knows(RunId(1))
    assert not journal.insert(make_run(1))
    assert journal.load() == []


def test_open_runs_are_loaded_oldest_first(journal: SqliteJournal) -> None:
    for number in (3, 1, 2):
        journal.insert(make_run(number))
    assert [run.id for run in journal.load()] == [1, 2, 3]


def test_a_move_and_its_transition_are_recorded_together(journal: SqliteJournal, quick_dir: Path) -> None:
    before = make_run(1)
    after = replace(before, state=State.ADMITTED, claimed_at=3.0)
    journal.insert(before)
    journal.update(before, after, at=9.0)
    assert journal.load() == [after]
    assert transitions(quick_dir) == [(1, 9.0, State.RECEIVED, State.ADMITTED)]


def test_learning_a_fact_is_no_transition(journal: SqliteJournal, quick_dir: Path) -> None:
    before = make_run(1)
    after = replace(before, has_subtasks=True)
    journal.insert(before)
    journal.update(before, after, at=9.0)
    assert journal.load() == [after]
    assert transitions(quick_dir) == []


@pytest.mark.parametrize("actual", [state for state in State if state is not State.RECEIVED])
def test_an_update_from_the_wrong_state_is_refused_and_changes_nothing(
    journal: SqliteJournal, quick_dir: Path, actual: State
) -> None:
    outcome = Outcome.COMPLETED if actual >= State.FINISHED else None
    stored = make_run(1, state=actual, outcome=outcome)
    journal.insert(stored)
    before = make_run(1)
    with pytest.raises(IllegalTransition, match="RECEIVED"):
        journal.update(before, replace(before, state=State.ADMITTED), at=9.0)
    assert read_history(quick_dir, 1)[0]["state"] == actual.name.lower()
    assert transitions(quick_dir) == []


def test_the_history_tells_who_asked_and_for_what(journal: SqliteJournal, quick_dir: Path) -> None:
    journal.insert(FULL_RUN)
    (shown,) = read_history(quick_dir, 1)
    asked = {key: shown[key] for key in ("parent_id", "organization_id", "user_id", "databases")}
    assert asked == {"parent_id": 3, "organization_id": 9, "user_id": 8, "databases": ["default", "other"]}


def test_an_update_of_an_unknown_run_is_refused(journal: SqliteJournal) -> None:
    with pytest.raises(IllegalTransition):
        journal.update(make_run(1), make_run(1, state=State.ADMITTED), at=9.0)


def test_the_journal_goes_on_after_a_refusal(journal: SqliteJournal) -> None:
    with pytest.raises(IllegalTransition):
        journal.update(make_run(1), make_run(1, state=State.ADMITTED), at=9.0)
    journal.insert(make_run(1))
    journal.update(make_run(1), make_run(1, state=State.ADMITTED), at=9.0)
    assert journal.load()[0].state is State.ADMITTED


def test_a_number_is_given_anew_only_when_its_run_is_over(journal: SqliteJournal, quick_dir: Path) -> None:
    over = make_run(1, state=State.REMOVED, outcome=Outcome.COMPLETED)
    another = make_run(1, task=make_task(9))
    journal.insert(over)
    journal.renew(another, at=5.0)
    assert journal.load() == [another]
    assert transitions(quick_dir) == [(1, 5.0, State.REMOVED, State.RECEIVED)]
    with pytest.raises(IllegalTransition, match="not over"):
        journal.renew(another, at=6.0)


def test_every_edge_of_the_lifecycle_can_be_recorded(journal: SqliteJournal, quick_dir: Path) -> None:
    edges = [(before, after) for before, followers in EDGES.items() for after in sorted(followers)]
    for number, (before, after) in enumerate(edges, start=1):
        run = make_run(number, state=before)
        journal.insert(run)
        journal.update(run, replace(run, state=after), at=float(number))
    assert [(row[2], row[3]) for row in transitions(quick_dir)] == edges


def test_a_full_disk_is_transient_and_the_journal_goes_on_when_there_is_space(journal: SqliteJournal) -> None:
    journal.insert(make_run(1))
    pages = journal._connection.execute("PRAGMA page_count").fetchone()[0]
    journal._connection.execute(f"PRAGMA max_page_count = {pages}")
    long = make_run(1, state=State.ADMITTED, reason="x" * 100_000)
    with pytest.raises(DiskFull, match="journal"):
        journal.update(make_run(1), long, at=1.0)
    with pytest.raises(DiskFull):
        journal.insert(make_run(2, reason="x" * 100_000))
    assert journal.load() == [make_run(1)]
    journal._connection.execute("PRAGMA max_page_count = 1000000")
    journal.update(make_run(1), long, at=1.0)
    assert journal.load() == [long]


def test_texts_that_utf8_cannot_hold_do_not_stop_the_agent(journal: SqliteJournal) -> None:
    journal.insert(make_run(1, fault="half a pair: \ud800", reason="\udfff"))
    assert journal.load()[0].fault == "half a pair: ?"


def test_only_the_owner_can_read_the_journal(journal: SqliteJournal, quick_dir: Path) -> None:
    journal.insert(make_run(1))
    assert (quick_dir / FILE_NAME).stat().st_mode & 0o777 == 0o600


def test_a_journal_of_the_first_version_is_shown_and_then_taken_over(quick_dir: Path) -> None:
    connection = sqlite3.connect(quick_dir / FILE_NAME)
    connection.executescript(MIGRATIONS[0])
    connection.execute("PRAGMA user_version = 1")
    connection.execute(
        "INSERT INTO run (run_id, task_id, job_id, image, task, received_at, state, reason, fault, announced,"
        " out_of_memory, has_subtasks) VALUES (1, 1, 7, ?, ?, 1.0, 1, '', '', 'pending', 0, 0)",
        (IMAGE, json.dumps(asdict(make_task(1)))),
    )
    connection.commit()
    connection.close()
    (shown,) = read_history(quick_dir, 10)
    assert shown["run_id"] == 1
    journal = SqliteJournal(quick_dir)
    assert journal.load() == [make_run(1, received_at=1.0)]
    journal.close()


def test_a_journal_of_a_newer_version_is_refused_and_left_as_it_is(quick_dir: Path) -> None:
    path = quick_dir / FILE_NAME
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE tomorrow (x)")
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    connection.commit()
    connection.close()
    content = path.read_bytes()
    with pytest.raises(ConfigError, match="newer") as refusal:
        SqliteJournal(quick_dir)
    assert "Install that version" in refusal.value.hint
    assert path.read_bytes() == content


def test_a_damaged_journal_is_named_and_left_as_it_is(quick_dir: Path) -> None:
    path = quick_dir / FILE_NAME
    path.write_bytes(b"this is no database, whatever it is called" * 100)
    with pytest.raises(ConfigError, match="damaged") as refusal:
        SqliteJournal(quick_dir)
    assert str(path) in str(refusal.value)
    assert "Move it aside" in refusal.value.hint
    assert path.read_bytes().startswith(b"this is no database")
    with pytest.raises(ConfigError, match="damaged"):
        read_history(quick_dir, 10)


def test_damaged_pages_are_found_at_the_start(quick_dir: Path) -> None:
    journal = SqliteJournal(quick_dir)
    for number in range(1, 200):
        journal.insert(make_run(number, reason="x" * 500))
    journal.close()
    path = quick_dir / FILE_NAME
    content = bytearray(path.read_bytes())
    content[8192:] = b"\xff" * (len(content) - 8192)
    path.write_bytes(bytes(content))
    spoilt = path.read_bytes()
    with pytest.raises(ConfigError, match="damaged") as refusal:
        SqliteJournal(quick_dir)
    assert "Move it aside" in refusal.value.hint
    assert path.read_bytes() == spoilt


def test_a_journal_that_cannot_be_opened_says_what_to_check(quick_dir: Path) -> None:
    (quick_dir / FILE_NAME).mkdir()
    with pytest.raises(ConfigError, match="cannot be used") as refusal:
        SqliteJournal(quick_dir)
    assert "owner" in refusal.value.hint


def test_the_history_is_newest_first_and_limited(journal: SqliteJournal, quick_dir: Path) -> None:
    for number in range(1, 6):
        journal.insert(make_run(number))
    assert [row["run_id"] for row in read_history(quick_dir, 3)] == [5, 4, 3]


def test_the_history_can_be_read_while_the_agent_writes(journal: SqliteJournal, quick_dir: Path) -> None:
    journal.insert(make_run(1))
    journal._connection.execute("BEGIN IMMEDIATE")
    journal._connection.execute("UPDATE run SET state = 5")
    assert [row["state"] for row in read_history(quick_dir, 10)] == ["received"]
    journal._connection.execute("COMMIT")
    assert [row["state"] for row in read_history(quick_dir, 10)] == ["running"]


def test_the_history_can_be_read_when_no_agent_runs(quick_dir: Path) -> None:
    assert read_history(quick_dir, 10) == []
    journal = SqliteJournal(quick_dir)
    journal.insert(FULL_RUN)
    journal.close()
    (row,) = read_history(quick_dir, 10)
    assert row["run_id"] == 12
    assert row["status"] == "active"
    assert row["status_code"] == 40  # it has crashed, and will end with 41
    assert row["finished_at"] == 4.5


def test_the_history_says_how_a_run_ended(journal: SqliteJournal, quick_dir: Path) -> None:
    journal.insert(make_run(1, state=State.REMOVED, outcome=Outcome.IMAGE_MISSING, reason="no such image"))
    (row,) = read_history(quick_dir, 1)
    assert (row["status"], row["status_code"], row["reason"]) == (
        "non-existing Docker image",
        32,
        "no such image",
    )


def test_a_new_run_takes_the_place_of_one_that_is_over(journal: SqliteJournal, quick_dir: Path) -> None:
    over = replace(make_run(1), state=State.REMOVED, outcome=Outcome.COMPLETED)
    journal.insert(over)
    journal.renew(make_run(1), at=9.0)
    assert journal.load() == [make_run(1)]
    assert transitions(quick_dir) == [(1, 9.0, State.REMOVED, State.RECEIVED)]


def test_a_run_that_is_not_over_keeps_its_place(journal: SqliteJournal) -> None:
    journal.insert(make_run(1))
    with pytest.raises(IllegalTransition):
        journal.renew(make_run(1), at=9.0)
