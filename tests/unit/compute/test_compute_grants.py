"""The owner's grants: given, listed and taken back on the command line, and what they are worth then."""

import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from node_agent import cli, screen
from node_agent.compute.access import Grants, Question
from node_agent.compute.granting import create_grant, list_grants, revoke_grant
from node_agent.compute.ledger import FILE_NAME, ComputeJobId, Grant, GrantUsedUp, Ledger
from node_agent.compute.offer import data_sets_of
from node_agent.compute.sighting import ApiSighting, count_open_jobs, is_listened_on, see_api
from node_agent.config import ANY_MACHINE, Settings, load
from node_agent.domain.assets import DataSet, derived_did
from node_agent.errors import ConfigError
from tests.conftest import NOBODY
from tests.doubles.clock import ManualClock
from tests.doubles.wallet import Wallet

ANNE, BERT = Wallet(0x11), Wallet(0x22)
DAY = 86_400.0
TEXT = """
name: alpha
server: {{url: https://server.example.org/api, api_key: key}}
state_dir: {state_dir}
databases:
- {{label: patients, type: csv, uri: /none.csv}}
- {{label: visits, type: csv, uri: /none.csv}}
compute_api: {{access: grants, data_sets: [{{label: patients}}, {{label: visits}}]}}
"""


@dataclass(frozen=True)
class Node:
    """A node whose agent was never started, and its owner's command line."""

    file: Path
    capsys: pytest.CaptureFixture[str]

    @property
    def settings(self) -> Settings:
        return load(self.file, machine=ANY_MACHINE)

    @property
    def state_dir(self) -> Path:
        return self.settings.state_dir

    def tells(self, *argv: str) -> Any:
        assert cli.main([*argv, "-c", str(self.file), "--json"]) == 0
        return json.loads(self.capsys.readouterr().out)

    def says(self, *argv: str) -> str:
        assert cli.main([*argv, "-c", str(self.file)]) == 0
        return self.capsys.readouterr().out

    def refuses(self, *argv: str) -> tuple[int, str]:
        code = cli.main([*argv, "-c", str(self.file)])
        return code, self.capsys.readouterr().err

    def creates(self, *options: str, by: Wallet = ANNE, data_set: str = "patients") -> Any:
        return self.tells("grant", "create", "--consumer", by.shown, "--dataset", data_set, *options)


@pytest.fixture
def node(quick_dir: Path, capsys: pytest.CaptureFixture[str]) -> Node:
    file = quick_dir / "alpha.yaml"
    file.write_text(TEXT.format(state_dir=quick_dir / "state"), encoding="utf-8")
    return Node(file, capsys)


@pytest.fixture
def books(node: Node) -> Iterator[Ledger]:
    """The books as the running agent has them open."""
    node.state_dir.mkdir(mode=0o700)
    ledger = Ledger(node.state_dir)
    yield ledger
    ledger.close()


def question(node: Node, *, order: str = "", consumer: Wallet = ANNE, label: str = "patients") -> Question:
    data_set = {data_set.label: data_set for data_set in data_sets_of(node.settings)}[label]
    return Question(
        consumer=consumer.address, data_set=data_set, algorithm="raw", order=order, environment="default"
    )


# --- create ---------------------------------------------------------------------------------------------------


def test_a_grant_can_be_given_before_the_first_start(node: Node) -> None:
    made = node.creates("--uses", "3")
    assert (made["consumer"], made["label"], made["uses_left"]) == (ANNE.shown, "patients", 3)
    assert made["data_set"] == derived_did("alpha", "patients")
    assert (made["expires_at"], made["revoked_at"], made["state"]) == (None, None, "holds")
    assert len(made["id"]) == 66
    assert node.state_dir.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in node.state_dir.iterdir()} == {0o600}


def test_a_grant_counts_at_once_for_a_running_agent(node: Node, books: Ledger) -> None:
    access = Grants(books, ManualClock(wall_start=time.time()))
    assert access.right_to(question(node)) is None
    grant_id = node.creates()["id"]
    assert access.right_to(question(node)) == grant_id
    assert access.right_to(question(node, order=grant_id)) == grant_id
    node.says("grant", "revoke", grant_id)
    assert access.right_to(question(node)) is None
    assert access.right_to(question(node, order=grant_id)) is None


