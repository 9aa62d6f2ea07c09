"""Where the proxy listens: one address, one port, a bounded number of threads and connections.

Owns the listening socket and the threads behind it. Knows nothing of what is asked or answered.
"""

import errno
import json
import socket
import threading
from typing import TYPE_CHECKING, Any

import structlog
from waitress.channel import HTTPChannel
from waitress.server import create_server
from waitress.task import ErrorTask
from waitress.wasyncore import close_all

from node_agent.errors import ConfigError
from node_agent.proxy.app import MAX_BODY

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

log = structlog.get_logger()

THREADS = 16
CONNECTIONS = 512
IDLE_SECONDS = 60
MAX_HEADER = 64 << 10
STOP_SECONDS = 5
_IP_FREEBIND = 15
"""Linux: bind an address this machine does not have yet; the module `socket` has no name for it."""


class ProxyServer:
    """Serves the proxy in threads of its own."""

    def __init__(self, app: "WSGIApplication", *, address: str, port: int, max_body: int = MAX_BODY) -> None:
        self._app = app
        self._address = address
        self._port = port
        self._max_body = max_body
        self._server: Any = None  # its published types miss what is used here
        self._thread: threading.Thread | None = None

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
            channel_timeout=IDLE_SECONDS,
            max_request_body_size=self._max_body,
            max_request_header_size=MAX_HEADER,
            ident=None,
            clear_untrusted_proxy_headers=True,
        )
        server.channel_class = _Channel
        self._server = server
        self._thread = threading.Thread(target=server.run, name="proxy", daemon=True)
        self._thread.start()
        log.info("proxy_listening", address=self._address, port=self.port)

    def stop(self) -> None:
        """Stop listening, drop what is under way, end the threads; not started is fine."""
        server, thread = self._server, self._thread
        if server is None or thread is None:
            return
        # everything that is served lives in the loop's own thread, so it is closed there
        server.trigger.pull_trigger(lambda: close_all(server._map, ignore_all=True))  # noqa: SLF001
        thread.join(STOP_SECONDS)
        server.task_dispatcher.shutdown(cancel_pending=True, timeout=STOP_SECONDS)
        self._server = self._thread = None


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


class _Channel(HTTPChannel):
    error_task_class = _ErrorTask
