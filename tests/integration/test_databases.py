"""Databases on a real file system, read by real users, programs and containers."""

import os
import shutil
import sqlite3
import subprocess
import sys

import pandas as pd
import pytest

from node_agent.databases.access import Agent, Reader, fault_of, first_unreadable, groups_for, this_agent
from node_agent.databases.probe import read_columns
from node_agent.domain import contract
from node_agent.domain.database import Database, DatabaseType
from node_agent.domain.run import RunId
from node_agent.domain.task import DatabaseRequest
from tests.lab.engine import EngineError, engine
from tests.lab.images import tools_image

STRANGER, GROUP = 64198, 64199
ROWS = pd.DataFrame({"age": [30, 40], "weight kg": [60.5, 70.5]})


def needs_root():
    if os.geteuid() != 0:
        if os.environ.get("CI"):
            pytest.fail("these tests become other users and must run as root in CI")
        pytest.skip("only root can become another user")


def file_database(label, kind, path):
    return Database(label=label, type=DatabaseType(kind), uri=str(path))


# --- the user inside the container, tried for real ---------------------------------------------------------------


@pytest.fixture
def hidden(tmp_path):
    """A file only its owner and its group may read, in a folder nobody else may enter."""
    needs_root()
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o700)
    path = folder / "patients.csv"
    path.write_text("age\n1\n")
    os.chown(path, 0, GROUP)
    path.chmod(0o640)
    return path


def refused(path, **reader):
    return first_unreadable(path, Reader(**{"uid": STRANGER, "gid": STRANGER, **reader}), agent=this_agent())


def test_group_members_can_read_and_strangers_cannot_whatever_the_folders_above_say(hidden):
    assert refused(hidden) == hidden
    assert refused(hidden, groups=(GROUP,)) is None
    assert refused(hidden, gid=GROUP) is None
    hidden.chmod(0o644)
    assert refused(hidden) is None


def test_an_access_list_that_modes_do_not_show_is_seen(hidden):
    if shutil.which("setfacl") is None:
        pytest.skip("setfacl (Debian package acl) is not installed")
    done = subprocess.run(["setfacl", "-m", f"u:{STRANGER}:r", hidden], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"this file system keeps no access lists: {done.stderr!r}")
    assert refused(hidden) is None
    assert refused(hidden, uid=STRANGER + 1) == hidden


def test_the_first_unreadable_entry_of_a_folder_is_found(tmp_path):
    needs_root()
    closed = tmp_path / "scans" / "sub" / "closed.txt"
    closed.parent.mkdir(parents=True)
    closed.write_text("")
    (tmp_path / "scans").chmod(0o755)
    closed.parent.chmod(0o755)
    closed.chmod(0o600)
    assert refused(tmp_path / "scans") == closed
    closed.chmod(0o644)
    assert refused(tmp_path / "scans") is None
    closed.parent.chmod(0o744)
    assert refused(tmp_path / "scans") == closed.parent


def test_the_command_in_the_message_opens_the_file(hidden):
    hidden.chmod(0o600)
    database = file_database("default", "csv", hidden)
    said = fault_of(database, uid=STRANGER, gid=STRANGER, agent=this_agent())
    command = said.split("Run: ")[1].split(", or: ")[0]
    subprocess.run(["sh", "-c", command], check=True)
    assert fault_of(database, uid=STRANGER, gid=STRANGER, agent=this_agent()) is None


