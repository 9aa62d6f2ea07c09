"""The federated average of one column: each organization gives a sum and a count, never a row.

Owns the demo algorithm, written with the vantage6 algorithm tools as any algorithm is. It runs in an algorithm
image only, and must not know the agent, the lab or where it runs.
"""

# Checked with the project's tools, which do not see what is inside the image.
# mypy: disable-error-code="import-not-found, untyped-decorator"

import base64
import json
from typing import Any

import pandas as pd
from vantage6.algorithm.client import AlgorithmClient
from vantage6.algorithm.tools.decorators import algorithm_client, data
from vantage6.algorithm.tools.exceptions import AlgorithmExecutionError, UserInputError


@data(1)
def partial_average(df: pd.DataFrame, column: str) -> dict[str, float]:
    """Return sum and count of *column* at this organization; empty cells do not count."""
    values = _numbers(df, column)
    return {"sum": float(values.sum()), "count": int(values.count())}


@algorithm_client
def central_average(
    client: AlgorithmClient, column: str, organizations: list[int] | None = None
) -> dict[str, Any]:
    """Ask every organization, or only the given ones, for its part and combine the parts."""
    asked = organizations or [organization["id"] for organization in client.organization.list()]
    task = client.task.create(
        input_={"method": "partial_average", "kwargs": {"column": column}},
        organizations=asked,
        name="partial average",
    )
    if "id" not in task:
        raise AlgorithmExecutionError(f"the server refused the subtask: {task.get('msg')}")
    client.wait_for_results(task["id"])
    return _combine(_parts(client, task["id"], expected=len(asked)), asked)


def _numbers(df: pd.DataFrame, column: str) -> "pd.Series[float]":
    if column not in df.columns:
        raise UserInputError(
            f"there is no column '{column}' here; there are: {', '.join(map(str, df.columns))}"
        )
    if not pd.api.types.is_numeric_dtype(df[column]):
        raise UserInputError(f"column '{column}' does not hold numbers, so it has no average")
    return df[column]


def _parts(client: AlgorithmClient, task_id: int, *, expected: int) -> list[dict[str, Any]]:
    """Pair each organization with its answer, which the tools' bare list of results does not."""
    query = {"task_id": task_id, "per_page": expected}
    answers = {
        answer["run"]["id"]: answer["result"] for answer in client.request("result", params=query)["data"]
    }
    return [
        {"organization_id": run["organization"]["id"], **json.loads(base64.b64decode(answers[run["id"]]))}
        for run in client.run.from_task(task_id)
        if answers.get(run["id"])
    ]


def _combine(parts: list[dict[str, Any]], asked: list[int]) -> dict[str, Any]:
    missing = set(asked) - {part["organization_id"] for part in parts}
    if missing:
        raise AlgorithmExecutionError(
            f"no average: organizations {sorted(missing)} gave no part; the logs of their runs say why"
        )
    count = sum(part["count"] for part in parts)
    if count == 0:
        raise AlgorithmExecutionError("no average: no organization has a value in this column")
    total = sum(part["sum"] for part in parts)
    return {
        "average": total / count,
        "count": count,
        "parts": sorted(parts, key=lambda part: part["organization_id"]),
    }
