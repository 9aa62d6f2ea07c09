"""Carries connections of runs to the database servers they asked for: one listening port for each label.

One thread with one event loop, whatever the number of connections. Owns who may come in, how many, and for how long
nothing need be said. Must not know what is carried.
"""

import asyncio
import contextlib
import errno
import socket
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog

from node_agent.domain.run import RunId
from node_agent.domain.service import Entrance
from node_agent.errors import ConfigError, Transient
from node_agent.gates.quiet import Quiet
from node_agent.gates.visitors import Listing, Visitors
from node_agent.gates.ways import Streams, Way

log = structlog.get_logger()

CONNECTIONS = 200
CONNECTIONS_PER_ADDRESS = 32
IDLE_SECONDS = 2 * 3600.0
"""A database may compute for long without a word."""
HALF_CLOSED_SECONDS = 300.0
CHUNK = 64 * 1024
STOP_SECONDS = 5.0
BACKLOG = 64
_IP_FREEBIND = 15
"""Linux: bind an address this machine does not have yet; the module `socket` has no name for it."""
_KEEPALIVE = {
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE): 1,
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE): 60,
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL): 20,
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT): 3,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """For how long nothing need be said, in seconds."""

    idle: float = IDLE_SECONDS
    half_closed: float = HALF_CLOSED_SECONDS


class Forwarder:
    """Listens at all entrances on one address, in a thread of its own."""

    def __init__(
        self,
        *,
        address: str,
        doors: Mapping[Entrance, Way],
        runs_at: Callable[[], Listing],
        asked: Callable[[RunId, str], bool],
        patience: Patience | None = None,
    ) -> None:
        self._address = address
        self._doors = doors
        self._runs_at = runs_at
        self._asked = asked
        self._patience = patience or Patience()
        self._open: Counter[str] = Counter()
        self._quiet = Quiet()
        self._ready: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Listen and serve until stopped. Raises ConfigError."""
        with contextlib.ExitStack() as stack:
            listening = [
                (stack.enter_context(_bound_socket(self._address, entrance)), entrance)
                for entrance in self._doors
            ]
            stack.pop_all()
        self._thread = threading.Thread(target=self._run, args=(listening,), name="gates", daemon=True)
        self._thread.start()
        for _, entrance in listening:
            log.info("service_listening", label=entrance.label, address=self._address, port=entrance.port)

    def stop(self) -> None:
        """Close everything; not started is fine."""
        if self._thread is None:
            return
        loop, stop = self._ready.result(STOP_SECONDS)
        with contextlib.suppress(RuntimeError):  # the loop has ended by itself
            loop.call_soon_threadsafe(stop.set)
        self._thread.join(STOP_SECONDS)
        self._thread = None

    # --- inside of the thread ---------------------------------------------------------------------------------

    def _run(self, listening: list[tuple[socket.socket, Entrance]]) -> None:
        asyncio.run(self._serve(listening))

    async def _serve(self, listening: list[tuple[socket.socket, Entrance]]) -> None:
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        loop.set_exception_handler(_log_bug)
        visitors = Visitors(runs_at=self._runs_at, asked=self._asked)
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(visitors.close)
            for sock, entrance in listening:
                door = _Door(self, visitors, entrance, self._doors[entrance])
                server = await asyncio.start_server(door.welcome, sock=sock, limit=CHUNK, backlog=BACKLOG)
                stack.callback(server.close)
            self._ready.set_result((loop, stop))
            await stop.wait()

    @asynccontextmanager
    async def place_for(self, address: str) -> AsyncIterator[bool]:
        """Count a connection while it lasts; False when there is no place for it."""
        has_place = self._open[address] < CONNECTIONS_PER_ADDRESS and self._open.total() < CONNECTIONS
        if not has_place:
            yield False
            return
        self._open[address] += 1
        try:
            yield True
        finally:
            self._open[address] -= 1
            if not self._open[address]:
                del self._open[address]

    @property
    def patience(self) -> Patience:
        """Say for how long nothing need be said."""
        return self._patience

    def warn(self, *, what_event: str, **facts: object) -> None:
        """Log why somebody was not let in, or not through, unless there was too much of it already."""
        unsaid = self._quiet.left_out()
        if unsaid is not None:
            log.warning(what_event, unsaid=unsaid, **facts)


@dataclass(frozen=True, slots=True)
class _Door:
    """One entrance and what happens at it."""

    forwarder: Forwarder
    visitors: Visitors
    entrance: Entrance
    way: Way

    async def welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Judge a visitor and carry its connection."""
        address = str(writer.get_extra_info("peername")[0])
        async with self.forwarder.place_for(address) as has_place:
            try:
                if has_place:
                    await self._judge(address, (reader, writer))
                else:
                    self._refuse(address, "too many connections at once")
            except (OSError, Transient) as error:
                label = self.entrance.label
                self.forwarder.warn(what_event="service_unreachable", label=label, reason=str(error))
            finally:
                await _close(writer)

    async def _judge(self, address: str, inner: Streams) -> None:
        run_id = await self.visitors.run_at(address, label=self.entrance.label)
        if run_id is None:
            self._refuse(address, "no run at this address asked for the label")
            return
        outer = await self.way.connect()
        try:
            await carry(inner, outer, self.forwarder.patience)
        finally:
            await _close(outer[1])

    def _refuse(self, address: str, reason: str) -> None:
        label = self.entrance.label
        self.forwarder.warn(what_event="service_refused", label=label, address=address, reason=reason)


