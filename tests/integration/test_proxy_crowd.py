"""Many containers at the proxy at once, some of which mean ill: whoever comes in between is served."""

import resource
import socket
import threading
from base64 import b64encode
from contextlib import ExitStack, closing, contextmanager, suppress
from hashlib import sha256
from ipaddress import IPv4Network

import psutil
import pytest

from node_agent.domain.ports import ProxiedResponse
from node_agent.proxy.app import MAX_PER_RUN, ProxyApp
from node_agent.proxy.inquiry import Caller
from node_agent.proxy.sealer import PlainSealer
from node_agent.proxy.server import CONNECTIONS, CONNECTIONS_EACH, ProxyServer
from node_agent.proxy.spool import Spool
from node_agent.proxy.turns import SHARE

LONG = 60
"""Seconds; nothing takes as long, even on a busy machine."""
MB = 1 << 20
MAX_BODY = 64 * MB
ALICE, BOB = 1, 2


class Server:
    """Answers at once, or when it may; each call is of some length."""

    def __init__(self):
        self.content = b"{}"
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.asked = threading.Semaphore(0)

    @contextmanager
    def __call__(self, request):
        self.asked.release()
        if request.path in {"task/1", "version"}:
            assert self.may_answer.wait(LONG)
        yield ProxiedResponse(status=200, body=[self.content], content_type="application/json")


class Crowd:
    """The proxy on loopback; each address from 127.0.0.2 on is a container."""

    def __init__(self, folder, **settings):
        self.upstream = Server()
        self.callers = {}
        self.room = 8 * MAX_BODY
        self.spool = Spool(folder, total=self.room)
        app = ProxyApp(
            forward=self.upstream,
            caller_of_token=self.callers.get,
            on_subtask=lambda _: None,
            spool=self.spool,
            max_body=MAX_BODY,
        )
        app.seal_with(PlainSealer())
        self.proxy = ProxyServer(
            app, address="127.0.0.1", port=0, spool=self.spool, max_body=MAX_BODY, holds=app, **settings
        )
        self._stack = ExitStack()

    def __enter__(self):
        self.proxy.start()
        return self

    def __exit__(self, *_):
        self._stack.close()
        self.proxy.stop()

    def knows(self, run, user):
        """Let a run be known; return its token."""
        token = b64encode(f"run {run}".encode()).decode()
        digest = sha256(token.encode()).hexdigest()
        self.callers[digest] = Caller(run=run, task=1, job=1, collaboration=1, user=user)
        return token

    def line(self, number):
        """Connect as a container."""
        made = socket.create_connection(
            ("127.0.0.1", self.proxy.port), LONG, source_address=(f"127.0.0.{number}", 0)
        )
        return self._stack.enter_context(closing(made))

    def ask(self, number, token, path="/task/1"):
        """Send a call as a container; the answer is not awaited."""
        line = self.line(number)
        line.sendall(
            f"GET {path} HTTP/1.1\r\nHost: p\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
        )
        return line


def everything(line):
    found = bytearray()
    with suppress(ConnectionError):
        while piece := line.recv(MB):
            found += piece
    return bytes(found)


