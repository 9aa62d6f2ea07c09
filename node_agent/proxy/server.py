"""Where the proxy listens: one address, one port, a bounded number of threads and connections.

Owns the listening socket, the threads behind it, and how bodies come in and go out. Knows nothing of what is asked or
answered. Bodies come in before a thread is given to their call, and answers go out after it is free again: whoever
sends or reads slowly keeps nobody waiting.
"""

import errno
import json
import socket
import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import structlog
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser
from waitress.server import create_server
from waitress.task import ErrorTask
from waitress.utilities import BadRequest, Error
from waitress.wasyncore import close_all

from node_agent.errors import ConfigError
from node_agent.proxy.held import Arrived, Line, Waits
from node_agent.proxy.spool import NoRoom, Spool

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

log = structlog.get_logger()

THREADS = 32
CONNECTIONS = 512
CONNECTIONS_EACH = 64
"""Of one container: it may not take them all."""
IDLE_SECONDS = 60
MAX_HEADER = 64 << 10
MAX_CHUNK_LINE = 4096
RECEIVED_AT_ONCE = 16 << 10
"""Tiny chunks cost the more time the more of them are taken at once."""
STOP_SECONDS = 5
_IP_FREEBIND = 15
"""Linux: bind an address this machine does not have yet; the module `socket` has no name for it."""


class Holds(Protocol):
    """What may keep a call back for a while."""

    waits: Waits

    def hold(self, arrived: Arrived, line: Line) -> bool:
        """Keep a call back; False when it is to be answered now."""


class ProxyServer:
    """Serves the proxy in threads of its own."""

    def __init__(
        self,
        app: "WSGIApplication",
        *,
        address: str,
        port: int,
        spool: Spool,
        max_body: int,
        idle_seconds: float = IDLE_SECONDS,
        holds: Holds | None = None,
    ) -> None:
        self._holds = holds
        self._app = app
        self._address = address
        self._port = port
        self._spool = spool
        self._max_body = max_body
        self._idle_seconds = idle_seconds
        self._server: Any = None  # its published types miss what is used here
        self._thread: threading.Thread | None = None
        self._timekeeper: threading.Thread | None = None

    @property
    def port(self) -> int:
        """Give the port listened on, which the system chose if 0 was asked for."""
        return int(self._server.effective_port) if self._server else self._port

    def start(self) -> None:
        """Listen and serve until stopped. Raises ConfigError."""
        listening = _bound_socket(self._address, self._port)
        server: Any = create_server(
            self._app,
            map={},
            sockets=[listening],
            threads=THREADS,
            connection_limit=CONNECTIONS,
            cleanup_interval=max(1, int(self._idle_seconds / 2)),
            # select() knows no descriptor above 1023, and a large body has one
            asyncore_use_poll=True,
            recv_bytes=RECEIVED_AT_ONCE,
            max_request_body_size=self._max_body + 1,
            max_request_header_size=MAX_HEADER,
            ident=None,
            clear_untrusted_proxy_headers=True,
        )
        server.channel_class = self._accept
        server.maintenance = partial(_close_idle, server, self._idle_seconds)
        if self._holds is not None:
            waits = self._holds.waits
            waits.look_with(lambda look: server.add_task(_Look(look)))
            self._timekeeper = threading.Thread(target=waits.keep_time, name="held", daemon=True)
            self._timekeeper.start()
        self._server = server
        self._thread = threading.Thread(target=server.run, name="proxy", daemon=True)
        self._thread.start()
        log.info("proxy_listening", address=self._address, port=self.port)

    def stop(self) -> None:
        """Stop listening, drop what is under way, end the threads; not started is fine."""
        server, thread = self._server, self._thread
        if server is None or thread is None:
            return
        if self._holds is not None and self._timekeeper is not None:
            self._holds.waits.stop()
            self._timekeeper.join(STOP_SECONDS)
        # everything that is served lives in the loop's own thread, so it is closed there
        server.trigger.pull_trigger(lambda: _close_everything(server))
        thread.join(STOP_SECONDS)
        server.task_dispatcher.shutdown(cancel_pending=True, timeout=STOP_SECONDS)
        self._server = self._thread = None

    def _accept(self, server: Any, line: socket.socket, address: Any, adj: Any, **more: Any) -> None:
        """Serve a new connection, unless its container has too many."""
        theirs = sum(channel.addr[0] == address[0] for channel in server.active_channels.values())
        if theirs >= CONNECTIONS_EACH:
            line.close()
            return
        channel = _Channel(server, line, address, adj, **more)
        channel.parser_class = partial(_Parser, spool=self._spool, owner=address[0])
        channel.holds = self._holds


def _bound_socket(address: str, port: int) -> socket.socket:
    """Bind the one address; it may appear, vanish and come back with its network."""
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        listening.bind((address, port))
    except OSError as error:
        listening.close()
        raise _binding_fault(error, address, port) from error
    return listening


