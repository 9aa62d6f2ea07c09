"""What the embedded server keeps, and who counts as present, without a socket."""

import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from node_agent.domain.secret import Secret
from node_agent.errors import ConfigError
from node_agent.sandbox.connection import Connection, server_text
from node_agent.sandbox.server import CollaborationPlan, Credentials, Plan, SandboxServer
from node_agent.sandbox.server.call import Caller
from node_agent.sandbox.server.database import Database, Slice
from node_agent.sandbox.server.instance import normal_path
from node_agent.sandbox.server.population import load_credentials, populate, save_credentials
from node_agent.sandbox.server.refusal import Refusal
from node_agent.sandbox.server.rooms import Rooms, flattened
from node_agent.sandbox.server.tokens import Lifetimes, Mint
from node_agent.sandbox.server.work import LOG_LIMIT, append_log
from tests.open_files import open_files_in


@pytest.fixture
def books() -> Iterator[Database]:
    with closing(Database()) as made:
        yield made


@pytest.fixture
def database(books: Database) -> Database:
    populate(books, Plan.of(("alpha", "beta")), hash_password=lambda password: "")
    books.change(
        "INSERT INTO task (name, description, image, collaboration_id, job_id, init_org_id, databases, plain,"
        " created_at) VALUES ('', '', 'i', 1, 1, 1, '[]', 0, '')"
    )
    books.change(
        "INSERT INTO run (task_id, organization_id, node_id, input, assigned_at) VALUES (1, 1, 11, '', '')"
    )
    return books


# --- who takes part -------------------------------------------------------------------------------------------


def test_every_member_gets_a_node_and_every_organization_a_user(books: Database) -> None:
    plan = Plan(
        organizations=("alpha", "beta"),
        collaborations=(
            CollaborationPlan(name="one", organizations=("alpha", "beta")),
            CollaborationPlan(name="two", organizations=("beta",), encrypted=True),
        ),
    )
    credentials = populate(books, plan, hash_password=lambda password: "")
    assert set(credentials.passwords) == {"alpha", "beta"}
    assert set(credentials.api_keys) == {("one", "alpha"), ("one", "beta"), ("two", "beta")}
    assert len(set(credentials.api_keys.values())) == 3
    assert credentials.api_key("beta") == credentials.api_keys["one", "beta"]
    assert books.value("SELECT min(id) FROM node") > books.value("SELECT max(id) FROM organization")


@pytest.mark.parametrize("names", [(), ("",), ("a b",), ("x" * 50,), ("alpha", "alpha"), ("a,b",)])
def test_names_that_are_none_are_refused(books: Database, names: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError):
        populate(books, Plan.of(names))


def test_a_collaboration_of_strangers_is_refused(books: Database) -> None:
    plan = Plan(
        organizations=("alpha",), collaborations=(CollaborationPlan(name="x", organizations=("beta",)),)
    )
    with pytest.raises(ConfigError, match="beta"):
        populate(books, plan, hash_password=lambda password: "")


def test_credentials_are_kept_for_the_owner_only(tmp_path: Path) -> None:
    file = tmp_path / "credentials.json"
    kept = Credentials(passwords={"alpha": Secret("p")}, api_keys={("one", "alpha"): Secret("k")})
    save_credentials(kept, file)
    assert load_credentials(file) == kept
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "'p'" not in repr(kept)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"passwords": 3, "api_keys": []}'])
def test_credentials_that_cannot_be_read_say_what_to_do(tmp_path: Path, content: str) -> None:
    file = tmp_path / "credentials.json"
    file.write_text(content)
    with pytest.raises(ConfigError, match="begin anew"):
        load_credentials(file)


def test_a_sandbox_that_is_opened_again_is_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    first = SandboxServer(Plan.of(("alpha",)), state_dir=folder)
    password, key, token = first.passwords["alpha"], first.api_keys["alpha"], first.mint.pair("user", 1)
    first.close()
    second = SandboxServer(Plan.of(("other",)), state_dir=folder)
    assert second.organizations == ("alpha",)
    assert (second.passwords["alpha"], second.api_keys["alpha"]) == (password, key)
    assert second.mint.check(f"Bearer {token['access_token']}")["sub"] == 1
    second.close()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.glob("*.sqlite")} == {0o600}


def test_two_sandboxes_cannot_share_a_state_directory(tmp_path: Path) -> None:
    with (
        closing(SandboxServer(Plan.of(("alpha",)), state_dir=tmp_path)),
        pytest.raises(ConfigError, match="Another sandbox"),
    ):
        SandboxServer(Plan.of(("alpha",)), state_dir=tmp_path)


def test_a_database_that_is_none_is_refused_with_advice(tmp_path: Path) -> None:
    (tmp_path / "server.sqlite").write_bytes(b"this is no database" * 100)
    with pytest.raises(ConfigError, match="--state-dir") as refusal:
        SandboxServer(Plan.of(("alpha",)), state_dir=tmp_path)
    assert (open_files_in(tmp_path), refusal.type) == ([], ConfigError)


