"""One HTTP call to the coordinating server and its bounded answer.

Owns sessions, time-outs, size limits and the translation of the HTTP library's errors. Must not know what a
call means, and never repeats one.
"""

import json
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any, Protocol

import requests
import structlog
from requests.exceptions import (
    ConnectTimeout,
    ProxyError,
    ReadTimeout,
    RequestException,
    SSLError,
)
from urllib3.exceptions import HTTPError

from node_agent.domain.secret import Secret
from node_agent.errors import DiskFull, ServerUnreachable
from node_agent.payload.longtext import BadJson, JsonTooLarge, spool_json
from node_agent.server.address import ServerAddress, ServerSession, rest_session

log = structlog.get_logger()

CONNECT_SECONDS = 5.0
READ_SECONDS = 30.0
BODY_LIMIT = 128 * 1024 * 1024
BODY_SECONDS = 15.0
"""So long an answer may take, and longer only if it is long."""
STREAM_SECONDS = 300.0
"""The same for one that is passed on while it is read: its reader may pause."""
SHORT_BODY = 64 * 1024
SLOWEST = 16 * 1024
"""Bytes a second that a long answer must bring."""
LONGEST_PAUSE = 120.0
"""Seconds; a server that asks to be left alone for longer (Retry-After) is asked earlier."""
_FOR_NOW = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})
_CHUNK = 64 * 1024
_SHOWN = 200


class AnswerTooLarge(ServerUnreachable):
    """The answer is larger than this agent reads; *total* is the length of the whole list, if told."""

    def __init__(self, message: str, *, total: int | None) -> None:
        super().__init__(message)
        self.total = total


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call, before it is sent."""

    method: str
    path: str
    """Below the REST base, without a leading slash."""
    query: Mapping[str, str | int] | str = ""
    token: Secret | None = None
    body: bytes | Iterable[bytes] | None = field(default=None, repr=False)
    content_type: str = "application/json"
    """What the body is, if there is one."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Further headers of a call without body."""
    limit: int = BODY_LIMIT
    spool: Path | None = None
    """Where the long strings of a JSON answer go, so that only the rest of it is kept in memory."""
    skip_large: bool = False
    """Nobody needs the answer's body when it is large: it is not read then."""
    connect_seconds: float = CONNECT_SECONDS
    read_seconds: float = READ_SECONDS
    body_seconds: float = BODY_SECONDS

    def __str__(self) -> str:
        return f"{self.method} /{self.path}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What the server answered."""

    call: str
    status: int
    content_type: str = ""
    body: bytes = field(default=b"", repr=False)
    tree: object = field(default=None, repr=False)
    """The body as JSON, its long strings in files, when it was asked for so."""
    total: int | None = None
    """How many elements the whole list has, when this is a page of one."""
    asked_pause: float = 0.0
    """For how many seconds the answer asks to be left alone, whatever it is."""

    @property
    def is_good(self) -> bool:
        """Tell whether the server did what it was asked."""
        return self.status in {HTTPStatus.OK, HTTPStatus.CREATED}

    @property
    def is_json(self) -> bool:
        """Tell whether this is JSON, as it says itself: the login page of a network comes with 200, too."""
        return self.content_type.partition(";")[0].strip().lower() == "application/json"

    @property
    def pause(self) -> float:
        """Say for how many seconds the server is to be left alone: only a refusal for now can ask for that."""
        return self.asked_pause if self.status in _FOR_NOW else 0.0

    @property
    def message(self) -> str | None:
        """Give the server's own words about an error; None when this does not come from the server itself."""
        try:
            text = parse_json(self.body)
        except ValueError:
            return None
        said = text.get("msg") if isinstance(text, dict) else None
        return shorten(said) if isinstance(said, str) else None

    def json(self) -> object:
        """Give the body as JSON, or say that the server talks nonsense."""
        if self.tree is not None:
            return self.tree
        try:
            return parse_json(self.body)
        except ValueError as error:
            raise ServerUnreachable(f"The answer to {self.call} is not JSON: {self.excerpt()}") from error

    def excerpt(self) -> str:
        """Give the beginning of the body for an error text."""
        return shorten(self.body[: 4 * _SHOWN].decode("utf-8", "replace")) or "(empty)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """What the server answers, its body still on the line."""

    status: int
    content_type: str
    pieces: Iterator[bytes] = field(repr=False)
    """Raises ServerUnreachable."""


def shorten(text: str) -> str:
    """Give *text* as one short printable line."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * _SHOWN]).split())
    return line if len(line) <= _SHOWN else line[:_SHOWN] + "…"


