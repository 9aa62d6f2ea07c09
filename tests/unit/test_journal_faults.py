"""A journal that cannot be trusted or used: refused with what to do, never changed by the look at it."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from node_agent.domain.run import RunId, State
from node_agent.errors import ConfigError, DiskFull, DiskUnwritable
from node_agent.store import soundness
from node_agent.store.journal import FILE_NAME, SIGN_OF_USE, SqliteJournal, read_history
from node_agent.store.rundir import DiskRunFolders
from node_agent.store.schema import MIGRATIONS
from tests.doubles.core import make_run

PAGE = 4096
HEADER = 100
RUNS = 200


@pytest.fixture
def used(quick_dir: Path) -> Path:
    """A state directory that an agent used and left in order."""
    journal = SqliteJournal(quick_dir)
    DiskRunFolders(quick_dir, user=(0, 0))
    for number in range(1, RUNS):
        journal.insert(make_run(number, reason="x" * 500))
    journal.close()
    return quick_dir


def refused(state_dir: Path, said: str) -> ConfigError:
    """See to it that the journal is refused, and that not a byte of it is changed."""
    path = state_dir / FILE_NAME
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=said) as refusal:
        SqliteJournal(state_dir)
    assert path.read_bytes() == before
    assert str(path) in refusal.value.message
    return refusal.value


# --- what is refused ------------------------------------------------------------------------------------------


def lengths() -> Iterator[int]:
    yield from (1, 15, 16, 17, HEADER - 1, HEADER, HEADER + 1, 511, 512, 513)
    yield from (PAGE - 1, PAGE, PAGE + 1, 2 * PAGE, 5 * PAGE - 1, 5 * PAGE, 10 * PAGE + 100)


@pytest.mark.parametrize("length", list(lengths()))
def test_a_journal_cut_short_is_refused_and_left_as_it_is(used: Path, length: int) -> None:
    path = used / FILE_NAME
    path.write_bytes(path.read_bytes()[:length])
    refusal = refused(used, "is damaged")
    assert refusal.hint.startswith("Move it aside")
    assert "Lost then" in refusal.hint


@pytest.mark.parametrize("missing", [1, PAGE // 2, PAGE, 3 * PAGE])
def test_a_journal_whose_end_is_missing_is_refused(used: Path, missing: int) -> None:
    path = used / FILE_NAME
    path.write_bytes(path.read_bytes()[:-missing])
    refused(used, "is damaged")


def test_an_empty_journal_in_a_used_directory_was_lost(used: Path) -> None:
    (used / FILE_NAME).write_bytes(b"")
    refusal = refused(used, "is empty although this state directory was used")
    assert refusal.hint.startswith("Move it aside")


def test_an_empty_journal_in_a_new_directory_is_a_new_one(quick_dir: Path) -> None:
    (quick_dir / FILE_NAME).touch()
    with closing(SqliteJournal(quick_dir)) as journal:
        assert journal.load() == []


def test_the_sign_of_use_is_made_by_the_first_start(quick_dir: Path) -> None:
    SqliteJournal(quick_dir).close()
    assert not (quick_dir / SIGN_OF_USE).exists()
    DiskRunFolders(quick_dir, user=(0, 0))
    assert (quick_dir / SIGN_OF_USE).exists()


def spoil(path: Path, *, at: int, length: int) -> None:
    content = bytearray(path.read_bytes())
    content[at : at + length] = b"\xff" * length
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("page", [1, 2, 5, 10])
def test_a_page_that_was_overwritten_is_found_at_the_start(used: Path, page: int) -> None:
    spoil(used / FILE_NAME, at=page * PAGE, length=PAGE)
    refused(used, "is damaged")


def test_a_header_that_was_overwritten_is_found_at_the_start(used: Path) -> None:
    spoil(used / FILE_NAME, at=0, length=HEADER)
    refused(used, "is damaged")


def test_a_newer_journal_is_left_as_it_is_also_when_its_last_changes_lie_beside_it(used: Path) -> None:
    with closing(sqlite3.connect(used / FILE_NAME, isolation_level=None)) as newer:
        newer.execute("PRAGMA wal_autocheckpoint = 0")
        newer.execute("CREATE TABLE tomorrow (x)")
        newer.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
        left = {path.name: path.read_bytes() for path in used.glob(f"{FILE_NAME}*")}
    # closing moved the changes into the file; a power cut leaves them beside it
    for name, content in left.items():
        (used / name).write_bytes(content)
    wal = used / f"{FILE_NAME}-wal"
    before = wal.read_bytes()
    assert before
    refused(used, "newer node-agent")
    assert wal.read_bytes() == before


def test_damage_in_a_large_journal_is_found_when_it_is_met(
    used: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soundness, "CHECKED_WHOLE", 0)
    spoil(used / FILE_NAME, at=8 * PAGE, length=20 * PAGE)
    with closing(SqliteJournal(used)) as journal, pytest.raises(ConfigError, match="is damaged") as refusal:
        journal.load()
    assert refusal.value.hint.startswith("Move it aside")


def test_damage_that_happens_while_the_agent_works_is_told_from_a_full_disk(used: Path) -> None:
    with closing(SqliteJournal(used)) as journal:
        journal._connection.execute("PRAGMA cache_size = 0")
        spoil(used / FILE_NAME, at=PAGE, length=(used / FILE_NAME).stat().st_size - PAGE)
        with pytest.raises(ConfigError, match="is damaged"):
            journal.update(make_run(1), make_run(1, state=State.ADMITTED), at=1.0)


# --- what passes ----------------------------------------------------------------------------------------------


def test_a_journal_that_another_program_locks_is_tried_again(used: Path) -> None:
    with closing(sqlite3.connect(used / FILE_NAME, isolation_level=None)) as other:
        journal = SqliteJournal(used)
        journal._connection.execute("PRAGMA busy_timeout = 1")
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(DiskUnwritable, match="locked by another program"):
            journal.insert(make_run(RUNS))
        other.execute("ROLLBACK")
        assert journal.insert(make_run(RUNS))
        journal.close()


def test_a_journal_that_became_read_only_is_tried_again(used: Path) -> None:
    with closing(SqliteJournal(used)) as journal:
        journal._connection.execute("PRAGMA query_only = ON")
        with pytest.raises(DiskUnwritable, match="cannot be written"):
            journal.insert(make_run(RUNS))
        journal._connection.execute("PRAGMA query_only = OFF")
        assert journal.insert(make_run(RUNS))


def test_a_journal_that_may_not_be_written_is_the_operators_matter(own_dir: Path) -> None:
    SqliteJournal(own_dir).close()
    (own_dir / FILE_NAME).unlink()
    (own_dir / FILE_NAME).mkdir()
    with pytest.raises(ConfigError, match="cannot be used") as refusal:
        SqliteJournal(own_dir)
    assert "owner" in refusal.value.hint
    assert [path.name for path in own_dir.iterdir()] == [FILE_NAME]


# --- a new one ------------------------------------------------------------------------------------------------


def test_changes_of_a_journal_that_was_moved_away_do_not_get_into_the_new_one(used: Path) -> None:
    with closing(sqlite3.connect(used / FILE_NAME, isolation_level=None)) as old:
        old.execute("PRAGMA wal_autocheckpoint = 0")
        old.execute("UPDATE run SET state = 5")
        wal = (used / f"{FILE_NAME}-wal").read_bytes()
    (used / FILE_NAME).unlink()
    (used / f"{FILE_NAME}-wal").write_bytes(wal)
    with closing(SqliteJournal(used)) as journal:
        assert journal.load() == []
        assert journal.insert(make_run(1))
    assert (used / f"{FILE_NAME}-wal.old").read_bytes() == wal


def test_half_of_a_new_journal_is_made_anew(quick_dir: Path) -> None:
    (quick_dir / f".{FILE_NAME}.new").write_bytes(b"half")
    with closing(SqliteJournal(quick_dir)) as journal:
        assert journal.insert(make_run(1))
    assert [row["run_id"] for row in read_history(quick_dir, 10)] == [RunId(1)]


def test_every_promise_is_on_the_disk_before_it_counts(quick_dir: Path) -> None:
    with closing(SqliteJournal(quick_dir)) as journal:
        full, wal = 2, "wal"
        assert journal._connection.execute("PRAGMA synchronous").fetchone()[0] == full
        assert journal._connection.execute("PRAGMA journal_mode").fetchone()[0] == wal


def test_a_full_disk_says_what_to_do(used: Path) -> None:
    with closing(SqliteJournal(used)) as journal:
        pages = journal._connection.execute("PRAGMA page_count").fetchone()[0]
        journal._connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(DiskFull) as trouble:
            journal.insert(make_run(RUNS, reason="x" * 100_000))
        assert "Free some space" in trouble.value.hint
