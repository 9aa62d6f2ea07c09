"""An algorithm that reads every kind of database and makes every call, to show that the official tools can.

Runs in an algorithm image only, and must not know the agent, the lab or where it runs.
"""

# Checked with the project's tools, which do not see what is inside the image.
# mypy: disable-error-code="import-not-found, untyped-decorator"

import os
from pathlib import Path
from typing import Any

import pandas as pd
from vantage6.algorithm.client import AlgorithmClient
from vantage6.algorithm.tools.decorators import algorithm_client, data

Frame = pd.DataFrame


@data(4)
def read(first: Frame, second: Frame, third: Frame, fourth: Frame, folder: str) -> dict[str, Any]:
    """Describe four tables in the order they were asked for, and the files of a folder."""
    place = Path(os.environ[f"{folder.upper()}_DATABASE_URI"])
    return {
        "order": os.environ["USER_REQUESTED_DATABASE_LABELS"].split(","),
        "tables": [_described(table) for table in (first, second, third, fourth)],
        "files": sorted(path.name for path in place.iterdir()),
        "file": (place / "note.txt").read_text(),
        "extra": os.environ.get("TABLE_DB_PARAM_SCHEMA"),
        "home": os.access(os.environ["HOME"], os.W_OK),
        "user": os.getuid(),
    }


def answer() -> dict[str, int]:
    """Return what the subtask of `ask` is about."""
    return {"answer": 42}


@algorithm_client
def ask(client: AlgorithmClient, organization_id: int) -> dict[str, Any]:
    """Make the calls of the algorithm client about a subtask at *organization_id*, which is waited for."""
    organizations = client.organization.list()
    part = client.task.create(input_={"method": "answer"}, organizations=[organization_id], name="part")
    task_id = part["id"]
    client.wait_for_results(task_id, interval=0.5)
    own = client.request("task", params={"parent_id": part["parent"]["id"], "page": 1})["data"]
    return {
        "organizations": sorted(organization["name"] for organization in organizations),
        "organization": client.organization.get(organizations[0]["id"])["name"],
        "collaboration": client.collaboration.get()["name"],
        "part": task_id,
        "task": client.task.get(task_id)["id"],
        "task_status": client.request(f"task/{task_id}/status")["status"],
        "tasks": len(own),
        "runs": [run["status"] for run in client.run.from_task(task_id)],
        "run": client.run.get(client.run.from_task(task_id)[0]["id"])["status"],
        "results": client.result.from_task(task_id),
        "studies": client.request("study", params={"page": 1}),
        "nodes": client.request("node", params={"page": 1}),
        "unknown_task": client.request("task/999999"),
        "unknown_organization": client.request("organization/999999"),
    }


@algorithm_client
def refused_subtask(client: AlgorithmClient) -> Any:
    """Ask for a subtask at an organization that does not exist, and hand back what the server says."""
    return client.task.create(
        input_={"method": "read"}, organizations=[999999], name="nowhere", description=""
    )


def _described(table: Frame) -> dict[str, Any]:
    return {"columns": list(table.columns), "rows": len(table), "sum": float(table.iloc[:, 0].sum())}
