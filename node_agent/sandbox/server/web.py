"""REST over WSGI: finds the route for a call, knows the caller, and carries it out in one transaction.

Owns the table of routes, and what happens when a call is wrong, refused, or goes wrong on purpose. Must not know
what routes do.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

import structlog
from werkzeug.exceptions import ClientDisconnected, HTTPException, RequestEntityTooLarge
from werkzeug.routing import Map, Rule
from werkzeug.wrappers import Request, Response

from node_agent.sandbox.server import routes_login, routes_people, routes_runs, routes_tasks
from node_agent.sandbox.server.call import LARGEST_NUMBER, Answer, Backend, Call
from node_agent.sandbox.server.callers import NOBODY, caller_of, touch
from node_agent.sandbox.server.database import BooksClosed
from node_agent.sandbox.server.faults import Fault, Faults
from node_agent.sandbox.server.refusal import Refusal

log = structlog.get_logger()

BODY_LIMIT: Final = 256 * 1024 * 1024
SERVER_BUG: Final = "An unexpected error occurred on the server!"

_ANYBODY: Final[frozenset[str]] = frozenset()
_USERS: Final = frozenset({"user"})
_NODES: Final = frozenset({"node"})
_CONTAINERS: Final = frozenset({"container"})
_ALL: Final = _USERS | _NODES | _CONTAINERS


@dataclass(frozen=True, slots=True)
class Route:
    """One route: how it is called, by whom, and what answers it."""

    method: str
    path: str
    who: frozenset[str]
    answer: Callable[[Call], object]


ROUTES: Final = (
    Route("GET", "/version", _ANYBODY, routes_login.version),
    Route("GET", "/health", _ANYBODY, routes_login.health),
    Route("POST", "/token/user", _ANYBODY, routes_login.log_user_in),
    Route("POST", "/token/node", _ANYBODY, routes_login.log_node_in),
    Route("POST", "/token/refresh", _ANYBODY, routes_login.refresh),
    Route("POST", "/token/container", _NODES, routes_login.give_container_token),
    Route("POST", "/token/node/validate", _NODES, routes_login.validate_node),
    Route("POST", "/token/user/validate", _USERS, routes_login.validate_user),
    Route("GET", "/user", _USERS, routes_people.users),
    Route("GET", "/user/<int:id>", _USERS, routes_people.user),
    Route("GET", "/organization", _ALL, routes_people.organizations),
    Route("GET", "/organization/<int:id>", _ALL, routes_people.organization),
    Route("PATCH", "/organization/<int:id>", _USERS | _NODES, routes_people.change_organization),
    Route("GET", "/collaboration", _USERS | _NODES, routes_people.collaborations),
    Route("GET", "/collaboration/<int:id>", _ALL, routes_people.collaboration),
    Route("GET", "/node", _USERS | _NODES, routes_people.nodes),
    Route("GET", "/node/<int:id>", _USERS | _NODES, routes_people.node),
    Route("PATCH", "/node/<int:id>", _USERS | _NODES, routes_people.change_node),
    Route("GET", "/task", _ALL, routes_tasks.tasks),
    Route("POST", "/task", _USERS | _CONTAINERS, routes_tasks.create_task),
    Route("GET", "/task/<int:id>", _ALL, routes_tasks.task),
    Route("DELETE", "/task/<int:id>", _USERS, routes_tasks.delete_task),
    Route("GET", "/task/<int:id>/status", _USERS | _CONTAINERS, routes_tasks.task_status),
    Route("GET", "/task/<int:id>/result", _ALL, routes_tasks.task_results),
    Route("POST", "/kill/task", _USERS, routes_tasks.kill_task),
    Route("POST", "/kill/node/tasks", _USERS, routes_tasks.kill_node_tasks),
    Route("GET", "/run", _ALL, routes_runs.runs),
    Route("GET", "/run/<int:id>", _ALL, routes_runs.run),
    Route("PATCH", "/run/<int:id>", _NODES, routes_runs.change_run),
    Route("GET", "/result", _ALL, routes_runs.results),
    Route("GET", "/result/<int:id>", _ALL, routes_runs.result),
    Route("POST", "/port", _NODES, routes_runs.add_port),
    Route("DELETE", "/port", _NODES, routes_runs.remove_ports),
    Route("GET", "/blobstream/status", _ALL, routes_people.blob_status),
    Route("GET", "/vpn", _NODES, routes_people.unsupported),
    *(
        route
        for kind in ("study", "algorithmstore", "role", "rule")
        for route in (
            Route("GET", f"/{kind}", _ALL, routes_people.nothing),
            Route("GET", f"/{kind}/<int:id>", _ALL, routes_people.nothing_like_it),
        )
    ),
)


def _rule(route: Route) -> Rule:
    # a longer number is none the database could hold
    path = route.path.replace("<int:", f"<int(max={LARGEST_NUMBER}):")
    return Rule(path, endpoint=route, methods=[route.method])


_MAP: Final = Map([_rule(route) for route in ROUTES])


class WebApp:
    """The WSGI application for everything below the API's path."""

    def __init__(
        self, backend: Backend, *, api_path: str, faults: Faults, cut: Callable[[dict[str, Any]], None]
    ) -> None:
        self._backend = backend
        self._api_path = api_path
        self._faults = faults
        self._cut = cut
        self._map = _MAP.bind("sandbox")

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Answer one call."""
        request = Request(environ)
        request.max_content_length = BODY_LIMIT
        fault = self._faults.take(request.method, request.path.removeprefix(self._api_path))
        response = self._answer_with(fault, request)
        if response is None:
            self._cut(environ)
            return []
        return response(environ, start_response)

    def _answer_with(self, fault: Fault, request: Request) -> Response | None:
        if fault.delay:
            time.sleep(fault.delay)
        if fault.drop:
            return None
        if fault.status:
            request.get_data()
            spoilt = Response(fault.body, status=fault.status, content_type=fault.content_type)
            spoilt.headers.extend(dict(fault.headers))
            return _slowed(spoilt, fault.byte_seconds) if fault.byte_seconds else spoilt
        response = self._answer(request)
        if fault.byte_seconds:
            return _slowed(response, fault.byte_seconds)
        if fault.lose_answer:
            return None
        return _halved(response) if fault.truncate else response

    def _answer(self, request: Request) -> Response:
        try:
            return self._carried_out(request)
        except Refusal as refusal:
            return _json(refusal.body, refusal.status)
        except BooksClosed:
            return _json({"msg": "The server has ended"}, HTTPStatus.SERVICE_UNAVAILABLE)
        except RequestEntityTooLarge:
            return _json(
                {"msg": f"More than {BODY_LIMIT} bytes in one message"},
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            )
        except HTTPException as error:
            return Response(error.get_body(), status=error.code, content_type="text/html; charset=utf-8")
        except Exception:
            # the last edge: a bug must not look like an outage
            log.exception("sandbox_bug", path=request.path)
            return _json({"msg": SERVER_BUG}, HTTPStatus.INTERNAL_SERVER_ERROR)

    def _carried_out(self, request: Request) -> Response:
        route, values = self._route(request)
        content = _content(request)
        backend, authorization = self._backend, request.headers.get("Authorization")
        with backend.database.transaction():
            caller = NOBODY
            if route.who:
                caller = caller_of(backend.mint.check(authorization), backend.database)
                touch(caller, backend.database)
                if caller.kind not in route.who:
                    raise Refusal(HTTPStatus.FORBIDDEN, f"This is not for a {caller.kind}.")
            call = Call(
                backend=backend,
                caller=caller,
                query=request.args,
                content=content,
                authorization=authorization,
                path=request.path,
                id=values.get("id", 0),
            )
            return _response(route.answer(call))

    def _route(self, request: Request) -> tuple[Route, dict[str, Any]]:
        # below "/api" there is nothing called "/apis"
        inside = request.path.startswith(f"{self._api_path}/")
        path = request.path.removeprefix(self._api_path) if inside else "//"
        route, values = self._map.match(path, method=request.method)
        return route, dict(values)


def _content(request: Request) -> bytes:
    try:
        return request.get_data()
    except ClientDisconnected:
        raise Refusal(HTTPStatus.BAD_REQUEST, "The message ended too soon") from None


def _response(answered: object) -> Response:
    if not isinstance(answered, Answer):
        return _json(answered, HTTPStatus.OK)
    response = _json(answered.body, answered.status)
    response.headers.extend(dict(answered.headers))
    return response


def _json(content: object, status: HTTPStatus) -> Response:
    return Response(json.dumps(content), status=status, content_type="application/json")


def _slowed(response: Response, seconds: float) -> Response:
    body = response.get_data()

    def drops() -> Iterator[bytes]:
        for at in range(len(body)):
            time.sleep(seconds)
            yield body[at : at + 1]

    slow = Response(drops(), status=response.status_code, content_type=response.content_type)
    slow.headers["Content-Length"] = str(len(body))
    return slow


def _halved(response: Response) -> Response:
    body = response.get_data()
    half = Response(body[: len(body) // 2], status=response.status_code, content_type=response.content_type)
    half.headers["Content-Length"] = str(len(body))
    half.headers["Connection"] = "close"
    return half
