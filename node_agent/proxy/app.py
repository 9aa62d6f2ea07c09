"""The proxy as a WSGI application: find the route, know the run, pass the call on, hand the answer back.

Owns what an algorithm may say and how it is answered. Everything a container sends is untrusted: parsed and bounded
here, before anything is forwarded. Knows no server address and no credential but the one the container shows.
"""

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from typing import TYPE_CHECKING

import structlog
from werkzeug.wrappers import Request, Response

from node_agent.domain.ports import ProxiedRequest, ProxiedResponse
from node_agent.domain.run import RunId
from node_agent.domain.secret import Secret
from node_agent.errors import ServerUnreachable
from node_agent.proxy.routes import Route, Treatment, WrongMethod, find_route
from node_agent.proxy.sealer import PlainSealer, Sealer

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

log = structlog.get_logger()

MAX_BODY = 256 << 20
MAX_QUERY = 4096
MAX_PER_RUN = 12
"""Calls of one run at a time: fewer than there are threads, so that no run keeps the others out."""
LARGE = 1 << 20
MAX_LARGE = 2
"""Large bodies are in memory while they travel: so many at a time."""

_BEARER = re.compile(r"Bearer ([A-Za-z0-9._~+/=-]{1,8192})")
_QUERY = re.compile(r"[!-~]*")
_OK, _CREATED = 200, 201

Forward = Callable[[ProxiedRequest], ProxiedResponse]


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
        sealer: Sealer | None = None,
        max_body: int = MAX_BODY,
    ) -> None:
        self._forward = forward
        self._run_of_token = run_of_token
        self._on_subtask = on_subtask
        self._sealer = sealer or PlainSealer()
        self._max_body = max_body
        self._turns = _Turns(MAX_PER_RUN)
        self._large = threading.BoundedSemaphore(MAX_LARGE)

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

    def _answer(self, request: Request) -> Response:
        started = time.monotonic()
        route = _route_of(request)
        if route.treatment is Treatment.OPEN:
            return self._pass(request, route, None)
        token = _token_of(request)
        run = self._run_of(token)
        with self._turns.of(run):
            response = self._pass(request, route, token)
        if route.treatment is Treatment.NEW_TASK and response.status_code == _CREATED:
            self._on_subtask(run)
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
        run = self._run_of_token(sha256(token.reveal().encode()).hexdigest())
        if run is None:
            raise Refusal(401, "This token belongs to no run on this node.")
        return run

    def _pass(self, request: Request, route: Route, token: Secret | None) -> Response:
        with self._room_for(request):
            call = ProxiedRequest(
                method=route.method,
                path=route.path,
                query=_query_of(request, route),
                token=token,
                body=self._sealed(request, route),
                content_type=_content_type(route),
            )
            return self._opened(route, self._forwarded(call))

    @contextmanager
    def _room_for(self, request: Request) -> Iterator[None]:
        if (request.content_length or 0) <= LARGE:
            yield
            return
        with self._large:
            yield

    def _forwarded(self, call: ProxiedRequest) -> ProxiedResponse:
        try:
            return self._forward(call)
        except ServerUnreachable as error:
            raise Refusal(502, "The server cannot be reached from this node now.") from error

    def _sealed(self, request: Request, route: Route) -> bytes:
        if route.treatment is Treatment.NEW_TASK:
            return self._sealer.seal_inputs(_task_of(self._body(request)))
        if route.treatment is Treatment.BLOB_UP:
            return self._sealer.seal_blob(self._body(request))
        return b""

    def _body(self, request: Request) -> bytes:
        if (request.content_length or 0) > self._max_body:
            raise Refusal(413, f"The body is larger than the {self._max_body} bytes this node passes on.")
        return request.get_data(cache=False)

    def _opened(self, route: Route, answer: ProxiedResponse) -> Response:
        body = answer.body
        if answer.status == _OK and route.treatment in {Treatment.RESULT, Treatment.RESULT_LIST}:
            body = self._sealer.open_results(body)
        if answer.status == _OK and route.treatment is Treatment.BLOB_DOWN:
            body = self._sealer.open_blob(body)
        return Response(body, answer.status, content_type=answer.content_type or "application/json")


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


def _token_of(request: Request) -> Secret:
    shown = _BEARER.fullmatch(request.headers.get("Authorization", ""))
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


def _task_of(body: bytes) -> bytes:
    """Give the body of a new task back once it is known to be one."""
    try:
        task = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, "The body is not valid JSON.") from error
    if not isinstance(task, dict):
        raise Refusal(400, "The body is not a JSON object.")
    if not task.get("organizations"):
        raise Refusal(400, "Organizations missing from input")
    return body


def _content_type(route: Route) -> str:
    return "application/octet-stream" if route.treatment is Treatment.BLOB_UP else "application/json"
