"""The books of the compute API: every nonce once, every grant as often as it says, every ending once."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from node_agent.compute.ledger import (
    FILE_NAME,
    ComputeJobId,
    Grant,
    GrantUsedUp,
    Ledger,
    NonceUse,
    TooManyOpen,
)
from node_agent.errors import ConfigError
from tests.open_files import open_files_in

ANNE, BERT = "0x" + "a" * 40, "0x" + "b" * 40


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger(tmp_path)
    yield opened
    opened.close()


def grant(**more: object) -> Grant:
    facts = {
        "id": "g1",
        "consumer": ANNE,
        "data_set": "did",
        "uses_left": 1,
        "expires_at": None,
        "created_at": 1.0,
    }
    return Grant(**{**facts, **more})  # type: ignore[arg-type]


def add(ledger: Ledger, name: str, *grants: str, owner: str = ANNE, most_open: int = 100) -> int:
    job = ledger.add_job(
        ComputeJobId(name * 32),
        owner=owner,
        at=10.0,
        wish={"a": 1},
        content=b"code",
        grants=grants,
        most_open=most_open,
    )
    return job.number


def test_a_nonce_counts_once_and_only_upwards(ledger: Ledger) -> None:
    assert ledger.last_nonce(ANNE) == 0
    good, low = NonceUse.GOOD, NonceUse.TOO_LOW
    used = [ledger.use_nonce(ANNE, nonce) for nonce in (5, 5, 4, 6, 2**53 - 1, 7)]
    assert used == [good, low, low, good, good, low]
    assert ledger.last_nonce(ANNE) == 2**53 - 1
    assert ledger.last_nonce(BERT) == 0


def test_of_many_who_use_one_nonce_at_once_one_wins(ledger: Ledger) -> None:
    won: list[NonceUse] = []
    start = threading.Barrier(16)

    def use() -> None:
        start.wait()
        won.append(ledger.use_nonce(ANNE, 9))

    threads = [threading.Thread(target=use) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (won.count(NonceUse.GOOD), won.count(NonceUse.TOO_LOW)) == (1, 15)


def test_a_marked_text_is_good_for_no_other_nonce_and_a_refused_one_is_not_marked(ledger: Ledger) -> None:
    assert ledger.use_nonce(ANNE, 5) is NonceUse.GOOD
    assert ledger.use_nonce(ANNE, 5, text="a", mark=True, at=1.0) is NonceUse.TOO_LOW
    assert ledger.use_nonce(ANNE, 6, text="a", mark=True, at=1.0) is NonceUse.GOOD
    assert ledger.use_nonce(ANNE, 7, text="a", at=1.0) is NonceUse.TEXT_WAS_USED
    assert ledger.use_nonce(ANNE, 7, text="b", at=1.0) is NonceUse.GOOD


def test_asking_for_a_nonce_writes_nothing(ledger: Ledger, tmp_path: Path) -> None:
    ledger.last_nonce(ANNE)
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as connection:
        assert connection.execute("SELECT count(*) FROM nonce").fetchone() == (0,)


def test_a_job_and_the_uses_of_its_grants_are_written_together_or_not_at_all(ledger: Ledger) -> None:
    ledger.add_grant(grant())
    add(ledger, "1", "g1")
    with pytest.raises(GrantUsedUp):
        add(ledger, "2", "g1")
    assert [job.id[0] for job in ledger.open_jobs()] == ["1"]
    ledger.add_grant(grant(id="g2", uses_left=None))
    add(ledger, "3", "g2")
    add(ledger, "4", "g2")


@pytest.mark.parametrize("bad", ["g2", "g3"])
def test_no_use_of_any_grant_is_lost_when_one_of_them_is_used_up(ledger: Ledger, bad: str) -> None:
    ledger.add_grant(grant())
    ledger.add_grant(grant(id="g2", expires_at=9.0))
    with pytest.raises(GrantUsedUp):
        add(ledger, "1", "g1", bad)
    kept = ledger.grant("g1")
    assert kept is not None
    assert kept.uses_left == 1


def test_a_revoked_grant_is_good_for_nothing(ledger: Ledger) -> None:
    ledger.add_grant(grant())
    assert ledger.revoke_grant("g1", at=5.0)
    assert not ledger.revoke_grant("g1", at=6.0)
    with pytest.raises(GrantUsedUp):
        add(ledger, "1", "g1")


@pytest.mark.parametrize(
    "facts",
    [{"uses_left": 0}, {"expires_at": 50.0}, {"revoked_at": 1.0}, {"consumer": BERT}, {"data_set": "other"}],
)
def test_a_grant_is_good_for_its_consumer_its_data_set_and_its_time(facts: dict[str, object]) -> None:
    assert grant().is_good(consumer=ANNE, data_set="did", now=50.0)
    assert not grant(**facts).is_good(consumer=ANNE, data_set="did", now=50.0)


def test_a_job_ends_once(ledger: Ledger) -> None:
    number = add(ledger, "1")
    assert ledger.finish_job(number, at=20.0, ending={"status": 70})
    assert not ledger.finish_job(number, at=30.0, ending={"status": 41})
    job = ledger.job_by_number(number)
    assert job is not None
    assert (job.finished_at, job.ending) == (20.0, {"status": 70})
    assert ledger.open_jobs() == []
    ledger.ask_stop(job.id)
    assert ledger.job(job.id) == job


def test_a_removed_job_is_found_by_nobody_but_its_run(ledger: Ledger) -> None:
    number = add(ledger, "1")
    job = ledger.job_by_number(number)
    assert job is not None
    ledger.remove_job(job.id)
    assert ledger.job(job.id) is None
    assert ledger.jobs_of(ANNE, limit=10) == []
    assert ledger.job_by_number(number) is not None


def test_numbers_of_jobs_are_never_given_twice(tmp_path: Path) -> None:
    first = Ledger(tmp_path)
    numbers = [add(first, "1"), add(first, "2")]
    first.close()
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as connection:
        connection.execute("DELETE FROM job")
        connection.commit()
    again = Ledger(tmp_path)
    numbers.append(add(again, "3"))
    again.close()
    assert numbers == [numbers[0], numbers[0] + 1, numbers[0] + 2]


def test_two_who_begin_the_books_at_once_both_can_use_them(tmp_path: Path) -> None:
    start, opened, faults = threading.Barrier(8), list[Ledger](), list[Exception]()

    def begin() -> None:
        start.wait()
        try:
            opened.append(Ledger(tmp_path))
        except Exception as error:  # noqa: BLE001 - whatever it is, there must be none
            faults.append(error)

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for ledger in opened:
        ledger.close()
    assert (len(opened), faults) == (8, [])


def test_nobody_else_reads_any_file_of_the_books(ledger: Ledger, tmp_path: Path) -> None:
    add(ledger, "1")
    modes = {path.name: path.stat().st_mode & 0o077 for path in tmp_path.glob(f"{FILE_NAME}*")}
    assert len(modes) == 3
    assert set(modes.values()) == {0}


def test_books_begun_anew_do_not_count_from_the_beginning(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    assert add(ledger, "1") > 200_000_000
    ledger.close()


def test_parameters_and_code_are_kept_until_the_end(ledger: Ledger) -> None:
    number = add(ledger, "1")
    assert ledger.content(number) == b"code"
    ledger.finish_job(number, at=20.0, ending={"status": 70})
    assert ledger.content(number) == b""


def test_of_many_starts_at_once_only_so_many_are_written_down(ledger: Ledger) -> None:
    start, refused = threading.Barrier(8), list[str]()

    def begin(name: str) -> None:
        start.wait()
        try:
            add(ledger, name, most_open=3)
        except TooManyOpen:
            refused.append(name)

    threads = [threading.Thread(target=begin, args=(str(number),)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (ledger.count_open(), len(refused)) == (3, 5)


def test_the_secret_of_the_tokens_stays_the_same(tmp_path: Path) -> None:
    first = Ledger(tmp_path)
    made = first.secret("tokens", b"one")
    first.close()
    again = Ledger(tmp_path)
    assert (made, again.secret("tokens", b"two")) == (b"one", b"one")
    again.close()
    assert (tmp_path / FILE_NAME).stat().st_mode & 0o777 == 0o600


def test_books_of_a_newer_agent_are_refused_and_left_alone(tmp_path: Path) -> None:
    Ledger(tmp_path).close()
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as connection:
        connection.execute("PRAGMA user_version = 99")
        connection.commit()
    # the refusal keeps what was being made, so nothing but a close lets go of the file
    with pytest.raises(ConfigError, match="newer node-agent") as refusal:
        Ledger(tmp_path)
    assert (open_files_in(tmp_path), refusal.type) == ([], ConfigError)


def test_damaged_books_are_refused(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"no database at all " * 100)
    with pytest.raises(ConfigError, match="damaged"):
        Ledger(tmp_path)
    assert (tmp_path / FILE_NAME).read_bytes().startswith(b"no database")
