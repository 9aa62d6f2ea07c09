"""The proxy as a WSGI application: find the route, know the run, pass the call on, hand the answer back.

Owns what an algorithm may say and how it is answered. Everything a container sends is untrusted: parsed and bounded
here, before anything is forwarded. Knows no server address and no credential but the one the container shows.

Bodies never lie in memory as a whole. An answer is complete before its first byte goes out: what fails on the way can
still be said in a status, and a container that reads slowly holds a file and no thread.
"""

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from hashlib import sha256
from itertools import islice
from typing import TYPE_CHECKING, BinaryIO, cast

import structlog
from werkzeug.wrappers import Request, Response
from werkzeug.wsgi import wrap_file

from node_agent.domain.ports import Body, ProxiedRequest, ProxiedResponse
from node_agent.domain.run import RunId, Status
from node_agent.domain.secret import Secret
from node_agent.errors import AccessDenied, ServerUnreachable
from node_agent.payload.longtext import BadJson, JsonTooLarge, spool_json
from node_agent.proxy.held import REASSURE_SECONDS, Arrived, Line, Question, Waits
from node_agent.proxy.routes import Route, Treatment, WrongMethod, find_route
from node_agent.proxy.sealer import CannotSeal, Sealer
from node_agent.proxy.spool import NoRoom, Spool, SpooledBody

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

log = structlog.get_logger()

MAX_QUERY = 4096
MAX_PER_RUN = 12
"""Calls of one run at a time: fewer than there are threads, so that no run keeps the others out."""
MAX_SKELETON = 4 << 20
"""What of a JSON body is parsed in memory: all but its long texts."""

_BEARER = re.compile(r"Bearer ([A-Za-z0-9._~+/=-]{1,8192})")
_QUERY = re.compile(r"[!-~]*")
_OK, _CREATED = 200, 201
_PIECE = 256 << 10
_STATUS = re.compile(r"task/[0-9]{1,18}/status")
_UNFINISHED = frozenset({Status.PENDING, Status.INITIALIZING, Status.ACTIVE})
_TAKES_INTERIM_ANSWERS = "python-"
"""What the official client's library and its relatives call themselves: they read on after `100 Continue`."""
_FEW = 4
"""Pieces in which the answer to such a small question comes."""

Forward = Callable[[ProxiedRequest], AbstractContextManager[ProxiedResponse]]


