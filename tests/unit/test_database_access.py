"""Who may read a database, judged by owner, group and mode."""

import os
import stat

import pytest

from node_agent.databases.access import Agent, Reader, allowed_by_mode, fault_of, groups_for
from node_agent.databases.catalog import Catalog
from node_agent.databases.trial import first_refused
from node_agent.domain.database import Database, DatabaseType

OWNER, GROUP = 5000, 6000
WRITE_AHEAD = b"SQLite format 3\0" + bytes([16, 0, 2, 2])


def found(mode, *, folder=False):
    kind = stat.S_IFDIR if folder else stat.S_IFREG
    return os.stat_result((kind | mode, 1, 1, 1, OWNER, GROUP, 0, 0, 0, 0))


def stranger(**change):
    return Reader(**{"uid": 7000, "gid": 7000, **change})


def csv(path, label="default"):
    return Database(label=label, type=DatabaseType.CSV, uri=str(path))


def agent_of(path, *, joins_group=True):
    """An agent that is not root and not the containers' user, so that modes decide."""
    return Agent(uid=4000, groups=frozenset({path.stat().st_gid} if joins_group else {4000}))


@pytest.mark.parametrize(
    ("mode", "reader", "allowed"),
    [
        (0o400, stranger(uid=OWNER), True),
        (0o044, stranger(uid=OWNER), False),
        (0o040, stranger(gid=GROUP), True),
        (0o040, stranger(groups=(GROUP,)), True),
        (0o404, stranger(groups=(GROUP,)), False),
        (0o004, stranger(), True),
        (0o660, stranger(), False),
    ],
)
def test_the_first_class_that_fits_decides(mode, reader, allowed):
    assert allowed_by_mode(found(mode), reader) is allowed


@pytest.mark.parametrize(("mode", "allowed"), [(0o005, True), (0o004, False), (0o001, False)])
def test_a_folder_must_also_be_open_to_enter(mode, allowed):
    assert allowed_by_mode(found(mode, folder=True), stranger()) is allowed


@pytest.fixture
def grouped(tmp_path):
    """A file whose group may read it; the group is one this process can give."""
    path = tmp_path / "patients.csv"
    path.write_text("age\n1\n")
    if os.geteuid() == 0:
        os.chown(path, -1, GROUP)
    path.chmod(0o640)
    return path


def test_a_container_joins_the_group_that_may_read(grouped):
    gid = grouped.stat().st_gid
    assert groups_for([csv(grouped)], agent=Agent(uid=0, groups=frozenset())) == (gid,)


def test_an_agent_without_rights_gives_only_groups_it_is_in(grouped):
    gid = grouped.stat().st_gid
    assert groups_for([csv(grouped)], agent=agent_of(grouped)) == (gid,)
    assert groups_for([csv(grouped)], agent=agent_of(grouped, joins_group=False)) == ()


def test_a_group_that_may_not_read_is_not_joined(grouped):
    grouped.chmod(0o600)
    assert groups_for([csv(grouped)], agent=Agent(uid=0, groups=frozenset())) == ()


def test_services_and_missing_files_need_no_group(tmp_path):
    service = Database(label="s", type=DatabaseType.SQL, uri="postgresql://db/x")
    assert groups_for([service, csv(tmp_path / "gone.csv")], agent=Agent(uid=0, groups=frozenset())) == ()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to root's group")
def test_the_group_of_root_is_never_joined(grouped):
    os.chown(grouped, -1, 0)
    assert groups_for([csv(grouped)], agent=Agent(uid=0, groups=frozenset({0}))) == ()


def test_the_catalog_gives_the_groups_of_what_was_chosen_only(grouped, tmp_path):
    other = tmp_path / "other.csv"
    other.write_text("")
    other.chmod(0o600)
    catalog = Catalog([csv(grouped, "a"), csv(other, "b")], agent=Agent(uid=0, groups=frozenset()))
    assert catalog.groups([csv(other, "b")]) == ()
    assert catalog.groups([csv(grouped, "a")]) == (grouped.stat().st_gid,)


def fault(database, agent):
    return fault_of(database, uid=7000, gid=7000, agent=agent)


def test_a_readable_file_has_no_fault(grouped):
    assert fault(csv(grouped), agent_of(grouped)) is None


def test_a_service_has_no_fault_that_could_be_seen_here():
    service = Database(label="s", type=DatabaseType.SQL, uri="postgresql://db/x")
    assert fault(service, Agent(uid=4000, groups=frozenset())) is None


def test_an_unreadable_file_is_named_with_the_commands_that_open_it(grouped):
    said = fault(csv(grouped), agent_of(grouped, joins_group=False))
    assert f"{grouped} cannot be read by the user containers run as (7000:7000)" in said
    assert f"chgrp 7000 {grouped} && chmod g+r {grouped}" in said
    assert f"setfacl -m u:7000:r {grouped}" in said


def test_where_runs_have_uids_of_their_own_only_a_group_is_let_in(grouped):
    agent = agent_of(grouped, joins_group=False)
    said = fault_of(csv(grouped), uid=7000, gid=7001, agent=agent, uid_varies=True)
    assert "(the group 7001)" in said
    assert f"chgrp 7001 {grouped} && chmod g+r {grouped}, or: setfacl -m g:7001:r {grouped}" in said


def test_the_first_unreadable_entry_of_a_folder_is_named(tmp_path):
    folder = tmp_path / "scans"
    (folder / "sub dir").mkdir(parents=True)
    (folder / "open.txt").write_text("")
    closed = folder / "sub dir" / "closed.txt"
    closed.write_text("")
    for path, mode in (
        (folder, 0o755),
        (folder / "sub dir", 0o755),
        (folder / "open.txt", 0o644),
        (closed, 0o600),
    ):
        path.chmod(mode)
    database = Database(label="scans", type=DatabaseType.FOLDER, uri=str(folder))
    said = fault(database, agent_of(folder, joins_group=False))
    assert f"chmod g+r '{closed}'" in said


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    said = fault(csv(tmp_path / "gone.csv"), Agent(uid=4000, groups=frozenset()))
    assert "gone.csv does not exist" in said


def test_a_folder_given_as_a_file_and_a_file_given_as_a_folder_are_told_apart(tmp_path, grouped):
    agent = Agent(uid=4000, groups=frozenset())
    assert "is not a file" in fault(csv(tmp_path), agent)
    assert "is not a folder" in fault(Database(label="x", type=DatabaseType.FOLDER, uri=str(grouped)), agent)


def test_an_sqlite_file_in_write_ahead_mode_is_refused_with_the_command_that_changes_it(tmp_path):
    path = tmp_path / "a.sqlite"
    path.write_bytes(WRITE_AHEAD)
    said = fault(
        Database(label="x", type=DatabaseType.SQLITE, uri=str(path)), Agent(uid=4000, groups=frozenset())
    )
    assert f"sqlite3 {path} 'PRAGMA journal_mode=DELETE'" in said


def test_links_inside_a_folder_are_not_followed(tmp_path):
    (tmp_path / "link").symlink_to("/etc/shadow")
    asked = []
    assert first_refused(tmp_path, lambda entry: asked.append(entry) or True) is None
    assert asked == [tmp_path]


def test_only_so_many_entries_of_a_folder_are_looked_at(tmp_path):
    for number in range(5):
        (tmp_path / str(number)).touch()
    asked = []
    first_refused(tmp_path, lambda entry: asked.append(entry) or True, limit=3)
    assert len(asked) == 3
