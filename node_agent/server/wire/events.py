"""What travels on the socket, both ways."""

from typing import Annotated, Any

import structlog
from pydantic import Field, ValidationError

from node_agent.domain.messages import KillRequested, TaskHinted
from node_agent.domain.ports import NodeIdentity, StatusChange
from node_agent.domain.run import Run, RunId, Status
from node_agent.domain.runlogs import LogPiece
from node_agent.domain.task import OrganizationId, TaskId
from node_agent.server.wire.shapes import Id, RunNumber, Wire, complaint

log = structlog.get_logger()

_MAX_KILLS = 10_000
_GOING_ON = frozenset({Status.PENDING, Status.INITIALIZING, Status.ACTIVE})


class _Hint(Wire):
    id: Id


class _Change(Wire):
    task_id: Id
    status: str


class _Kill(Wire):
    collaboration_id: Id | None = None
    node_id: Id | None = None
    kill_list: Annotated[list[Any], Field(max_length=_MAX_KILLS)] | None = None


class _Killed(Wire):
    run_id: RunNumber
    organization_id: Id


def parse_hint(event: object) -> TaskHinted | None:
    """Read a `new_task` event; None when it says nothing."""
    try:
        return TaskHinted(TaskId(_Hint.model_validate(event).id))
    except ValidationError as error:
        log.warning("event_ignored", event_name="new_task", why=complaint(error))
        return None


def task_with_an_ended_run(event: object) -> TaskId | None:
    """Read an `algorithm_status_change` event; None when it tells of no end, or nothing."""
    try:
        change = _Change.model_validate(event)
    except ValidationError:
        return None
    return None if change.status in _GOING_ON else TaskId(change.task_id)


def is_about_this_node(event: object, identity: NodeIdentity) -> bool:
    """Tell whether a `node-online` or `node-offline` event names this node itself."""
    return isinstance(event, dict) and event.get("id") == identity.node_id


def parse_kill(event: object, identity: NodeIdentity) -> KillRequested | None:
    """Read a `kill_containers` event; None when it is not for this node or says nothing."""
    try:
        kill = _Kill.model_validate(event)
    except ValidationError as error:
        log.warning("event_ignored", event_name="kill_containers", why=complaint(error))
        return None
    if not _concerns(kill, identity):
        return None
    if kill.kill_list is None:
        return KillRequested(None)
    runs = frozenset(_killed_runs(kill.kill_list, identity.organization_id))
    return KillRequested(runs) if runs else None


def _concerns(kill: _Kill, identity: NodeIdentity) -> bool:
    """Tell whether a kill names this node's collaboration or node, and no other."""
    named = [
        theirs == mine
        for theirs, mine in (
            (kill.collaboration_id, identity.collaboration_id),
            (kill.node_id, identity.node_id),
        )
        if theirs is not None
    ]
    return bool(named) and all(named)


def _killed_runs(entries: list[Any], organization_id: OrganizationId) -> list[RunId]:
    runs = []
    for entry in entries:
        try:
            killed = _Killed.model_validate(entry)
        except ValidationError as error:
            log.warning("event_ignored", event_name="kill_containers", why=complaint(error))
            continue
        if killed.organization_id == organization_id:
            runs.append(RunId(killed.run_id))
    return runs


def status_event(change: StatusChange, identity: NodeIdentity) -> dict[str, object]:
    """Write the broadcast of a status change."""
    task = change.run.task
    return {
        "node_id": identity.node_id,
        "status": str(change.status),
        "run_id": change.run.id,
        "task_id": task.id,
        "collaboration_id": identity.collaboration_id,
        "organization_id": identity.organization_id,
        "parent_id": task.parent_id,
    }


def log_event(run: Run, piece: LogPiece, identity: NodeIdentity) -> dict[str, object]:
    """Write what a running algorithm wrote."""
    return {
        "collaboration_id": identity.collaboration_id,
        "run_id": run.id,
        "task_id": run.task.id,
        "log": piece.text,
    }
