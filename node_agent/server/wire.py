"""What the server writes and reads: the only module that sees its dictionaries and strings.

Owns field names, formats and bounds. Everything from the server is checked here, once; unknown fields are
ignored. Must not know calls, sockets or tokens.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

import structlog
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, ValidationError

from node_agent.domain.messages import KillRequested, TaskHinted
from node_agent.domain.ports import FinalReport, NodeIdentity, OpenRun, StatusChange
from node_agent.domain.run import BlobId, Run, RunId, Status
from node_agent.domain.runlogs import LogPiece
from node_agent.domain.secret import Secret
from node_agent.domain.task import DatabaseRequest, JobId, OrganizationId, Task, TaskId
from node_agent.errors import InputUnreadable, ServerUnreachable
from node_agent.payload.chunks import Chunks, EscapedText, Literal, Sequence
from node_agent.payload.codec import PayloadCodec
from node_agent.payload.longtext import LongText
from node_agent.server.exchange import Reply, parse_json, shorten

log = structlog.get_logger()

NO_BLOB = "The input of this run should lie in the server's blob store, but the server does not say where."
UUID = "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
FINISHED_ALREADY = "already finished"
_APPROVED = "approved"
_MAX_KILLS = 10_000
_MAX_PARAMETERS = 1_000_000


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("contains characters that cannot be printed")
    return text


def _one_word(text: str) -> str:
    if any(c.isspace() for c in text):
        raise ValueError("contains white space")
    return _printable(text)


def _text(value: object) -> str | LongText:
    if not isinstance(value, str | LongText):
        raise ValueError("Input should be a valid string")  # noqa: TRY004 - pydantic wants ValueError
    return value


_LongString = Annotated[str | LongText, PlainValidator(_text)]
_Id = Annotated[int, Field(gt=0, lt=2**63)]
_Label = Annotated[str, Field(min_length=1, max_length=128), AfterValidator(_printable)]
_Image = Annotated[str, Field(min_length=1, max_length=512), AfterValidator(_one_word)]
_Uuid = Annotated[str, Field(pattern=rf"\A{UUID}\z")]
_Name = Annotated[str, Field(max_length=1024)]
_Jwt = Annotated[str, Field(min_length=1, max_length=16_384, pattern=r"^[A-Za-z0-9_.-]+$")]


class _Wire(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)


class _Link(_Wire):
    id: _Id


class _UserLink(_Link):
    username: _Name | None = None


class _Database(_Wire):
    label: _Label
    parameters: _LongString | None = None


class _Parameters(_Wire):
    query: Annotated[str, Field(max_length=262_144)] | None = None
    sheet_name: Annotated[str, Field(max_length=1024)] | None = None
    preprocessing: Annotated[list[dict[str, Any]], Field(max_length=1000)] | None = None
    arguments: dict[str, Any] | None = None


class _Task(_Wire):
    id: _Id
    job_id: _Id
    image: _Image
    collaboration: _Link
    parent: _Link | None = None
    init_org: _Link | None = None
    init_user: _UserLink | None = None
    study: _Link | None = None
    algorithm_store: _Link | None = None
    databases: Annotated[list[_Database], Field(max_length=100)] | None = None


class _Run(_Wire):
    id: _Id
    input: _LongString
    status: str | None = None
    started_at: str | None = None
    blob_storage_used: bool | None = None
    task: _Task


class _StoreStatus(_Wire):
    blob_store_enabled: bool


class _Blob(_Wire):
    uuid: _Uuid


class _RunState(_Wire):
    id: _Id
    status: str | None = None
    finished_at: str | None


class _Links(_Wire):
    next: str | None = None


class _Page(_Wire):
    data: list[Any]
    links: _Links = _Links()


class _Node(_Wire):
    id: _Id
    name: _Name
    organization: _Link
    collaboration: _Link


class _Organization(_Wire):
    name: _Name


class _Store(_Wire):
    url: Annotated[str, Field(max_length=2048)]


class _Algorithm(_Wire):
    image: Annotated[str, Field(max_length=1024)] | None = None
    digest: Annotated[str, Field(max_length=128)] | None = None
    status: Annotated[str, Field(max_length=128)] | None = None
    invalidated_at: Any = None


class _KeyHolder(_Wire):
    public_key: Annotated[str, Field(max_length=65_536)] | None = None


class _Collaboration(_Wire):
    name: _Name
    encrypted: bool


class _Tokens(_Wire):
    access_token: _Jwt
    refresh_token: _Jwt


class _ContainerToken(_Wire):
    container_token: _Jwt


class _Claims(_Wire):
    sub: _Id
    iat: float | int | None = None
    exp: float | int | None = None


class _Hint(_Wire):
    id: _Id


class _Kill(_Wire):
    collaboration_id: _Id | None = None
    node_id: _Id | None = None
    kill_list: Annotated[list[Any], Field(max_length=_MAX_KILLS)] | None = None


class _Killed(_Wire):
    run_id: _Id
    organization_id: _Id


_Shape = TypeVar("_Shape", bound=_Wire)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Algorithm:
    """One algorithm of a store."""

    image: str
    digest: str
    is_approved: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Algorithms:
    """One page of a store's algorithms; what cannot be understood is left out."""

    algorithms: tuple[Algorithm, ...]
    has_next: bool


