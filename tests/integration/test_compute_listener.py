"""The listener of the compute API against clients that are slow, silent, loud, or speak something else."""

import http.client
import json
import socket
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pytest

from node_agent.compute.fields import MAX_BODY
from node_agent.compute.server import MAX_BODY as MOST_READ
from node_agent.compute.server import THREADS, Certificate, ComputeServer
from node_agent.errors import ConfigError
from tests.doubles.certificate import own_certificate
from tests.doubles.compute_scene import ANNE, NODE, Scene
from tests.ports import free_port

WAIT = 60
NONCE = f"/api/services/nonce?userAddress={ANNE.shown}"


@dataclass(frozen=True)
class Listener:
    port: int
    trust: ssl.SSLContext | None

    def connect(self) -> socket.socket:
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=WAIT)
        return plain if self.trust is None else self.trust.wrap_socket(plain, server_hostname="127.0.0.1")

    def say(self, content: bytes) -> bytes:
        """Send something and read until the other side closes."""
        with closing(self.connect()) as connection:
            connection.sendall(content)
            return b"".join(iter(lambda: connection.recv(65536), b""))

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        if self.trust is None:
            client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT)
        else:
            client = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=WAIT, context=self.trust)
        with closing(client):
            client.request(method, path, body)
            answer = client.getresponse()
            return answer.status, answer.read()


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    made = Scene(tmp_path_factory.mktemp("compute"))
    yield made
    made.ledger.close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    made = own_certificate(tmp_path_factory.mktemp("tls"))
    return Certificate(chain=made.chain, key=made.key)


@contextmanager
def listening(
    scene: Scene, certificate: Certificate | None, *, request_seconds: float = WAIT
) -> Iterator[Listener]:
    server = ComputeServer(
        scene.api,
        address="127.0.0.1",
        port=free_port(),
        certificate=certificate,
        request_seconds=request_seconds,
    )
    server.start()
    trust = None if certificate is None else ssl.create_default_context(cafile=certificate.chain)
    yield Listener(server.port, trust)
    server.stop()


@pytest.fixture(scope="module", params=["plain", "tls"])
def listener(request: pytest.FixtureRequest, scene: Scene, certificate: Certificate) -> Iterator[Listener]:
    with listening(scene, None if request.param == "plain" else certificate) as made:
        yield made


@pytest.fixture(scope="module")
def tls(scene: Scene, certificate: Certificate) -> Iterator[Listener]:
    with listening(scene, certificate) as made:
        yield made


@pytest.fixture(scope="module", params=["plain", "tls"])
def hasty(request: pytest.FixtureRequest, scene: Scene, certificate: Certificate) -> Iterator[Listener]:
    """A listener that waits for hardly anybody."""
    chosen = None if request.param == "plain" else certificate
    with listening(scene, chosen, request_seconds=0.5) as made:
        yield made


def test_a_call_is_answered_and_its_connection_closed(listener: Listener) -> None:
    status, body = listener.ask("GET", NONCE)
    assert (status, json.loads(body).keys()) == (200, {"nonce"})
    answer = listener.say(f"GET {NONCE} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert answer.lower().count(b"connection: close") == 1


def test_a_signed_body_covers_the_address_as_it_was_sent(listener: Listener, scene: Scene) -> None:
    nonce = scene.ledger.last_nonce(ANNE.address) + 1
    target = (
        f"/api/services/compute?consumerAddress={ANNE.shown}&documentId=did%3aop%3A{'0' * 64}&nonce={nonce}"
    )
    nothing = sha256(b"").hexdigest()
    text = "\n".join(["node-agent signed-body 1", "GET", target, nothing, NODE, ANNE.address, str(nonce)])
    header = f"Signed-Body: sha256={nothing}, signature={ANNE.sign(text)}\r\n"
    answer = listener.say(f"GET {target} HTTP/1.1\r\nHost: x\r\n{header}\r\n".encode())
    assert answer.endswith(b"\r\n\r\n[]")
    assert scene.ledger.last_nonce(ANNE.address) == nonce


def test_two_hundred_calls_at_the_same_time_are_all_answered(listener: Listener) -> None:
    with ThreadPoolExecutor(200) as pool:
        answers = list(pool.map(lambda _: listener.ask("GET", NONCE), range(200)))
    assert {status for status, _ in answers} == {200}


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"nothing that is known\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"x" * 100_000 + b"\r\n\r\n", 413),
        (b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (MOST_READ + 1), 413),
        (
            b"POST /api/services/compute HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            411,
        ),
    ],
)
def test_what_is_no_request_is_refused_as_json(listener: Listener, sent: bytes, status: int) -> None:
    assert_refused(listener.say(sent), status)


