"""The Socket.IO side: who is connected, who hears what, and who counts as present.

Owns connections and rooms. Must not know REST. Handlers run in threads of their own, in no promised order, so each
is one transaction. The namespace is accepted before anybody looks at the token, as clients of this protocol expect:
only `sync` says that a node is in.
"""

import contextlib
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import socketio

from node_agent.sandbox.server.call import LARGEST_NUMBER, Caller
from node_agent.sandbox.server.callers import caller_of
from node_agent.sandbox.server.database import BooksClosed, Database, now, written
from node_agent.sandbox.server.refusal import Refusal
from node_agent.sandbox.server.tokens import Mint
from node_agent.sandbox.server.work import append_log, room_of

NAMESPACE: Final = "/tasks"
ONLINE: Final = "online"
OFFLINE: Final = "offline"
SILENCE_SECONDS: Final = 65.0
PING_INTERVAL: Final = 25
PING_TIMEOUT: Final = 60
_CONFIG_LIMIT: Final = 5_000
_STATUS_FIELDS: Final = (
    "status",
    "run_id",
    "task_id",
    "collaboration_id",
    "node_id",
    "organization_id",
    "parent_id",
)


@dataclass(frozen=True, slots=True)
class _Guest:
    caller: Caller
    name: str
    rooms: tuple[str, ...]


