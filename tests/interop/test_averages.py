"""The main job: official algorithms on three nodes, and every kind of file read with the official tools."""

import json
import sqlite3
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.interop.stage import Stage, SubmittedTask
from tests.lab.agents import AgentProcess, agents_for
from tests.lab.samples import write_hospitals

pytestmark = pytest.mark.interop

AGES = pd.DataFrame({"age": [30.0, 40.0, 50.0], "sex": ["f", "m", "f"]})
WEIGHTS = pd.DataFrame({"weight": [60.5, 71.5], "height": [170, 180]})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sources")


@pytest.fixture(scope="module")
def hospitals(folder: Path) -> dict[str, Path]:
    return write_hospitals(folder)


@pytest.fixture(scope="module")
def agents(real: Stage, hospitals: dict[str, Path], folder: Path) -> Iterator[dict[str, AgentProcess]]:
    """Three agents with one slot each; alpha has every kind of database besides."""
    sources = {name: {"default": path} for name, path in hospitals.items()}
    settings = {
        "limits": {"concurrent_runs": 1},
        "databases": databases(folder, hospitals["alpha"]),
        "logging": {"level": "debug"},
    }
    with (
        agents_for(real.server, {"alpha": sources.pop("alpha")}, settings) as first,
        agents_for(real.server, sources, {"limits": {"concurrent_runs": 1}}) as others,
    ):
        yield first | others


def databases(folder: Path, default: Path) -> list[dict[str, Any]]:
    AGES.to_csv(folder / "ages.csv", index=False)
    AGES.to_parquet(folder / "ages.parquet")
    with pd.ExcelWriter(folder / "book.xlsx") as book:
        AGES.to_excel(book, sheet_name="ages", index=False)
        WEIGHTS.to_excel(book, sheet_name="weights", index=False)
    with sqlite3.connect(folder / "clinic.db") as clinic:
        WEIGHTS.to_sql("weights", clinic, index=False)
    clinic.close()
    (folder / "papers").mkdir()
    (folder / "papers" / "note.txt").write_text("read me")
    return [
        {"label": "default", "type": "csv", "uri": str(default)},
        {"label": "ages", "type": "csv", "uri": str(folder / "ages.csv")},
        {
            "label": "table",
            "type": "parquet",
            "uri": str(folder / "ages.parquet"),
            "env": {"schema": "public"},
        },
        {"label": "book", "type": "excel", "uri": str(folder / "book.xlsx")},
        {"label": "clinic", "type": "sqlite", "uri": str(folder / "clinic.db")},
        {"label": "papers", "type": "folder", "uri": str(folder / "papers")},
    ]


@pytest.fixture(scope="module")
def whole(hospitals: dict[str, Path]) -> pd.DataFrame:
    return pd.concat([pd.read_csv(path) for path in hospitals.values()])


def test_every_node_gives_its_own_part(
    real: Stage, agents: dict[str, AgentProcess], hospitals: dict[str, Path]
) -> None:
    task = real.client.create_task(
        image=real.average, method="partial_average", arguments={"column": "weight"}
    )
    parts = real.client.results(task)
    expected = [column_sum(path, "weight") for path in hospitals.values()]
    assert sorted(part["sum"] for part in parts) == pytest.approx(sorted(total for total, _ in expected))
    assert sorted(part["count"] for part in parts) == sorted(count for _, count in expected)
    assert {run["status"] for run in real.client.runs(task)} == {"completed"}


def column_sum(path: Path, column: str) -> tuple[float, int]:
    values = pd.read_csv(path)[column]
    return float(values.sum()), int(values.count())


@pytest.fixture(scope="module")
def central(real: Stage, agents: dict[str, AgentProcess]) -> SubmittedTask:
    """A federated average whose central part runs at alpha."""
    return real.submit_method(
        real.average,
        "central_average",
        databases=[{"label": "default"}],
        column="age",
        organizations=list(real.server.organization_ids.values()),
    )


def test_a_parent_does_not_keep_its_own_subtask_from_the_only_slot(
    central: SubmittedTask, whole: pd.DataFrame
) -> None:
    answer = central.result(within=120)
    assert answer["average"] == pytest.approx(whole["age"].mean())
    assert answer["count"] == whole["age"].count()


def test_a_central_part_asks_a_few_times_at_most_and_knows_at_once_when_its_subtasks_are_done(
    central: SubmittedTask, agents: dict[str, AgentProcess]
) -> None:
    run = central.ended(within=120)
    questions = [
        line
        for line in agents["alpha"].log_lines()
        if line.get("event") == "proxy_request"
        and line["run_id"] == run["id"]
        and line["path"] == "task/{id}/status"
    ]
    began, ended = (datetime.fromisoformat(run[name]) for name in ("started_at", "finished_at"))
    # the first is answered, each further one is kept for at least twenty seconds, or until there is something to say
    assert 2 <= len(questions) <= 3 + (ended - began).total_seconds() // 20


def test_the_official_tools_read_every_kind_of_database_in_the_order_asked_for(
    real: Stage, agents: dict[str, AgentProcess]
) -> None:
    keep = {"function": "filter_range", "parameters": {"column": "age", "min_": 35}}
    asked: list[dict[str, Any]] = [
        {"label": "clinic", "query": "SELECT weight FROM weights WHERE height > 175"},
        {"label": "book", "sheet_name": "weights"},
        {"label": "table", "preprocessing": [keep]},
        {"label": "ages"},
        {"label": "papers"},
    ]
    task = real.submit_method(real.readers, "read", databases=asked, folder="papers")
    found = task.result(within=90)
    assert found["order"] == ["clinic", "book", "table", "ages", "papers"]
    # The tools put each table they read before the ones they have: the last one asked for comes first.
    assert found["tables"][::-1] == [
        {"columns": ["weight"], "rows": 1, "sum": 71.5},
        {"columns": ["weight", "height"], "rows": 2, "sum": 132.0},
        {"columns": ["age", "sex"], "rows": 2, "sum": 90.0},
        {"columns": ["age", "sex"], "rows": 3, "sum": 120.0},
    ]
    assert found["files"] == ["note.txt"]
    assert found["file"] == "read me"
    assert found["extra"] == "public"
    assert found["home"]
    assert found["user"] != 0


def test_every_call_of_the_official_algorithm_client_works(
    real: Stage, agents: dict[str, AgentProcess]
) -> None:
    here = real.server.organization_ids["alpha"]
    found = real.submit_method(real.readers, "ask", databases=[], organization_id=here).result(within=90)
    print(json.dumps(found, indent=1)[:3000])
    assert found["organizations"] == ["alpha", "beta", "gamma"]
    assert found["organization"] in found["organizations"]
    assert found["collaboration"] == "hospitals"
    assert found["task"] == found["part"]
    assert found["tasks"] == 1
    assert found["task_status"] == "completed"
    assert found["runs"] == ["completed"]
    assert found["run"] == "completed"
    assert found["results"] == [{"answer": 42}]
    # The server itself has no such call for containers, and no list of nodes: its own words come through.
    assert "unexpected error occurred on the server" in found["studies"]["msg"]
    assert "not found" in found["unknown_task"]["msg"]
    assert "not found" in found["unknown_organization"]["msg"]


def test_a_subtask_the_server_refuses_is_refused_in_the_words_of_the_server(
    real: Stage, agents: dict[str, AgentProcess]
) -> None:
    answer = real.submit_method(real.readers, "refused_subtask", databases=[]).result(within=90)
    assert "organization" in answer["msg"].lower()
    assert "see node logs" not in answer["msg"]