class Refusal(Exception):
    """The call goes no further; the algorithm is told why."""

    def __init__(self, status: int, text: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(text)
        self.response = _json_response(status, text)
        self.response.headers.update(headers or {})


class ProxyApp:
    """Passes the calls of algorithm containers on to the server."""

    def __init__(
        self,
        *,
        forward: Forward,
        run_of_token: Callable[[str], RunId | None],
        on_subtask: Callable[[RunId], None],
        spool: Spool,
        max_body: int,
        reassure_seconds: float = REASSURE_SECONDS,
    ) -> None:
        self._forward = forward
        self._run_of_token = run_of_token
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
        except Refusal as refusal:
            response = refusal.response
            log.debug(
                "proxy_refused", method=request.method, status=response.status_code, reason=str(refusal)
            )
        except Exception:
            log.exception("proxy_failed", method=request.method)
            response = _json_response(
                500, "The node failed to pass this call on. Its operator finds why in its log."
            )
        return response(environ, start_response)

    def hold(self, arrived: Arrived, line: Line) -> bool:
        """Keep a call back that asks again whether a task is over; False when it is to be answered now."""
        path = arrived.path.removeprefix("/")
        if arrived.method != "GET" or not _STATUS.fullmatch(path):
            return False
        shown = _BEARER.fullmatch(arrived.authorization)
        run = None if shown is None else self._run_of_token(_hash(shown[1]))
        if shown is None or run is None:
            return False
        understands = arrived.is_current and arrived.client.lower().startswith(_TAKES_INTERIM_ANSWERS)
        return self.waits.keep(Question(path, run, Secret(shown[1]), understands), line)

    def _goes_on(self, question: Question) -> bool:
        """Ask the server whether a task is not over; whatever it says instead is for whoever waits."""
        call = ProxiedRequest(method="GET", path=question.path, query="", token=question.token)
        try:
            with self._forward(call) as answer:
                return answer.status == _OK and _is_unfinished(b"".join(islice(answer.body, _FEW)))
        except Exception:  # noqa: BLE001 - the call itself will say what is wrong
            return False

    def _is_alive(self, question: Question) -> bool:
        return self._run_of_token(_hash(question.token.reveal())) == question.run

    def _answer(self, request: Request) -> Response:
        started = time.monotonic()
        route = _route_of(request)
        if route.treatment is Treatment.OPEN:
            return self._pass(request, route, None)
        token = _token_of(request.headers.get("Authorization", ""))
        run = self._run_of(token)
        with self._turns.of(run):
            response = self._pass(request, route, token)
        if route.treatment is Treatment.NEW_TASK and response.status_code == _CREATED:
            self._on_subtask(run)
        if route.treatment is Treatment.STATUS and _says_unfinished(response):
            self.waits.told(run, route.path)
        log.debug(
            "proxy_request",
            run_id=run,
            method=route.method,
            path=route.template,
            status=response.status_code,
            ms=round((time.monotonic() - started) * 1000),
        )
        return response

    def _run_of(self, token: Secret) -> RunId:
        run = self._run_of_token(_hash(token.reveal()))
        if run is None:
            raise Refusal(401, "This token belongs to no run on this node.")
        return run

    def _pass(self, request: Request, route: Route, token: Secret | None) -> Response:
        with _refusals(), ExitStack() as stack:
            passage = _Passage(request, self._spool, self._max_body, stack)
            call = ProxiedRequest(
                method=route.method,
                path=route.path,
                query=_query_of(request, route),
                token=token,
                body=self._sealed(passage, route),
                content_type=_content_type(route),
            )
            with self._forward(call) as answer:
                status, content_type = answer.status, answer.content_type
                body = passage.keep(answer.body)
            opened = self._opened(passage, route, body) if status == _OK else body
            return passage.response(opened, status, content_type or "application/json")

    def _sealed(self, passage: "_Passage", route: Route) -> Body | None:
        if route.treatment is Treatment.NEW_TASK:
            body = passage.received()
            return self._ready_sealer().seal_inputs(body, _task_of(body, passage))
        if route.treatment is Treatment.BLOB_UP:
            return self._ready_sealer().seal_blob(passage.received(), passage.reader)
        return None

    def _opened(self, passage: "_Passage", route: Route, body: SpooledBody) -> SpooledBody:
        if route.treatment in {Treatment.RESULT, Treatment.RESULT_LIST}:
            return passage.changed(body, self._ready_sealer().open_results(body, passage.parsed))
        if route.treatment is Treatment.BLOB_DOWN:
            return passage.changed(body, self._ready_sealer().open_blob(body))
        return body

    def _ready_sealer(self) -> Sealer:
        if self._sealer is None:
            raise Refusal(503, "This node is still starting.", {"Retry-After": "1"})
        return self._sealer


class _Passage:
    """The bodies of one call; all but the answer are gone when *stack* is closed."""

    def __init__(self, request: Request, spool: Spool, max_body: int, stack: ExitStack) -> None:
        self._request = request
        self._spool = spool
        self._max_body = max_body
        self._stack = stack
        self._owner = request.remote_addr or ""
        self._handed_over: SpooledBody | None = None

    @property
    def reader(self) -> str:
        """Give the public key that the caller wants the body sealed for."""
        return self._request.headers.get("X-Public-Key", "")

    def received(self) -> Body:
        """Give the body of the call."""
        length = self._request.content_length or 0
        if length > self._max_body:
            raise Refusal(413, f"The body is larger than the {self._max_body} bytes this node passes on.")
        return _Received(self._request.environ["wsgi.input"], length)

    def keep(self, pieces: Iterable[bytes]) -> SpooledBody:
        """Take a body in as it comes."""
        body = self._begun()
        for piece in pieces:
            if body.length + len(piece) > self._max_body:
                raise Refusal(
                    502, f"The server's answer is larger than the {self._max_body} bytes this node passes on."
                )
            body.append(piece)
        return body

    def parsed(self, body: Body) -> object:
        """Read JSON, its long texts left on disk for the time of the call. Raises BadJson."""
        place = self._stack.enter_context(self._spool.place(self._owner, body.length))
        return spool_json(body, place, limit=self._max_body, skeleton=MAX_SKELETON)

    def changed(self, before: SpooledBody, after: Body) -> SpooledBody:
        """Take a body in that was made from another one."""
        if after is before:
            return before
        body = self._begun()
        for piece in after:
            body.append(piece)
        return body

    def response(self, body: SpooledBody, status: int, content_type: str) -> Response:
        """Hand a body over to whoever sends it."""
        if body.in_memory:
            return Response(b"".join(body), status, content_type=content_type)
        self._handed_over = body
        return Response(
            wrap_file(self._request.environ, cast("BinaryIO", body)),
            status,
            {"Content-Length": str(body.length)},
            content_type=content_type,
            direct_passthrough=True,
        )

    def _begun(self) -> SpooledBody:
        body = self._spool.body(self._owner)
        self._stack.callback(self._done_with, body)
        return body

    def _done_with(self, body: SpooledBody) -> None:
        if body is not self._handed_over:
            body.close()


class _Received:
    """The body of a call, as the HTTP server has kept it."""

    def __init__(self, source: BinaryIO, length: int) -> None:
        self._source = source
        self.length = length

    def __iter__(self) -> Iterator[bytes]:
        self._source.seek(0)
        left = self.length
        while left and (piece := self._source.read(min(left, _PIECE))):
            left -= len(piece)
            yield piece


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
        response.status_code == _OK
        and not response.direct_passthrough
        and _is_unfinished(response.get_data())
    )


def _is_unfinished(body: bytes) -> bool:
    """Tell whether the server says that a task is not over; whatever else it says is for the algorithm to judge."""
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return False
    return isinstance(said, dict) and said.get("status") in _UNFINISHED


def _json_response(status: int, text: str) -> Response:
    return Response(json.dumps({"msg": text}), status, content_type="application/json")


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


def _query_of(request: Request, route: Route) -> str:
    query = request.environ.get("QUERY_STRING", "")
    if len(query) > MAX_QUERY:
        raise Refusal(414, f"The query is longer than {MAX_QUERY} characters.")
    if not _QUERY.fullmatch(query):
        raise Refusal(400, "The query holds characters that must be written as %XX.")
    if route.treatment is Treatment.RESULT_LIST and not request.args.get("task_id"):
        raise Refusal(400, "No task id found in request from algorithm. Add `task_id` to the query.")
    return str(query)


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


def _task_of(body: Body, passage: _Passage) -> Mapping[str, object]:
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
