"""Which databases a task gets."""

import os

import pytest

from node_agent.databases.access import Agent
from node_agent.databases.catalog import Catalog
from node_agent.domain.database import Database, DatabaseType
from node_agent.domain.task import DatabaseRequest
from node_agent.errors import ConfigError, DatabaseMissing

GROUP = 4711 if os.geteuid() == 0 else os.getgid()
ROOT = Agent(uid=0, groups=frozenset({0}))
ONE = Database(label="one", type=DatabaseType.CSV, uri="/srv/one.csv")
TWO = Database(label="Two", type=DatabaseType.SQL, uri="postgresql://db/two")


def chosen(*labels):
    return Catalog([ONE, TWO], agent=ROOT).choose([DatabaseRequest(label=label) for label in labels])


def test_databases_come_in_the_order_asked_each_once():
    assert chosen("Two", "one", "Two") == (TWO, ONE)


def test_asking_for_none_gives_none():
    assert chosen() == ()


@pytest.mark.parametrize("label", ["three", "ONE", ""])
def test_an_unknown_label_is_refused_with_the_label_asked_for_and_those_there_are(label):
    with pytest.raises(DatabaseMissing, match=f"'{label}'.*one, Two"):
        chosen("one", label)


def test_a_node_without_databases_says_so():
    with pytest.raises(DatabaseMissing, match="no database at all"):
        Catalog([], agent=ROOT).choose([DatabaseRequest(label="one")])


def test_labels_that_differ_only_in_case_are_refused():
    double = Database(label="ONE", type=DatabaseType.CSV, uri="/srv/other.csv")
    with pytest.raises(ConfigError, match="ONE"):
        Catalog([ONE, double], agent=ROOT)


def test_the_order_of_the_configuration_is_kept():
    assert Catalog([TWO, ONE], agent=ROOT).databases == (TWO, ONE)


def test_a_container_joins_the_groups_of_all_runs_and_those_of_its_databases(tmp_path):
    (tmp_path / "one.csv").write_text("age")
    os.chown(tmp_path / "one.csv", -1, GROUP)
    (tmp_path / "one.csv").chmod(0o640)
    one = Database(label="one", type=DatabaseType.CSV, uri=str(tmp_path / "one.csv"))
    catalog = Catalog([one], agent=Agent(uid=0, groups=frozenset({0})), groups=(64198,))
    assert catalog.groups([]) == (64198,)
    assert catalog.groups([one]) == tuple(sorted({64198, GROUP} - {0}))