NO_RUNS = Page(runs=(), count=0, has_next=False, total=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """What a token says about itself."""

    node_id: int
    lifetime: float | None
    """Seconds from issue to expiry; None when it does not expire."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """How the server has a run in its books."""

    is_open: bool
    status: str
    finished_at: float | None


def format_time(at: float) -> str:
    """Write a time as the server accepts it: with six digits and +00:00, all else is an error 500 there."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds")


def parse_time(text: str | None) -> float | None:
    """Read a time of the server, which is UTC even when it does not say so; None for what is no time."""
    try:
        found = datetime.fromisoformat(text or "")
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


# --- runs ---------------------------------------------------------------------------------------------------


def parse_page(reply: Reply, codec: PayloadCodec) -> Page:
    """Read one page of open runs."""
    page = _shaped(_Page, reply.json(), reply.call)
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
        run_id = RunId(_Link.model_validate(element).id)
    except ValidationError as error:
        log.warning("run_ignored", why=_complaint(error))
        return None
    try:
        return _open_run(_Run.model_validate(element), codec)
    except ValidationError as error:
        fault = f"The server sent an unusable description of this run: {_complaint(error)}."
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
    parent, org = _id_of(task.parent), _id_of(task.init_org)
    return Task(
        id=TaskId(task.id),
        job_id=JobId(task.job_id),
        image=task.image,
        collaboration_id=task.collaboration.id,
        parent_id=None if parent is None else TaskId(parent),
        init_org_id=None if org is None else OrganizationId(org),
        init_user_id=_id_of(task.init_user),
        init_user_name=None if task.init_user is None else task.init_user.username,
        study_id=_id_of(task.study),
        store_id=_id_of(task.algorithm_store),
        databases=tuple(_database(d) for d in task.databases or ()),
    )


def _database(database: _Database) -> DatabaseRequest:
    try:
        wanted = _Parameters.model_validate(parse_json(_in_memory(database.parameters) or "{}"))
    except ValidationError as error:
        why = _complaint(error)
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
        task_id = _Link.model_validate(task).id
    except ValidationError:
        task_id = 0
    return Task(id=TaskId(task_id), job_id=JobId(task_id), image="", collaboration_id=0)


def _status(text: str | None) -> Status:
    try:
        return Status(text or "")
    except ValueError:
        return Status.PENDING


def _id_of(link: _Link | None) -> int | None:
    return None if link is None else link.id


def parse_run_state(reply: Reply) -> RunState:
    """Read whether a run is still open."""
    run = _shaped(_RunState, reply.json(), reply.call)
    return RunState(
        is_open=run.finished_at is None,
        status=run.status or "",
        finished_at=parse_time(run.finished_at),
    )


def has_blob_store(reply: Reply) -> bool:
    """Read whether the server has a blob store."""
    return _shaped(_StoreStatus, reply.json(), reply.call).blob_store_enabled


def parse_blob(reply: Reply) -> BlobId:
    """Read where the server stored what it was sent."""
    return BlobId(_shaped(_Blob, reply.json(), reply.call).uuid)


def claim_body(at: float) -> bytes:
    """Write the message that takes a run."""
    return _json(started_at=format_time(at), status=str(Status.INITIALIZING))


def status_body(status: Status) -> bytes:
    """Write an intermediate status."""
    return _json(status=str(status))


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
    head = _json(
        status=str(status),
        started_at=format_time(final.started_at),
        finished_at=format_time(final.finished_at),
    )
    return head.removesuffix(b"}")


# --- who we are ---------------------------------------------------------------------------------------------


def parse_node(reply: Reply) -> tuple[int, int]:
    """Read the organization and the collaboration of a node."""
    node = _shaped(_Node, reply.json(), reply.call)
    return node.organization.id, node.collaboration.id


