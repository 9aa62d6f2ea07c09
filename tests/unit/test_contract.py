"""The container contract: what existing images find, to the letter."""

import base64
from pathlib import Path

import pytest

from node_agent.domain import contract
from node_agent.domain.container import Mount
from node_agent.domain.database import Database, DatabaseType
from node_agent.domain.ports import Folders
from node_agent.domain.run import RunId
from node_agent.domain.task import DatabaseRequest

PATIENTS = Database(label="default", type=DatabaseType.CSV, uri="/srv/patients.csv", env={"site": "north"})
WAREHOUSE = Database(label="Warehouse", type=DatabaseType.SQL, uri="postgresql://reader:pw@db/x")
SCANS = Database(label="scans", type=DatabaseType.FOLDER, uri="/srv/scans.d")
FOLDERS = Folders(private=Path("/state/runs/7"), temporary=Path("/state/jobs/3"), user=(1, 1))


def decoded(value):
    return base64.b32decode(value.replace("!", "=")).decode()


def variables(requests=(), databases=()):
    found = contract.environment(RunId(7), requests=requests, databases=databases, proxy_port=7480)
    return {name: decoded(value) for name, value in found.items()}


@pytest.mark.parametrize(
    ("value", "written"), [("abc", "MFRGG!!!"), ("", ""), ("é", "YOUQ!!!!"), ("a=b", "ME6WE!!!")]
)
def test_values_are_base32_with_exclamation_marks(value, written):
    assert contract.encode(value) == written


def test_half_a_surrogate_pair_in_a_query_is_replaced_and_stops_nothing():
    request = DatabaseRequest(label="default", query="\ud800")
    assert variables([request], [PATIENTS])["DEFAULT_QUERY"] == "?"


def test_run_ids_have_nine_digits_in_paths_and_more_when_they_need_more():
    assert contract.input_path(RunId(7)) == "/mnt/data/task-000000007/input"
    assert contract.output_path(RunId(7)) == "/mnt/data/task-000000007/output"
    assert contract.token_path(RunId(7)) == "/mnt/data/task-000000007/token"
    assert contract.task_folder(RunId(12345678901)) == "task-12345678901"


def test_a_run_without_databases_gets_its_files_the_proxy_and_nothing_else():
    assert variables() == {
        "INPUT_FILE": "/mnt/data/task-000000007/input",
        "OUTPUT_FILE": "/mnt/data/task-000000007/output",
        "TOKEN_FILE": "/mnt/data/task-000000007/token",
        "TEMPORARY_FOLDER": "/mnt/tmp",
        "HOST": "http://proxyserver",
        "PORT": "7480",
        "API_PATH": "",
        "USER_REQUESTED_DATABASE_LABELS": "",
        "DB_LABELS": "",
    }


def test_a_run_without_databases_mounts_its_two_own_folders_only():
    assert contract.mounts(FOLDERS, []) == (
        Mount("/state/runs/7", "/mnt/data", read_only=False),
        Mount("/state/jobs/3", "/mnt/tmp", read_only=False),
    )


def test_databases_are_mounted_read_only_and_services_not_at_all():
    assert contract.mounts(FOLDERS, [PATIENTS, WAREHOUSE, SCANS])[2:] == (
        Mount("/srv/patients.csv", "/mnt/default.csv", read_only=True),
        Mount("/srv/scans.d", "/mnt/scans", read_only=True),
    )


def test_labels_asked_for_keep_order_and_repeats_and_exposed_labels_do_not_repeat():
    requests = [
        DatabaseRequest(label="scans"),
        DatabaseRequest(label="default"),
        DatabaseRequest(label="scans"),
    ]
    found = variables(requests, [SCANS, PATIENTS])
    assert found["USER_REQUESTED_DATABASE_LABELS"] == "scans,default,scans"
    assert found["DB_LABELS"] == "scans,default"


def test_each_database_tells_where_it_is_how_to_read_it_and_its_parameters():
    found = variables(
        [DatabaseRequest(label="default"), DatabaseRequest(label="Warehouse")], [PATIENTS, WAREHOUSE]
    )
    assert found["DEFAULT_DATABASE_URI"] == "/mnt/default.csv"
    assert found["DEFAULT_DATABASE_TYPE"] == "csv"
    assert found["DEFAULT_DB_PARAM_SITE"] == "north"
    assert found["WAREHOUSE_DATABASE_URI"] == "postgresql://reader:pw@db/x"
    assert found["WAREHOUSE_DATABASE_TYPE"] == "sql"


def test_what_is_asked_of_a_database_is_handed_over_and_what_is_not_asked_is_absent():
    request = DatabaseRequest(
        label="default", sheet_name="one", preprocessing=({"function": "f", "parameters": {}},)
    )
    found = variables([request], [PATIENTS])
    assert found["DEFAULT_SHEET_NAME"] == "one"
    assert found["DEFAULT_PREPROCESSING"] == '[{"function": "f", "parameters": {}}]'
    assert "DEFAULT_QUERY" not in found


def test_the_last_request_for_a_label_decides_what_it_says_itself():
    requests = [
        DatabaseRequest(label="default", query="first", sheet_name="kept"),
        DatabaseRequest(label="default", query="second"),
    ]
    found = variables(requests, [PATIENTS])
    assert found["DEFAULT_QUERY"] == "second"
    assert found["DEFAULT_SHEET_NAME"] == "kept"


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("/srv/a.sqlite", "/mnt/d.sqlite"),
        ("/srv/a.db", "sqlite:////mnt/d.db"),
        ("/srv/a", "sqlite:////mnt/d"),
    ],
)
def test_an_sqlite_file_is_handed_over_so_that_the_tools_load_it_with_a_query(uri, shown):
    database = Database(label="d", type=DatabaseType.SQLITE, uri=uri)
    found = variables([DatabaseRequest(label="d")], [database])
    assert found["D_DATABASE_TYPE"] == "sql"
    assert found["D_DATABASE_URI"] == shown
