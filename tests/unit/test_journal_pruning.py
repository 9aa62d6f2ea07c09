"""What the journal forgets, what it notes of images, and that neither asks it to read every run it ever had."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from node_agent.domain.keeping import PulledImage
from node_agent.domain.run import Run, RunId, State
from node_agent.store.journal import (
    FILE_NAME,
    SqliteJournal,
    count_old_runs,
    read_images,
    read_open_runs,
)
from node_agent.store.pruning import BATCH, COUNT_OLD_RUNS, OLD_RUNS
from node_agent.store.schema import MIGRATIONS
from tests.doubles.core import make_run

IMAGE = PulledImage(image_id="a", reference="r/a:1", digest="d", pulled_at=1.0, used_at=1.0)


@pytest.fixture
def journal(quick_dir: Path) -> Iterator[SqliteJournal]:
    opened = SqliteJournal(quick_dir)
    yield opened
    opened.close()


def ended(number: int, *, at: float | None) -> Run:
    return make_run(number, state=State.REMOVED, finished_at=at, received_at=at or 5.0)


def kept(folder: Path) -> list[int]:
    return [int(str(run_id)) for (run_id,) in asked(folder, "SELECT run_id FROM run ORDER BY run_id")]


def asked(folder: Path, query: str, *values: object) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(folder / FILE_NAME)) as connection:
        return connection.execute(query, values).fetchall()


# --- runs -----------------------------------------------------------------------------------------------------


def test_runs_that_ended_before_are_forgotten_and_no_others(journal: SqliteJournal, quick_dir: Path) -> None:
    for number, at in ((1, 10.0), (2, 20.0), (3, 30.0), (4, None)):
        journal.insert(ended(number, at=at))
    assert count_old_runs(quick_dir, before=20.0) == 2
    assert journal.prune(before=20.0, spare=()) == 2
    assert kept(quick_dir) == [2, 3]
    assert journal.prune(before=20.0, spare=()) == 0


@pytest.mark.parametrize("state", [state for state in State if state is not State.REMOVED])
def test_a_run_that_is_not_over_is_never_forgotten(
    journal: SqliteJournal, quick_dir: Path, state: State
) -> None:
    journal.insert(make_run(1, state=state, finished_at=1.0))
    assert journal.prune(before=float("inf"), spare=()) == 0
    assert kept(quick_dir) == [1]


def test_a_forgotten_run_takes_its_transitions_along(journal: SqliteJournal, quick_dir: Path) -> None:
    for number in (1, 2):
        before = replace(ended(number, at=1.0), state=State.REPORTED)
        journal.insert(before)
        journal.update(before, replace(before, state=State.REMOVED), at=2.0)
    assert journal.prune(before=10.0, spare={RunId(2)}) == 1
    assert asked(quick_dir, "SELECT run_id FROM transition") == [(2,)]


def test_spared_runs_do_not_stand_in_the_way_of_others(journal: SqliteJournal, quick_dir: Path) -> None:
    for number in range(1, 8):
        journal.insert(ended(number, at=float(number)))
    assert journal.prune(before=100.0, spare={RunId(number) for number in (1, 2, 3)}) == 4
    assert kept(quick_dir) == [1, 2, 3]


def test_a_bounded_number_of_runs_goes_at_once_the_oldest_first(
    journal: SqliteJournal, quick_dir: Path
) -> None:
    for number in range(1, BATCH + 6):
        journal.insert(ended(number, at=float(1000 - number)))
    assert journal.prune(before=10_000.0, spare=()) == BATCH
    assert kept(quick_dir) == [1, 2, 3, 4, 5]


def test_a_journal_gives_its_room_back(journal: SqliteJournal, quick_dir: Path) -> None:
    for number in range(1, BATCH + 1):
        journal.insert(replace(ended(number, at=1.0), reason="x" * 2000))
    pages = asked(quick_dir, "PRAGMA page_count")[0][0]
    assert asked(quick_dir, "PRAGMA auto_vacuum") == [(2,)]
    journal.prune(before=10.0, spare=())
    after = asked(quick_dir, "PRAGMA page_count")[0][0]
    assert isinstance(pages, int)
    assert isinstance(after, int)
    assert after < pages / 4


def test_an_older_journal_is_pruned_too(quick_dir: Path) -> None:
    with closing(sqlite3.connect(quick_dir / FILE_NAME)) as connection:
        for number, script in enumerate(MIGRATIONS[:2], start=1):
            connection.executescript(f"BEGIN;{script};PRAGMA user_version = {number};COMMIT;")
    assert read_images(quick_dir) == []
    with closing(SqliteJournal(quick_dir)) as journal:
        journal.insert(ended(1, at=1.0))
        assert journal.prune(before=2.0, spare=()) == 1


def test_a_number_that_was_forgotten_can_be_a_new_run(journal: SqliteJournal) -> None:
    journal.insert(ended(1, at=1.0))
    journal.prune(before=2.0, spare=())
    assert journal.insert(make_run(1))


# --- what a large journal costs -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "query",
    [
        "SELECT * FROM run WHERE state < 9 ORDER BY run_id",
        "SELECT 1 FROM run WHERE run_id = 1",
        "SELECT * FROM run ORDER BY run_id DESC LIMIT 50",
        OLD_RUNS.replace("?", "1"),
        COUNT_OLD_RUNS.replace("?", "1"),
        "DELETE FROM transition WHERE run_id = 1",
        "UPDATE run SET state = 9 WHERE run_id = 1 AND state = 8",
    ],
)
def test_no_statement_reads_every_run(journal: SqliteJournal, quick_dir: Path, query: str) -> None:
    plan = " ".join(str(row[3]) for row in asked(quick_dir, f"EXPLAIN QUERY PLAN {query}"))
    assert "TEMP B-TREE" not in plan
    assert "INDEX" in plan or "PRIMARY KEY" in plan or plan == "SCAN run"
    if plan == "SCAN run":
        # in the order of the table itself, and no further than the limit
        assert query.endswith("ORDER BY run_id DESC LIMIT 50")


def test_open_runs_can_be_read_while_an_agent_writes(journal: SqliteJournal, quick_dir: Path) -> None:
    journal.insert(ended(1, at=1.0))
    journal.insert(make_run(2))
    assert [run.id for run in read_open_runs(quick_dir)] == [2]


def test_where_there_is_no_journal_there_is_nothing(quick_dir: Path) -> None:
    assert (read_open_runs(quick_dir), read_images(quick_dir), count_old_runs(quick_dir, before=1.0)) == (
        [],
        [],
        0,
    )


# --- images ---------------------------------------------------------------------------------------------------


def test_an_image_is_noted_once_under_each_name(journal: SqliteJournal, quick_dir: Path) -> None:
    again = replace(IMAGE, pulled_at=9.0, used_at=9.0)
    other = replace(IMAGE, reference="r/a:2")
    for image in (IMAGE, other, again):
        journal.note_image(image)
    assert sorted(read_images(quick_dir), key=lambda image: image.reference) == [
        replace(IMAGE, used_at=9.0),
        other,
    ]


@pytest.mark.parametrize(
    ("before", "after"), [(State.ADMITTED, State.PULLED), (State.REPORTED, State.REMOVED)]
)
def test_the_beginning_and_the_end_of_a_run_are_uses_of_its_image(
    journal: SqliteJournal, quick_dir: Path, before: State, after: State
) -> None:
    run = make_run(1, state=before, image_id=None if before is State.ADMITTED else "a")
    journal.note_image(IMAGE)
    journal.note_image(replace(IMAGE, image_id="b"))
    journal.insert(run)
    journal.update(run, replace(run, state=after, image_id="a"), at=7.0)
    assert {image.image_id: image.used_at for image in read_images(quick_dir)} == {"a": 7.0, "b": 1.0}


def test_an_image_that_is_gone_is_forgotten_under_all_its_names(
    journal: SqliteJournal, quick_dir: Path
) -> None:
    for image in (IMAGE, replace(IMAGE, reference="r/a:2"), replace(IMAGE, image_id="b")):
        journal.note_image(image)
    journal.forget_images(["a"])
    assert [image.image_id for image in read_images(quick_dir)] == ["b"]
