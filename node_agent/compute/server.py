"""Where the compute API listens: one address, TLS unless it is this machine alone, a bounded number of threads.

Owns the socket and the threads behind it. Knows nothing of what is asked or answered.
"""

import ssl
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
from cheroot import wsgi
from cheroot.ssl.builtin import BuiltinSSLAdapter

from node_agent.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

log = structlog.get_logger()

THREADS = 8
MOST_THREADS = 32
WAITING_CONNECTIONS = 128
IDLE_SECONDS = 30
STOP_SECONDS = 5
MAX_HEADER = 64 << 10
MAX_BODY = (1 << 20) + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """What the listener shows of itself."""

    chain: Path
    key: Path


class ComputeServer:
    """Serves the compute API in threads of its own."""

    def __init__(
        self, app: "WSGIApplication", *, address: str, port: int, certificate: Certificate | None
    ) -> None:
        self._server = wsgi.Server(
            (address, port),
            app,
            numthreads=THREADS,
            max=MOST_THREADS,
            request_queue_size=WAITING_CONNECTIONS,
            timeout=IDLE_SECONDS,
            shutdown_timeout=STOP_SECONDS,
            server_name="node-agent",
        )
        self._server.max_request_header_size = MAX_HEADER
        self._server.max_request_body_size = MAX_BODY
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


def _adapter(certificate: Certificate) -> BuiltinSSLAdapter:
    try:
        adapter = BuiltinSSLAdapter(str(certificate.chain), str(certificate.key))
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"The certificate {certificate.chain} of the compute API cannot be used: {error}.",
            hint="compute_api.tls needs a chain and its key, both as PEM files.",
        ) from error
    adapter.context.minimum_version = ssl.TLSVersion.TLSv1_2
    return adapter
