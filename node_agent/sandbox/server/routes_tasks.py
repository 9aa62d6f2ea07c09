"""Routes about tasks: create, show, list, kill, delete."""

from collections.abc import Callable
from http import HTTPStatus
from typing import Final

from node_agent.domain.run import Status
from node_agent.sandbox.server import links, work
from node_agent.sandbox.server.call import Answer, Body, Call, number
from node_agent.sandbox.server.database import Row
from node_agent.sandbox.server.listing import Listing, listed
from node_agent.sandbox.server.refusal import bad, denied, missing
from node_agent.sandbox.server.routes_login import databases_of
from node_agent.sandbox.server.task_bodies import older_result, read_task
from node_agent.sandbox.server.work import NewTask, Origin

_NOT_VALID: Final = "Container-token is not valid"
_TASKS: Final = Listing(
    source="task_view",
    filters={
        "collaboration_id": ("collaboration_id = ?", number),
        "init_org_id": ("init_org_id = ?", number),
        "init_user_id": ("init_user_id = ?", number),
        "parent_id": ("parent_id = ?", number),
        "job_id": ("job_id = ?", number),
        "run_id": ("id IN (SELECT task_id FROM run WHERE id = ?)", number),
        "is_user_created": ("(parent_id IS NULL) = (? != 0)", number),
        "name": ("name LIKE ?", str),
        "description": ("description LIKE ?", str),
        "image": ("image LIKE ?", str),
        "status": ("status LIKE ?", str),
        "database": ("? IN (SELECT value ->> 'label' FROM json_each(databases))", str),
    },
    sortable=("id", "name", "image", "status", "job_id", "created_at"),
    order="id DESC",
)


# --- showing ----------------------------------------------------------------------------------------------------


def tasks(call: Call) -> object:
    """List tasks, newest first."""
    return listed(call, _TASKS, [call.caller.sight], lambda row: _show(call, row))


def task(call: Call) -> object:
    """Show a task."""
    return _show(call, _task_row(call))


def task_status(call: Call) -> object:
    """Say how a task stands."""
    return {"status": _task_row(call)["status"]}


def task_results(call: Call) -> object:
    """List what came of a task, for older clients: a plain list with the result in each run."""
    row = _task_row(call)
    return [_older_run(call, row, run) for run in _runs_of(call, row)]


def _older_run(call: Call, task: Row, run: Row) -> object:
    shown = links.run(run, call.backend.links, call.backend.database)
    return shown | {"result": older_result(run["result"], is_plain=bool(task["plain"]))}


def _task_row(call: Call) -> Row:
    row = work.task_row(call.backend.database, call.id)
    if row["collaboration_id"] not in call.caller.collaborations:
        raise denied()
    return row


def _runs_of(call: Call, task: Row) -> list[Row]:
    return call.backend.database.rows("SELECT * FROM run_view WHERE task_id = ? ORDER BY id", task["id"])


def _show(call: Call, row: Row) -> object:
    shown = links.task(row, call.backend.links)
    for name, show in _included(call).items():
        shown[name] = [show(run) for run in _runs_of(call, row)]
    return shown


def _included(call: Call) -> dict[str, Callable[[Row], object]]:
    backend = call.backend
    possible: dict[str, Callable[[Row], object]] = {
        "runs": lambda run: links.run(run, backend.links, backend.database),
        "results": lambda run: links.result(run, backend.links),
    }
    return {name: show for name, show in possible.items() if name in call.included()}


# --- creating ---------------------------------------------------------------------------------------------------


def create_task(call: Call) -> object:
    """Create a task, for a user or, as a subtask, for an algorithm."""
    body = call.body()
    collaboration_id = body.number("collaboration_id")
    if not call.backend.database.row("SELECT 1 FROM collaboration WHERE id = ?", collaboration_id):
        raise missing(f"Collaboration id={collaboration_id} not found!")
    if collaboration_id not in call.caller.collaborations:
        raise _outsider(call)
    new = read_task(body, _members(call, collaboration_id))
    made = _create_subtask(call, new, body) if call.caller.kind == "container" else _create(call, new)
    row = work.task_row(call.backend.database, made)
    return Answer(body=links.task(row, call.backend.links), status=HTTPStatus.CREATED)


