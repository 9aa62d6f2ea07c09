"""What the server has in its books: organizations, nodes, tasks, runs, and the rules for changing them.

Knows nothing of HTTP or sockets. One lock around everything; `changed` is notified whenever something happened.
"""

import base64
import json
import threading
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from tests.doubles.fake_server.refusal import Refusal, crash

OPEN_STATUSES = frozenset({"pending", "initializing", "active"})
STATUSES = OPEN_STATUSES | {
    "completed",
    "failed",
    "start failed",
    "non-existing Docker image",
    "crashed",
    "killed by user",
    "not allowed",
    "unknown error",
}
_FIELDS = frozenset({"status", "started_at", "finished_at", "result", "log"})
COLLABORATION = 1


@dataclass(frozen=True, slots=True)
class Created:
    """A new task and its runs, in the order of the organizations."""

    task_id: int
    run_ids: tuple[int, ...]


@dataclass(slots=True, kw_only=True)
class Node:
    """A node and its organization; both have the same place in the list."""

    id: int
    organization_id: int
    name: str
    api_key: str
    public_key: str = ""
    """The organization's."""
    status: str | None = None
    pings: int = 0
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Task:
    """A task."""

    id: int
    job_id: int
    image: str
    init_org_id: int
    parent_id: int | None
    databases: list[dict[str, str]]


@dataclass(slots=True, kw_only=True)
class Run:
    """A run."""

    id: int
    task: Task
    organization_id: int
    node_id: int
    input: str
    status: str = "pending"
    started_at: datetime | None = None
    finished_at: datetime | None = None
    result: str | None = None
    log: str | None = None
    accepted: int = 0
    """How many updates were accepted."""