class Rooms:
    """Everybody who is connected."""

    def __init__(self, database: Database, mint: Mint) -> None:
        self._database = database
        self._mint = mint
        self._guests: dict[str, _Guest] = {}
        self._server: Any = None
        self._closing = threading.Event()
        self.silent = False
        """Accept connections but let nobody in, as a server that hangs."""

    # --- start and stop ---

    def open(self) -> Any:
        """Begin to listen; gives the Socket.IO server, to be put in front of the REST application."""
        self._closing = threading.Event()
        # a server that was killed left them online
        self._forget_everybody()
        self._server = socketio.Server(
            async_mode="threading",
            always_connect=True,
            ping_interval=PING_INTERVAL,
            ping_timeout=PING_TIMEOUT,
            logger=_silent(),
            engineio_logger=_silent(),
        )
        listeners: dict[str, Callable[..., None]] = {
            "connect": self._on_connect,
            "disconnect": self._on_disconnect,
            "ping": self._on_ping,
            "join_room": self._on_join_room,
            "algorithm_status_change": self._of_nodes(self._on_status_change),
            "algorithm_log": self._of_nodes(self._on_log),
            "node_info_update": self._of_nodes(self._on_node_info),
        }
        for event, listener in listeners.items():
            self._server.on(event, self._while_open(listener), namespace=NAMESPACE)
        watch = threading.Thread(
            target=self._watch_presence, args=(self._closing,), name="sandbox-presence", daemon=True
        )
        watch.start()
        return self._server

    def _while_open(self, listen: Callable[..., None]) -> Callable[..., None]:
        """Make a listener that hears nothing any more once the server ends: its threads end later."""
        closing = self._closing

        def listen_while_open(*heard: object) -> None:
            if not closing.is_set():
                with contextlib.suppress(BooksClosed):
                    listen(*heard)

        return listen_while_open

    def close(self) -> None:
        """Let nobody count as present any more; connections are cut by whoever holds them."""
        self._closing.set()
        server, self._server = self._server, None
        self._forget_everybody()
        if server is not None:
            server.shutdown()

    def _forget_everybody(self) -> None:
        with self._database.transaction():
            self._guests.clear()
            for table in ("node", "user"):
                self._database.change(f"UPDATE {table} SET status = ? WHERE status = ?", OFFLINE, ONLINE)  # noqa: S608
            self._database.change("DELETE FROM node_config")

    def tell(self, event: str, content: object, room: str) -> None:
        """Send an event to a room."""
        if self._server is not None:
            self._server.emit(event, content, room=room, namespace=NAMESPACE)

    # --- coming and going ---

    def _on_connect(self, sid: str, environ: Mapping[str, Any], _auth: object = None) -> None:
        header = environ.get("HTTP_AUTHORIZATION")
        try:
            with self._database.transaction():
                guest = self._guest(header)
        except Refusal as refusal:
            if header:
                event = "expired_token" if "expired" in refusal.message else "invalid_token"
                self.tell(event, None, sid)
            return
        if not self.silent:
            self._let_in(sid, guest)

    def _guest(self, header: str | None) -> _Guest:
        caller = caller_of(self._mint.check(header), self._database)
        if caller.kind == "node":
            row = self._database.row("SELECT * FROM node WHERE id = ?", caller.id)
            return _Guest(caller, row["name"] if row else "", _rooms_of_node(row))
        name = self._database.value("SELECT username FROM user WHERE id = ?", caller.id)
        rooms = tuple(room_of(number) for number in caller.collaborations)
        return _Guest(caller, name or caller.kind, rooms)

    def _let_in(self, sid: str, guest: _Guest) -> None:
        for room in guest.rooms:
            self._join(sid, guest, room)
        with self._database.transaction():
            self._guests[sid] = guest
            self._present(guest.caller, ONLINE)
        if guest.caller.kind == "node":
            self.tell("sync", None, sid)
            self._announce("node-online", guest)

    def _join(self, sid: str, guest: _Guest, room: str) -> None:
        if self._server is not None:
            self._server.enter_room(sid, room, namespace=NAMESPACE)
            self.tell("message", f"{guest.caller.kind.title()} <{guest.name}> joined room <{room}>", room)

    def _on_disconnect(self, sid: str, *_: object) -> None:
        with self._database.transaction():
            guest = self._guests.pop(sid, None)
            # a node that came back is here already when its old connection ends
            if guest is None or any(other.caller == guest.caller for other in self._guests.values()):
                return
            self._present(guest.caller, OFFLINE)
            if guest.caller.kind == "node":
                self._database.change("DELETE FROM node_config WHERE node_id = ?", guest.caller.id)
        if guest.caller.kind == "node":
            self._announce("node-offline", guest)

    def _announce(self, event: str, guest: _Guest) -> None:
        content = {"id": guest.caller.id, "name": guest.name, "org_id": guest.caller.organization_id}
        for room in guest.rooms[:1]:
            self.tell(event, content, room)

    def _present(self, caller: Caller, status: str) -> None:
        table = "node" if caller.kind == "node" else "user"
        sql = f"UPDATE {table} SET status = ?, last_seen = ? WHERE id = ?"  # noqa: S608 - one of two words
        self._database.change(sql, status, now(), caller.id)

    def _watch_presence(self, closing: threading.Event) -> None:
        while not closing.wait(SILENCE_SECONDS):
            with contextlib.suppress(BooksClosed):
                self.forget_silent()

    def forget_silent(self, *, seconds: float = SILENCE_SECONDS) -> None:
        """Count nodes as offline that said nothing for so long."""
        since = written(datetime.now(UTC) - timedelta(seconds=seconds))
        with self._database.transaction():
            self._database.change(
                "UPDATE node SET status = ? WHERE status = ? AND last_seen < ?", OFFLINE, ONLINE, since
            )

    # --- what guests say ---

    def _on_ping(self, sid: str, *_: object) -> None:
        guest = self._guests.get(sid)
        if guest is not None:
            with self._database.transaction():
                self._present(guest.caller, ONLINE)

    def _on_join_room(self, sid: str, room: object = None, *_: object) -> None:
        """Let a user hear of one more collaboration it is in; older clients ask for this."""
        guest = self._guests.get(sid)
        if guest is None or room not in {room_of(number) for number in guest.caller.collaborations}:
            return
        self._join(sid, guest, str(room))

    def _of_nodes(self, listen: Callable[[_Guest, dict[str, Any]], None]) -> Callable[..., None]:
        """Make a listener that hears nodes only, and nothing but objects."""

        def only_nodes(sid: str, content: object = None, *_: object) -> None:
            guest = self._guests.get(sid)
            if guest is not None and guest.caller.kind == "node" and isinstance(content, dict):
                with self._database.transaction():
                    listen(guest, content)

        return only_nodes

    def _on_status_change(self, guest: _Guest, content: dict[str, Any]) -> None:
        run = self._own_run(guest, content)
        if run is not None:
            said = {name: content.get(name) for name in _STATUS_FIELDS}
            self.tell("algorithm_status_change", said | {"job_id": run["job_id"]}, guest.rooms[0])

    def _on_log(self, guest: _Guest, content: dict[str, Any]) -> None:
        run, text = self._own_run(guest, content), content.get("log")
        if run is None or not isinstance(text, str):
            return
        text = _storable(text)
        append_log(self._database, run["id"], text)
        heard = {"run_id": run["id"], "task_id": run["task_id"], "log": text}
        self.tell("algorithm_log", heard, guest.rooms[0])

    def _own_run(self, guest: _Guest, content: dict[str, Any]) -> Any:
        run_id = content.get("run_id")
        if not isinstance(run_id, int) or not 0 < run_id < LARGEST_NUMBER:
            return None
        return self._database.row(
            "SELECT run.id, task_id, job_id FROM run JOIN task ON task.id = task_id"
            " WHERE run.id = ? AND node_id = ?",
            *(run_id, guest.caller.id),
        )

    def _on_node_info(self, guest: _Guest, content: dict[str, Any]) -> None:
        node_id = guest.caller.id
        self._database.change("DELETE FROM node_config WHERE node_id = ?", node_id)
        for key, value in flattened(content)[:_CONFIG_LIMIT]:
            self._database.change(
                "INSERT INTO node_config (node_id, key, value) VALUES (?, ?, ?)", node_id, key, value
            )


def flattened(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Lay out what a node tells as pairs of text: lists item by item, objects one level deep."""
    pairs: list[tuple[str, str]] = []
    for key, value in content.items():
        if isinstance(value, dict):
            pairs += [pair for inner, found in value.items() for pair in _pairs(inner, found)]
        else:
            pairs += _pairs(key, value)
    return pairs


def _pairs(key: str, value: object) -> list[tuple[str, str]]:
    return [(_storable(key), _as_text(item)) for item in (value if isinstance(value, list) else [value])]


def _as_text(value: object) -> str:
    return str(int(value)) if isinstance(value, bool) else _storable(str(value))


def _storable(text: str) -> str:
    """Give a text without halves of characters, which JSON may hold and the database cannot."""
    return text.encode(errors="replace").decode()


def _rooms_of_node(row: Any) -> tuple[str, ...]:
    if row is None:
        return ()
    room = room_of(row["collaboration_id"])
    return (room, f"{room}_organization_{row['organization_id']}", "all_nodes")


def _silent() -> logging.Logger:
    """Give a logger that says nothing: the library writes tokens at some levels."""
    logger = logging.getLogger("node_agent.sandbox.socket")
    logger.setLevel(logging.CRITICAL + 1)
    logger.propagate = False
    return logger
