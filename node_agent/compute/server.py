"""Where the compute API listens: one address, TLS unless it is this machine alone, a bounded number of threads.

Owns the socket, the threads behind it, and what is said to those who do not speak HTTP. One connection carries one
request: it must have arrived as a whole within a fixed time, a handshake included, so that nobody holds a thread by
sending slowly. Knows nothing of what is asked or answered.
"""

import errno
import json
import logging
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
from cheroot import errors, wsgi
from cheroot.makefile import MakeFile, StreamReader, StreamWriter
from cheroot.server import HTTPConnection, HTTPRequest
from cheroot.ssl.builtin import BuiltinSSLAdapter

from node_agent.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

log = structlog.get_logger()

THREADS = 24
WAITING_CONNECTIONS = 256
WAITING_SECONDS = 1
REQUEST_SECONDS = 20.0
"""How long a request may take to arrive."""
ANSWER_SECONDS = 30
"""How long a client may take nothing of its answer."""
STOP_SECONDS = 5
MAX_HEADER = 64 << 10
MAX_BODY = 8 << 20
"""Larger bodies are refused here; what is smaller and still too large, by the application."""
_LONGEST_REASON = 200
_MOST_DISCARDED = 4 << 20
_DISCARD_SECONDS = 1.0
_PIECE = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """What the listener shows of itself."""

    chain: Path
    key: Path


class ComputeServer:
    """Serves the compute API in threads of its own."""

    def __init__(
        self,
        app: "WSGIApplication",
        *,
        address: str,
        port: int,
        certificate: Certificate | None,
        request_seconds: float = REQUEST_SECONDS,
    ) -> None:
        self._server = _Server(
            (address, port),
            app,
            numthreads=THREADS,
            request_queue_size=WAITING_CONNECTIONS,
            timeout=ANSWER_SECONDS,
            shutdown_timeout=STOP_SECONDS,
            server_name="node-agent",
            accepted_queue_size=WAITING_CONNECTIONS,
            accepted_queue_timeout=WAITING_SECONDS,
        )
        self._server.request_seconds = request_seconds
        self._server.max_request_header_size = MAX_HEADER
        self._server.max_request_body_size = MAX_BODY
        # clients of this API are told to close, so nothing is kept open for them
        self._server.keep_alive_conn_limit = 0
        if certificate is not None:
            self._server.ssl_adapter = _adapter(certificate)
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        """Give the port listened on, which the system chose if 0 was asked for."""
        bound: Any = self._server.bind_addr
        return int(bound[1])

    def start(self) -> None:
        """Listen and serve until stopped. Raises ConfigError."""
        try:
            self._server.prepare()
        except OSError as error:
            address: Any = self._server.bind_addr
            raise ConfigError(
                f"The compute API cannot listen on {address[0]}:{address[1]}: {error.strerror or error}.",
                hint="Choose another address with compute_api.listen.",
            ) from error
        self._thread = threading.Thread(target=self._server.serve, name="compute", daemon=True)
        self._thread.start()
        log.info("compute_api_listening", port=self.port, tls=self._server.ssl_adapter is not None)

    def stop(self) -> None:
        """Stop listening, end what is under way; not started is fine."""
        if self._thread is None:
            return
        self._server.stop()
        self._thread.join(STOP_SECONDS)
        self._thread = None


# --- the library's parts, made stricter ---------------------------------------------------------------------------


class _Arrival(socket.SocketIO):
    """What a client sends, as long as it is in time."""

    def __init__(self, sock: socket.socket, *, seconds: float) -> None:
        super().__init__(sock, "rb")
        self._socket = sock
        self._seconds = seconds
        self._until: float | None = None
        self._is_anything_here = False

    def readinto(self, buffer: Any) -> int | None:
        """Read what has come; the time begins when somebody first asks for it."""
        try:
            self._socket.settimeout(self._time_left())
            count = super().readinto(buffer)
        except TimeoutError:
            if self._is_anything_here:
                raise
            # nobody to answer to
            raise _gone() from None
        except ssl.SSLError:
            # another protocol, or a client that does not trust the certificate
            raise _gone() from None
        finally:
            self._socket.settimeout(ANSWER_SECONDS)
        self._is_anything_here = True
        return count

    def _time_left(self) -> float:
        now = time.monotonic()
        if self._until is None:
            self._until = now + self._seconds
        if now >= self._until:
            raise TimeoutError("timed out")
        return self._until - now


