"""Journals of every version that was ever released are taken over whole, or left exactly as they are."""

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from node_agent.domain.run import Run, State
from node_agent.errors import ConfigError
from node_agent.store.journal import FILE_NAME, SqliteJournal, read_history, read_images
from node_agent.store.safecopy import copy_name, keep_copy
from node_agent.store.schema import MIGRATIONS
from tests import golden_journals

NEWEST = len(MIGRATIONS)
VERSIONS = sorted(
    int(path.stem.removeprefix("journal-v")) for path in golden_journals.FOLDER.glob("*.sqlite")
)
OLDER = [version for version in VERSIONS if version < NEWEST]
DIE_AT = """
import os, signal, sqlite3, sys
from pathlib import Path
from node_agent.store.schema import migrate

path, left = Path(sys.argv[1]), int(sys.argv[2])

def count(statement):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

connection = sqlite3.connect(path, isolation_level=None)
connection.set_trace_callback(count)
migrate(connection, path)
"""
"""Migrates a journal, and dies before a given statement of SQL."""


def described(version: int) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(golden_journals.golden(version).with_suffix(".json").read_text())
    return content


def placed(version: int, folder: Path) -> Path:
    path = folder / FILE_NAME
    shutil.copy(golden_journals.golden(version), path)
    return path


def version_of(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("PRAGMA user_version").fetchone()[0])


def as_far_as_known(found: Any, expected: Any) -> Any:
    """Leave out what a later version added: the golden journal cannot know it."""
    if isinstance(expected, dict):
        return {key: as_far_as_known(found[key], value) for key, value in expected.items()}
    return found


def content_of(folder: Path) -> dict[int, tuple[Any, ...]]:
    shown = ("state", "outcome", "reason", "task_id", "image", "received_at", "finished_at", "exit_code")
    return {row["run_id"]: tuple(row[name] for name in shown) for row in read_history(folder, 1000)}


def expected_content(version: int) -> dict[int, tuple[Any, ...]]:
    return {
        run["id"]: (
            *(State(run["state"]).name.lower(), run["outcome"], run["reason"], run["task"]["id"]),
            *(run["task"]["image"], run["received_at"], run["finished_at"], run["exit_code"]),
        )
        for run in described(version)["runs"]
    }


def test_the_newest_version_has_its_golden_journal() -> None:
    assert NEWEST in VERSIONS, "run `python -m tests.golden_journals` and commit what it made"


@pytest.mark.parametrize("version", VERSIONS)
def test_a_golden_journal_has_the_version_it_is_named_after(version: int, quick_dir: Path) -> None:
    assert version_of(placed(version, quick_dir)) == version


@pytest.mark.parametrize("version", VERSIONS)
def test_every_run_of_every_version_is_shown_before_an_agent_takes_the_journal_over(
    version: int, quick_dir: Path
) -> None:
    path = placed(version, quick_dir)
    assert content_of(quick_dir) == expected_content(version)
    assert version_of(path) == version


@pytest.mark.parametrize("version", VERSIONS)
def test_every_run_of_every_version_is_taken_over_with_all_that_was_known(
    version: int, quick_dir: Path
) -> None:
    path = placed(version, quick_dir)
    expected = [run for run in described(version)["runs"] if run["state"] < State.REMOVED]
    with closing(SqliteJournal(quick_dir)) as journal:
        found = [golden_journals.plain(run) for run in journal.load()]
    assert [run["id"] for run in found] == [run["id"] for run in expected]
    assert [as_far_as_known(*pair) for pair in zip(found, expected, strict=True)] == expected
    assert content_of(quick_dir) == expected_content(version)
    assert [golden_journals.plain(image) for image in read_images(quick_dir)] == described(version)["images"]
    assert version_of(path) == NEWEST


@pytest.mark.parametrize("version", VERSIONS)
def test_runs_of_every_version_go_on_to_their_end(version: int, quick_dir: Path) -> None:
    path = placed(version, quick_dir)
    with closing(sqlite3.connect(path)) as connection:
        before = connection.execute("SELECT COUNT(*) FROM transition").fetchone()[0]
    with closing(SqliteJournal(quick_dir)) as journal:
        going = journal.load()
        for run in going:
            journal.update(run, replace(run, state=State.REMOVED), at=9.0)
        journal.insert(Run(id=golden_journals.RunId(999), task=golden_journals.PLAIN_TASK, received_at=9.0))
        assert [run.id for run in journal.load()] == [999]
    with closing(sqlite3.connect(path)) as connection:
        after = connection.execute("SELECT COUNT(*) FROM transition").fetchone()[0]
    assert after == before + len(going)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_journal_taken_over_has_the_same_tables_as_a_new_one(version: int, quick_dir: Path) -> None:
    path = placed(version, quick_dir)
    fresh = quick_dir / "fresh"
    fresh.mkdir()
    for folder in (quick_dir, fresh):
        SqliteJournal(folder).close()
    assert tables_of(path) == tables_of(fresh / FILE_NAME)