def assert_refused(answer: bytes, status: int) -> None:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"application/json" in head
    assert json.loads(body).keys() == {"error"}


def test_half_a_request_is_not_waited_for(scene: Scene) -> None:
    halves = (
        b"GET /api/services/nonce HTTP/1.1\r\nHost: x\r\nAccept: half",
        b"POST /api/services/compute HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{",
    )
    with listening(scene, None, request_seconds=0.5) as hasty:
        for half in halves:
            assert_refused(hasty.say(half), 408)


@pytest.mark.parametrize("size", [MAX_BODY + 1, 4 * MAX_BODY])
def test_who_sends_too_much_gets_to_read_why(listener: Listener, size: int) -> None:
    status, body = listener.ask("POST", "/api/services/compute", b'"' + b"x" * size + b'"')
    assert (status, list(json.loads(body)["errors"])) == (400, ["body"])


def test_who_says_nothing_is_sent_away_without_an_answer(hasty: Listener) -> None:
    with closing(socket.create_connection(("127.0.0.1", hasty.port), timeout=WAIT)) as silent:
        assert silent.recv(100) == b""


def test_a_crowd_that_says_nothing_holds_nobody_up_for_long(scene: Scene) -> None:
    with listening(scene, None, request_seconds=1.0) as hasty, ExitStack() as stack:
        for _ in range(THREADS * 2):
            silent = socket.create_connection(("127.0.0.1", hasty.port), timeout=WAIT)
            stack.enter_context(closing(silent))
        assert hasty.ask("GET", NONCE)[0] == 200


def test_who_does_not_speak_tls_gets_nothing(tls: Listener) -> None:
    with closing(socket.create_connection(("127.0.0.1", tls.port), timeout=WAIT)) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        try:
            answer = plain.recv(100)
        except ConnectionResetError:
            answer = b""
    assert not answer.startswith(b"HTTP")
    assert tls.ask("GET", NONCE)[0] == 200


def test_old_versions_of_tls_are_refused(tls: Listener, certificate: Certificate) -> None:
    old = ssl.create_default_context(cafile=certificate.chain)
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    with (
        closing(socket.create_connection(("127.0.0.1", tls.port), timeout=WAIT)) as plain,
        pytest.raises((ssl.SSLError, ConnectionResetError)),
    ):
        old.wrap_socket(plain, server_hostname="127.0.0.1")


# the library leaves the socket that could not be bound to the collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_address_that_is_taken_is_said_and_so_is_a_bad_certificate(scene: Scene, tmp_path: Path) -> None:
    port = free_port()
    first = ComputeServer(scene.api, address="127.0.0.1", port=port, certificate=None)
    first.start()
    try:
        second = ComputeServer(scene.api, address="127.0.0.1", port=port, certificate=None)
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}"):
            second.start()
    finally:
        first.stop()
    (tmp_path / "x.pem").write_text("nothing")
    bad = Certificate(chain=tmp_path / "x.pem", key=tmp_path / "x.pem")
    with pytest.raises(ConfigError, match="cannot be used"):
        ComputeServer(scene.api, address="127.0.0.1", port=port, certificate=bad)


def test_a_listener_that_was_stopped_can_be_started_again(scene: Scene) -> None:
    port = free_port()
    for _ in range(2):
        server = ComputeServer(scene.api, address="127.0.0.1", port=port, certificate=None)
        server.start()
        assert Listener(port, None).ask("GET", NONCE)[0] == 200
        server.stop()