def _gone() -> ConnectionResetError:
    """Word the end of a connection that needs no answer, as the library expects it."""
    return ConnectionResetError(errno.ECONNRESET, "nobody is there any more")


class _Reader(StreamReader):
    """A connection's bytes, read in time."""

    def __init__(self, sock: socket.socket, size: int, *, seconds: float) -> None:
        super(StreamReader, self).__init__(_Arrival(sock, seconds=seconds), size)
        self.bytes_read = 0


class _Request(HTTPRequest):
    """A request; what the library refuses by itself is refused as JSON."""

    def simple_response(self, status: Any, msg: str = "") -> None:
        """Refuse in the form of every other refusal; the library's own text may repeat what was sent."""
        del msg
        code, _, words = str(status).partition(" ")
        body = json.dumps({"error": words}).encode()
        head = (
            f"{self.server.protocol} {code} {words}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        self.close_connection = True
        try:
            self.conn.wfile.write(head.encode() + body)
            _take_the_rest(self.conn.socket)
        except OSError as error:
            log.debug("compute_connection_lost", reason=type(error).__name__)


def _take_the_rest(sock: socket.socket) -> None:
    """End the answer, and discard what the client still sends until it has read that, within bounds.

    Closing a connection whose bytes are unread resets it, and the client may lose the answer.
    """
    left, until = _MOST_DISCARDED, time.monotonic() + _DISCARD_SECONDS
    # of a TLS connection too this ends the plain one below it, and what is read then is not decrypted
    sock.shutdown(socket.SHUT_WR)
    while left > 0 and (seconds := until - time.monotonic()) > 0:
        sock.settimeout(seconds)
        discarded = len(sock.recv(_PIECE))
        if not discarded:
            return
        left -= discarded


class _Connection(HTTPConnection):
    RequestHandlerClass = _Request

    def __init__(self, server: "_Server", sock: socket.socket, makefile: Any = MakeFile) -> None:
        del makefile

        def file(sock: socket.socket, mode: str, size: int) -> Any:
            reads = "r" in mode
            return (
                _Reader(sock, size, seconds=server.request_seconds)
                if reads
                else StreamWriter(sock, mode, size)
            )

        super().__init__(server, sock, file)


class _Server(wsgi.Server):
    ConnectionClass = _Connection
    request_seconds = REQUEST_SECONDS

    def error_log(self, msg: str = "", level: int = logging.INFO, traceback: bool = False) -> None:  # noqa: FBT001, FBT002
        """Say what befell a connection where everything else is said."""
        del traceback
        said = log.warning if level >= logging.ERROR else log.debug
        said("compute_connection_lost", reason=str(msg)[:_LONGEST_REASON])


class _Adapter(BuiltinSSLAdapter):
    """TLS whose handshake is made by the thread that reads, not by the one that lets everybody in."""

    def wrap(self, sock: socket.socket) -> tuple[ssl.SSLSocket, Mapping[str, str]]:
        """Wrap a connection; nothing is sent or read yet."""
        try:
            wrapped = self.context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        except OSError as error:
            raise errors.FatalSSLAlert(*error.args) from error
        return wrapped, {"wsgi.url_scheme": "https", "HTTPS": "on"}


def _adapter(certificate: Certificate) -> _Adapter:
    try:
        adapter = _Adapter(str(certificate.chain), str(certificate.key))
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"The certificate {certificate.chain} of the compute API cannot be used: {error}.",
            hint="compute_api.tls needs a chain and its key, both as PEM files.",
        ) from error
    adapter.context.minimum_version = ssl.TLSVersion.TLSv1_2
    return adapter
