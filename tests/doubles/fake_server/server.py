"""The server as tests hold it: listener, socket side, controls."""

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import socketio
from werkzeug.serving import ThreadedWSGIServer, WSGIRequestHandler
from werkzeug.wrappers import Request, Response

from tests.doubles.fake_server.credentials import Credentials
from tests.doubles.fake_server.faults import Fault, Faults
from tests.doubles.fake_server.refusal import Refusal
from tests.doubles.fake_server.routes import Routes
from tests.doubles.fake_server.world import COLLABORATION, Created, Node, Run, World, plain
from tests.ports import free_port

NAMESPACE = "/tasks"
_ROOM = f"collaboration_{COLLABORATION}"


@dataclass(frozen=True, slots=True)
class Seen:
    """A REST call that arrived; the path has no API prefix."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]


class FakeServer:
    """A coordinating server on loopback; may be stopped and started again on the same port with the same books."""

    def __init__(
        self,
        organizations: Sequence[str] = ("alpha",),
        *,
        encrypted: bool = False,
        blobs: dict[str, bytes] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._tls = tls
        self.world = World(organizations, encrypted=encrypted, blobs=blobs)
        self.credentials = Credentials()
        self.faults = Faults()
        self.calls: list[Seen] = []
        """Every REST call, in order of arrival."""
        self.heard: list[tuple[str, object]] = []
        """Every event from a node."""
        self.upgrades: list[str] = []
        """The query of every socket connection that asked for the better transport."""
        self.silent = False
        """Accept sockets but never say `sync`."""
        self._port = free_port()
        self._http: _Listener | None = None
        self._socket: Any = None
        self._nodes: dict[str, int] = {}
        self._routes = Routes(self.world, self.credentials, self.emit)

    # --- address and keys ---

    @property
    def root(self) -> str:
        """Give the address Socket.IO answers at."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self._port}"

    @property
    def url(self) -> str:
        """Give the REST base."""
        return f"{self.root}/api"

    @property
    def api_key(self) -> str:
        """Give the key of the first organization's node."""
        return self.node().api_key

    def node(self, name: str | None = None) -> Node:
        """Give a node by its organization's name; the first one without a name."""
        return next(n for n in self.world.nodes.values() if name in {None, n.name})

    # --- start and stop ---

    def start(self) -> None:
        """Listen; on the port it had before, if it had one."""
        self._socket = self._make_socket()
        app = self._noting_upgrades(socketio.WSGIApp(self._socket, self._wsgi))
        self._http = _Listener("127.0.0.1", self._port, app, _Quiet, ssl_context=self._tls)
        self._port = self._http.port
        threading.Thread(
            target=self._http.serve_forever, args=(0.05,), name="fake-server", daemon=True
        ).start()

    def stop(self) -> None:
        """Go away as in an outage: every connection is cut."""
        http, self._http = self._http, None
        if http is not None:
            http.shutdown()
            http.cut()
            http.server_close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # --- what users do ---

    def create_task(
        self,
        *,
        image: str = "some/image:1",
        input: bytes | str = b"{}",  # noqa: A002 - the protocol's word
        databases: Iterable[Mapping[str, Any]] = (),
        organizations: Sequence[str] = (),
    ) -> Created:
        """Create a task and say so; a text as input is taken as it is, bytes are written as base64."""
        text = input if isinstance(input, str) else plain(input)
        nodes = [self.node(name) for name in organizations] or [self.node()]
        created = self.world.create_task(
            image=image,
            inputs={node.organization_id: text for node in nodes},
            databases=list(databases),
            init_org_id=nodes[0].organization_id,
        )
        self.emit("new_task", {"id": created.task_id, "parent_id": None})
        return created

    def kill(self, task_id: int) -> None:
        """Kill a task as a user does: the event first, then the books."""
        open_runs = [r for r in self.world.runs.values() if r.task.id == task_id and r.finished_at is None]
        kills = [
            {"task_id": task_id, "run_id": r.id, "organization_id": r.organization_id} for r in open_runs
        ]
        self.emit("kill_containers", {"kill_list": kills, "collaboration_id": COLLABORATION})
        self.world.kill(task_id)

    def kill_silently(self, task_id: int) -> None:
        """Kill a task without an event, as for a node that was away."""
        self.world.kill(task_id)

    def delete(self, task_id: int) -> None:
        """Delete a task and its runs."""
        self.world.delete(task_id)

    def run(self, run_id: int) -> Run:
        """Give a run from the books."""
        return self.world.run(run_id)

    # --- what servers do ---

    def expire_access_tokens(self) -> None:
        """Let every access token given so far be expired."""
        self.credentials.expire("access")

    def expire_refresh_tokens(self) -> None:
        """Let every refresh token given so far be expired."""
        self.credentials.expire("refresh")

    def change_secret(self) -> None:
        """Make every token invalid."""
        self.credentials.change_secret()

    def emit(self, event: str, content: object = None) -> None:
        """Tell every node of the collaboration something."""
        if self._socket is not None:
            self._socket.emit(event, content, room=_ROOM, namespace=NAMESPACE)

    def cut_sockets(self) -> None:
        """Close every connection."""
        if self._http is not None:
            self._http.cut()

    def fail(self, method: str, path: str, fault: Fault, *, times: int = 1) -> None:
        """Let the next *times* calls whose path begins with *path* go wrong."""
        self.faults.add(method, path, fault, times=times)

    # --- what tests ask ---

    def count(self, method: str, path: str) -> int:
        """Count the calls so far whose path begins with *path*."""
        return sum(1 for c in list(self.calls) if c.method == method and c.path.startswith(path))

    def wait_until(self, condition: Callable[[], object], *, seconds: float = 10.0) -> None:
        """Wait until something is true; fails the test when it does not become true."""
        deadline = time.monotonic() + seconds
        with self.world.changed:
            while not condition():
                left = deadline - time.monotonic()
                assert left > 0, "it did not happen in time"
                # not everything a test asks about notifies the books
                self.world.changed.wait(min(left, 0.05))

    # --- REST ---

    def _noting_upgrades(self, app: Any) -> Any:
        def noting(environ: dict[str, Any], start_response: Any) -> Any:
            if "websocket" in environ.get("HTTP_UPGRADE", "").lower():
                self.upgrades.append(environ["QUERY_STRING"])
            return app(environ, start_response)

        return noting

    def _wsgi(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        request = Request(environ)
        path = request.path.removeprefix("/api")
        seen = Seen(request.method, path, request.query_string.decode(), dict(request.headers))
        with self.world.changed:
            self.calls.append(seen)
            self.world.changed.notify_all()
        response = self._answer(request, path, self.faults.take(request.method, path))
        if response is None:
            _cut(environ["werkzeug.socket"])
            return []
        return response(environ, start_response)

    def _answer(self, request: Request, path: str, fault: Fault) -> Response | None:
        time.sleep(fault.delay)
        if fault.drop:
            return None
        if fault.status:
            request.get_data()
            return Response(fault.body, status=fault.status, content_type=fault.content_type)
        response = self._routes.answer(request, path)
        if fault.lose_answer:
            return None
        return _halved(response) if fault.truncate else response

    # --- sockets ---

    def _make_socket(self) -> Any:
        # always_connect: the namespace is accepted before anybody looks at the token
        server = socketio.Server(async_mode="threading", always_connect=True, monitor_clients=False)
        server.on("connect", self._on_connect, namespace=NAMESPACE)
        server.on("disconnect", self._on_disconnect, namespace=NAMESPACE)
        for event in ("ping", "algorithm_status_change", "node_info_update", "algorithm_log"):
            server.on(event, self._listen_to(event), namespace=NAMESPACE)
        return server

    def _on_connect(self, sid: str, environ: Mapping[str, Any], _auth: object = None) -> None:
        header = environ.get("HTTP_AUTHORIZATION")
        try:
            claims = self.credentials.check(header)
        except Refusal as refusal:
            if header:
                event = "expired_token" if "expired" in refusal.message else "invalid_token"
                self._socket.emit(event, room=sid, namespace=NAMESPACE)
            return
        if self.silent:
            return
        self._nodes[sid] = claims["sub"]
        self._socket.emit("sync", room=sid, namespace=NAMESPACE)
        self._socket.enter_room(sid, _ROOM, namespace=NAMESPACE)
        self._present(claims["sub"], "online")

    def _on_disconnect(self, sid: str, *_: object) -> None:
        node_id = self._nodes.pop(sid, None)
        if node_id is not None:
            self._present(node_id, "offline")
            self.world.nodes[node_id].facts = {}

    def _listen_to(self, event: str) -> Callable[..., None]:
        def listen(sid: str, content: Any = None) -> None:
            node_id = self._nodes.get(sid)
            if node_id is None:
                return
            with self.world.changed:
                self.heard.append((event, content))
                if event == "ping":
                    self.world.nodes[node_id].pings += 1
                    self._present(node_id, "online")
                if event == "node_info_update":
                    self.world.nodes[node_id].facts = content
                self.world.changed.notify_all()
            if event == "algorithm_status_change":
                self.emit(event, content)

        return listen

    def _present(self, node_id: int, status: str) -> None:
        with self.world.changed:
            self.world.nodes[node_id].status = status
            self.world.changed.notify_all()


class _Quiet(WSGIRequestHandler):
    """Writes no access log."""

    def log(self, *_: object, **__: object) -> None:
        """Say nothing."""

    def handle_one_request(self) -> None:
        """Answer one request; a connection cut on purpose is no news."""
        try:
            super().handle_one_request()
        except (OSError, ValueError):
            self.close_connection = True


class _Listener(ThreadedWSGIServer):
    """Remembers its connections, so that they can be cut."""

    def __init__(self, *args: Any, **rest: Any) -> None:
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        super().__init__(*args, **rest)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer a connection in its own thread."""
        with self._lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection."""
        with self._lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: connections are cut on purpose."""

    def cut(self) -> None:
        """Cut every connection."""
        with self._lock:
            connections = list(self._open)
        for connection in connections:
            _cut(connection)


def _cut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # it was gone already


def _halved(response: Response) -> Response:
    body = response.get_data()
    half = Response(body[: len(body) // 2], status=response.status_code, content_type=response.content_type)
    half.headers["Content-Length"] = str(len(body))
    half.headers["Connection"] = "close"
    return half
