"""What the compute API meets on this machine: programs and services that decide about access, and its own address."""

import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from node_agent.checks import Verdict
from node_agent.compute.access import AskedCommand, AskedService, Question
from node_agent.compute.callback import MAX_ANSWER, fetch_of
from node_agent.compute.program import MAX_SAID, ask_program
from node_agent.compute.readiness import check_address
from node_agent.compute.sighting import is_listened_on
from node_agent.compute.signatures import Address
from node_agent.domain.assets import DataSet, derived_did
from node_agent.errors import ConfigError
from tests.doubles.certificate import own_certificate
from tests.ports import free_port

ANNE = Address("0x" + "a" * 40)
QUESTION = Question(
    consumer=ANNE,
    data_set=DataSet(did=derived_did("data"), label="patients", service_id="0"),
    algorithm="raw",
    order="an order",
    environment="small",
)
PATIENCE = 30.0


# --- a program ------------------------------------------------------------------------------------------------


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str], Path]:
    """A program of the owner, made from the lines of a shell script."""

    def make(script: str) -> Path:
        file = tmp_path / "decide"
        file.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        file.chmod(0o755)
        return file

    return make


def asked(command: Path) -> str | None:
    return AskedCommand(command, seconds=PATIENCE).right_to(QUESTION)


def gone(pid: int) -> bool:
    """Tell whether the process has ended; one that nobody has waited for yet has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def waits_until(is_so: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE
    while not is_so() and time.monotonic() < deadline:
        time.sleep(0.02)
    return is_so()


def test_a_program_that_ends_well_lets_in_and_says_why(program: Callable[[str], Path]) -> None:
    assert asked(program("echo approved by the board; echo more")) == "approved by the board"
    assert asked(program("true")) == "command"


def test_a_program_reads_the_question_as_json(program: Callable[[str], Path], tmp_path: Path) -> None:
    assert asked(program(f"cat > {tmp_path}/question")) == "command"
    assert json.loads((tmp_path / "question").read_text()) == QUESTION.as_object()
    assert QUESTION.as_object()["consumerAddress"] == ANNE


@pytest.mark.parametrize(
    ("script", "told"), [("exit 1", []), ("exit 3", ["exit code 3"]), ("kill -9 $$", ["exit code -9"])]
)
def test_every_other_end_refuses_and_only_an_odd_one_is_told(
    script: str, told: list[str], program: Callable[[str], Path]
) -> None:
    with capture_logs() as lines:
        assert asked(program(script)) is None
    assert [line["reason"] for line in lines] == told


def test_a_program_that_cannot_be_started_refuses(tmp_path: Path) -> None:
    with capture_logs() as lines:
        assert asked(tmp_path / "nothing") is None
    assert [(line["event"], line["reason"]) for line in lines] == [
        ("access_not_answered", "FileNotFoundError")
    ]


def test_a_program_sees_next_to_nothing_of_the_agent(
    program: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALPHA_API_KEY", "a secret")
    assert asked(
        program(f"env > {tmp_path}/seen; pwd >> {tmp_path}/seen; ls /proc/self/fd >> {tmp_path}/seen")
    )
    seen = (tmp_path / "seen").read_text().splitlines()
    assert "/" in seen
    assert not [line for line in seen if "ALPHA" in line or line.startswith("HOME=")]
    # the three every program has, and the one with which it lists them
    assert {line for line in seen if line.isdigit()} <= {"0", "1", "2", "3"}


def test_what_it_says_is_kept_to_a_bound_and_its_end_still_counts(program: Callable[[str], Path]) -> None:
    answer = ask_program(program("head -c 5000000 /dev/zero | tr '\\0' x; exit 7"), b"", seconds=PATIENCE)
    assert (answer.code, answer.said) == (7, b"x" * MAX_SAID)


def test_letters_that_steer_a_terminal_are_left_out(program: Callable[[str], Path]) -> None:
    assert asked(program("printf '\\033[2Jboard\\007\\n'")) == "[2Jboard"
    assert len(asked(program("head -c 4000 /dev/zero | tr '\\0' x")) or "") == 200


def test_a_program_that_takes_too_long_is_ended_with_all_it_started(
    program: Callable[[str], Path], tmp_path: Path
) -> None:
    command = program(
        f"sleep 600 & echo $! > {tmp_path}/child; echo $$ > {tmp_path}/own; echo yes; sleep 600"
    )
    files = [tmp_path / name for name in ("own", "child")]
    for seconds in (0.5, 4.0, PATIENCE):  # a busy machine may take long until the program has said who it is
        with capture_logs() as lines:
            assert AskedCommand(command, seconds=seconds).right_to(QUESTION) is None
        assert [line["reason"] for line in lines] == ["TimeoutError"]
        if all(file.exists() and file.read_text().strip() for file in files):
            break
    pids = [int(file.read_text()) for file in files]
    assert waits_until(lambda: all(map(gone, pids)))


def test_what_a_program_leaves_running_is_not_waited_for_and_ends_too(
    program: Callable[[str], Path], tmp_path: Path
) -> None:
    answer = ask_program(program(f"sleep 600 & echo $! > {tmp_path}/child; echo yes"), b"", seconds=PATIENCE)
    assert (answer.code, answer.said) == (0, b"yes\n")
    assert waits_until(lambda: gone(int((tmp_path / "child").read_text())))


def test_a_long_question_that_nobody_reads_is_no_hindrance(program: Callable[[str], Path]) -> None:
    assert ask_program(program("exit 0"), b"x" * 5_000_000, seconds=PATIENCE).code == 0


# --- a service ------------------------------------------------------------------------------------------------


class Service:
    """A service of the owner; *answer* writes what it answers."""

    def __init__(self, *, context: ssl.SSLContext | None = None) -> None:
        self.questions: list[Any] = []
        self.paths: list[str] = []
        self.answer: Callable[[BaseHTTPRequestHandler], None] = says({"allowed": True})
        service = self

        class Desk(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                service.paths.append(self.path)
                service.questions.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                service.answer(self)

            def log_message(self, *_words: object) -> None:
                return

        self.over = threading.Event()
        self._server = _Quiet(("127.0.0.1", free_port()), Desk)
        if context is not None:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        self.url = f"{'http' if context is None else 'https'}://127.0.0.1:{self._server.server_port}/ask"

    def stop(self) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Quiet(ThreadingHTTPServer):
    def handle_error(self, *_anything: object) -> None:
        """Say nothing of callers who went away."""


def says(answer: object, *, status: int = 200, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer_with(desk: BaseHTTPRequestHandler) -> None:
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        desk.send_response(status)
        for name, value in headers.items():
            desk.send_header(name, value)
        desk.send_header("Content-Length", str(len(content)))
        desk.end_headers()
        desk.wfile.write(content)

    return answer_with


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    yield made
    made.stop()


def right_at(service: Service, *, seconds: float = PATIENCE) -> str | None:
    return AskedService(fetch_of(service.url, seconds=seconds)).right_to(QUESTION)


def test_a_service_that_allows_lets_in_and_says_why(service: Service) -> None:
    service.answer = says({"allowed": True, "reference": "contract 7"})
    assert right_at(service) == "contract 7"
    service.answer = says({"allowed": True})
    assert right_at(service) == "callback"
    assert service.questions == [QUESTION.as_object()] * 2
    assert service.paths == ["/ask"] * 2


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ({"allowed": False}, 200),
        ({"allowed": "yes"}, 200),
        ({"allowed": 1}, 200),
        ({}, 200),
        ([True], 200),
        (b"allowed", 200),
        (b"[" * 50_000, 200),
        ({"allowed": True}, 201),
        ({"allowed": True}, 403),
        ({"allowed": True}, 500),
        (b'{"allowed": true, "reference": "' + b"x" * MAX_ANSWER + b'"}', 200),
    ],
    ids=lambda value: str(value)[:30],
)
def test_every_other_answer_refuses(answer: object, status: int, service: Service) -> None:
    service.answer = says(answer, status=status)
    assert right_at(service) is None
    assert len(service.questions) == 1


def test_no_redirect_is_followed(service: Service) -> None:
    other = Service()
    try:
        service.answer = says({"allowed": True}, status=307, Location=other.url)
        assert right_at(service) is None
        assert other.questions == []
    finally:
        other.stop()


def test_a_service_that_is_away_refuses() -> None:
    with capture_logs() as lines:
        assert AskedService(fetch_of("http://127.0.0.1:1/ask")).right_to(QUESTION) is None
    assert [(line["by"], line["reason"]) for line in lines] == [("callback", "ConnectionRefusedError")]


def test_something_that_speaks_no_http_refuses(service: Service) -> None:
    service.answer = lambda desk: desk.wfile.write(b"hello\r\n\r\n") and None
    assert right_at(service) is None


@pytest.mark.parametrize("part", [b"H", b"HTTP/1.0 200 OK\r\nX: ", b"HTTP/1.0 200 OK\r\n\r\n{"])
def test_a_service_that_dawdles_is_left_within_the_time(part: bytes, service: Service) -> None:
    def drip(desk: BaseHTTPRequestHandler) -> None:
        desk.wfile.write(part)
        while not service.over.wait(0.05):
            desk.wfile.write(b" ")

    service.answer = drip
    with capture_logs() as lines:
        assert right_at(service, seconds=0.3) is None
    assert [line["reason"] for line in lines] == ["TimeoutError"]


def test_the_machines_proxy_is_not_asked(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert right_at(service) == "callback"


def test_a_service_with_a_certificate_needs_one_that_is_trusted(tmp_path: Path) -> None:
    own = own_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own.chain, own.key)
    service = Service(context=context)
    try:
        assert AskedService(fetch_of(service.url, ca_bundle=own.chain)).right_to(QUESTION) == "callback"
        with capture_logs() as lines:
            assert right_at(service) is None
        assert [line["reason"] for line in lines] == ["SSLCertVerificationError"]
    finally:
        service.stop()


def test_authorities_that_cannot_be_read_are_told_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be used"):
        fetch_of("https://example.org/ask", ca_bundle=tmp_path / "none")


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_nothing_stays_open_after_an_answer(service: Service) -> None:
    fetch = fetch_of(service.url)
    fetch({})
    before = open_files()
    for _ in range(5):
        fetch({})
    assert waits_until(lambda: open_files() <= before + 2)


def test_a_silent_listener_is_left_within_the_time() -> None:
    with socket.create_server(("127.0.0.1", free_port())) as listener:
        url = f"https://127.0.0.1:{listener.getsockname()[1]}/"
        with capture_logs() as lines:
            assert AskedService(fetch_of(url, seconds=0.3)).right_to(QUESTION) is None
    assert [line["reason"] for line in lines] == ["TimeoutError"]


# --- the address ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_who_listens_is_seen_without_a_call(host: str) -> None:
    port = free_port()
    assert not is_listened_on(host, port)
    with socket.create_server((host, port)):
        assert is_listened_on(host, port)
        assert not is_listened_on("127.0.0.9", port)
    assert not is_listened_on(host, port)


def test_an_address_is_free_or_in_use() -> None:
    port = free_port()
    listen = f"127.0.0.1:{port}"
    assert check_address(listen, None).found == f"{listen} is free"
    with socket.create_server(("127.0.0.1", port)):
        taken = check_address(listen, None)
        assert (taken.verdict, taken.found) == (Verdict.FAIL, f"{listen} is in use")
        own = check_address(listen, 7)
        assert (own.verdict, own.found) == (Verdict.OK, f"{listen} is listened on, as the agent runs")
    late = check_address(listen, 7)
    assert (late.verdict, late.todo) == (
        Verdict.WARNING,
        "It takes compute_api up when it is started again.",
    )


def test_an_address_of_another_machine_is_told() -> None:
    result = check_address(f"192.0.2.1:{free_port()}", None)
    assert (result.verdict, "is no address of this machine" in result.found) == (Verdict.FAIL, True)