def test_a_grant_is_for_one_consumer_and_one_data_set(node: Node, books: Ledger) -> None:
    access = Grants(books, ManualClock(wall_start=time.time()))
    grant_id = node.creates()["id"]
    for other in (
        question(node, order=grant_id, consumer=BERT),
        question(node, order=grant_id, label="visits"),
    ):
        assert access.right_to(other) is None
    assert access.right_to(question(node, consumer=BERT)) is None


def test_an_order_that_is_no_grant_is_not_made_good_by_another_one(node: Node, books: Ledger) -> None:
    node.creates()
    assert Grants(books, ManualClock(wall_start=time.time())).right_to(question(node, order="0x12")) is None


def test_a_data_set_may_be_named_by_its_did(node: Node) -> None:
    assert node.creates(data_set=derived_did("alpha", "visits"))["label"] == "visits"


def test_a_day_still_counts_to_its_end_and_a_duration_begins_now(node: Node) -> None:
    assert node.creates("--expires", "2999-01-31")["expires_at"] == "2999-02-01T00:00:00.000Z"
    before = time.time()
    expires = datetime.fromisoformat(node.creates("--expires", "30d")["expires_at"]).timestamp()
    assert before + 30 * DAY - 1 <= expires <= time.time() + 30 * DAY


def test_people_read_the_same(node: Node) -> None:
    text = node.says("grant", "create", "--consumer", ANNE.address, "--dataset", "patients")
    assert [line.split(maxsplit=1)[0] for line in text.splitlines()] == [
        "grant",
        "consumer",
        "data",
        "uses",
        "expires",
        "state",
    ]
    assert f"consumer  {ANNE.shown}" in text


WRONG = [
    (("--consumer", "0x12", "--dataset", "patients"), 64, "40 hexadecimal digits"),
    (("--consumer", ANNE.shown.swapcase().replace("0X", "0x"), "--dataset", "patients"), 64, "is mistyped"),
    (("--consumer", ANNE.shown, "--dataset", "patients", "--uses", "0"), 64, "--uses"),
    (("--consumer", ANNE.shown, "--dataset", "patients", "--expires", "2020-01-31"), 64, "is over already"),
    (("--consumer", ANNE.shown, "--dataset", "patients", "--expires", "0s"), 64, "is over already"),
    (("--consumer", ANNE.shown, "--dataset", "patients", "--expires", "soon"), 64, "write a day"),
    (("--consumer", ANNE.shown, "--dataset", "patients", "--expires", "9999-12-31"), 64, "write a day"),
    (("--consumer", ANNE.shown, "--dataset", "patience"), 78, "offered: patients, visits"),
    (("--consumer", ANNE.shown, "--dataset", "did:op:" + "0" * 64), 78, "is no DID of a data set"),
    (("--dataset", "patients"), 64, "Missing option '--consumer'"),
]


@pytest.mark.parametrize(("options", "code", "text"), WRONG, ids=lambda value: str(value)[-40:])
def test_what_is_wrong_is_told_and_nothing_is_made(
    options: tuple[str, ...], code: int, text: str, node: Node
) -> None:
    found, said = node.refuses("grant", "create", *options)
    assert (found, text in said) == (code, True), said
    assert not node.state_dir.exists()


def test_who_has_no_capitals_is_believed(node: Node) -> None:
    for text in (ANNE.address, "0x" + ANNE.address[2:].upper()):
        node.tells("grant", "create", "--consumer", text, "--dataset", "patients")
    assert {grant["consumer"] for grant in node.tells("grant", "list")} == {ANNE.shown}


def test_that_grants_do_not_count_is_said(node: Node) -> None:
    node.file.write_text(node.file.read_text().replace("access: grants", "access: deny"))
    assert (
        cli.main(["grant", "create", "-c", str(node.file), "--consumer", ANNE.shown, "--dataset", "patients"])
        == 0
    )
    assert "access: grants; it is deny now" in node.capsys.readouterr().err


def test_nothing_is_made_in_a_folder_of_somebody_else(node: Node) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    node.state_dir.mkdir(mode=0o700)
    os.chown(node.state_dir, NOBODY, NOBODY)
    code, said = node.refuses("grant", "create", "--consumer", ANNE.shown, "--dataset", "patients")
    assert code == 78
    assert f"sudo -u '#{NOBODY}' node-agent grant" in said
    assert list(node.state_dir.iterdir()) == []