# --- carrying ---------------------------------------------------------------------------------------------------


async def carry(inner: Streams, outer: Streams, patience: Patience) -> None:
    """Copy both ways until both sides have said all, one breaks off, or nothing is said for too long."""
    for _, writer in (inner, outer):
        _keep_alive(writer)
    talk = _Talk(patience)
    copies = [
        asyncio.create_task(talk.copy(inner[0], outer[1])),
        asyncio.create_task(talk.copy(outer[0], inner[1])),
    ]
    try:
        await asyncio.gather(*copies)
    except (OSError, TimeoutError):
        return  # either side may go at any time
    finally:
        for copy in copies:
            copy.cancel()


class _Talk:
    """Two directions, and when either of them said something last."""

    def __init__(self, patience: Patience) -> None:
        self._seconds = patience.idle
        self._half_closed = patience.half_closed
        self._loop = asyncio.get_running_loop()
        self._last = self._loop.time()

    async def copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await self._next(reader):
            self._last = self._loop.time()
            writer.write(chunk)
            await self._in_time(writer.drain())
        self._seconds = self._half_closed
        if writer.can_write_eof():
            writer.write_eof()

    async def _next(self, reader: asyncio.StreamReader) -> bytes:
        while True:
            # Waits in short pieces: the other direction may be talking, or may have ended meanwhile.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(self._seconds, self._half_closed)):
                    return await reader.read(CHUNK)
            if self._loop.time() - self._last >= self._seconds:
                raise TimeoutError

    async def _in_time(self, draining: object) -> None:
        async with asyncio.timeout(self._seconds):
            await draining  # type: ignore[misc]


def _keep_alive(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    if sock is None or sock.family != socket.AF_INET:
        return
    for (level, option), value in _KEEPALIVE.items():
        sock.setsockopt(level, option, value)


async def _close(writer: asyncio.StreamWriter) -> None:
    # Nobody reads any more what was not sent yet.
    if writer.transport.get_write_buffer_size():
        writer.transport.abort()
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


def _log_bug(_loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
    error = context.get("exception")
    if isinstance(error, asyncio.CancelledError):
        return  # a connection that was open when the gates were shut
    log.error("gate_bug", reason=str(context.get("message")), exc_info=error)


def _bound_socket(address: str, entrance: Entrance) -> socket.socket:
    """Bind one entrance; its address may appear, vanish and come back with its network."""
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        listening.bind((address, entrance.port))
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        why = "the port is in use" if error.errno == errno.EADDRINUSE else str(error.strerror)
        raise ConfigError(
            f"The entrance to the database {entrance.label} cannot listen on {address} port {entrance.port}: {why}.",
            hint="End the program that uses the port.",
        ) from error
    return listening
