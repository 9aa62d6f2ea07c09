"""The embedded server as one thing to start and stop: database, REST, sockets, listener.

Owns the threads and the listening socket. May be stopped and started again on the same port with the same books.
"""

import contextlib
import fcntl
import os
import socket
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final, Self

import socketio
from werkzeug.serving import ThreadedWSGIServer, WSGIRequestHandler

from node_agent.domain.secret import Secret
from node_agent.errors import ConfigError
from node_agent.sandbox.server.call import Backend
from node_agent.sandbox.server.database import Database
from node_agent.sandbox.server.faults import Faults
from node_agent.sandbox.server.links import Links
from node_agent.sandbox.server.population import (
    Credentials,
    Plan,
    is_populated,
    load_credentials,
    populate,
    save_credentials,
)
from node_agent.sandbox.server.rooms import Rooms
from node_agent.sandbox.server.tokens import Lifetimes, Mint, new_secret
from node_agent.sandbox.server.web import WebApp

LOOPBACK: Final = "127.0.0.1"
API_PATH: Final = "/api"
PURPOSE: Final = "This server is for demos, development and tests only; do not put real data behind it."
_POLL_SECONDS: Final = 0.05
_EVERYWHERE: Final = frozenset({"0.0.0.0", "::", ""})  # noqa: S104 - recognised, not bound to


class SandboxServer:
    """A coordinating server on this machine.

    Without a state directory everything is in memory and gone at the end. A state directory that holds a sandbox
    already is used as it is, whatever the plan says.
    """

    def __init__(
        self,
        plan: Plan | None = None,
        *,
        host: str = LOOPBACK,
        port: int = 0,
        api_path: str = API_PATH,
        state_dir: Path | None = None,
        lifetimes: Lifetimes | None = None,
    ) -> None:
        self._host, self._port = host, port
        self._api_path = normal_path(api_path)
        self.faults = Faults()
        with contextlib.ExitStack() as stack:
            if state_dir is not None:
                stack.enter_context(_claimed(state_dir))
            self.database = stack.enter_context(contextlib.closing(_database_in(state_dir)))
            self.credentials = _credentials_of(self.database, plan or Plan.of(), state_dir)
            self.mint = Mint(_secret_of(self.database), lifetimes)
            # close() closes them from here on; until here a failure does
            self._opened = stack.pop_all()
        self.rooms = Rooms(self.database, self.mint)
        backend = Backend(
            database=self.database, mint=self.mint, links=Links(self._api_path), tell=self.rooms.tell
        )
        self._web = WebApp(backend, api_path=self._api_path, faults=self.faults, cut=_cut_caller)
        self._http: _Listener | None = None

    # --- where it is and who takes part ---

    @property
    def root(self) -> str:
        """The address without the API's path, where Socket.IO answers."""
        return f"http://{LOOPBACK if self._host in _EVERYWHERE else self._host}:{self._port}"

    @property
    def url(self) -> str:
        """The REST base."""
        return f"{self.root}{self._api_path}"

    @property
    def organizations(self) -> tuple[str, ...]:
        """The names of the organizations, in the order they were planned."""
        return tuple(self.organization_ids)

    @property
    def organization_ids(self) -> dict[str, int]:
        """The ids of the organizations by name."""
        rows = self.database.rows("SELECT name, id FROM organization ORDER BY id")
        return {row["name"]: row["id"] for row in rows}

    @property
    def collaboration_ids(self) -> dict[str, int]:
        """The ids of the collaborations by name."""
        rows = self.database.rows("SELECT name, id FROM collaboration ORDER BY id")
        return {row["name"]: row["id"] for row in rows}

    @property
    def collaboration_id(self) -> int:
        """The id of the first collaboration."""
        return next(iter(self.collaboration_ids.values()))

    @property
    def node_ids(self) -> dict[str, int]:
        """The ids of the first collaboration's nodes by the name of their organization."""
        rows = self.database.rows(
            "SELECT organization.name, node.id FROM node JOIN organization ON organization.id = organization_id"
            " WHERE collaboration_id = ? ORDER BY node.id",
            self.collaboration_id,
        )
        return {row["name"]: row["id"] for row in rows}

    @property
    def passwords(self) -> Mapping[str, Secret]:
        """The password of each organization's user, who has the organization's name."""
        return self.credentials.passwords

    @property
    def api_keys(self) -> Mapping[str, Secret]:
        """The API key of each organization's node in its first collaboration."""
        return {name: self.credentials.api_key(name) for name in self.node_ids}

    # --- start and stop ---

    def start(self) -> None:
        """Listen; on the port it had before, if it had one. Raises ConfigError when the place is taken."""
        if self._http is not None:
            return
        listener = _bound(self._host, self._port)
        app = socketio.WSGIApp(self.rooms.open(), self._web)
        with listener:
            # given a bound socket, because the library would end the process when the port is taken
            self._http = _Listener(self._host, self._port, app, _QuietHandler, fd=listener.fileno())
        self._port = self._http.server_address[1]
        threading.Thread(
            target=self._http.serve_forever, args=(_POLL_SECONDS,), name="sandbox-server", daemon=True
        ).start()

    def stop(self) -> None:
        """Go away as in an outage: every connection is cut; the books stay."""
        http, self._http = self._http, None
        if http is None:
            return
        http.shutdown()
        http.cut()
        http.server_close()
        self.rooms.close()

    def close(self) -> None:
        """Stop, and close the books."""
        self.stop()
        self._opened.close()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def normal_path(api_path: str) -> str:
    """Give a path with a slash in front and none at the end; empty for none."""
    words = api_path.strip("/")
    if not all(letter.isalnum() or letter in "/-_." for letter in words):
        raise ConfigError(
            f"This is no path: {api_path!r}.", hint="Use something like --api-path /api, or ''."
        )
    return f"/{words}" if words else ""