def parse_json(body: bytes | str) -> Any:
    """Parse JSON from outside; every way to fail is a ValueError."""
    try:
        return json.loads(body)
    except RecursionError as error:  # a few kilobytes of brackets are enough
        raise ValueError("nested too deeply") from error


class Sends(Protocol):
    """What sends calls."""

    def send(self, call: Call) -> Reply:
        """Send one call once. Raises ServerUnreachable."""

    def open(self, call: Call) -> AbstractContextManager[Stream]:
        """Send one call once, and leave the reading to whoever asks. Raises ServerUnreachable."""

    def close(self) -> None:
        """Close every connection; calls after this open new ones."""


class Exchange:
    """Sends calls; one session per thread, connections kept alive."""

    def __init__(self, address: ServerAddress) -> None:
        self.address = address
        self._local = threading.local()
        self._sessions: weakref.WeakSet[ServerSession] = weakref.WeakSet()
        self._lock = threading.Lock()

    def send(self, call: Call) -> Reply:
        """Send one call once. Raises ServerUnreachable."""
        started = time.monotonic()
        with self._translated(call), self._request(call) as response:
            reply = self._read(call, response)
        log.debug("server_call", call=str(call), status=reply.status, ms=_milliseconds_since(started))
        return reply

    @contextmanager
    def open(self, call: Call) -> Iterator[Stream]:
        """Send one call once, and leave the reading to whoever asks. Raises ServerUnreachable."""
        started = time.monotonic()
        with self._translated(call):
            response = self._request(call)
        with response:
            log.debug(
                "server_call", call=str(call), status=response.status_code, ms=_milliseconds_since(started)
            )
            yield Stream(
                status=response.status_code,
                content_type=response.headers.get("Content-Type", ""),
                pieces=self._pieces(call, response, seconds=STREAM_SECONDS),
            )

    def close(self) -> None:
        """Close every connection; calls after this open new ones."""
        with self._lock:
            sessions = list(self._sessions)
        for session in sessions:
            session.close()

    def _request(self, call: Call) -> requests.Response:
        headers = dict(call.headers) if call.body is None else {"Content-Type": call.content_type}
        if call.token is not None:
            headers["Authorization"] = f"Bearer {call.token.reveal()}"
        return self._session().request(
            call.method,
            f"{self.address.rest}/{call.path}",
            params=call.query or None,
            data=call.body,
            headers=headers,
            timeout=(call.connect_seconds, call.read_seconds),
            stream=True,
            # a redirect turns a PATCH into something else and may carry the token elsewhere
            allow_redirects=False,
        )

    @contextmanager
    def _translated(self, call: Call) -> Iterator[None]:
        try:
            yield
        except (RequestException, HTTPError) as error:
            raise ServerUnreachable(f"{call} at {self.address.rest}: {_reason(error)}") from error

    def _pieces(self, call: Call, response: requests.Response, *, seconds: float) -> Iterator[bytes]:
        """Read a body of any size; the longer it is, the longer it may take."""
        deadline = time.monotonic() + seconds
        with self._translated(call):
            for piece in _arriving(response):
                deadline += len(piece) / SLOWEST
                if time.monotonic() > deadline:
                    raise ServerUnreachable(f"The answer to {call} comes too slowly.")
                yield piece

    def _session(self) -> ServerSession:
        session: ServerSession | None = getattr(self._local, "session", None)
        if session is None:
            session = self._local.session = rest_session(self.address)
            with self._lock:
                self._sessions.add(session)
        return session

    def _read(self, call: Call, response: requests.Response) -> Reply:
        total = _whole(response.headers.get("total-count"))
        reply = Reply(
            call=str(call),
            status=response.status_code,
            content_type=response.headers.get("Content-Type", ""),
            total=total,
            asked_pause=pause_asked(response.headers),
        )
        if _unwanted(call, response):
            return reply
        pieces = self._pieces(call, response, seconds=call.body_seconds)
        if call.spool is not None and reply.is_good:
            return replace(reply, tree=_spooled(call, pieces, call.spool, total))
        return replace(reply, body=_body(call, pieces, total))


