"""Tasks and runs: the rules by which they are made, changed, killed and removed.

Owns these rules. Must not know HTTP; what others should hear goes to *tell*. Every function is called within a
transaction.
"""

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from node_agent.domain.run import Status
from node_agent.sandbox.server.call import Backend
from node_agent.sandbox.server.database import Database, Row, now, one_of
from node_agent.sandbox.server.refusal import bad, denied, missing

OPEN: Final = frozenset({Status.PENDING, Status.INITIALIZING, Status.ACTIVE})
_NOT_FAILED: Final = OPEN | {Status.COMPLETED}
LOG_LIMIT: Final = 4 * 1024 * 1024
"""Characters of log that a node may stream into one run."""


def room_of(collaboration_id: int) -> str:
    """Give the room that hears of a collaboration."""
    return f"collaboration_{collaboration_id}"


# --- looking up -------------------------------------------------------------------------------------------------


def task_row(database: Database, task_id: int) -> Row:
    """Find a task, or refuse."""
    row = database.row("SELECT * FROM task_view WHERE id = ?", task_id)
    if row is None:
        raise missing(f"Task id={task_id} is not found")
    return row


def run_row(database: Database, run_id: int) -> Row:
    """Find a run, or refuse."""
    row = database.row("SELECT * FROM run_view WHERE id = ?", run_id)
    if row is None:
        raise missing(f"Run id={run_id} not found!")
    return row


# --- new tasks --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class NewTask:
    """A task as it is asked for; inputs by organization, in order."""

    name: str
    description: str
    image: str
    collaboration_id: int
    inputs: Mapping[int, str]
    databases: Sequence[Mapping[str, Any]]
    is_plain: bool = False
    """The input came as plain text, so results are given as plain text to those who ask the older way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a task comes from."""

    organization_id: int
    user_id: int | None
    parent: Row | None = None


def create_task(backend: Backend, new: NewTask, origin: Origin) -> int:
    """Create a task with its runs, tell the nodes, and give its id."""
    database = backend.database
    nodes = _nodes_of(database, new)
    _check_inputs(database, new)
    parent = origin.parent
    task_id = database.change(
        "INSERT INTO task (name, description, image, collaboration_id, job_id, parent_id, init_org_id,"
        " init_user_id, databases, plain, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        *(new.name, new.description, new.image, new.collaboration_id),
        *(parent["job_id"] if parent else 0, parent["id"] if parent else None),
        *(
            origin.organization_id,
            origin.user_id,
            json.dumps([_database(wanted) for wanted in new.databases]),
        ),
        *(new.is_plain, now()),
    )
    database.change("UPDATE task SET job_id = id WHERE id = ? AND job_id = 0", task_id)
    for organization_id, text in new.inputs.items():
        database.change(
            "INSERT INTO run (task_id, organization_id, node_id, input, assigned_at) VALUES (?, ?, ?, ?, ?)",
            *(task_id, organization_id, nodes[organization_id], text, now()),
        )
    hint = {"id": task_id, "parent_id": parent["id"] if parent else None}
    backend.tell("new_task", hint, room_of(new.collaboration_id))
    return task_id


def _nodes_of(database: Database, new: NewTask) -> dict[int, int]:
    rows = database.rows(
        "SELECT organization_id, id FROM node WHERE collaboration_id = ?", new.collaboration_id
    )
    nodes = {row["organization_id"]: row["id"] for row in rows}
    lacking = [str(organization_id) for organization_id in new.inputs if organization_id not in nodes]
    if lacking:
        raise bad(
            "Cannot create this task because there are no nodes registered"
            f" for the following organization(s): {', '.join(lacking)}."
        )
    return {organization_id: nodes[organization_id] for organization_id in new.inputs}


def _check_inputs(database: Database, new: NewTask) -> None:
    encrypted = database.value("SELECT encrypted FROM collaboration WHERE id = ?", new.collaboration_id)
    readable = [is_readable(text) for text in new.inputs.values()]
    if encrypted and any(readable):
        raise bad(
            "The collaboration is encrypted, but the input of this task is not: the task was not created."
        )
    if not encrypted and not all(readable):
        raise bad("The input of this task is not text in base64, as an unencrypted collaboration needs it.")


