"""The proxy as a WSGI application: find the route, know the run, pass the call on, hand the answer back.

Owns what an algorithm may say and how it is answered. Everything a container sends is untrusted: parsed and bounded
here, before anything is forwarded. Knows no server address and no credential but the one the container shows.
What a run may know is decided by `inquiry` and `rights`.
"""

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from typing import TYPE_CHECKING

import structlog
from werkzeug.wrappers import Request, Response

from node_agent.domain.ports import Body, ProxiedRequest, ProxiedResponse
from node_agent.domain.run import RunId, Status
from node_agent.domain.secret import Secret
from node_agent.errors import AccessDenied, ServerUnreachable
from node_agent.payload.longtext import BadJson, JsonTooLarge
from node_agent.proxy.held import REASSURE_SECONDS, Arrived, Line, Question, Waits
from node_agent.proxy.inquiry import AccessRefused, Caller, Inquiry, check_form, inquiry_of
from node_agent.proxy.passage import Passage, Refusal, json_response
from node_agent.proxy.residence import Residence, RunsAt
from node_agent.proxy.rights import Relation, Rights, check_rows
from node_agent.proxy.routes import About, Route, Treatment, WrongMethod, find_route
from node_agent.proxy.sealer import CannotSeal, Sealer
from node_agent.proxy.spool import NoRoom, Spool, SpooledBody

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

log = structlog.get_logger()

MAX_PER_RUN = 12
"""Calls of one run at a time: fewer than there are threads, so that no run keeps the others out."""

_BEARER = re.compile(r"Bearer ([A-Za-z0-9._~+/=-]{1,8192})")
_OK, _CREATED, _REDIRECT, _FORBIDDEN = 200, 201, 300, 403
_RESULTS = frozenset({Treatment.RESULT, Treatment.RESULT_LIST})
_STATUS = re.compile(r"task/[0-9]{1,18}/status")
_UNFINISHED = frozenset({Status.PENDING, Status.INITIALIZING, Status.ACTIVE})
_TAKES_INTERIM_ANSWERS = "python-"
"""What the official client's library and its relatives call themselves: they read on after `100 Continue`."""
_FEW = 4
"""Pieces in which the answer to such a small question comes."""

Forward = Callable[[ProxiedRequest], AbstractContextManager[ProxiedResponse]]


