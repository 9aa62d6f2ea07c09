"""How a central part gets the parts of the others. Must not know what is computed."""

# mypy: disable-error-code="import-not-found"

from typing import Any

from vantage6.algorithm.client import AlgorithmClient
from vantage6.algorithm.tools.exceptions import AlgorithmExecutionError

LOOK_SECONDS = 0.25


def members(client: AlgorithmClient, organizations: list[int] | None) -> list[int]:
    """Give the organizations asked for, else all of the study or the collaboration, in a fixed order."""
    return sorted(organizations or [found["id"] for found in client.organization.list()])


def parts(client: AlgorithmClient, method: str, organizations: list[int], **arguments: Any) -> list[Any]:
    """Run *method* at every organization and return what each gave."""
    task = client.task.create(
        input_={"method": method, "kwargs": arguments}, organizations=organizations, name=method
    )
    if "id" not in task:
        raise AlgorithmExecutionError(f"the server refused the subtask: {task.get('msg')}")
    given = client.wait_for_results(task["id"], interval=LOOK_SECONDS)
    if len(given) != len(organizations) or None in given:
        raise AlgorithmExecutionError(f"{method}: not every organization gave its part")
    return list(given)