def _claimed(state_dir: Path) -> IO[str]:
    """Make the state directory and keep every other sandbox out of it, as long as the file is open."""
    try:
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = (state_dir / "lock").open("w")
    except OSError as error:
        raise ConfigError(f"The state directory {state_dir} cannot be used: {error.strerror}.") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise ConfigError(
            f"Another sandbox uses the state directory {state_dir}.",
            hint="Stop it, or choose another --state-dir.",
        ) from error
    return lock


def _database_in(state_dir: Path | None) -> Database:
    if state_dir is None:
        return Database()
    file = state_dir / "server.sqlite"
    # made before SQLite does, whose files everybody may read
    os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))
    return Database(file)


def _credentials_of(database: Database, plan: Plan, state_dir: Path | None) -> Credentials:
    """Return the credentials of everybody in the database, which is filled as planned when it is empty."""
    if state_dir is None:
        return populate(database, plan)
    secrets_file = state_dir / "credentials.json"
    if not is_populated(database):
        with database.transaction():
            save_credentials(populate(database, plan), secrets_file)
    return load_credentials(secrets_file)


def _secret_of(database: Database) -> str:
    """Give the secret tokens are signed with; the same after a restart, so that clients stay logged in."""
    with database.transaction():
        found: str | None = database.value("SELECT value FROM setting WHERE name = 'secret'")
        if found is None:
            found = new_secret()
            database.change("INSERT INTO setting VALUES ('secret', ?)", found)
    return found


def _bound(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port))
    except OSError as error:
        raise ConfigError(
            f"The sandbox cannot listen on {host}:{port}: {error.strerror}.",
            hint="Choose another --port, or 0 for any that is free.",
        ) from error


# --- the listener -----------------------------------------------------------------------------------------------


class _QuietHandler(WSGIRequestHandler):
    """Writes no access log."""

    def log(self, *_: object, **__: object) -> None:
        """Say nothing."""

    def handle_one_request(self) -> None:
        """Answer one request; a connection cut on purpose is no news."""
        try:
            super().handle_one_request()
        except (OSError, ValueError):
            self.close_connection = True


class _Listener(ThreadedWSGIServer):
    """Remembers its connections, so that they can be cut."""

    def __init__(self, *args: Any, **rest: Any) -> None:
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        super().__init__(*args, **rest)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer a connection in its own thread."""
        with self._lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection."""
        with self._lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: connections are cut at any time."""

    def cut(self) -> None:
        """Cut every connection."""
        with self._lock:
            connections: Sequence[socket.socket] = list(self._open)
        for connection in connections:
            _cut(connection)


def _cut_caller(environ: dict[str, Any]) -> None:
    _cut(environ["werkzeug.socket"])


def _cut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # it was gone already