def test_a_state_directory_that_cannot_be_made_is_told(node: Node) -> None:
    node.state_dir.write_text("in the way")
    code, said = node.refuses("grant", "create", "--consumer", ANNE.shown, "--dataset", "patients")
    assert code == 78
    assert "cannot be made" in said


# --- list -----------------------------------------------------------------------------------------------------


def test_before_there_are_books_there_are_no_grants(node: Node) -> None:
    assert node.says("grant", "list") == "No grants.\n"
    assert node.tells("grant", "list") == []
    assert not node.state_dir.exists()


def test_grants_are_listed_oldest_first_and_can_be_sifted(node: Node) -> None:
    first = node.creates("--uses", "2")["id"]
    second = node.creates(by=BERT, data_set="visits")["id"]
    assert [grant["id"] for grant in node.tells("grant", "list")] == [first, second]
    assert [grant["id"] for grant in node.tells("grant", "list", "--consumer", BERT.shown)] == [second]
    assert [grant["id"] for grant in node.tells("grant", "list", "--dataset", "patients")] == [first]
    table = node.says("grant", "list").splitlines()
    assert [line.split()[0] for line in table] == ["grant", first, second]


def test_the_list_says_why_a_grant_no_longer_lets_in(node: Node, books: Ledger) -> None:
    now = 1_000_000.0
    facts = {"consumer": ANNE.address, "data_set": "gone", "created_at": 1.0}
    for name, more in {
        "good": {"uses_left": 1, "expires_at": now + 1},
        "late": {"uses_left": None, "expires_at": now},
        "used": {"uses_left": 0, "expires_at": None},
        "back": {"uses_left": 0, "expires_at": 2.0, "revoked_at": 3.0},
    }.items():
        books.add_grant(Grant(id=name, **facts, **more))  # type: ignore[arg-type]
    seen = list_grants(node.settings, consumer=None, data_set=None, now=now)
    assert {one.grant.id: str(one.state) for one in seen} == {
        "back": "revoked",
        "good": "holds",
        "late": "expired",
        "used": "used up",
    }
    assert {one.label for one in seen} == {None}
    assert "gone (not offered)" in node.says("grant", "list")


def test_grants_of_a_data_set_that_is_not_offered_any_more_are_found_by_its_did(node: Node) -> None:
    node.creates()
    node.file.write_text(node.file.read_text().replace("[{label: patients}, ", "["))
    (seen,) = node.tells("grant", "list", "--dataset", derived_did("alpha", "patients"))
    assert seen["label"] is None
    code, said = node.refuses("grant", "list", "--dataset", "patients")
    assert (code, "offered: visits" in said) == (78, True)


# --- revoke ---------------------------------------------------------------------------------------------------


def test_a_grant_is_revoked_once_and_for_all(node: Node, books: Ledger) -> None:
    settings = node.settings
    made = create_grant(
        settings, consumer=ANNE.address, data_set="patients", uses=None, expires_at=None, now=1.0
    )
    first = revoke_grant(settings, made.grant.id, now=5.0)
    again = revoke_grant(settings, made.grant.id, now=9.0)
    assert (first.grant.revoked_at, again.grant.revoked_at, str(again.state)) == (5.0, 5.0, "revoked")
    with pytest.raises(GrantUsedUp):
        books.add_job(
            ComputeJobId("1" * 32),
            owner=ANNE.address,
            at=10.0,
            wish={},
            content=b"",
            grants=[made.grant.id],
            most_open=9,
        )


def test_a_grant_that_is_none_is_told(node: Node) -> None:
    for _ in range(2):
        code, said = node.refuses("grant", "revoke", "0x12")
        assert (code, "There is no grant 0x12" in said, "grant list" in said) == (78, True, True)
    assert not node.state_dir.exists()
    node.creates()
    assert node.refuses("grant", "revoke", "0x12")[0] == 78


# --- status ---------------------------------------------------------------------------------------------------


