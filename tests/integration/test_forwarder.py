"""Entrances to database servers: who comes in, what is carried, and what happens when a side goes away."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from node_agent.domain.run import RunId
from node_agent.domain.service import Entrance, ServicePlace
from node_agent.errors import ConfigError, EngineUnreachable, Transient
from node_agent.gates.forwarder import CONNECTIONS_PER_ADDRESS, Forwarder, Patience
from node_agent.gates.ways import Direct, InContainer, Way
from tests.ports import free_port

RUN, STRANGER = "127.0.0.5", "127.0.0.6"


class Server:
    """A server that does with each connection as told, in a thread of its own."""

    def __init__(self, serve: Callable[[socket.socket], None]) -> None:
        self._serve = serve
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.seen = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.seen += 1
                threading.Thread(target=self._one, args=(connection,), daemon=True).start()

    def _one(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            self._serve(connection)

    def close(self) -> None:
        self._listener.close()


def echo(connection: socket.socket) -> None:
    while piece := connection.recv(65536):
        connection.sendall(piece)


def answer_at_the_end(connection: socket.socket) -> None:
    """Speak only after the other side has said all, as half-closed connections need."""
    length = 0
    while piece := connection.recv(65536):
        length += len(piece)
    connection.sendall(str(length).encode())


@contextlib.contextmanager
def serving(serve: Callable[[socket.socket], None]) -> Iterator[Server]:
    server = Server(serve)
    try:
        yield server
    finally:
        server.close()


def entrance(label: str = "warehouse") -> Entrance:
    place = ServicePlace(host="db", port=1, before="x://", after="")
    return Entrance(label=label, host="db", port=free_port(), place=place)


@contextlib.contextmanager
def forwarding(
    way: Way,
    *,
    runs: dict[str, RunId] | None = None,
    asked: Callable[[RunId, str], bool] = lambda run_id, label: (run_id, label) == (1, "warehouse"),
    runs_at: Callable[[], dict[str, RunId]] | None = None,
    patience: Patience | None = None,
) -> Iterator[int]:
    found = {RUN: RunId(1), STRANGER: RunId(2)} if runs is None else runs
    door = entrance()
    forwarder = Forwarder(
        address="127.0.0.1",
        doors={door: way},
        runs_at=runs_at or (lambda: found),
        asked=asked,
        patience=patience,
    )
    forwarder.start()
    try:
        yield door.port
    finally:
        forwarder.stop()


def connected(port: int, source: str = RUN) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=10, source_address=(source, 0))


def is_let_in(port: int) -> bool:
    with contextlib.suppress(ConnectionError), connected(port) as run:
        run.sendall(b"x")
        return run.recv(1) == b"x"
    return False


def eventually(look: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 10
    while not look():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def all_of(connection: socket.socket) -> bytes:
    """Read to the end; a connection that is cut off has ended too."""
    said = b""
    with contextlib.suppress(ConnectionError):
        while piece := connection.recv(65536):
            said += piece
    return said


def test_a_run_that_asked_for_the_label_talks_to_the_server() -> None:
    with (
        serving(echo) as server,
        forwarding(Direct("127.0.0.1", server.port)) as port,
        connected(port) as run,
    ):
        run.sendall(b"hello")
        assert run.recv(100) == b"hello"


def test_one_side_may_end_before_the_other_has_answered() -> None:
    with (
        serving(answer_at_the_end) as server,
        forwarding(Direct("localhost", server.port)) as port,
        connected(port) as run,
    ):
        run.sendall(bytes(3_000_000))
        run.shutdown(socket.SHUT_WR)
        assert all_of(run) == b"3000000"


@pytest.mark.parametrize("source", [STRANGER, "127.0.0.7"])
def test_nobody_else_comes_in(source: str) -> None:
    with serving(echo) as server:
        with forwarding(Direct("127.0.0.1", server.port)) as port, connected(port, source) as run:
            run.sendall(b"let me in")
            assert all_of(run) == b""
        assert server.seen == 0


def test_an_address_that_was_given_to_another_run_is_judged_anew() -> None:
    runs = {RUN: RunId(1)}
    with serving(echo) as server, forwarding(Direct("127.0.0.1", server.port), runs=runs) as port:
        with connected(port) as run:
            run.sendall(b"x")
            assert run.recv(1) == b"x"
        runs[RUN] = RunId(2)
        with connected(port) as other:
            assert all_of(other) == b""


def test_a_visitor_is_judged_by_a_listing_that_began_after_it_came() -> None:
    """A listing under way when the address changes hands must not let the new holder in."""
    under_way, go_on = threading.Event(), threading.Event()
    runs = {RUN: RunId(1)}

    def slowly() -> dict[str, RunId]:
        seen = dict(runs)
        under_way.set()
        go_on.wait(10)
        return seen

    with (
        serving(echo) as server,
        forwarding(Direct("127.0.0.1", server.port), runs_at=slowly) as port,
        connected(port) as first,
    ):
        assert under_way.wait(10)
        runs[RUN] = RunId(2)
        with connected(port) as second:
            second.sendall(b"x")
            go_on.set()
            assert all_of(second) == b""
        first.sendall(b"x")
        assert first.recv(1) == b"x"


def test_a_run_the_engine_lists_a_moment_later_is_let_in() -> None:
    looks = iter([{}, {}])
    with (
        serving(echo) as server,
        forwarding(Direct("127.0.0.1", server.port), runs_at=lambda: next(looks, {RUN: RunId(1)})) as port,
        connected(port) as run,
    ):
        run.sendall(b"x")
        assert run.recv(1) == b"x"


def test_while_the_engine_is_away_nobody_comes_in_and_later_they_do() -> None:
    away = [True]

    def runs_at() -> dict[str, RunId]:
        if away:
            raise EngineUnreachable("The container engine does not answer.")
        return {RUN: RunId(1)}

    with serving(echo) as server, forwarding(Direct("127.0.0.1", server.port), runs_at=runs_at) as port:
        with connected(port) as run:
            assert all_of(run) == b""
        away.clear()
        with connected(port) as run:
            run.sendall(b"x")
            assert run.recv(1) == b"x"


def test_a_server_that_is_away_ends_the_connection_and_nothing_else() -> None:
    nobody = free_port()
    with forwarding(Direct("127.0.0.1", nobody)) as port:
        with connected(port) as run:
            assert all_of(run) == b""
        server = socket.create_server(("127.0.0.1", nobody))
        with server, connected(port) as run:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"back")
                assert run.recv(4) == b"back"


def test_a_container_is_found_again_wherever_it_is() -> None:
    addresses: list[str] = []

    def addresses_of(name: str) -> tuple[str, ...]:
        assert name == "postgres"
        if not addresses:
            raise Transient("The container postgres does not run.")
        return tuple(addresses)

    with serving(echo) as server, forwarding(InContainer("postgres", server.port, addresses_of)) as port:
        with connected(port) as run:
            assert all_of(run) == b""
        addresses += ["127.0.0.9", "127.0.0.1"]
        with connected(port) as run:
            run.sendall(b"x")
            assert run.recv(1) == b"x"


def test_a_silent_connection_ends_after_its_patience() -> None:
    patience = Patience(idle=0.3, half_closed=0.1)
    with (
        serving(echo) as server,
        forwarding(Direct("127.0.0.1", server.port), patience=patience) as port,
        connected(port) as run,
    ):
        assert all_of(run) == b""


def test_a_connection_on_which_one_side_talks_goes_on() -> None:
    def talk(connection: socket.socket) -> None:
        for _ in range(8):
            connection.sendall(b".")
            time.sleep(0.1)

    patience = Patience(idle=0.4, half_closed=0.1)
    with (
        serving(talk) as server,
        forwarding(Direct("127.0.0.1", server.port), patience=patience) as port,
        connected(port) as run,
    ):
        assert all_of(run) == b"........"


def test_a_run_has_so_many_connections_and_takes_none_from_another() -> None:
    def asked(_run_id: RunId, _label: str) -> bool:
        return True

    with (
        serving(echo) as server,
        forwarding(Direct("127.0.0.1", server.port), asked=asked) as port,
        contextlib.ExitStack() as stack,
    ):
        many = [stack.enter_context(connected(port)) for _ in range(CONNECTIONS_PER_ADDRESS)]
        for one in many:
            one.sendall(b"x")
            assert one.recv(1) == b"x"
        with connected(port) as one_too_many:
            assert all_of(one_too_many) == b""
        with connected(port, STRANGER) as other:
            other.sendall(b"x")
            assert other.recv(1) == b"x"
        many[0].close()
        assert eventually(lambda: is_let_in(port))


def test_much_is_carried_at_once_by_one_thread() -> None:
    content = bytes(range(256)) * 4096

    def there_and_back(port: int) -> bytes:
        with connected(port) as run, ThreadPoolExecutor(1) as sending:
            sending.submit(lambda: (run.sendall(content), run.shutdown(socket.SHUT_WR)))
            return all_of(run)

    with serving(echo) as server, forwarding(Direct("127.0.0.1", server.port)) as port:
        before = threading.active_count()
        with ThreadPoolExecutor(8) as runs:
            assert all(back == content for back in runs.map(there_and_back, [port] * 16))
        assert "gates" in {thread.name for thread in threading.enumerate()}
        assert threading.active_count() <= before + 2


def test_a_port_that_is_taken_is_said_with_the_label() -> None:
    door = entrance()
    forwarder = Forwarder(
        address="127.0.0.1", doors={door: Direct("h", 1)}, runs_at=dict, asked=lambda *_: False
    )
    with socket.create_server(("127.0.0.1", door.port)), pytest.raises(ConfigError, match="warehouse"):
        forwarder.start()


def test_stopping_cuts_what_is_carried(tmp_path: Path) -> None:
    with serving(echo) as server:
        with forwarding(Direct("127.0.0.1", server.port)) as port:
            run = connected(port)
            run.sendall(b"x")
            assert run.recv(1) == b"x"
        with run:
            assert all_of(run) == b""