def tables_of(path: Path) -> dict[str, set[tuple[Any, ...]]]:
    with closing(sqlite3.connect(path)) as connection:
        names = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        columns = {name: connection.execute(f"PRAGMA table_info({name})").fetchall() for name in names}
        indexes = connection.execute("SELECT name FROM sqlite_master WHERE type = 'index'").fetchall()
    # the order of columns is the order in which they came
    return {**{name: {row[1:] for row in rows} for name, rows in columns.items()}, "indexes": set(indexes)}


# --- the way back -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", OLDER)
def test_the_journal_is_kept_as_it_was_before_it_gets_a_new_version(version: int, quick_dir: Path) -> None:
    path = placed(version, quick_dir)
    older = copy_name(path, NEWEST - 1)
    older.write_text("kept by an upgrade before this one")
    SqliteJournal(quick_dir).close()
    kept = copy_name(path, NEWEST)
    assert kept.name == f"{FILE_NAME}.before-v{NEWEST}"
    assert version_of(kept) == version
    assert kept.stat().st_mode & 0o777 == 0o600
    assert not older.exists(), "one copy is enough"
    back = quick_dir / "back"
    back.mkdir()
    shutil.copy(kept, back / FILE_NAME)
    assert content_of(back) == expected_content(version)


class FullDisk:
    """A journal whose copy does not fit on the disk."""

    def backup(self, copy: sqlite3.Connection) -> None:
        copy.execute("CREATE TABLE half (x)")
        raise sqlite3.OperationalError("database or disk is full")


def test_a_copy_that_does_not_fit_leaves_no_half_and_does_not_cost_the_earlier_one(quick_dir: Path) -> None:
    path = placed(VERSIONS[0], quick_dir)
    earlier = copy_name(path, NEWEST - 1)
    earlier.touch()
    with pytest.raises(sqlite3.OperationalError, match="full"):
        keep_copy(cast("sqlite3.Connection", FullDisk()), path, version=NEWEST)
    assert {entry.name for entry in quick_dir.iterdir()} == {path.name, earlier.name}


def test_no_copy_is_made_when_nothing_changes(quick_dir: Path) -> None:
    path = placed(NEWEST, quick_dir)
    SqliteJournal(quick_dir).close()
    assert list(quick_dir.glob(f"{path.name}*")) == [path]


def test_a_journal_of_a_newer_version_stays_as_it_is_byte_for_byte(quick_dir: Path) -> None:
    path = placed(NEWEST, quick_dir)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {NEWEST + 1}")
    content = path.read_bytes()
    with pytest.raises(ConfigError, match=f"newer node-agent \\(format {NEWEST + 1}") as refusal:
        SqliteJournal(quick_dir)
    assert "Install that version again" in refusal.value.hint
    assert not list(quick_dir.glob("*.before-*"))
    assert path.read_bytes() == content


# --- a death on the way -----------------------------------------------------------------------------------------


def died(path: Path, statement: int) -> bool:
    done = subprocess.run([sys.executable, "-c", DIE_AT, str(path), str(statement)], check=False, timeout=60)
    assert done.returncode in {0, -signal.SIGKILL}
    return done.returncode != 0


def test_a_death_before_any_statement_of_a_migration_leaves_the_old_version_whole(quick_dir: Path) -> None:
    oldest = VERSIONS[0]
    golden = tables_of(golden_copy(oldest, quick_dir / "golden"))
    deaths = 0
    while died(golden_copy(oldest, place := quick_dir / str(deaths)), deaths + 1):
        path = place / FILE_NAME
        assert version_of(path) == oldest
        assert tables_of(path) == golden
        SqliteJournal(place).close()
        assert version_of(path) == NEWEST
        assert content_of(place) == expected_content(oldest)
        assert not list(place.glob(".*")), "half a copy is left"
        assert version_of(copy_name(path, NEWEST)) == oldest
        deaths += 1
    # the question for the version, the beginning, every step, the new version, and the end
    assert deaths >= 4 + NEWEST - oldest


def golden_copy(version: int, folder: Path) -> Path:
    folder.mkdir()
    return placed(version, folder)