def test_a_sandbox_that_cannot_begin_keeps_no_file_open(tmp_path: Path) -> None:
    SandboxServer(Plan.of(("alpha",)), state_dir=tmp_path).close()
    (tmp_path / "credentials.json").write_text("[]")
    # the refusal keeps what was being made, so nothing but a close lets go of the files
    with pytest.raises(ConfigError, match="begin anew") as refusal:
        SandboxServer(Plan.of(("alpha",)), state_dir=tmp_path)
    assert (open_files_in(tmp_path), refusal.type) == ([], ConfigError)


@pytest.mark.parametrize(
    ("given", "path"), [("", ""), ("/", ""), ("api", "/api"), ("/api/", "/api"), ("/a/b", "/a/b")]
)
def test_the_path_of_the_interface_has_one_form(given: str, path: str) -> None:
    assert normal_path(given) == path


def test_a_path_with_other_signs_is_refused() -> None:
    with pytest.raises(ConfigError):
        normal_path("/api?x")


def test_the_connection_block_has_what_users_and_nodes_need() -> None:
    server = SandboxServer(Plan.of(("north", "south")), port=7601, api_path="")
    block = Connection.of(server).as_dict()
    assert (block["url"], block["server_url"], block["port"], block["api_path"]) == (
        "http://127.0.0.1:7601",
        "http://127.0.0.1",
        7601,
        "",
    )
    assert block["organizations"] == [
        {
            "id": number,
            "name": name,
            "username": name,
            "password": server.passwords[name].reveal(),
            "node_id": server.node_ids[name],
            "api_key": server.api_keys[name].reveal(),
        }
        for name, number in server.organization_ids.items()
    ]
    text = server_text(Connection.of(server))
    assert "UserClient('http://127.0.0.1', 7601, '')" in text
    assert all(secret.reveal() in text for secret in (*server.passwords.values(), *server.api_keys.values()))
    server.close()


# --- the books ------------------------------------------------------------------------------------------------


def test_what_is_written_in_a_block_that_fails_is_not_kept(database: Database) -> None:
    def fail() -> None:
        with database.transaction(), database.transaction():
            database.change("UPDATE run SET status = 'active'")
            raise LookupError

    with pytest.raises(LookupError):
        fail()
    assert database.value("SELECT status FROM run") == "pending"
    with database.transaction():
        database.change("UPDATE run SET status = 'active'")
    assert database.value("SELECT status FROM run") == "active"


def test_streamed_logs_are_put_together_line_by_line(database: Database) -> None:
    for text in ("one", "two\n", "three"):
        append_log(database, 1, text)
    assert database.value("SELECT log FROM run") == "one\ntwo\nthree"


def test_a_log_that_is_long_enough_takes_no_more(database: Database) -> None:
    append_log(database, 1, "x" * (LOG_LIMIT - 1))
    append_log(database, 1, "too much")
    assert len(database.value("SELECT log FROM run")) == LOG_LIMIT - 1


def test_a_finished_run_takes_no_more_log(database: Database) -> None:
    database.change("UPDATE run SET finished_at = 'then', log = 'all'")
    append_log(database, 1, "late")
    assert database.value("SELECT log FROM run") == "all"


# --- presence -------------------------------------------------------------------------------------------------


def test_a_node_that_says_nothing_for_long_counts_as_offline(database: Database) -> None:
    rooms = Rooms(database, Mint())
    database.change(
        "UPDATE node SET status = 'online', last_seen = '2026-01-01T00:00:00.000000' WHERE id = 11"
    )
    database.change(
        "UPDATE node SET status = 'online', last_seen = '9026-01-01T00:00:00.000000' WHERE id = 12"
    )
    rooms.forget_silent()
    assert [row["status"] for row in database.rows("SELECT status FROM node ORDER BY id")] == [
        "offline",
        "online",
    ]


def test_what_a_node_tells_is_laid_out_as_pairs_of_text() -> None:
    told = {
        "encryption": False,
        "database_labels": ["default", "x"],
        "database_types": {"db_type_default": "csv"},
        "database_columns": {"columns_default": ["a", "\ud800"]},
        "count": 3,
    }
    assert flattened(told) == [
        ("encryption", "0"),
        ("database_labels", "default"),
        ("database_labels", "x"),
        ("db_type_default", "csv"),
        ("columns_default", "a"),
        ("columns_default", "?"),
        ("count", "3"),
    ]


# --- tokens ---------------------------------------------------------------------------------------------------


def test_a_token_that_is_too_old_has_expired() -> None:
    mint = Mint(lifetimes=Lifetimes(access=-1))
    with pytest.raises(Refusal, match="Token has expired"):
        mint.check(f"Bearer {mint.pair('node', 4)['access_token']}")


def test_a_container_token_does_not_expire_with_the_others() -> None:
    mint = Mint()
    token = mint.container_token({"node_id": 4})
    mint.expire("access")
    assert mint.check(f"Bearer {token}")["sub"]["node_id"] == 4


def test_a_caller_without_collaborations_sees_nothing(database: Database) -> None:
    nobody = Caller(kind="user", id=9, organization_id=9, collaborations=())
    rows, total = database.select("node", [nobody.sight], Slice(order="id", limit=10, offset=0))
    assert (rows, total) == ([], 0)
