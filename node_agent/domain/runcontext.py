"""The description of a run that may lie beside its input: `run_context.json`, schema version 0.1.

Owns its names and shape. Must not know where it is written. It describes files only, so a run that asks for anything
else cannot have one.
"""

import json
from collections.abc import Collection, Sequence
from typing import Any

from node_agent.domain import contract
from node_agent.domain.database import FILE_TYPES, Database, DatabaseType
from node_agent.domain.run import Run
from node_agent.domain.task import DatabaseRequest
from node_agent.errors import StartFailed

LARGEST_INPUT = 16 * 2**20
"""Bytes; the description repeats the arguments, and those of a larger input would be copied for nobody."""
_DEEPEST = 100
"""Levels. JSON can be read deeper than it can be written, and the indentation grows with the square of the depth."""


def run_context(
    run: Run, content: bytes, *, databases: Sequence[Database], node_id: int, proxy_port: int
) -> bytes:
    """Describe a run for its algorithm; *content* is its input. Raises StartFailed when that is not possible."""
    asked = _parsed(content)
    described = {
        "schema_version": "0.1",
        "entrypoint": {"name": asked.get("method", "")},
        "arguments": {"positional": asked.get("args", []), "named": asked.get("kwargs", {})},
        "executor": {"id": node_id, "kind": "vantage6-node"},
        "inputs": _inputs(run.task.databases, databases),
        "outputs": [{"id": "result", "uri": contract.output_path(run.id)}],
        "x-vantage6": {
            "run_id": run.id,
            "task_id": run.task.id,
            "collaboration_id": run.task.collaboration_id,
            "token_file": contract.token_path(run.id),
            "api_proxy": {"host": f"http://{contract.PROXY_NAME}", "port": str(proxy_port), "api_path": ""},
            "temporary_directory": contract.TEMPORARY_FOLDER,
        },
    }
    return json.dumps(described, indent=2).encode() + b"\n"


def input_too_large() -> StartFailed:
    """Say that the input of a run cannot be described."""
    return StartFailed(
        f"This node describes every run in a file (run_context_file), and the input is too large for it: "
        f"more than {LARGEST_INPUT:,} bytes."
    )


def _parsed(content: bytes) -> dict[str, Any]:
    try:
        asked = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise StartFailed(
            "This node describes every run in a file (run_context_file), and the input is not JSON."
        ) from error
    if _is_deep(asked):
        raise StartFailed(
            "This node describes every run in a file (run_context_file), and the input nests too deeply for it: "
            f"more than {_DEEPEST} levels."
        )
    return asked if isinstance(asked, dict) else {}


def _is_deep(value: object) -> bool:
    level = [value]
    for _ in range(_DEEPEST):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return False
    return True


def _inside(value: object) -> Collection[object]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _inputs(requests: Sequence[DatabaseRequest], databases: Sequence[Database]) -> list[dict[str, Any]]:
    by_label = {database.label: database for database in databases}
    return [_input(request, by_label[request.label]) for request in requests]


def _input(request: DatabaseRequest, database: Database) -> dict[str, Any]:
    if not _is_file(database):
        raise StartFailed(
            f"This node describes every run in a file (run_context_file), which is possible for databases that are "
            f"files only. '{database.label}' is none.",
            hint="Ask for another database, or the owner of the node to switch run_context_file off.",
        )
    described: dict[str, Any] = {
        "id": database.label,
        "uri": contract.shown_uri(database),
        "type": contract.shown_type(database),
    }
    return described | ({"arguments": dict(request.arguments)} if request.arguments else {})


def _is_file(database: Database) -> bool:
    return database.type in FILE_TYPES or (database.type is DatabaseType.OTHER and database.path is not None)
