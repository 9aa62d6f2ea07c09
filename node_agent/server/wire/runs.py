"""Runs and tasks: what the server lists, and what it is told about them.

Owns the fields of runs, tasks and final messages. Must not know tokens or sockets.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import structlog
from pydantic import Field, ValidationError

from node_agent.domain.ports import FinalReport, OpenRun
from node_agent.domain.run import BlobId, RunId, Status
from node_agent.domain.task import DatabaseRequest, JobId, OrganizationId, Task, TaskId
from node_agent.errors import InputUnreadable, ServerUnreachable
from node_agent.payload.chunks import Chunks, EscapedText, Literal, Sequence
from node_agent.payload.codec import PayloadCodec
from node_agent.payload.longtext import LongText
from node_agent.server.exchange import Reply, parse_json
from node_agent.server.wire.shapes import (
    UUID,
    Id,
    Image,
    Label,
    Link,
    Listed,
    LongString,
    Name,
    RunNumber,
    Uuid,
    Wire,
    complaint,
    format_time,
    id_of,
    json_body,
    parse_time,
    shaped,
)

log = structlog.get_logger()

NO_BLOB = "The input of this run should lie in the server's blob store, but the server does not say where."
FINISHED_ALREADY = "already finished"
_MAX_PARAMETERS = 1_000_000


class _UserLink(Link):
    username: Name | None = None


class _Database(Wire):
    label: Label
    parameters: LongString | None = None


class _Parameters(Wire):
    query: Annotated[str, Field(max_length=262_144)] | None = None
    sheet_name: Annotated[str, Field(max_length=1024)] | None = None
    preprocessing: Annotated[list[dict[str, Any]], Field(max_length=1000)] | None = None
    arguments: dict[str, Any] | None = None


class _Task(Wire):
    id: Id
    job_id: Id
    image: Image
    collaboration: Link
    parent: Link | None = None
    init_org: Link | None = None
    init_user: _UserLink | None = None
    study: Link | None = None
    algorithm_store: Link | None = None
    databases: Annotated[list[_Database], Field(max_length=100)] | None = None


class _RunLink(Wire):
    id: RunNumber


class _Run(Wire):
    id: RunNumber
    input: LongString
    status: str | None = None
    started_at: str | None = None
    blob_storage_used: bool | None = None
    task: _Task


class _StoreStatus(Wire):
    blob_store_enabled: bool


class _Blob(Wire):
    uuid: Uuid


class _RunState(Wire):
    id: RunNumber
    status: str | None = None
    started_at: str | None = None
    finished_at: str | None


def _nothing() -> None:
    return


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One page of a listing: what could be read, how many elements it had, and whether there are more."""

    runs: tuple[OpenRun, ...]
    count: int
    has_next: bool
    total: int | None
    discard: Callable[[], None] = _nothing
    """Removes the inputs of its runs from the disk."""