def is_readable(text: str) -> bool:
    """Tell whether a text is base64 of UTF-8, as inputs and results are where nothing is encrypted."""
    try:
        base64.b64decode(text, validate=True).decode()
    except (binascii.Error, ValueError):
        return False
    return True


def _database(wanted: Mapping[str, Any]) -> dict[str, str]:
    parameters = {key: value for key, value in wanted.items() if key != "label"}
    return {"label": wanted["label"], "parameters": json.dumps(parameters)}


# --- changes of a run -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class RunChange:
    """What a node says of a run; what it does not say of result, log and end is erased."""

    status: str | None
    started_at: str | None
    finished_at: str | None
    result: str | None
    log: str | None


def change_run(backend: Backend, run_id: int, change: RunChange, *, organization_id: int) -> None:
    """Change a run as the node of this organization says."""
    database = backend.database
    run = run_row(database, run_id)
    if run["organization_id"] != organization_id:
        raise denied("This is not your algorithm run to PATCH!")
    if run["finished_at"] is not None:
        raise bad("Cannot update an already finished algorithm run!")
    database.change(
        "UPDATE run SET status = coalesce(?, status), started_at = coalesce(?, started_at),"
        " finished_at = ?, result = ?, log = ? WHERE id = ?",
        *(change.status, change.started_at, change.finished_at, change.result, change.log, run_id),
    )
    if change.status is not None and change.status not in _NOT_FAILED:
        _fail_siblings(database, run, change.status)
    backend.tell("status_update", {"run_id": run_id, "result_id": run_id}, room_of(run["collaboration_id"]))


def _fail_siblings(database: Database, run: Row, status: str) -> None:
    """End the runs of the same task that nobody has begun: their results would be of no use."""
    database.change(
        "UPDATE run SET status = ?, finished_at = ?, log = ?"
        " WHERE task_id = ? AND id != ? AND started_at IS NULL AND finished_at IS NULL",
        *(Status.FAILED, now()),
        f"Marked as failed because sibling run id={run['id']} failed with status '{status}'.",
        *(run["task_id"], run["id"]),
    )


def append_log(database: Database, run_id: int, text: str) -> None:
    """Add to the log of an open run, beginning a new line; a log that is too long already takes no more."""
    old = database.value("SELECT coalesce(log, '') FROM run WHERE id = ? AND finished_at IS NULL", run_id)
    if old is None or len(old) + len(text) > LOG_LIMIT:
        return
    between = "\n" if old and not old.endswith("\n") else ""
    database.change("UPDATE run SET log = ? WHERE id = ?", old + between + text, run_id)


# --- ending tasks -----------------------------------------------------------------------------------------------


def kill_task(backend: Backend, task: Row) -> None:
    """Tell the nodes to stop a task and its direct subtasks, and end their open runs."""
    database = backend.database
    rows = database.rows("SELECT id FROM task WHERE id = ? OR parent_id = ?", task["id"], task["id"])
    chosen = one_of("task_id", [row["id"] for row in rows])
    # chosen is a text of this package with one mark for each number
    runs = database.rows(
        f"SELECT id, task_id, organization_id FROM run WHERE finished_at IS NULL AND {chosen.text}",  # noqa: S608
        *chosen.values,
    )
    kills = [
        {"task_id": run["task_id"], "run_id": run["id"], "organization_id": run["organization_id"]}
        for run in runs
    ]
    collaboration_id = task["collaboration_id"]
    backend.tell(
        "kill_containers",
        {"kill_list": kills, "collaboration_id": collaboration_id},
        room_of(collaboration_id),
    )
    for run in runs:
        database.change(
            "UPDATE run SET status = ?, finished_at = ? WHERE id = ?", Status.KILLED, now(), run["id"]
        )


def delete_task(backend: Backend, task: Row) -> None:
    """Kill a task if it is open, and forget it with everything that came of it."""
    if not task["complete"]:
        kill_task(backend, task)
    backend.database.change("DELETE FROM task WHERE id = ?", task["id"])
