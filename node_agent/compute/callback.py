"""A service of the owner that is asked something over HTTP: one POST, a bounded answer, all of it within a time.

It is reached directly: no redirect is followed and no proxy taken, since who answers decides who may use the data. Must
not know what is asked.
"""

import io
import json
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import SplitResult, urlsplit

from node_agent.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

ANSWER_SECONDS: Final = 10.0
MAX_ANSWER: Final = 64 << 10
_PORTS: Final = {"http": 80, "https": 443}

Fetch = Callable[[Mapping[str, Any]], tuple[int, Any]]
"""Sends a question, gives the status and the JSON of the answer; OSError when nobody answers."""


def fetch_of(url: str, *, ca_bundle: Path | None = None, seconds: float = ANSWER_SECONDS) -> Fetch:
    """Give what asks the service at *url*. Raises ConfigError when the authorities cannot be read."""
    place = urlsplit(url)
    context = _context(ca_bundle) if place.scheme == "https" else None

    def fetch(question: Mapping[str, Any]) -> tuple[int, Any]:
        until = time.monotonic() + seconds
        try:
            with _connected(place, context, until) as connection:
                return _asked(connection, place, json.dumps(question).encode())
        except HTTPException as error:
            raise ConnectionError(f"the answer is no HTTP: {type(error).__name__}") from error

    return fetch


def _context(ca_bundle: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=None if ca_bundle is None else str(ca_bundle))
    except OSError as error:
        raise ConfigError(
            f"The certificate authorities {ca_bundle} cannot be used: {error}.",
            hint="compute_api.callback_ca_bundle needs a PEM file that the agent may read.",
        ) from error


@contextmanager
def _connected(place: SplitResult, context: ssl.SSLContext | None, until: float) -> Iterator[HTTPConnection]:
    host, port = str(place.hostname), place.port or _PORTS[place.scheme]
    with socket.create_connection((host, port), timeout=_left(until)) as link:
        link.settimeout(_left(until))
        with link if context is None else context.wrap_socket(link, server_hostname=host) as secured:
            connection = HTTPConnection(host, port)
            connection.default_port = _PORTS[place.scheme]
            connection.sock = _TimedSocket(secured, until)
            yield connection


def _asked(connection: HTTPConnection, place: SplitResult, question: bytes) -> tuple[int, Any]:
    headers = {"Content-Type": "application/json", "Accept": "application/json", "Connection": "close"}
    connection.request("POST", place.path or "/", body=question, headers=headers)
    response = connection.getresponse()
    content = response.read(MAX_ANSWER + 1)
    if len(content) > MAX_ANSWER:
        raise ConnectionError("the answer is too long")
    try:
        return response.status, json.loads(content)
    except (ValueError, RecursionError):
        return response.status, None


def _left(until: float) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError("it did not answer in time")
    return left


class _TimedSocket:
    """A connection that ends at a moment, however slowly the other side goes on; what the library asks of one."""

    def __init__(self, link: socket.socket, until: float) -> None:
        self._link = link
        self._until = until

    def sendall(self, content: bytes) -> None:
        self._link.settimeout(_left(self._until))
        self._link.sendall(content)

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(_TimedReader(self._link, self._until))

    def close(self) -> None:
        """Leave it open: the library closes before it has read, and who opened it closes it in the end."""


class _TimedReader(io.RawIOBase):
    """What arrives on a connection, up to a moment."""

    def __init__(self, link: socket.socket, until: float) -> None:
        super().__init__()
        self._link = link
        self._until = until

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        self._link.settimeout(_left(self._until))
        return self._link.recv_into(buffer)