def _milliseconds_since(started: float) -> float:
    return round((time.monotonic() - started) * 1000, 1)


def _unwanted(call: Call, response: requests.Response) -> bool:
    length = _whole(response.headers.get("Content-Length"))
    good = response.status_code < HTTPStatus.BAD_REQUEST
    return call.skip_large and good and (length is None or length > SHORT_BODY)


def _arriving(response: requests.Response) -> Iterator[bytes]:
    """Give what has arrived as soon as anything has: a full chunk of a byte a second would be hours away."""
    read = getattr(response.raw, "read1", None)
    if read is None:  # urllib3 has it from version 2.1 on
        yield from response.iter_content(_CHUNK)
        return
    while piece := read(_CHUNK, decode_content=True):
        yield piece


def _body(call: Call, pieces: Iterable[bytes], total: int | None) -> bytes:
    body = bytearray()
    for chunk in pieces:
        body += chunk
        if len(body) > call.limit:
            raise AnswerTooLarge(f"The answer to {call} is larger than {call.limit} bytes.", total=total)
    return bytes(body)


def pause_asked(headers: Mapping[str, str]) -> float:
    """Read for how long the server asks to be left alone, within bounds; a date counts from its own."""
    text = headers.get("Retry-After", "").strip()
    whole = _whole(text[:9])
    seconds = _seconds_between(headers.get("Date", ""), text) if whole is None else float(whole)
    return min(max(0.0, seconds), LONGEST_PAUSE)


def _seconds_between(start: str, end: str) -> float:
    try:
        return (parsedate_to_datetime(end) - parsedate_to_datetime(start)).total_seconds()
    except (TypeError, ValueError, OverflowError):
        return 0.0


def _spooled(call: Call, pieces: Iterable[bytes], folder: Path, total: int | None) -> object:
    try:
        return spool_json(pieces, folder, limit=call.limit)
    except JsonTooLarge as error:
        raise AnswerTooLarge(f"The answer to {call} is too large: {error}.", total=total) from error
    except BadJson as error:
        raise ServerUnreachable(f"The answer to {call} cannot be used: it is {error}.") from error
    except OSError as error:
        raise _disk_trouble(error) from error


def _disk_trouble(error: OSError) -> DiskFull:
    return DiskFull(
        f"What the server sends cannot be written to disk: {error.strerror or error}.",
        hint="Free some space where the state directory is; the work goes on by itself.",
    )


def _whole(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() else None


def _reason(error: Exception) -> str:
    """Say in a few words why a call did not go through."""
    if isinstance(error, SSLError):
        if "expired" in str(error):
            return "the server's certificate has expired; whoever runs the server must renew it, the rest goes by itself"
        return f"the certificate is not accepted ({_root_text(error)}); see `server.ca_bundle`"
    if isinstance(error, ProxyError):
        return f"the HTTP proxy does not answer ({_root_text(error)})"
    if isinstance(error, ConnectTimeout):
        return "no connection in time"
    if isinstance(error, ReadTimeout):
        return "no answer in time"
    return _root_text(error)


def _root_text(error: BaseException) -> str:
    """Find the innermost cause: the outer ones repeat the URL and an object's address."""
    seen = 0
    while (inner := _inner(error)) is not None and seen < 10:  # noqa: PLR2004 - a chain may be a ring
        error, seen = inner, seen + 1
    return shorten(f"{type(error).__name__}: {error}")


def _inner(error: BaseException) -> BaseException | None:
    reason = getattr(error, "reason", None)
    if isinstance(reason, BaseException):
        return reason
    for argument in reversed(error.args):
        if isinstance(argument, BaseException):
            return argument
    return error.__cause__
