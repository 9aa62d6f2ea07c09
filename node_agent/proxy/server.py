"""Where the proxy listens: one address, one port, a bounded number of threads and connections.

Owns the listening socket, the threads behind it, and how bodies come in and go out. Knows nothing of what is asked or
answered. Bodies come in before a thread is given to their call, and answers go out after it is free again: whoever
sends or reads slowly keeps nobody waiting.
"""

import errno
import socket
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING, Any

import structlog
from waitress.server import create_server
from waitress.wasyncore import close_all

from node_agent.errors import ConfigError
from node_agent.proxy.channel import Channel, Holds, Parser
from node_agent.proxy.spool import Spool
from node_agent.proxy.turns import LOOKS, NOBODY, FairDispatcher

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

log = structlog.get_logger()

THREADS = 32
CONNECTIONS = 512
"""When they are all taken, the container with the most of them loses one to whoever comes."""
CONNECTIONS_EACH = 64
"""Of one container."""
IDLE_SECONDS = 60
REQUEST_SECONDS = 60
"""For a request to come in as a whole, and for its answer to be read."""
MAINTENANCE_SECONDS = 10
MAX_HEADER = 64 << 10
RECEIVED_AT_ONCE = 16 << 10
"""Tiny chunks cost the more time the more of them are taken at once."""
STOP_SECONDS = 5
_IP_FREEBIND = 15
"""Linux: bind an address this machine does not have yet; the module `socket` has no name for it."""


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
        clients: IPv4Network | None = None,
        idle_seconds: float = IDLE_SECONDS,
        request_seconds: float = REQUEST_SECONDS,
        holds: Holds | None = None,
    ) -> None:
        self._holds = holds
        self._app = app
        self._address = address
        self._port = port
        self._spool = spool
        self._max_body = max_body
        self._clients = clients
        self._patience = Patience(idle_seconds, request_seconds)
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
            _dispatcher=FairDispatcher(THREADS),
            # never reached: one more than there is room for makes another one go
            connection_limit=2 * CONNECTIONS,
            cleanup_interval=max(1, min(MAINTENANCE_SECONDS, int(self._patience.idle / 2))),
            # select() knows no descriptor above 1023, and a large body has one
            asyncore_use_poll=True,
            recv_bytes=RECEIVED_AT_ONCE,
            max_request_body_size=self._max_body + 1,
            max_request_header_size=MAX_HEADER,
            ident=None,
            clear_untrusted_proxy_headers=True,
        )
        server.channel_class = self._accept
        server.maintenance = partial(_close_overdue, server, self._patience)
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
        """Serve a new connection of a container; one that has too many is turned away."""
        channels = list(server.active_channels.values())
        theirs = sum(channel.addr[0] == address[0] for channel in channels)
        if not self._admits(address[0]) or theirs >= CONNECTIONS_EACH:
            line.close()
            return
        if len(channels) >= CONNECTIONS:
            # its descriptor stays unused until the events of this turn are over: one connection comes in a turn
            _most_dispensable(channels).handle_close()
        channel = Channel(server, line, address, adj, **more)
        channel.parser_class = partial(
            Parser, spool=self._spool, owner_of=partial(self._owner_of, address[0])
        )
        channel.holds = self._holds

    def _owner_of(self, address: str, authorization: str) -> str:
        """Return on whose behalf a body is kept: the researcher's, so that several runs of one have one share."""
        return address if self._holds is None else self._holds.researcher_of(authorization) or NOBODY

    def _admits(self, address: str) -> bool:
        """Check that somebody is a container of the isolated network, and not this machine or another container."""
        if self._clients is None:
            return True
        return address != self._address and IPv4Address(address) in self._clients


@dataclass(frozen=True, slots=True)
class Patience:
    """For how long a connection may do nothing, and take for one request or one answer; in seconds."""

    idle: float
    request: float


def _most_dispensable(channels: Sequence[Channel]) -> Channel:
    """Choose a connection of the container that has the most: one without a call, and the oldest of these."""
    most = Counter(channel.addr[0] for channel in channels).most_common(1)[0][0]
    theirs = [channel for channel in channels if channel.addr[0] == most]
    return min(theirs, key=lambda channel: (bool(channel.requests), channel.creation_time))


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


def _close_overdue(server: Any, patience: Patience, now: float) -> None:
    """Close the connections on which too little moves, also those whose container does not read its answer."""
    for channel in list(server.active_channels.values()):
        is_idle = not channel.requests and channel.last_activity < now - patience.idle
        if is_idle or channel.is_overdue(patience.request):
            channel.handle_close()


class _Look:
    """A look at a task somebody waits for, done by one of the server's threads."""

    researcher = LOOKS

    def __init__(self, look: Callable[[], None]) -> None:
        self.service = look

    def cancel(self) -> None:
        """Let it be: the server ends."""