class ProxyApp:
    """Passes the calls of algorithm containers on to the server."""

    def __init__(
        self,
        *,
        forward: Forward,
        caller_of_token: Callable[[str], Caller | None],
        on_subtask: Callable[[RunId], None],
        spool: Spool,
        max_body: int,
        runs_at: RunsAt = dict,
        log_rate: Callable[[], int | None] = lambda: 0,
        reassure_seconds: float = REASSURE_SECONDS,
    ) -> None:
        self._forward = forward
        self._caller_of_token = caller_of_token
        self._rights = Rights(forward)
        self._residence = Residence(runs_at)
        self._log_rate = log_rate
        self._on_subtask = on_subtask
        self._spool = spool
        self._max_body = max_body
        self._turns = _Turns(MAX_PER_RUN)
        self._sealer: Sealer | None = None
        self.waits = Waits(look=self._goes_on, is_alive=self._is_alive, reassure_seconds=reassure_seconds)
        """Who is kept waiting for the end of a task."""

    def seal_with(self, sealer: Sealer) -> None:
        """Begin to pass payloads on, now that it is known how they travel."""
        self._sealer = sealer

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Answer one call; whatever happens, the algorithm gets JSON and the proxy lives on."""
        request = Request(environ)
        try:
            response = self._answer(request)
        except (Refusal, AccessRefused) as refused:
            response = _refusal_of(refused)
            log.debug(
                "proxy_refused", method=request.method, status=response.status_code, reason=str(refused)
            )
        except Exception:
            log.exception("proxy_failed", method=request.method)
            response = json_response(
                500, "The node failed to pass this call on. Its operator finds why in its log."
            )
        return response(environ, start_response)

    def researcher_of(self, authorization: str) -> str | None:
        """Return who the run of a token works for; None when it is no run's token."""
        shown = _BEARER.fullmatch(authorization)
        caller = None if shown is None else self._caller_of_token(_hash(shown[1]))
        return None if caller is None else caller.researcher

    def hold(self, arrived: Arrived, line: Line) -> bool:
        """Keep a call back that asks again whether a task is over; False when it is to be answered now."""
        path = arrived.path.removeprefix("/")
        if arrived.method != "GET" or not _STATUS.fullmatch(path):
            return False
        shown = _BEARER.fullmatch(arrived.authorization)
        caller = None if shown is None else self._caller_of_token(_hash(shown[1]))
        if shown is None or caller is None or self._residence.is_elsewhere(caller.run, arrived.address):
            return False
        understands = arrived.is_current and arrived.client.lower().startswith(_TAKES_INTERIM_ANSWERS)
        return self.waits.keep(Question(path, caller.run, Secret(shown[1]), understands), line)

    def _goes_on(self, question: Question) -> bool:
        """Ask the server whether a task is not over; whatever it says instead is for whoever waits."""
        call = ProxiedRequest(method="GET", path=question.path, query="", token=question.token)
        try:
            with self._forward(call) as answer:
                return answer.status == _OK and is_unfinished(b"".join(islice(answer.body, _FEW)))
        except Exception:  # noqa: BLE001 - the call itself will say what is wrong
            return False

    def _is_alive(self, question: Question) -> bool:
        caller = self._caller_of_token(_hash(question.token.reveal()))
        return caller is not None and caller.run == question.run

    def _answer(self, request: Request) -> Response:
        started = time.monotonic()
        route = _route_of(request)
        if route.treatment is Treatment.OPEN:
            return self._pass_open(request, route)
        token = _token_of(request.headers.get("Authorization", ""))
        caller = self._caller_of(token, request.remote_addr or "")
        with self._turns.of(caller.run):
            response = self._pass(request, route, caller, token)
        if route.treatment is Treatment.NEW_TASK and response.status_code == _CREATED:
            self._on_subtask(caller.run)
        if route.treatment is Treatment.STATUS and _says_unfinished(response):
            self.waits.told(caller.run, route.path)
        log.debug(
            "proxy_request",
            run_id=caller.run,
            method=route.method,
            path=route.template,
            status=response.status_code,
            ms=round((time.monotonic() - started) * 1000),
        )
        return response

    def _caller_of(self, token: Secret, address: str) -> Caller:
        caller = self._caller_of_token(_hash(token.reveal()))
        if caller is None:
            raise Refusal(401, "This token belongs to no run on this node.")
        if self._residence.is_elsewhere(caller.run, address):
            self._log_refused_access(caller.run, "the token of the run was shown by another container")
            raise Refusal(403, "This token belongs to another container.")
        return caller

    def _pass_open(self, request: Request, route: Route) -> Response:
        query = _query_of(request)
        with _refusals(), ExitStack() as stack:
            check_form(query)
            owner = request.remote_addr or ""
            passage = Passage(request, self._spool, self._max_body, stack, owner=owner)
            body, status, content_type = self._forwarded(passage, route, query)
            return passage.response(body, status, content_type)

    def _pass(self, request: Request, route: Route, caller: Caller, token: Secret) -> Response:
        try:
            with _refusals(), ExitStack() as stack:
                inquiry = inquiry_of(route, _query_of(request), caller)
                if inquiry.task is not None:
                    self._rights.check_task(caller, token, inquiry.task)
                if route.about is About.BLOB:
                    self._rights.check_blob(caller, token, route.blob)
                owner = caller.researcher
                passage = Passage(request, self._spool, self._max_body, stack, owner=owner)
                body, status, content_type = self._forwarded(passage, route, inquiry.query, token)
                if status == _CREATED and route.treatment is Treatment.NEW_TASK:
                    self._note_subtask(passage, caller, body)
                if route.method == "GET" and _OK <= status < _REDIRECT:
                    body = self._shown(passage, _Asked(route, inquiry, caller, token), body)
                return passage.response(body, status, content_type)
        except AccessRefused as refused:
            if refused.status == _FORBIDDEN:
                self._log_refused_access(caller.run, str(refused))
            raise

    def _note_subtask(self, passage: Passage, caller: Caller, body: SpooledBody) -> None:
        # the task is there whatever the answer looks like; the server can be asked about it later
        with suppress(BadJson):
            self._rights.note_subtask(caller, passage.outlined(body))

    def _log_refused_access(self, run: RunId, reason: str) -> None:
        unsaid = self._log_rate()
        if unsaid is not None:
            log.warning("proxy_access_refused", run_id=run, reason=reason, unsaid=unsaid)

    def _forwarded(
        self, passage: Passage, route: Route, query: str, token: Secret | None = None
    ) -> tuple[SpooledBody, int, str]:
        call = ProxiedRequest(
            method=route.method,
            path=route.path,
            query=query,
            token=token,
            body=self._sealed(passage, route),
            content_type=_content_type(route),
        )
        with self._forward(call) as answer:
            return passage.keep(answer.body), answer.status, answer.content_type or "application/json"

    def _sealed(self, passage: Passage, route: Route) -> Body | None:
        if route.treatment is Treatment.NEW_TASK:
            body = passage.received()
            return self._ready_sealer().seal_inputs(body, _task_of(body, passage))
        if route.treatment is Treatment.BLOB_UP:
            return self._ready_sealer().seal_blob(passage.received(), passage.reader)
        return None

    def _shown(self, passage: Passage, asked: "_Asked", body: SpooledBody) -> SpooledBody:
        """Check that the server's answer is about what was asked, and open what the run may read."""
        relation = self._judged(passage, asked, body)
        if asked.route.treatment is Treatment.BLOB_DOWN:
            return passage.changed(body, self._ready_sealer().open_blob(body))
        if relation is Relation.SUBTASK and asked.route.treatment in _RESULTS:
            return passage.changed(body, self._ready_sealer().open_results(body, passage.parsed))
        return body

    def _judged(self, passage: Passage, asked: "_Asked", body: SpooledBody) -> Relation | None:
        about, task = asked.route.about, asked.inquiry.task
        if about not in {About.ROWS, About.ROW, About.TASKS}:
            return None
        answer = passage.outlined(body)
        if task is None:
            relation = self._rights.check_row(asked.caller, asked.token, answer)
        else:
            check_rows(about, asked.caller, task, answer)
            relation = self._rights.check_task(asked.caller, asked.token, task)
        if relation is Relation.SUBTASK and asked.route.treatment in _RESULTS:
            self._rights.note_blobs(asked.caller, answer)
        return relation

    def _ready_sealer(self) -> Sealer:
        if self._sealer is None:
            raise Refusal(503, "This node is still starting.", {"Retry-After": "1"})
        return self._sealer