def parse_identity(*, node: Reply, organization: Reply, collaboration: Reply) -> NodeIdentity:
    """Read who this node is."""
    me = _shaped(_Node, node.json(), node.call)
    mine = _shaped(_Collaboration, collaboration.json(), collaboration.call)
    return NodeIdentity(
        node_id=me.id,
        node_name=me.name,
        organization_id=OrganizationId(me.organization.id),
        organization_name=_shaped(_Organization, organization.json(), organization.call).name,
        collaboration_id=me.collaboration.id,
        collaboration_name=mine.name,
        encrypted=mine.encrypted,
    )


def parse_task(reply: Reply) -> Task:
    """Read a task that was asked for by its number."""
    try:
        return _task(_shaped(_Task, reply.json(), reply.call))
    except InputUnreadable as error:
        raise ServerUnreachable(f"The answer to {reply.call} is not understood: {error}") from error


def parse_organization_name(reply: Reply) -> str:
    """Read the name of an organization."""
    return _shaped(_Organization, reply.json(), reply.call).name


def parse_store_url(reply: Reply) -> str:
    """Read the address of an algorithm store, as the server keeps it."""
    return _shaped(_Store, reply.json(), reply.call).url


def parse_algorithms(reply: Reply) -> Algorithms:
    """Read one page of a store's algorithms."""
    page = _shaped(_Page, reply.json(), reply.call)
    found = (_algorithm(element) for element in page.data)
    return Algorithms(
        algorithms=tuple(algorithm for algorithm in found if algorithm is not None),
        has_next=page.links.next is not None,
    )


def _algorithm(element: object) -> Algorithm | None:
    try:
        read = _Algorithm.model_validate(element)
    except ValidationError:
        return None
    if read.image is None or read.digest is None:
        return None
    # an older store does not tell the status, and lists only what is approved
    approved = read.status in {None, _APPROVED} and read.invalidated_at is None
    return Algorithm(image=read.image, digest=read.digest, is_approved=approved)


def parse_public_key(reply: Reply) -> str:
    """Read the public key of an organization, as the server keeps it; empty when there is none."""
    return _shaped(_KeyHolder, reply.json(), reply.call).public_key or ""


def public_key_body(key: str) -> bytes:
    """Write the message that gives the server a public key."""
    return _json(public_key=key)


# --- tokens -------------------------------------------------------------------------------------------------


def login_body(api_key: Secret) -> bytes:
    """Write the login."""
    return _json(api_key=api_key.reveal())


def parse_tokens(reply: Reply) -> tuple[Secret, Secret]:
    """Read the access token and the refresh token."""
    tokens = _shaped(_Tokens, reply.json(), reply.call)
    return Secret(tokens.access_token), Secret(tokens.refresh_token)


def parse_claims(payload: bytes) -> Claims:
    """Read what a token says about itself; nobody but the server can verify it."""
    try:
        claims = _Claims.model_validate(parse_json(payload))
    except ValueError:  # the value of a token is not for error texts, so the cause is not kept
        raise ServerUnreachable(
            "The server answered the login with a token that is not understood."
        ) from None
    lifetime = None if claims.exp is None or claims.iat is None else float(claims.exp - claims.iat)
    return Claims(node_id=claims.sub, lifetime=lifetime)


def container_token_body(task_id: TaskId, image: str) -> bytes:
    """Write the request for a container token."""
    return _json(task_id=task_id, image=image)


def parse_container_token(reply: Reply) -> Secret:
    """Read a container token."""
    return Secret(_shaped(_ContainerToken, reply.json(), reply.call).container_token)


# --- socket -------------------------------------------------------------------------------------------------


def parse_hint(event: object) -> TaskHinted | None:
    """Read a `new_task` event; None when it says nothing."""
    try:
        return TaskHinted(TaskId(_Hint.model_validate(event).id))
    except ValidationError as error:
        log.warning("event_ignored", event_name="new_task", why=_complaint(error))
        return None


def parse_kill(event: object, identity: NodeIdentity) -> KillRequested | None:
    """Read a `kill_containers` event; None when it is not for this node or says nothing."""
    try:
        kill = _Kill.model_validate(event)
    except ValidationError as error:
        log.warning("event_ignored", event_name="kill_containers", why=_complaint(error))
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
            log.warning("event_ignored", event_name="kill_containers", why=_complaint(error))
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


# --- shared -------------------------------------------------------------------------------------------------


def _shaped(shape: type[_Shape], content: object, call: str) -> _Shape:
    try:
        return shape.model_validate(content)
    except ValidationError as error:
        raise ServerUnreachable(f"The answer to {call} is not understood: {_complaint(error)}.") from None


def _complaint(error: ValidationError) -> str:
    """Say the first fault in a few words, without the value: it may be a secret or an input."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    text = first["msg"].removeprefix("Value error, ")
    return shorten(f"`{place}`: {text}" if place else text)


def _json(**fields: object) -> bytes:
    return json.dumps(fields).encode()
