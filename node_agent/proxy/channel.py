"""One connection of a container: how a request comes in, who waits for its answer, and how long both may take.

Owns what is particular about the library's connections. Bodies go to the spool as they come. Knows nothing of what is
asked or answered.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser
from waitress.task import ErrorTask
from waitress.utilities import BadRequest, Error

from node_agent.proxy.held import Arrived, Line, Waits
from node_agent.proxy.spool import NoRoom, Spool
from node_agent.proxy.turns import NOBODY

SLOWEST = 1 << 20
"""Bytes; each so many of them give a second more."""
MAX_CHUNK_LINE = 4096


class Holds(Protocol):
    """What may keep a call back for a while."""

    waits: Waits

    def researcher_of(self, authorization: str) -> str | None:
        """Return who the run of a token works for; None when it is no run's token."""

    def hold(self, arrived: Arrived, line: Line) -> bool:
        """Keep a call back; False when it is to be answered now."""


class Parser(HTTPRequestParser):
    """Reads one request; its body goes to the spool."""

    body_rcv: Any
    headers: Any

    def __init__(self, adj: Any, *, spool: Spool, owner_of: Callable[[str], str]) -> None:
        super().__init__(adj)
        self._spool = spool
        self._owner_of = owner_of

    def parse_header(self, header_plus: bytes) -> None:
        """Read the head of the request, and prepare the place of its body."""
        super().parse_header(header_plus)
        if self.body_rcv is not None:
            self.body_rcv.buf = self._spool.body(self._owner_of(self.headers.get("AUTHORIZATION", "")))

    def received(self, data: bytes) -> int:
        """Take bytes in; return how many of them belong to this request."""
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


_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def _arrived(request: Any, address: str) -> Arrived:
    return Arrived(
        method=request.command,
        path=request.path,
        authorization=request.headers.get("AUTHORIZATION", ""),
        client=request.headers.get("USER_AGENT", ""),
        address=address,
        is_current=request.version == "1.1",
    )


@dataclass(slots=True)
class _Flow:
    """Bytes on their way since some time."""

    since: float
    size: int = 0

    def is_late(self, now: float, seconds: float, *, missing: int = 0) -> bool:
        """Check whether what has moved was too little for the time it took."""
        return now > self.since + seconds + (self.size - missing) / SLOWEST


class Channel(HTTPChannel):
    """A connection."""

    error_task_class = _ErrorTask
    holds: Holds | None = None
    _was_held: Any = None
    """The request that has waited already."""
    server: Any
    current_outbuf_count: Any
    total_outbufs_len: Any
    _fileno: int | None
    _flush_exception: Any
    _flush_some: Any
    # its published types miss what is used here
    parser_class: Any
    request: Any
    requests: Any
    requests_lock: Any

    _came: "_Flow | None" = None
    """The request that comes in."""
    _left: "_Flow | None" = None
    """The answer that goes out, as far as it was seen to."""

    @property
    def researcher(self) -> str:
        """Return who the call is served for."""
        requests = self.requests[:1]
        if self.holds is None or not requests or requests[0].error:
            return NOBODY
        return self.holds.researcher_of(requests[0].headers.get("AUTHORIZATION", "")) or NOBODY

    def readable(self) -> bool:
        """Check whether bytes are awaited.

        A connection may be closed while the events to wait for are gathered. It must not be waited for then: its
        descriptor may be another connection's when the event is handled.
        """
        return not self._is_closed and bool(super().readable())

    def writable(self) -> bool:
        """Check whether bytes are to be sent, or the connection is to be closed."""
        return not self._is_closed and bool(super().writable())

    @property
    def _is_closed(self) -> bool:
        return self._fileno is None

    def received(self, data: bytes) -> bool:
        """Take bytes of a request in, and note since when it comes."""
        self._came = self._came or _Flow(time.monotonic())
        self._came.size += len(data)
        taken: bool = super().received(data)
        if self.request is None:
            self._came = None
        return taken

    def is_overdue(self, seconds: float) -> bool:
        """Check whether the request that comes in, or the answer that goes out, takes too long."""
        now, unsent = time.monotonic(), self.total_outbufs_len
        if self.requests or not unsent:
            self._left = None
            return self._came is not None and self._came.is_late(now, seconds)
        self._left = self._left or _Flow(now, unsent)
        return self._left.is_late(now, seconds, missing=unsent)

    def service(self) -> None:
        """Answer one request, or keep it back."""
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
        return self.holds.hold(_arrived(request, self.addr[0]), self)

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

    def cancel(self) -> None:
        """Leave calls undone, since the server ends."""
        for request in self.requests:
            request.close()
        super().cancel()

    def handle_close(self) -> None:
        """Close the connection, and forget what has come in of a request."""
        # it stays in its place: this may be called while it is read
        if self.request is not None:
            self.request.close()
        super().handle_close()