@dataclass(frozen=True, slots=True)
class _Asked:
    """A call that was passed on, and who made it."""

    route: Route
    inquiry: Inquiry
    caller: Caller
    token: Secret


class _Turns:
    """Counts the calls each run has under way."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._under_way: Counter[RunId] = Counter()

    @contextmanager
    def of(self, run: RunId) -> Iterator[None]:
        """Hold one of the run's turns; refuse when it has none left."""
        with self._lock:
            if self._under_way[run] >= self._limit:
                raise Refusal(
                    429, f"More than {self._limit} calls of one run at a time.", {"Retry-After": "1"}
                )
            self._under_way[run] += 1
        try:
            yield
        finally:
            with self._lock:
                self._under_way[run] -= 1
                if not self._under_way[run]:
                    del self._under_way[run]


def _hash(token: str) -> str:
    return sha256(token.encode()).hexdigest()


def _says_unfinished(response: Response) -> bool:
    return (
        response.status_code == _OK and not response.direct_passthrough and is_unfinished(response.get_data())
    )


def is_unfinished(body: bytes) -> bool:
    """Check whether the server says that a task is not over; whatever else it says is for the algorithm to judge."""
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return False
    status = said.get("status") if isinstance(said, dict) else None
    return isinstance(status, str) and status in _UNFINISHED


def _refusal_of(refused: Refusal | AccessRefused) -> Response:
    return refused.response if isinstance(refused, Refusal) else json_response(refused.status, str(refused))


def _route_of(request: Request) -> Route:
    try:
        route = find_route(request.method, request.path)
    except WrongMethod as wrong:
        raise Refusal(
            405, "This call is not open to algorithms on this node.", {"Allow": str(wrong)}
        ) from wrong
    if route is None:
        raise Refusal(404, "There is no such call for algorithms on this node.")
    return route


def _token_of(authorization: str) -> Secret:
    shown = _BEARER.fullmatch(authorization)
    if shown is None:
        raise Refusal(401, "Show the token of the run: `Authorization: Bearer …`.")
    return Secret(shown[1])


def _query_of(request: Request) -> str:
    return str(request.environ.get("QUERY_STRING", ""))


@contextmanager
def _refusals() -> Iterator[None]:
    """Say in HTTP why a call cannot be passed on."""
    try:
        yield
    except (ServerUnreachable, AccessDenied) as error:
        raise Refusal(502, "The server cannot be reached from this node now.") from error
    except NoRoom as error:
        raise Refusal(503, str(error), {"Retry-After": "5"}) from error
    except CannotSeal as error:
        raise Refusal(400, str(error)) from error
    except BadJson as error:
        raise Refusal(502, f"This node cannot read the server's answer: {error}.") from error


def _task_of(body: Body, passage: Passage) -> Mapping[str, object]:
    """Read the body of a new task, once it is known to be one."""
    try:
        task = passage.parsed(body)
    except JsonTooLarge as error:
        raise Refusal(413, f"The body is {error}.") from error
    except BadJson as error:
        raise Refusal(400, "The body is not valid JSON.") from error
    if not isinstance(task, dict):
        raise Refusal(400, "The body is not a JSON object.")
    if not task.get("organizations"):
        raise Refusal(400, "Organizations missing from input")
    return task


def _content_type(route: Route) -> str:
    return "application/octet-stream" if route.treatment is Treatment.BLOB_UP else "application/json"