def test_open_jobs_are_counted_while_the_agent_writes(node: Node, books: Ledger) -> None:
    for name in "123":
        number = books.add_job(
            ComputeJobId(name * 32), owner="0x", at=1.0, wish={}, content=b"", grants=[], most_open=9
        ).number
    books.finish_job(number, at=2.0, ending={})
    assert count_open_jobs(node.state_dir) == 2


def test_before_there_are_books_no_job_is_open(tmp_path: Path) -> None:
    assert count_open_jobs(tmp_path) == 0


def test_books_that_cannot_be_read_are_no_reason_to_fail(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"no books" * 1000)
    assert count_open_jobs(tmp_path) is None


def test_an_api_that_is_off_is_not_looked_at(node: Node) -> None:
    assert see_api(node.settings.compute_api, node.state_dir) is None


ONE_LISTENS_AND_ONE_IS_CONNECTED = """  sl  local_address                         remote_address                        st
   0: 00000000000000000000000001000000:1F5E 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000
   1: 00000000000000000000000000000000:1F5F 00000000000000000000000000000000:0000 01 00000000:00000000 00:00000000
"""


@pytest.mark.skipif(sys.byteorder == "big", reason="the table is one of a little-endian machine")
def test_who_listens_is_read_from_the_tables_of_the_kernel(tmp_path: Path) -> None:
    table = tmp_path / "tcp6"
    table.write_text(ONE_LISTENS_AND_ONE_IS_CONNECTED)
    tables = (tmp_path / "missing", table)
    assert is_listened_on("::1", 8030, tables=tables)
    assert is_listened_on("localhost", 8030, tables=tables)
    assert not is_listened_on("::1", 8031, tables=tables)
    assert not is_listened_on("::", 8030, tables=tables)
    assert not is_listened_on("::", 8031, tables=tables)
    assert not is_listened_on("127.0.0.1", 8030, tables=tables)


@pytest.mark.parametrize(
    ("seen", "line"),
    [
        ({}, "compute listens on http://127.0.0.1:8030, 2 jobs open"),
        (
            {"secured": True, "listening": False},
            "compute does not listen on https://127.0.0.1:8030, 2 jobs open",
        ),
        (
            {"open_jobs": None},
            "compute listens on http://127.0.0.1:8030, jobs unknown: the books cannot be read",
        ),
    ],
)
def test_the_status_has_a_line_for_it(seen: dict[str, Any], line: str) -> None:
    usual: dict[str, Any] = {
        "listen": "127.0.0.1:8030",
        "secured": False,
        "listening": True,
        "open_jobs": 2,
    }
    assert screen.api_lines(ApiSighting(**usual | seen)) == [line]
    assert screen.api_lines(None) == []


def test_a_question_says_no_more_than_a_decision_needs() -> None:
    data_set = DataSet(did=derived_did("a"), label="a", service_id="0", consumers=(ANNE.address,))
    asked = Question(
        consumer=ANNE.address, data_set=data_set, algorithm="raw", order="o", environment="e"
    ).as_object()
    assert set(asked) == {
        *("consumerAddress", "documentId", "label", "serviceId"),
        *("algorithm", "transferTxId", "environment"),
    }


def test_moments_are_in_utc() -> None:
    assert screen.iso(datetime(2027, 1, 31, tzinfo=UTC).timestamp()) == "2027-01-31T00:00:00.000Z"


def test_a_grant_that_is_used_by_two_jobs_of_its_last_use_lets_in_one(node: Node, books: Ledger) -> None:
    grant_id = node.creates("--uses", "1")["id"]

    def take(job: str) -> int:
        return books.add_job(
            ComputeJobId(job * 32),
            owner=ANNE.address,
            at=time.time(),
            wish={},
            content=b"",
            grants=[grant_id],
            most_open=9,
        ).number

    take("1")
    with pytest.raises(GrantUsedUp):
        take("2")
    (seen,) = node.tells("grant", "list")
    assert (seen["uses_left"], seen["state"]) == (0, "used up")


def test_a_broken_book_is_told_where_it_is(node: Node) -> None:
    node.state_dir.mkdir(mode=0o700)
    (node.state_dir / FILE_NAME).write_bytes(b"no books" * 1000)
    with pytest.raises(ConfigError, match=FILE_NAME):
        list_grants(node.settings, consumer=None, data_set=None, now=1.0)
