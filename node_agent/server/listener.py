"""The coordinating server's socket behind the Channel port.

Owns the connection, its thread and the way back after a loss. What arrives is parsed and put into the
mailbox; nothing is decided here. "Online" means that the server said `sync`: it accepts connections with bad
tokens, too.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

import socketio
import structlog
from socketio.exceptions import SocketIOError

from node_agent.domain.messages import Message, ServerOffline, ServerOnline
from node_agent.domain.ports import NodeIdentity, StatusChange
from node_agent.domain.run import Run
from node_agent.domain.runlogs import LogPiece
from node_agent.domain.secret import Secret
from node_agent.errors import NodeAgentError
from node_agent.server import wire
from node_agent.server.address import ServerAddress, socket_session
from node_agent.server.exchange import shorten
from node_agent.server.tokens import Tokens

log = structlog.get_logger()

NAMESPACE = "/tasks"
SYNC_SECONDS = 10.0
CONNECT_SECONDS = 10
FIRST_DELAY = 0.5
LAST_DELAY = 5.0
STOP_SECONDS = 1.8
HANG_UP_SECONDS = 0.5
EVENT_LIMIT = 900_000
"""Bytes; the server closes the connection on an event of a million."""
_CHECK_SECONDS = 5.0

_SYNC, _LOST, _STOP, _EXPIRED, _INVALID = "sync", "lost", "stop", "expired_token", "invalid_token"
_SAID_AT_END = {
    _LOST: "the connection ended",
    _STOP: "this node stops",
    _EXPIRED: "the server says the token has expired",
    _INVALID: "the server says the token is invalid",
}


@dataclass(frozen=True, slots=True)
class _Line:
    """One connection: what its threads saw, in order."""

    client: Any
    token: Secret
    seen: "SimpleQueue[str]" = field(default_factory=SimpleQueue)


class SocketListener:
    """The Channel port over Socket.IO, and the producer of the server's hints."""

    def __init__(
        self,
        address: ServerAddress,
        tokens: Tokens,
        identity: NodeIdentity,
        post: Callable[[Message], None],
    ) -> None:
        self._address = address
        self._tokens = tokens
        self._identity = identity
        self._post = post
        self._emitting = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep_connected, name="socket", daemon=True)
        self._line: _Line | None = None
        self._online: bool | None = None

    # --- start and stop ---

    def start(self) -> None:
        """Connect, and stay connected until stopped."""
        self._thread.start()

    def stop(self) -> None:
        """Say goodbye to the server; gives up after two seconds."""
        self._stopping.set()
        if (line := self._line) is not None:
            line.seen.put(_STOP)
        if self._thread.ident is not None:
            self._thread.join(STOP_SECONDS)

    @property
    def online(self) -> bool:
        """Tell whether the server counts this node as present."""
        return bool(self._online)

    # --- Channel ---

    def ping(self) -> None:
        """Say that this node is present."""
        self._emit("ping")

    def tell_status(self, change: StatusChange) -> None:
        """Broadcast a status change."""
        self._emit("algorithm_status_change", wire.status_event(change, self._identity))

    def tell_node(self, facts: Mapping[str, object]) -> None:
        """Share what the owner allows to be known of this node."""
        self._emit("node_info_update", dict(facts))

    def tell_log(self, run: Run, piece: LogPiece) -> None:
        """Send what a running algorithm wrote."""
        self._emit("algorithm_log", wire.log_event(run, piece, self._identity))

    def _emit(self, event: str, content: dict[str, object] | None = None) -> None:
        line = self._line
        if line is None or not self._online:
            return
        try:
            if len(json.dumps(content)) > EVENT_LIMIT:
                log.warning("event_dropped", event_name=event, why="too large")
                return
            with self._emitting:
                line.client.emit(event, content, namespace=NAMESPACE)
        except (SocketIOError, OSError, ValueError, TypeError) as error:
            log.debug("event_dropped", event_name=event, why=shorten(str(error)))

    # --- the connection ---

    def _keep_connected(self) -> None:
        delay = FIRST_DELAY
        while not self._stopping.is_set():
            began = time.monotonic()
            was_online, reason = self._live_once()
            self._go_offline(reason)
            if was_online:
                delay = FIRST_DELAY
            self._stopping.wait(max(0.0, began + delay - time.monotonic()) if was_online else delay)
            delay = min(2 * delay, LAST_DELAY)

    def _live_once(self) -> tuple[bool, str]:
        """Connect and stay as long as it lasts; gives whether it got online, and why it ended."""
        try:
            line = self._connect()
        except NodeAgentError as error:
            return False, str(error)
        except (SocketIOError, OSError, ValueError) as error:
            return False, shorten(f"no connection: {error}")
        try:
            return self._follow(line)
        finally:
            self._line = None
            _hang_up(line)

    def _connect(self) -> _Line:
        client = _new_client(self._address)
        line = _Line(client=client, token=self._tokens.access_token())
        self._listen(line)
        # a fresh client and a fresh token each time: the library would repeat the header it had first
        client.connect(
            self._address.root,
            headers={"Authorization": f"Bearer {line.token.reveal()}"},
            namespaces=[NAMESPACE],
            wait_timeout=CONNECT_SECONDS,
        )
        self._line = line
        return line

    def _follow(self, line: _Line) -> tuple[bool, str]:
        if (first := self._next(line, SYNC_SECONDS)) != _SYNC:
            self._drop_token(line, first)
            return False, _SAID_AT_END.get(first or "", "the server did not say that this node is in")
        self._online = True
        self._post(ServerOnline())
        while (seen := self._next(line, _CHECK_SECONDS)) in {_SYNC, None}:
            if seen is None and not _is_up(line.client):
                seen = _LOST
                break
        self._drop_token(line, seen)
        return True, _SAID_AT_END[seen or _LOST]

    def _next(self, line: _Line, seconds: float) -> str | None:
        """Give what was seen next on the line; None when nothing was in time."""
        if self._stopping.is_set():
            return _STOP
        try:
            return line.seen.get(timeout=seconds)
        except Empty:
            return None

    def _drop_token(self, line: _Line, seen: str | None) -> None:
        """Get another token when the server's silence or words are about this one."""
        if seen in {_INVALID, None}:
            self._tokens.forget(line.token)
        if seen == _EXPIRED:
            try:
                self._tokens.renew(line.token)
            except NodeAgentError:
                # the next connection asks for a token too, and says why there is none
                self._tokens.forget(line.token)

    def _go_offline(self, reason: str) -> None:
        # said once per change; at the start nobody knows yet, so a first failure is a change, too
        if self._online is not False:
            self._online = False
            self._post(ServerOffline(reason))

    # --- what the library calls, each in a thread of its own ---

    def _listen(self, line: _Line) -> None:
        def note(word: str) -> Callable[..., None]:
            return lambda *_: line.seen.put(word)

        for event in (_SYNC, _EXPIRED, _INVALID):
            line.client.on(event, note(event), namespace=NAMESPACE)
        line.client.on("disconnect", note(_LOST), namespace=NAMESPACE)
        line.client.on("new_task", self._on_new_task, namespace=NAMESPACE)
        line.client.on("kill_containers", self._on_kill, namespace=NAMESPACE)

    def _on_new_task(self, *said: object) -> None:
        hint = wire.parse_hint(said[0] if said else None)
        if hint is not None:
            self._post(hint)

    def _on_kill(self, *said: object) -> None:
        kill = wire.parse_kill(said[0] if said else None, self._identity)
        if kill is not None:
            self._post(kill)


def _new_client(address: ServerAddress) -> Any:
    return socketio.Client(
        reconnection=False,
        handle_sigint=False,
        logger=_silent(),
        engineio_logger=_silent(),
        request_timeout=CONNECT_SECONDS,
        http_session=lambda: socket_session(address),
    )


def _silent() -> logging.Logger:
    """Give a logger that says nothing: the library writes tokens at some levels and alarms for every blip."""
    logger = logging.getLogger("node_agent.server.socket")
    logger.setLevel(logging.CRITICAL + 1)
    logger.propagate = False
    return logger


def _is_up(client: Any) -> bool:
    return bool(client.connected) and client.eio.state == "connected"


def _hang_up(line: _Line) -> None:
    """Say goodbye; the library may wait seconds for the other side to say it too, and nobody here needs to."""
    line.client.start_background_task(_disconnect, line.client).join(HANG_UP_SECONDS)


def _disconnect(client: Any) -> None:
    try:
        client.disconnect()
    except (SocketIOError, OSError, ValueError, RuntimeError, AttributeError) as error:
        # the library trips over connections that ended in the same moment
        log.debug("socket_closed", why=shorten(str(error)))