def test_an_agent_that_is_the_containers_user_tries_as_itself(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text("")
    path.chmod(0o600)
    agent = Agent(uid=STRANGER, groups=frozenset({STRANGER}))
    assert first_unreadable(path, Reader(uid=STRANGER, gid=STRANGER), agent=agent) is None


# --- column names ------------------------------------------------------------------------------------------------


@pytest.fixture
def tabular(tmp_path):
    ROWS.to_csv(tmp_path / "a.csv", index=False)
    ROWS.to_excel(tmp_path / "a.xlsx", index=False)
    ROWS.to_parquet(tmp_path / "a.parquet")
    return [
        file_database("comma", "csv", tmp_path / "a.csv"),
        file_database("sheet", "excel", tmp_path / "a.xlsx"),
        file_database("column", "parquet", tmp_path / "a.parquet"),
    ]


def test_column_names_of_tabular_files_are_found(tabular):
    names = read_columns(tabular)
    assert names.found == dict.fromkeys(("comma", "sheet", "column"), ("age", "weight kg"))
    assert names.failed == {}


def test_one_bad_file_does_not_hide_the_columns_of_the_others(tabular, tmp_path):
    (tmp_path / "empty.csv").touch()
    bad = [
        file_database("bad", "csv", tmp_path / "empty.csv"),
        file_database("gone", "csv", tmp_path / "gone"),
    ]
    names = read_columns([bad[0], *tabular, bad[1]])
    assert len(names.found) == 3
    assert names.failed == {"bad": "EmptyDataError", "gone": "FileNotFoundError"}


def test_a_huge_first_line_ends_the_reader_and_not_the_agent(tabular, tmp_path):
    huge = tmp_path / "huge.csv"
    with huge.open("wb") as file:
        file.truncate(3 << 30)  # one line of three gigabytes that takes no room
    names = read_columns([tabular[0], file_database("huge", "csv", huge)])
    assert "comma" in names.found
    assert "huge" in names.failed


def test_a_file_that_never_ends_is_given_up_after_the_time_limit(tabular, tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    names = read_columns([tabular[0], file_database("pipe", "csv", tmp_path / "pipe.csv")], seconds=8)
    assert "comma" in names.found
    assert names.failed == {"pipe": "not read within 8 s"}


# --- what the official tools make of it, in a container ----------------------------------------------------------

READ = """
import sys
sys.path.insert(0, "/")
from vantage6.algorithm.tools.decorators import data
from vantage6.algorithm.tools.wrap import _decode_env_vars
import os
_decode_env_vars()
@data(COUNT)
def read(*frames):
    return [frame.columns.tolist() for frame in frames], [len(frame) for frame in frames]
print("TOLD", read())
for label in os.environ["DB_LABELS"].split(","):
    uri = os.environ[label.upper() + "_DATABASE_URI"].removeprefix("sqlite:///")
    try:
        open(uri, "ab")
        print("WRITABLE", uri)
    except OSError:
        pass
"""


@pytest.fixture(scope="module")
def docker_client():
    try:
        with engine() as found:
            client = found.client()
            yield client
            client.close()
    except EngineError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


def read_in_container(client, requests, databases):
    variables = contract.environment(RunId(1), requests=requests, databases=databases, proxy_port=1)
    container = client.containers.create(
        tools_image(client),
        ["python3", "-c", READ.replace("COUNT", str(len(requests)))],
        environment=variables | {"HOME": "/tmp"},
        user=f"{STRANGER}:{STRANGER}",
        group_add=[str(gid) for gid in groups_for(databases, agent=this_agent())],
        volumes={str(item.path): {"bind": item.target, "mode": "ro"} for item in databases},
        network_mode="none",
        read_only=True,
        tmpfs={"/tmp": ""},
        cap_drop=["ALL"],
        labels={"node-agent-lab": "1"},
    )
    try:
        container.start()
        container.wait(timeout=120)
        return container.logs().decode()
    finally:
        container.remove(force=True)


@pytest.mark.engine
def test_the_official_tools_read_every_kind_of_file_by_group_and_cannot_write(
    docker_client, tabular, tmp_path
):
    needs_root()
    for name in ("a.sqlite", "b.db"):
        with sqlite3.connect(tmp_path / name) as connection:
            ROWS.to_sql("t", connection, index=False)
        connection.close()
    databases = [
        *tabular,
        file_database("lite", "sqlite", tmp_path / "a.sqlite"),
        file_database("other", "sqlite", tmp_path / "b.db"),
    ]
    for database in databases:
        os.chown(database.path, 0, GROUP)
        database.path.chmod(0o640)
        assert fault_of(database, uid=STRANGER, gid=STRANGER, agent=this_agent()) is None
    requests = [
        DatabaseRequest(
            label=item.label, query="select * from t" if item.type is DatabaseType.SQLITE else None
        )
        for item in databases
    ]
    lines = read_in_container(docker_client, requests, databases)
    assert f"TOLD ({[['age', 'weight kg']] * 5}, {[2] * 5})" in lines, lines
    assert "WRITABLE" not in lines


@pytest.mark.engine
def test_a_write_ahead_file_is_rightly_refused_because_no_container_could_open_it(docker_client, tmp_path):
    needs_root()
    path = tmp_path / "w.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("pragma journal_mode=wal")
        ROWS.to_sql("t", connection, index=False)
    connection.close()
    path.chmod(0o644)
    database = file_database("w", "sqlite", path)
    said = fault_of(database, uid=STRANGER, gid=STRANGER, agent=this_agent())
    assert "PRAGMA journal_mode=DELETE" in said
    request = DatabaseRequest(label="w", query="select * from t")
    assert "unable to open database file" in read_in_container(docker_client, [request], [database])
    with sqlite3.connect(path) as connection:
        connection.execute("pragma journal_mode=delete")
    connection.close()
    assert fault_of(database, uid=STRANGER, gid=STRANGER, agent=this_agent()) is None
    assert "TOLD" in read_in_container(docker_client, [request], [database])


def test_the_trial_needs_nothing_but_the_interpreter(tmp_path):
    from node_agent.databases import trial

    done = subprocess.run(
        [sys.executable, "-I", "-S", trial.__file__, str(tmp_path)], capture_output=True, check=True, cwd="/"
    )
    assert done.stdout == b"null"
