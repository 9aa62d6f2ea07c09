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

from node_agent.domain.messages import Message, NodeCame, NodeLeft, ServerOffline, ServerOnline
from node_agent.domain.ports import NodeIdentity, StatusChange
from node_agent.domain.run import Run
from node_agent.domain.runlogs import LogPiece
from node_agent.domain.secret import Secret
from node_agent.domain.task import TaskId
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
OWN_COMING_SECONDS = 3.0
"""So soon after it was let in this node hears of its own coming; later, it is another agent's with the same key."""
EVENT_LIMIT = 900_000
"""Bytes; the server closes the connection on an event of a million."""
ANSWER_SECONDS = 10.0
"""So long the server may take to confirm a ping, once it has confirmed one on the same connection."""
_CHECK_SECONDS = 1.0

_SYNC, _LOST, _SILENT, _STOP, _EXPIRED, _INVALID = (
    "sync",
    "lost",
    "silent",
    "stop",
    "expired_token",
    "invalid_token",
)
_SAID_AT_END = {
    _LOST: "the connection ended",
    _SILENT: "the server does not confirm what it is sent",
    _STOP: "this node stops",
    _EXPIRED: "the server says the token has expired",
    _INVALID: "the server says the token is invalid",
}


class _Pulse:
    """Whether the other side of a connection confirms what it gets; not every server does."""

    def __init__(self) -> None:
        self._asked_at: float | None = None
        self.confirms = False
        """Whether it ever confirmed anything."""

    def ask(self) -> None:
        """Note that a ping leaves."""
        if self._asked_at is None:
            self._asked_at = time.monotonic()

    def confirm(self, *_: object) -> None:
        """Note that the other side has got one."""
        self._asked_at = None
        self.confirms = True

    def is_missing(self, *, for_seconds: float) -> bool:
        """Tell whether the other side, which confirmed once, has not confirmed a ping for so long."""
        asked_at = self._asked_at
        return self.confirms and asked_at is not None and time.monotonic() - asked_at > for_seconds


@dataclass(frozen=True, slots=True)
class _Line:
    """One connection: what its threads saw, in order."""

    client: Any
    token: Secret
    seen: "SimpleQueue[str]" = field(default_factory=SimpleQueue)
    pulse: _Pulse = field(default_factory=_Pulse)


class SocketListener:
    """The Channel port over Socket.IO, and the producer of the server's hints."""

    def __init__(
        self,
        address: ServerAddress,
        tokens: Tokens,
        identity: NodeIdentity,
        post: Callable[[Message], None],
        *,
        answer_seconds: float = ANSWER_SECONDS,
        task_changed: Callable[[TaskId], None] = lambda _: None,
    ) -> None:
        self._task_changed = task_changed
        self._answer_seconds = answer_seconds
        self._address = address
        self._tokens = tokens
        self._identity = identity
        self._post = post
        self._emitting = threading.Lock()
        self._stopping = threading.Event()
        self._hurry = threading.Event()
        self._thread = threading.Thread(target=self._keep_connected, name="socket", daemon=True)
        self._line: _Line | None = None
        self._online: bool | None = None
        self._online_since = float("inf")

    # --- start and stop ---

    def start(self) -> None:
        """Connect, and stay connected until stopped."""
        self._thread.start()

    def stop(self) -> None:
        """Say goodbye to the server; gives up after two seconds."""
        self._stopping.set()
        self._hurry.set()
        if (line := self._line) is not None:
            line.seen.put(_STOP)
        if self._thread.ident is not None:
            self._thread.join(STOP_SECONDS)

    @property
    def online(self) -> bool:
        """Tell whether the server counts this node as present."""
        return bool(self._online)

    @property
    def is_confirmed(self) -> bool:
        """Tell whether the server has confirmed a ping on the connection that stands now."""
        line = self._line
        return line is not None and line.pulse.confirms

    # --- Channel ---

    def ping(self) -> None:
        """Say that this node is present."""
        line = self._line
        if line is not None:
            line.pulse.ask()
            self._emit("ping", callback=line.pulse.confirm)

    def tell_status(self, change: StatusChange) -> None:
        """Broadcast a status change."""
        self._emit("algorithm_status_change", wire.status_event(change, self._identity))

    def tell_node(self, facts: Mapping[str, object]) -> None:
        """Share what the owner allows to be known of this node."""
        self._emit("node_info_update", dict(facts))

    def tell_log(self, run: Run, piece: LogPiece) -> None:
        """Send what a running algorithm wrote."""
        self._emit("algorithm_log", wire.log_event(run, piece, self._identity))

    def hurry(self) -> None:
        """Connect now if there is no connection: the server has just answered elsewhere."""
        self._hurry.set()

    def _emit(
        self,
        event: str,
        content: dict[str, object] | None = None,
        callback: Callable[..., None] | None = None,
    ) -> None:
        line = self._line
        if line is None or not self._online:
            return
        try:
            if len(json.dumps(content)) > EVENT_LIMIT:
                log.warning("event_dropped", event_name=event, why="too large")
                return
            with self._emitting:
                line.client.emit(event, content, namespace=NAMESPACE, callback=callback)
        except (SocketIOError, OSError, ValueError, TypeError) as error:
            log.debug("event_dropped", event_name=event, why=shorten(str(error)))

    # --- the connection ---

    def _keep_connected(self) -> None:
        delay = FIRST_DELAY
        while True:
            began = time.monotonic()
            self._hurry.clear()
            if self._stopping.is_set():  # only now: a stop hurries, too
                return
            was_online, reason = self._live_once()
            self._go_offline(reason)
            if was_online:
                delay = FIRST_DELAY
            self._hurry.wait(max(0.0, began + delay - time.monotonic()) if was_online else delay)
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
        self._online_since = time.monotonic()
        self._post(ServerOnline())
        while (seen := self._next(line, _CHECK_SECONDS)) in {_SYNC, None}:
            if seen is None and (seen := self._found_ended(line)) is not None:
                break
        self._drop_token(line, seen)
        return True, _SAID_AT_END[seen or _LOST]

    def _found_ended(self, line: _Line) -> str | None:
        """Find out whether a connection is over although nobody said so."""
        if not _is_up(line.client):
            return _LOST
        return _SILENT if line.pulse.is_missing(for_seconds=self._answer_seconds) else None

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
            self._online_since = float("inf")
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
        line.client.on("algorithm_status_change", self._on_status_change, namespace=NAMESPACE)
        line.client.on("node-online", self._on_node_online, namespace=NAMESPACE)
        line.client.on("node-offline", self._on_node_offline, namespace=NAMESPACE)

    def _on_new_task(self, *said: object) -> None:
        hint = wire.parse_hint(said[0] if said else None)
        if hint is not None:
            self._post(hint)

    def _on_status_change(self, *said: object) -> None:
        # nothing is decided by it: algorithms that wait for the task have it looked at
        task = wire.task_with_an_ended_run(said[0] if said else None)
        if task is not None:
            self._task_changed(task)

    def _on_node_online(self, *said: object) -> None:
        # everybody is told that this node came, and it hears of itself at once
        long_here = time.monotonic() - self._online_since > OWN_COMING_SECONDS
        if long_here and wire.is_about_this_node(said[0] if said else None, self._identity):
            self._post(NodeCame())

    def _on_node_offline(self, *said: object) -> None:
        if wire.is_about_this_node(said[0] if said else None, self._identity):
            self._post(NodeLeft())

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
        # the token must not follow a redirect elsewhere
        websocket_extra_options={"redirect_limit": 0},
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
