"""How one connection is shared by threads, and what it asks an engine that may be exchanged for another one."""

import contextlib
import gc
import json
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingUnixStreamServer
from typing import Any

import pytest

from node_agent.errors import EngineUnreachable
from node_agent.runtime.connection import EngineConnection

PATIENCE = 60.0


class Engine(ThreadingUnixStreamServer):
    """Tells its version and nothing else; listens at *address*."""

    def __init__(self, address: Path, *, version: str) -> None:
        super().__init__(str(address), Answer)
        self.version = version
        self.asked: Counter[str] = Counter()
        self.connections = 0
        self._open: list[socket.socket] = []

    def get_request(self) -> tuple[socket.socket, Any]:
        """Let a visitor in."""
        self.connections += 1
        visitor, address = super().get_request()
        self._open.append(visitor)
        return visitor, address

    def server_close(self) -> None:
        """End as a process does: with all its connections."""
        for visitor in self._open:
            with contextlib.suppress(OSError):
                visitor.shutdown(socket.SHUT_RDWR)
        super().server_close()


class Answer(BaseHTTPRequestHandler):
    """Answers one visitor of an engine."""

    protocol_version = "HTTP/1.1"
    server: Engine

    def do_GET(self) -> None:
        self.server.asked[self.path] += 1
        is_known = self.path.startswith(("/version", f"/v{self.server.version}/"))
        said = {"ApiVersion": self.server.version} if is_known else {"message": "client version is too new"}
        body = json.dumps(said).encode()
        self.send_response(200 if is_known else 400)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Site:
    """A place where one engine after the other listens, and a connection to it."""

    def __init__(self, address: Path) -> None:
        self._address = address
        self.connection = EngineConnection(f"unix://{address}")

    def install(self, version: str) -> Engine:
        """Let an engine listen here instead of the one before."""
        self.remove()
        self.engine = Engine(self._address, version=version)
        self._thread = threading.Thread(target=self.engine.serve_forever, args=(0.01,))
        self._thread.start()
        return self.engine

    def remove(self) -> None:
        """Let nobody listen."""
        if self._address.exists():
            self.engine.shutdown()
            self._thread.join(PATIENCE)
            self.engine.server_close()
            self._address.unlink()

    def ask(self) -> str:
        """Ask the engine something; give the version that was spoken."""
        with self.connection.client() as client:
            client.info()
            return str(client.api_version)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path / "engine.sock")
    yield made
    made.remove()


def in_threads(site: Site, number: int) -> None:
    """Ask in so many threads, one after the other."""
    for _ in range(number):
        thread = threading.Thread(target=site.ask)
        thread.start()
        thread.join(PATIENCE)


def test_an_engine_is_asked_for_its_version_once_however_many_threads_there_are(site: Site) -> None:
    engine = site.install("1.41")
    in_threads(site, 5)
    assert engine.asked == {"/version": 1, "/v1.41/info": 5}
    # the first one asks for the version, before it is known how the engine is talked to
    assert engine.connections <= 2


def test_who_asks_while_another_does_gets_a_client_of_his_own_and_the_version_is_known(site: Site) -> None:
    engine = site.install("1.41")
    with site.connection.client() as one, site.connection.client() as two:
        assert one is not two
        assert one.api_version == two.api_version == "1.41"
    assert engine.asked == {"/version": 1}


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("version", ["1.40", "1.43"])
def test_an_engine_that_was_away_is_asked_again_for_its_version(site: Site, version: str) -> None:
    site.install("1.41")
    assert site.ask() == "1.41"
    site.remove()
    with pytest.raises(EngineUnreachable, match="does not answer"):
        site.ask()
    site.install(version)
    assert site.ask() == version
    # The library leaves its socket to the collector when a connection is refused.
    gc.collect()


def test_an_engine_that_speaks_another_version_all_of_a_sudden_is_understood_at_the_next_try(
    site: Site,
) -> None:
    site.install("1.41").version = "1.40"
    with site.connection.client():
        pass
    site.engine.version = "1.39"
    with pytest.raises(EngineUnreachable, match="too new"):
        site.ask()
    assert site.ask() == "1.39"


def test_a_client_that_was_lent_when_the_engine_went_away_is_not_lent_again(site: Site) -> None:
    site.install("1.41")
    with site.connection.client() as before, pytest.raises(EngineUnreachable), site.connection.errors():
        raise OSError("gone")
    with site.connection.client() as after:
        assert after is not before