@pytest.fixture
def many_files():
    """Let this process open as many files as both ends of all connections need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4 * CONNECTIONS), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_files")
def test_nine_runs_that_hold_all_they_may_do_not_delay_the_call_of_another(tmp_path):
    with Crowd(tmp_path / "spool") as crowd:
        token = crowd.knows(1, BOB)
        before = psutil.Process().memory_info().rss
        lines = [crowd.line(number) for number in range(3, 12) for _ in range(CONNECTIONS_EACH)]
        for line in lines:
            line.send(b"G")
        answers = [everything(crowd.ask(2, token)) for _ in range(20)]
        assert all(answer.startswith(b"HTTP/1.1 200 ") for answer in answers)
        assert len(lines) > CONNECTIONS
        # both ends of each connection are in this process
        assert psutil.Process().memory_info().rss - before < 40 * MB


@pytest.mark.usefixtures("many_files")
def test_whoever_has_the_most_connections_loses_one_that_has_no_call(tmp_path):
    with Crowd(tmp_path / "spool") as crowd:
        token = crowd.knows(1, BOB)
        crowd.upstream.may_answer.clear()
        call = crowd.ask(3, token)
        assert crowd.upstream.asked.acquire(timeout=LONG)
        lines = [crowd.line(number) for number in range(3, 12) for _ in range(CONNECTIONS_EACH - 1)]
        few = [crowd.line(12) for _ in range(3)]
        crowd.upstream.may_answer.set()
        assert everything(call).startswith(b"HTTP/1.1 200 ")
        for line in few:
            line.sendall(b"GET /version HTTP/1.0\r\n\r\n")
            assert everything(line).startswith(b"HTTP/1.0 200 ")
        assert len(lines) + len(few) > CONNECTIONS


@pytest.mark.parametrize(
    "beginning", [b"GET /task/1 HTTP/1.1\r\n", b"POST /task HTTP/1.1\r\nContent-Length: 99\r\n\r\n"]
)
def test_a_request_that_comes_byte_by_byte_is_cut_off(tmp_path, beginning):
    with Crowd(tmp_path / "spool", idle_seconds=2, request_seconds=1) as crowd:
        line = crowd.line(2)
        line.sendall(beginning)
        line.settimeout(0.1)
        pause = threading.Event()
        for _ in range(10 * LONG):
            try:
                line.send(b"x")
            except OSError:
                break
            pause.wait(0.1)
        else:
            pytest.fail("the connection still stands")


def test_a_large_body_that_comes_steadily_has_the_time_it_needs(tmp_path):
    with Crowd(tmp_path / "spool", request_seconds=0) as crowd:
        token = crowd.knows(1, BOB)
        body = b'{"organizations": [{"id": 1, "input": "' + b"QUJD" * (MB // 2) + b'"}]}'
        line = crowd.line(2)
        head = f"POST /task HTTP/1.1\r\nHost: p\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n"
        line.sendall(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        assert everything(line).startswith(b"HTTP/1.1 200 ")


def test_an_answer_that_is_read_byte_by_byte_is_cut_off_and_its_room_given_back(tmp_path):
    with Crowd(tmp_path / "spool", idle_seconds=2, request_seconds=1) as crowd:
        # more than the kernel keeps for both ends
        crowd.upstream.content = b"x" * (48 * MB)
        line = crowd.line(2)
        line.sendall(f"GET /task/1 HTTP/1.0\r\nAuthorization: Bearer {crowd.knows(1, BOB)}\r\n\r\n".encode())
        read, pause = len(line.recv(1024)), threading.Event()
        for _ in range(100 * LONG):
            if not crowd.spool.taken:
                break
            read += len(line.recv(1024))
            pause.wait(0.01)
        assert crowd.spool.taken == 0
        assert read + len(everything(line)) < len(crowd.upstream.content)


def test_many_runs_of_one_researcher_leave_threads_to_another(tmp_path):
    with Crowd(tmp_path / "spool") as crowd:
        crowd.upstream.may_answer.clear()
        calls = [
            crowd.ask(run, token)
            for run in range(3, 9)
            for token in [crowd.knows(run, ALICE)]
            for _ in range(MAX_PER_RUN)
        ]
        for _ in range(SHARE):
            assert crowd.upstream.asked.acquire(timeout=LONG)
        # while alice's calls have all the threads they may have, bob's is answered
        answer = everything(crowd.ask(2, crowd.knows(2, BOB), "/organization"))
        assert answer.startswith(b"HTTP/1.1 200 ")
        crowd.upstream.may_answer.set()
        assert all(everything(call).startswith(b"HTTP/1.1 200 ") for call in calls)


def test_runs_of_one_researcher_have_one_share_of_the_disk_and_strangers_have_none(tmp_path):
    with Crowd(tmp_path / "spool") as crowd:
        body = b'{"organizations": [{"id": 1, "input": "' + b"x" * (60 * MB)
        for number, token in ((3, "nobody"), *((run, crowd.knows(run, ALICE)) for run in range(4, 24))):
            line = crowd.line(number)
            head = f"POST /task HTTP/1.1\r\nHost: p\r\nAuthorization: Bearer {token}\r\n"
            with suppress(ConnectionError):
                line.sendall(head.encode() + b"Content-Length: %d\r\n\r\n" % (61 * MB) + body)
        assert crowd.spool.taken <= crowd.room // 2
        token = crowd.knows(2, BOB)
        content = b'{"organizations": [{"id": 1, "input": "' + b"QUJD" * MB + b'"}]}'
        head = f"POST /task HTTP/1.1\r\nHost: p\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n"
        line = crowd.line(2)
        line.sendall(head.encode() + b"Content-Length: %d\r\n\r\n" % len(content) + content)
        assert everything(line).startswith(b"HTTP/1.1 200 ")


def test_calls_without_a_token_leave_threads_to_others(tmp_path):
    with Crowd(tmp_path / "spool") as crowd:
        crowd.upstream.may_answer.clear()
        token = crowd.knows(1, BOB)
        open_calls = [crowd.ask(number, "nobody", "/version") for number in range(3, 60)]
        assert crowd.upstream.asked.acquire(timeout=LONG)
        assert everything(crowd.ask(2, token, "/organization")).startswith(b"HTTP/1.1 200 ")
        crowd.upstream.may_answer.set()
        assert all(everything(call).startswith(b"HTTP/1.1 200 ") for call in open_calls)


@pytest.mark.parametrize(("number", "answers"), [(2, True), (1, False), (200, False)])
def test_only_containers_of_the_network_are_answered(tmp_path, number, answers):
    # 127.0.0.1 stands for the gateway's own address, 127.0.0.200 for a container of another network
    with Crowd(tmp_path / "spool", clients=IPv4Network("127.0.0.0/28")) as crowd:
        line = crowd.line(number)
        try:
            line.sendall(b"GET /version HTTP/1.0\r\n\r\n")
        except ConnectionError:
            assert not answers
        assert everything(line).startswith(b"HTTP/1.0 200 ") is answers
