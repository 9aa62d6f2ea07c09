"""Routes about runs, their results and their ports."""

from http import HTTPStatus
from typing import Final

from node_agent.domain.run import Status
from node_agent.sandbox.server import links, work
from node_agent.sandbox.server.call import Answer, Body, Call, moment, number
from node_agent.sandbox.server.database import Condition, Row
from node_agent.sandbox.server.listing import Filters, Listing, listed
from node_agent.sandbox.server.refusal import bad, bad_field, denied
from node_agent.sandbox.server.work import RunChange

_FIELDS: Final = ("status", "started_at", "finished_at", "result", "log")
_PORT_NUMBERS: Final = range(1, 65536)
_FILTERS: Final[Filters] = {
    "task_id": ("task_id = ?", number),
    "node_id": ("node_id = ?", number),
    "organization_id": ("organization_id = ?", number),
    "collaboration_id": ("collaboration_id = ?", number),
    "port": ("id IN (SELECT run_id FROM port WHERE port = ?)", number),
    "assigned_from": ("assigned_at >= ?", moment),
    "assigned_till": ("assigned_at <= ?", moment),
    "started_from": ("started_at >= ?", moment),
    "started_till": ("started_at <= ?", moment),
    "finished_from": ("finished_at >= ?", moment),
    "finished_till": ("finished_at <= ?", moment),
}
_RUNS: Final = Listing(
    source="run_view",
    filters=_FILTERS,
    sortable=(
        "id",
        "task_id",
        "node_id",
        "organization_id",
        "status",
        "assigned_at",
        "started_at",
        "finished_at",
    ),
    order="id DESC",
)


# --- showing ----------------------------------------------------------------------------------------------------


def runs(call: Call) -> object:
    """List runs, newest first."""
    return listed(call, _RUNS, _chosen(call), lambda row: _show(call, row))


def results(call: Call) -> object:
    """List results, newest run first."""
    return listed(call, _RUNS, _chosen(call), lambda row: links.result(row, call.backend.links))


def _chosen(call: Call) -> list[Condition]:
    _check_known(call, "task")
    _check_known(call, "node")
    is_open = call.query.get("state") == "open"
    return [call.caller.sight] + ([Condition("finished_at IS NULL")] if is_open else [])


def _check_known(call: Call, kind: str) -> None:
    """Refuse a listing for a task or node that is not there: an empty one would say that it has no runs."""
    text = call.query.get(f"{kind}_id")
    if not text:
        return
    row = call.backend.database.row(f"SELECT collaboration_id FROM {kind} WHERE id = ?", number(text))  # noqa: S608
    if row is None:
        raise bad(f"{kind.title()} id={number(text)} does not exist!")
    if row["collaboration_id"] not in call.caller.collaborations:
        raise denied()


def run(call: Call) -> object:
    """Show a run."""
    return _show(call, _run_row(call))


def result(call: Call) -> object:
    """Show the result of a run."""
    return links.result(_run_row(call), call.backend.links)


def _run_row(call: Call) -> Row:
    row = work.run_row(call.backend.database, call.id)
    if row["collaboration_id"] not in call.caller.collaborations:
        raise denied()
    return row


def _show(call: Call, row: Row) -> object:
    shown = links.run(row, call.backend.links, call.backend.database)
    if "task" in call.included():
        task = links.task(work.task_row(call.backend.database, row["task_id"]), call.backend.links)
        shown["task"] = {name: content for name, content in task.items() if name != "runs"}
    return shown


# --- changing ---------------------------------------------------------------------------------------------------


def change_run(call: Call) -> object:
    """Change a run as its node says; the answer repeats the whole run."""
    change = _read_change(call.body())
    work.change_run(call.backend, call.id, change, organization_id=call.caller.organization_id)
    row = work.run_row(call.backend.database, call.id)
    return links.run(row, call.backend.links, call.backend.database)


def _read_change(body: Body) -> RunChange:
    body.only(_FIELDS)
    said = {name: body.text(name) for name in _FIELDS if name in body}
    empty = [name for name in _FIELDS if body.has(name) and name not in body]
    if empty:
        raise bad_field(empty[0], "Field may not be null.")
    if "status" in said and said["status"] not in set(Status):
        raise bad_field("status", f"Unknown status {said['status'][:40]!r}.")
    return RunChange(
        status=said.get("status"),
        started_at=moment(said["started_at"]) if "started_at" in said else None,
        finished_at=moment(said["finished_at"]) if "finished_at" in said else None,
        result=said.get("result"),
        log=said.get("log"),
    )


# --- ports ------------------------------------------------------------------------------------------------------


def add_port(call: Call) -> object:
    """Remember a port of a run of the calling node."""
    body = call.body()
    run_id, port = body.number("run_id"), body.number("port")
    if port not in _PORT_NUMBERS:
        raise bad_field("port", "Not a port.")
    label = body.text_or("label", "") or None
    _check_own(call, run_id)
    port_id = call.backend.database.change(
        "INSERT INTO port (run_id, port, label) VALUES (?, ?, ?)", run_id, port, label
    )
    return Answer(body={"id": port_id, "port": port, "label": label}, status=HTTPStatus.CREATED)


def remove_ports(call: Call) -> object:
    """Forget the ports of a run of the calling node."""
    text = call.query.get("run_id")
    if not text:
        raise bad("The run_id argument is required!")
    run_id = number(text)
    _check_own(call, run_id)
    call.backend.database.change("DELETE FROM port WHERE run_id = ?", run_id)
    return {"msg": "Ports removed"}


def _check_own(call: Call, run_id: int) -> None:
    if work.run_row(call.backend.database, run_id)["node_id"] != call.caller.id:
        raise denied()