def _outsider(call: Call) -> Exception:
    if call.caller.kind == "container":
        return denied(_NOT_VALID)
    return denied("You can only create tasks for collaborations you are participating in!")


def _members(call: Call, collaboration_id: int) -> list[int]:
    rows = call.backend.database.rows(
        "SELECT organization_id FROM member WHERE collaboration_id = ? ORDER BY organization_id",
        collaboration_id,
    )
    return [row[0] for row in rows]


def _create(call: Call, new: NewTask) -> int:
    for organization_id in new.inputs:
        _check_willing(call, new.collaboration_id, organization_id)
    caller = call.caller
    return work.create_task(
        call.backend, new, Origin(organization_id=caller.organization_id, user_id=caller.id)
    )


def _check_willing(call: Call, collaboration_id: int, organization_id: int) -> None:
    """Refuse a task for a node that said it takes none from this user."""
    rows = call.backend.database.rows(
        "SELECT key, value FROM node_config JOIN node ON node.id = node_id"
        " WHERE collaboration_id = ? AND organization_id = ? AND key IN ('allowed_users', 'allowed_orgs')",
        collaboration_id,
        organization_id,
    )
    own = call.caller.organization_id
    name = call.backend.database.value("SELECT name FROM organization WHERE id = ?", own)
    welcome = {"allowed_users": {str(call.caller.id)}, "allowed_orgs": {str(own), name}}
    if rows and not any(row["value"] in welcome[row["key"]] for row in rows):
        raise bad(
            "Cannot create this task because one of the nodes that you are trying to send this task to"
            " does not allow you to create tasks."
        )


def _create_subtask(call: Call, new: NewTask, body: Body) -> int:
    """Create a subtask: image and researcher are those of the task the algorithm works for."""
    caller, database = call.caller, call.backend.database
    parent = database.row("SELECT * FROM task_view WHERE id = ?", caller.task_id)
    fits = new.image.endswith(caller.image)
    if parent is None or not fits or Status(parent["status"]) not in work.OPEN:
        raise denied(_NOT_VALID)
    databases = new.databases if "databases" in body else databases_of(parent)
    subtask = NewTask(
        name=new.name,
        description=new.description,
        image=parent["image"],
        collaboration_id=new.collaboration_id,
        inputs=new.inputs,
        databases=databases,
        is_plain=new.is_plain,
    )
    origin = Origin(
        organization_id=caller.organization_id,
        user_id=parent["init_user_id"],
        parent=parent,
    )
    return work.create_task(call.backend, subtask, origin)


# --- ending -----------------------------------------------------------------------------------------------------


def kill_task(call: Call) -> object:
    """Stop a task and its subtasks."""
    task_id = call.body().number("id")
    row = call.backend.database.row("SELECT * FROM task_view WHERE id = ?", task_id)
    if row is None:
        raise missing(f"Task id={task_id} not found")
    if Status(row["status"]) not in work.OPEN:
        raise bad(f"Task {task_id} already finished with status '{row['status']}', so cannot kill it!")
    if row["collaboration_id"] not in call.caller.collaborations:
        raise denied()
    work.kill_task(call.backend, row)
    return {"msg": f"Nodes have been instructed to kill any containers running for task {task_id}."}


def kill_node_tasks(call: Call) -> object:
    """Have a node stop everything it does for its collaboration."""
    node_id = call.body().number("id")
    row = call.backend.database.row("SELECT * FROM node WHERE id = ?", node_id)
    if row is None:
        raise missing(f"Node id={node_id} not found")
    if row["collaboration_id"] not in call.caller.collaborations:
        raise denied()
    if row["status"] != "online":
        raise bad(f"Node {node_id} is not online so cannot kill its tasks!")
    content = {"node_id": node_id, "collaboration_id": row["collaboration_id"]}
    call.backend.tell("kill_containers", content, work.room_of(row["collaboration_id"]))
    return {"msg": f"Node {node_id} has been instructed to kill all containers running on it."}


def delete_task(call: Call) -> object:
    """Delete a task with everything that came of it."""
    row = _task_row(call)
    work.delete_task(call.backend, row)
    return {"msg": f"Task id={call.id} and its runs successfully deleted"}