class World:
    """The books."""

    def __init__(
        self,
        organizations: Sequence[str],
        *,
        encrypted: bool = False,
        blobs: dict[str, bytes] | None = None,
    ) -> None:
        self.encrypted = encrypted
        self.blobs = blobs
        """What lies in the blob store; None: there is no such store."""
        self.uploads_need_a_length = False
        self.changed = threading.Condition(threading.RLock())
        self.nodes = {
            # ids of nodes and organizations differ, so that a mix-up shows
            40 + n: Node(id=40 + n, organization_id=2 + n, name=name, api_key=str(uuid.uuid4()))
            for n, name in enumerate(organizations)
        }
        self.tasks: dict[int, Task] = {}
        self.runs: dict[int, Run] = {}
        self._last_task = self._last_run = 0

    # --- reading ---

    def node_of_key(self, api_key: object) -> Node:
        """Find the node that has this key."""
        if not isinstance(api_key, str) or not _is_uuid(api_key):
            raise Refusal(400, "Request body is incorrect")
        for node in self.nodes.values():
            if node.api_key == api_key:
                return node
        raise Refusal(401, "Api key is not recognized!")

    def node_of_organization(self, organization_id: object) -> Node:
        """Find the node of an organization."""
        for node in self.nodes.values():
            if node.organization_id == organization_id:
                return node
        raise Refusal(404, f"Organization id={organization_id} not found!")

    def task(self, task_id: int) -> Task:
        """Find a task."""
        if task_id not in self.tasks:
            raise Refusal(404, f"Task id={task_id} not found!")
        return self.tasks[task_id]

    def run(self, run_id: int) -> Run:
        """Find a run."""
        if run_id not in self.runs:
            raise Refusal(404, f"Run id={run_id} not found!")
        return self.runs[run_id]

    def runs_of(self, task_id: int) -> list[Run]:
        """Give the runs of a task."""
        return [run for run in self.runs.values() if run.task.id == task_id]

    def task_status(self, task_id: int) -> str:
        """Say how a task stands: the first failure wins."""
        statuses = [run.status for run in self.runs_of(task_id)]
        failed = {s for s in statuses if s not in OPEN_STATUSES | {"completed"}}
        if failed:
            return failed.pop() if len(failed) == 1 else "failed"
        return next((s for s in ("active", "initializing", "pending") if s in statuses), "completed")

    def blob(self, name: str) -> bytes:
        """Give what lies in the blob store as the input or result of some run."""
        if not any(name in {run.input, run.result} for run in self.runs.values()):
            raise Refusal(404, f"No run found with input or result id={name}")
        if name not in (self.blobs or {}):
            raise Refusal(500, "Error streaming result!")
        return (self.blobs or {})[name]

    # --- changing ---

    def store_blob(self, content: bytes) -> str:
        """Put something into the blob store."""
        if self.blobs is None:
            raise Refusal(501, "The large result store is not set to blob storage.")
        name = str(uuid.uuid4())
        self.blobs[name] = content
        return name

    def create_task(
        self,
        *,
        image: str,
        inputs: Mapping[int, str],
        databases: Sequence[Mapping[str, Any]] = (),
        parent: Task | None = None,
        init_org_id: int,
    ) -> Created:
        """Create a task with one run per organization."""
        with self.changed:
            self._last_task += 1
            task = Task(
                id=self._last_task,
                # a number of its own, so that a mix-up shows
                job_id=parent.job_id if parent else 1000 + self._last_task,
                image=image,
                init_org_id=init_org_id,
                parent_id=parent.id if parent else None,
                databases=[_database(d) for d in databases],
            )
            self.tasks[task.id] = task
            runs = tuple(self._create_run(task, organization, text) for organization, text in inputs.items())
            self.changed.notify_all()
            return Created(task.id, runs)

    def _create_run(self, task: Task, organization_id: int, text: str) -> int:
        node = self.node_of_organization(organization_id)
        self._last_run += 1
        self.runs[self._last_run] = Run(
            id=self._last_run, task=task, organization_id=organization_id, node_id=node.id, input=text
        )
        return self._last_run

    def update_run(self, run_id: int, node: Node, change: object) -> Run:
        """Change a run as a node asks; what is not said about result, log and end is erased."""
        with self.changed:
            run = self.run(run_id)
            if run.node_id != node.id:
                raise Refusal(401, "This is not your algorithm run to PATCH!")
            fields = _checked(change)
            if run.finished_at is not None:
                raise Refusal(400, "Cannot update an already finished algorithm run!")
            run.started_at = _time(fields.get("started_at")) or run.started_at
            run.finished_at = _time(fields.get("finished_at"))
            run.result = fields.get("result")
            run.log = fields.get("log")
            run.status = fields.get("status", run.status)
            run.accepted += 1
            if run.status not in OPEN_STATUSES | {"completed"}:
                self._fail_siblings(run)
            self.changed.notify_all()
            return run

    def _fail_siblings(self, failed: Run) -> None:
        for run in self.runs_of(failed.task.id):
            if run is not failed and run.started_at is None and run.finished_at is None:
                run.status, run.finished_at = "failed", datetime.now(UTC)
                run.log = f"Marked as failed because sibling run id={failed.id} failed with status '{failed.status}'."

    def kill(self, task_id: int) -> list[Run]:
        """Mark all open runs of a task and its subtasks as killed; gives these runs."""
        with self.changed:
            ids = {task_id} | {t.id for t in self.tasks.values() if t.parent_id == task_id}
            killed = [r for r in self.runs.values() if r.task.id in ids and r.finished_at is None]
            for run in killed:
                run.status, run.finished_at = "killed by user", datetime.now(UTC)
            self.changed.notify_all()
            return killed

    def delete(self, task_id: int) -> None:
        """Forget a task and its runs."""
        with self.changed:
            self.tasks.pop(task_id, None)
            self.runs = {i: r for i, r in self.runs.items() if r.task.id != task_id}
            self.changed.notify_all()


def plain(content: bytes) -> str:
    """Write an input as unencrypted collaborations do."""
    return base64.b64encode(content).decode()


def _database(wanted: Mapping[str, Any]) -> dict[str, str]:
    parameters = {key: value for key, value in wanted.items() if key != "label"}
    return {"label": wanted["label"], "parameters": json.dumps(parameters)}


def _checked(change: object) -> dict[str, str]:
    if not isinstance(change, dict) or not set(change) <= _FIELDS:
        raise Refusal(400, "Request body is incorrect")
    if not all(isinstance(value, str) for value in change.values()):
        raise Refusal(400, "Request body is incorrect")
    if change.get("status", "pending") not in STATUSES:
        raise Refusal(400, "Request body is incorrect")
    return change


def _time(text: str | None) -> datetime | None:
    """Read a time as strictly as the server: anything but six digits, with +00:00 or nothing, is a crash."""
    if text is None:
        return None
    try:
        return datetime.strptime(text.removesuffix("+00:00"), "%Y-%m-%dT%H:%M:%S.%f").replace(tzinfo=UTC)
    except ValueError:
        raise crash() from None


def _is_uuid(text: str) -> bool:
    try:
        uuid.UUID(text)
    except ValueError:
        return False
    return True