NO_RUNS = Page(runs=(), count=0, has_next=False, total=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """How the server has a run in its books."""

    is_open: bool
    status: str
    finished_at: float | None
    claimed_at: float | None = None


def parse_page(reply: Reply, codec: PayloadCodec) -> Page:
    """Read one page of open runs."""
    page = shaped(Listed, reply.json(), reply.call)
    runs = (parse_run(element, codec) for element in page.data)
    return Page(
        runs=tuple(run for run in runs if run is not None),
        count=len(page.data),
        has_next=page.links.next is not None,
        total=reply.total,
    )


def parse_run(element: object, codec: PayloadCodec) -> OpenRun | None:
    """Read one open run, with a fault when something is wrong; None when not even its id is known."""
    try:
        run_id = RunId(_RunLink.model_validate(element).id)
    except ValidationError as error:
        log.warning("run_ignored", why=complaint(error))
        return None
    try:
        return _open_run(_Run.model_validate(element), codec)
    except ValidationError as error:
        fault = f"The server sent an unusable description of this run: {complaint(error)}."
    except InputUnreadable as error:
        fault = str(error)
    return OpenRun(id=run_id, task=_placeholder(element), fault=fault)


def _open_run(run: _Run, codec: PayloadCodec) -> OpenRun:
    return OpenRun(
        id=RunId(run.id),
        task=_task(run.task),
        input=() if run.blob_storage_used else codec.decode_input(_chunks(run.input)),
        input_blob=_blob_of(run.input) if run.blob_storage_used else None,
        claimed_at=parse_time(run.started_at),
        status=_status(run.status),
    )


def _blob_of(text: str | LongText) -> BlobId:
    # it becomes part of an address, so nothing else will do
    if not isinstance(text, str) or re.fullmatch(UUID, text) is None:
        raise InputUnreadable(NO_BLOB)
    return BlobId(text)


def _chunks(text: str | LongText) -> Chunks:
    # half a character in the text is no reason to stumble: the codec refuses what stands for it
    return text if isinstance(text, LongText) else Literal(text.encode(errors="replace"))


def _task(task: _Task) -> Task:
    parent, org = id_of(task.parent), id_of(task.init_org)
    return Task(
        id=TaskId(task.id),
        job_id=JobId(task.job_id),
        image=task.image,
        collaboration_id=task.collaboration.id,
        parent_id=None if parent is None else TaskId(parent),
        init_org_id=None if org is None else OrganizationId(org),
        init_user_id=id_of(task.init_user),
        init_user_name=None if task.init_user is None else task.init_user.username,
        study_id=id_of(task.study),
        store_id=id_of(task.algorithm_store),
        databases=tuple(_database(d) for d in task.databases or ()),
    )


def _database(database: _Database) -> DatabaseRequest:
    try:
        wanted = _Parameters.model_validate(parse_json(_in_memory(database.parameters) or "{}"))
    except ValidationError as error:
        why = complaint(error)
    except ValueError:
        why = f"not JSON, or longer than {_MAX_PARAMETERS} characters"
    else:
        return DatabaseRequest(
            label=database.label,
            query=wanted.query,
            sheet_name=wanted.sheet_name,
            preprocessing=tuple(wanted.preprocessing or ()),
            arguments=wanted.arguments or {},
        )
    raise InputUnreadable(f"The parameters of database `{database.label}` cannot be understood: {why}.")


def _in_memory(text: str | LongText | None) -> str:
    if text is None or isinstance(text, str):
        return text or ""
    if text.length > _MAX_PARAMETERS:
        raise ValueError("too long")
    return b"".join(text).decode()


def _placeholder(element: object) -> Task:
    """Give a task for a run that cannot be understood, with the task's id if that is there."""
    task = element.get("task") if isinstance(element, Mapping) else None
    try:
        task_id = Link.model_validate(task).id
    except ValidationError:
        task_id = 0
    return Task(id=TaskId(task_id), job_id=JobId(task_id), image="", collaboration_id=0)


def _status(text: str | None) -> Status:
    try:
        return Status(text or "")
    except ValueError:
        return Status.PENDING


def parse_task(reply: Reply) -> Task:
    """Read a task that was asked for by its number."""
    try:
        return _task(shaped(_Task, reply.json(), reply.call))
    except InputUnreadable as error:
        raise ServerUnreachable(f"The answer to {reply.call} is not understood: {error}") from error


def parse_run_state(reply: Reply) -> RunState:
    """Read whether a run is still open."""
    run = shaped(_RunState, reply.json(), reply.call)
    return RunState(
        is_open=run.finished_at is None,
        status=run.status or "",
        finished_at=parse_time(run.finished_at),
        claimed_at=parse_time(run.started_at),
    )


def has_blob_store(reply: Reply) -> bool:
    """Read whether the server has a blob store."""
    return shaped(_StoreStatus, reply.json(), reply.call).blob_store_enabled


def parse_blob(reply: Reply) -> BlobId:
    """Read where the server stored what it was sent."""
    return BlobId(shaped(_Blob, reply.json(), reply.call).uuid)


def claim_body(at: float) -> bytes:
    """Write the message that takes a run."""
    return json_body(started_at=format_time(at), status=str(Status.INITIALIZING))


def status_body(status: Status) -> bytes:
    """Write an intermediate status."""
    return json_body(status=str(status))


def final_body(final: FinalReport, result: Chunks) -> Sequence:
    """Write the final message; result and log are made while they are sent."""
    head = _final_head(final, final.status)
    written: Chunks = Literal(b"") if final.log is None else EscapedText(final.log)
    return Sequence(
        Literal(head + b', "result": "'), result, Literal(b'", "log": "'), written, Literal(b'"}')
    )


def refusal_body(final: FinalReport, reason: str) -> bytes:
    """Write a small final message instead of a refused one, so that the run does not stay open."""
    status = Status.FAILED if final.status is Status.COMPLETED else final.status
    return _final_head(final, status) + f', "result": "", "log": {json.dumps(reason)}}}'.encode()


def is_told(state: RunState, final: FinalReport) -> bool:
    """Tell whether the server's books already say exactly what *final* says."""
    mine = parse_time(format_time(final.finished_at))
    return state.status == final.status and state.finished_at == mine


def _final_head(final: FinalReport, status: Status) -> bytes:
    head = json_body(
        status=str(status),
        started_at=format_time(final.started_at),
        finished_at=format_time(final.finished_at),
    )
    return head.removesuffix(b"}")