def _binding_fault(error: OSError, address: str, port: int) -> ConfigError:
    if error.errno == errno.EADDRINUSE:
        return ConfigError(
            f"The proxy for algorithms cannot listen on {address} port {port}: the port is in use.",
            hint="Set `network.proxy_port` to a free port, or end the program that uses it.",
        )
    return ConfigError(
        f"The proxy for algorithms cannot listen on {address} port {port}: {error.strerror}.",
        hint="Set `network.proxy_port` to a port above 1023.",
    )


def _close_everything(server: Any) -> None:
    for channel in list(server.active_channels.values()):
        channel.handle_close()
    close_all(server._map, ignore_all=True)  # noqa: SLF001


def _close_idle(server: Any, seconds: float, now: float) -> None:
    """Close the connections on which nothing moves, also those whose container does not read its answer."""
    for channel in list(server.active_channels.values()):
        if not channel.requests and channel.last_activity < now - seconds:
            channel.handle_close()


class _Parser(HTTPRequestParser):
    """Reads one request; its body goes to the spool."""

    body_rcv: Any

    def __init__(self, adj: Any, *, spool: Spool, owner: str) -> None:
        super().__init__(adj)
        self._spool = spool
        self._owner = owner

    def parse_header(self, header_plus: bytes) -> None:
        super().parse_header(header_plus)
        if self.body_rcv is not None:
            self.body_rcv.buf = self._spool.body(self._owner)

    def received(self, data: bytes) -> int:
        try:
            consumed: int = super().received(data)
        except NoRoom as error:
            return self._refused(_Unavailable(str(error)), data)
        if _line_length(self.body_rcv) > MAX_CHUNK_LINE:
            return self._refused(BadRequest("A line of the chunked body is too long"), data)
        return consumed

    def _refused(self, error: Error, data: bytes) -> int:
        self.error = error
        self.completed = True
        return len(data)


def _line_length(receiver: Any) -> int:
    """Say how much of a chunk's size, or of what follows the last chunk, is waiting for its end."""
    return max(len(getattr(receiver, name, b"")) for name in ("control_line", "trailer"))


class _Unavailable(Error):
    code = 503
    reason = "Service Unavailable"


class _SpokenError:
    """An error of the HTTP layer in the words and the form algorithms know."""

    def __init__(self, error: Any) -> None:
        self._error = error

    def to_response(self, _ident: str | None = None) -> tuple[str, list[tuple[str, str]], bytes]:
        """Give status, headers and body."""
        text = f"{self._error.reason}: {self._error.body}"
        body = json.dumps({"msg": text}).encode()
        return f"{self._error.code} {self._error.reason}", [("Content-Type", "application/json")], body


class _ErrorTask(ErrorTask):
    request: Any

    def execute(self) -> None:
        self.request.error = _SpokenError(self.request.error)
        super().execute()


class _Look:
    """A look at a task somebody waits for, done by one of the server's threads."""

    def __init__(self, look: Callable[[], None]) -> None:
        self.service = look

    def cancel(self) -> None:
        """Let it be: the server ends."""


_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def _arrived(request: Any) -> Arrived:
    return Arrived(
        method=request.command,
        path=request.path,
        authorization=request.headers.get("AUTHORIZATION", ""),
        client=request.headers.get("USER_AGENT", ""),
        is_current=request.version == "1.1",
    )


class _Channel(HTTPChannel):
    error_task_class = _ErrorTask
    holds: Holds | None = None
    _was_held: Any = None
    """The request that has waited already."""
    server: Any
    current_outbuf_count: Any
    total_outbufs_len: Any
    _flush_exception: Any
    _flush_some: Any
    # its published types miss what is used here
    parser_class: Any
    request: Any
    requests: Any
    requests_lock: Any

    def service(self) -> None:
        with self.requests_lock:
            # a thread would wait for the reader of the first answer before it begins the second
            for early in self.requests[1:]:
                early.close()
                self.requests[0].headers["CONNECTION"] = "close"
            del self.requests[1:]
        if not self._is_held(self.requests[0]):
            super().service()

    def _is_held(self, request: Any) -> bool:
        if self.holds is None or request.error or request is self._was_held:
            return False
        # before it is kept: it may be let go at once, in another thread
        self._was_held = request
        return self.holds.hold(_arrived(request), self)

    def let_go(self) -> None:
        """Have the call passed on and answered."""
        self.server.add_task(self)

    def reassure(self) -> None:
        """Tell the client that the answer is on its way; must not be called once the call is let go."""
        with self.outbuf_lock:
            if self.connected and not self.total_outbufs_len:
                self.outbufs[-1].append(_CONTINUE)
                self.current_outbuf_count += len(_CONTINUE)
                self.total_outbufs_len += len(_CONTINUE)
                self._flush_exception(self._flush_some, do_close=False)
        # a line that turns out to be broken is closed by the thread that owns it
        self.server.pull_trigger()

    def handle_close(self) -> None:
        # it stays in its place: this may be called while it is read
        if self.request is not None:
            self.request.close()
        super().handle_close()
