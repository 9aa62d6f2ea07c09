"""What is shared about databases."""

import json
import sqlite3
import subprocess
import sys
from contextlib import closing

from node_agent.databases.columns import answer
from node_agent.databases.probe import _parse, node_facts, read_columns
from node_agent.domain.database import Database, DatabaseType

CSV = Database(label="default", type=DatabaseType.CSV, uri="/srv/a.csv")
SQLITE = Database(label="local", type=DatabaseType.SQLITE, uri="/srv/a.db")


def facts(**change):
    return node_facts(
        [CSV, SQLITE],
        {"default": ["age", "sex"]},
        **{"policy": {"allowed_algorithms": ["reg/*"]}, "encrypted": False, **change},
    )


def test_node_facts_have_the_names_the_server_stores():
    assert facts() == {
        "encryption": False,
        "allowed_algorithms": ["reg/*"],
        "database_labels": ["default", "local"],
        "database_types": {"db_type_default": "csv", "db_type_local": "sql"},
        "database_columns": {"columns_default": ["age", "sex"]},
    }


def test_a_policy_that_is_not_shared_leaves_no_trace():
    assert not [key for key in facts(policy={}) if key.startswith("allowed")]


def test_databases_without_columns_start_no_program():
    service = Database(label="remote", type=DatabaseType.SQL, uri="postgresql://h/db")
    assert read_columns([service], seconds=0).found == {}


def test_lines_written_before_a_limit_struck_still_count():
    output = json.dumps({"label": "a", "columns": ["x"]}).encode() + b'\n{"label": "b", "col'
    names = _parse(output, ["a", "b"], ending="too late")
    assert names.found == {"a": ("x",)}
    assert names.failed == {"b": "too late"}


def test_an_unreadable_file_has_no_columns_and_its_content_is_not_told(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_text("secret content")
    told = answer({"label": "a", "type": "parquet", "path": str(path)})
    assert set(told) == {"label", "error"}
    assert "secret" not in json.dumps(told)


def test_the_agent_itself_loads_no_data_library():
    code = (
        "import sys, node_agent.databases.catalog, node_agent.databases.probe;"
        "sys.exit(bool({'pandas', 'pyarrow', 'numpy', 'openpyxl'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_columns_of_the_one_table_of_an_sqlite_file_are_told(tmp_path):
    path = tmp_path / "a b#c.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE patients (age INTEGER, sex TEXT)")
        database.execute("CREATE INDEX by_age ON patients (age)")
    assert answer({"label": "a", "type": "sqlite", "path": str(path)}) == {
        "label": "a",
        "columns": ["age", "sex"],
    }
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_of_several_tables_nobody_knows_which_is_meant(tmp_path):
    path = tmp_path / "a.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE one (a)")
        database.execute("CREATE TABLE two (b)")
    assert answer({"label": "a", "type": "sqlite", "path": str(path)}) == {
        "label": "a",
        "error": "NotOneTable",
    }
