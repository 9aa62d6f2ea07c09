"""Bodies of any size and kind through the proxy: memory stays flat, and nobody's misbehaviour keeps others waiting."""

import gzip
import json
import socket
import subprocess
import sys
import threading
from base64 import b64decode, b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest
import requests
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from node_agent.domain.run import RunId
from node_agent.domain.secret import Secret
from node_agent.domain.task import JobId, TaskId
from node_agent.payload.envelope import seal, unseal
from node_agent.payload.keys import PrivateKey
from node_agent.proxy.app import ProxyApp
from node_agent.proxy.channel import MAX_CHUNK_LINE
from node_agent.proxy.inquiry import Caller
from node_agent.proxy.sealer import PlainSealer
from node_agent.proxy.server import CONNECTIONS_EACH, THREADS, ProxyServer
from node_agent.proxy.spool import Spool
from node_agent.server.address import ServerAddress
from node_agent.server.client import HttpServer
from node_agent.server.exchange import Exchange
from node_agent.server.tokens import Tokens

MB = 1 << 20
MAX_BODY = 8 * MB
ROOT = Path(__file__).parents[2]
TOKEN = {"Authorization": "Bearer of.the.run"}
LONG = 60
"""Seconds; nothing takes as long, even on a busy machine."""
HEAD = b"Host: proxy\r\nAuthorization: Bearer of.the.run\r\n"


# --- a server that does what it is told -------------------------------------------------------------------------


class Answers:
    """What the next calls are answered with, and what came."""

    def __init__(self):
        self.pieces = [b"{}"]
        self.headers = {"Content-Length": "2"}
        self.wait = threading.Event()
        self.wait.set()
        self.asked = threading.Semaphore(0)
        self.calls = 0
        self.received = 0
        self.digest = ""
        self.kept: list[bytes] = []

    def with_length(self, *pieces):
        self.pieces, self.headers = pieces, {"Content-Length": str(sum(map(len, pieces)))}

    def as_they_are(self, *pieces, **headers):
        self.pieces = pieces
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    answers: Answers

    def do_GET(self):
        self._answer(200)

    def do_POST(self):
        digest, left = sha256(), int(self.headers["Content-Length"])
        self.answers.received = left
        while left:
            piece = self.rfile.read(min(left, MB))
            if not piece:
                return
            left -= len(piece)
            digest.update(piece)
            self.answers.kept.append(piece)
        self.answers.digest = digest.hexdigest()
        self._answer(201)

    def _answer(self, status):
        self.answers.calls += 1
        self.answers.asked.release()
        self.answers.wait.wait(LONG)
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        for name, value in self.answers.headers.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            for piece in self.answers.pieces:
                self.wfile.write(piece)
        except OSError:
            pass
        self.close_connection = True

    def log_message(self, *_):
        pass


class Quiet(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_):
        pass


@pytest.fixture
def answers():
    return Answers()


@pytest.fixture
def url(answers):
    server = Quiet(("127.0.0.1", 0), type("Told", (Handler,), {"answers": answers}))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/api"
    answers.wait.set()
    server.shutdown()
    server.server_close()
    thread.join()


# --- memory -----------------------------------------------------------------------------------------------------


class ProxyProcess:
    def __init__(self, process):
        self._process = process
        self.url = f"http://127.0.0.1:{process.stdout.readline().strip()}"
        # whatever is loaded at the first call is no growth
        assert requests.get(f"{self.url}/version", timeout=LONG).ok
        self._idle = psutil.Process(process.pid).memory_info().rss

    def grown(self):
        lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        (peak,) = (int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))
        return peak - self._idle

    def still_on_disk(self):
        out, _ = self._process.communicate(timeout=LONG)
        return int(out)


@contextmanager
def proxy_process(*arguments) -> Iterator[ProxyProcess]:
    command = [sys.executable, "-m", "tests.integration.proxy_process", *map(str, arguments)]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield ProxyProcess(process)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def key():
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture
def key_file(key, tmp_path):
    file = tmp_path / "key.pem"
    file.touch(mode=0o600)
    file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()))
    return file


def repeated(piece, times):
    return [piece] * times


PLAIN = b"twelve bytes" * (MB // 12)


def test_a_result_list_of_100_mb_passes_without_growing_the_memory(url, answers, tmp_path):
    text = b64encode(PLAIN)
    answers.with_length(b'{"data": [{"id": 1, "result": "', *repeated(text, 75), b'"}]}')
    with proxy_process(url, tmp_path / "spool") as proxy:
        response = requests.get(f"{proxy.url}/result?task_id=1", headers=TOKEN, timeout=LONG)
        assert response.headers["Content-Length"] == answers.headers["Content-Length"]
        assert response.content == b"".join(answers.pieces)
        assert proxy.grown() < 20 * MB
        assert proxy.still_on_disk() == 0


def test_a_sealed_result_list_of_100_mb_arrives_open_without_growing_the_memory(
    url, answers, tmp_path, key, key_file
):
    sealed = list(seal(repeated(PLAIN, 75), PrivateKey(key).public))
    with proxy_process(url, tmp_path / "spool", key_file) as proxy:
        answers.with_length(b'{"id": 9}')
        requests.post(f"{proxy.url}/task", data=b"".join(subtask(1)), headers=TOKEN, timeout=LONG)
        answers.with_length(b'{"data": [{"id": 1, "result": "', *sealed, b'"}]}')
        response = requests.get(f"{proxy.url}/result?task_id=9", headers=TOKEN, timeout=LONG)
        found = b64decode(response.json()["data"][0]["result"])
        assert sha256(found).digest() == sha256(PLAIN * 75).digest()
        assert proxy.grown() < 20 * MB
        assert proxy.still_on_disk() == 0


def subtask(times):
    yield b'{"image": "i", "organizations": [{"id": 1, "input": "'
    yield from repeated(b64encode(PLAIN), times)
    yield b'"}]}'


def test_a_subtask_input_of_100_mb_passes_without_growing_the_memory(url, answers, tmp_path):
    with proxy_process(url, tmp_path / "spool") as proxy:
        # without a length: in chunks
        response = requests.post(f"{proxy.url}/task", data=subtask(75), headers=TOKEN, timeout=LONG)
        assert response.status_code == 201
        assert answers.digest == sha256(b"".join(subtask(75))).hexdigest()
        assert proxy.grown() < 20 * MB
        assert proxy.still_on_disk() == 0


def test_a_subtask_input_of_100_mb_leaves_sealed_without_growing_the_memory(
    url, answers, tmp_path, key, key_file
):
    with proxy_process(url, tmp_path / "spool", key_file) as proxy:
        response = requests.post(f"{proxy.url}/task", data=subtask(75), headers=TOKEN, timeout=LONG)
        assert response.status_code == 201
        sent = json.loads(b"".join(answers.kept))["organizations"][0]["input"]
        assert b"".join(unseal([sent.encode()], PrivateKey(key))) == PLAIN * 75
        assert proxy.grown() < 20 * MB
        assert proxy.still_on_disk() == 0


# --- misbehaviour -----------------------------------------------------------------------------------------------


class Served:
    """A proxy in front of the server that does what it is told."""

    def __init__(self, url, folder, max_body=MAX_BODY, idle_seconds=2):
        self._lines = []
        exchange = Exchange(ServerAddress.of(url))
        self._server = HttpServer(exchange, Tokens(exchange, Secret("never used")))
        self.spool = Spool(folder, total=64 * max_body)
        app = ProxyApp(
            forward=self._server.forward,
            # each container has a run of its own
            caller_of_token=lambda digest: Caller(RunId(int(digest[:8], 16)), TaskId(1), JobId(1), 1, 5),
            on_subtask=lambda run: None,
            spool=self.spool,
            max_body=max_body,
        )
        app.seal_with(PlainSealer())
        self._proxy = ProxyServer(
            app, address="127.0.0.1", port=0, spool=self.spool, max_body=max_body, idle_seconds=idle_seconds
        )

    def __enter__(self):
        self._proxy.start()
        self.port = self._proxy.port
        return self

    def __exit__(self, *_):
        for line in self._lines:
            line.close()
        self._proxy.stop()
        self._server.close()

    def line(self, source="127.0.0.1"):
        made = socket.create_connection(("127.0.0.1", self.port), LONG, source_address=(source, 0))
        self._lines.append(made)
        return made

    def get(self, path="task/1", source="127.0.0.2"):
        """Ask as another container, and give the whole answer."""
        with self.line(source) as line:
            head = b"Authorization: Bearer of.another.run\r\nConnection: close\r\n\r\n"
            line.sendall(b"GET /%s HTTP/1.1\r\nHost: proxy\r\n%s" % (path.encode(), head))
            return everything(line)

    def serves_others(self):
        return self.get("version").startswith(b"HTTP/1.1 200 ")

    def empties(self):
        """Wait until nothing is held on disk any more."""
        return becomes(lambda: self.spool.taken == 0)


def everything(line):
    found = bytearray()
    try:
        while piece := line.recv(MB):
            found += piece
    except ConnectionResetError:
        pass
    return bytes(found)


def becomes(condition):
    pause = threading.Event()
    return any(condition() or pause.wait(0.05) for _ in range(20 * LONG))


@pytest.fixture
def proxy(url, tmp_path):
    with Served(url, tmp_path / "spool") as found:
        yield found


def post(*headers):
    return b"POST /task HTTP/1.1\r\n" + HEAD + b"".join(header + b"\r\n" for header in headers) + b"\r\n"


CHUNKED = post(b"Transfer-Encoding: chunked")


def test_a_body_that_is_cut_off_is_forgotten(proxy, answers):
    with proxy.line() as line:
        line.sendall(post(b"Content-Length: 5000000") + b'{"a": "' + b"x" * MB)
        assert becomes(lambda: proxy.spool.taken > MB // 2)
    assert proxy.empties()
    assert proxy.serves_others()
    assert answers.calls == 1


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (post(b"Content-Length: -1") + b"{}", 400),
        (post(b"Content-Length: x") + b"{}", 400),
        (post(b"Content-Length: 2, 2") + b"{}", 400),
        (post(b"Content-Length: 99999999999") + b"{}", 413),
        (post(b"Content-Length: 2") + b"{}more than was said", 400),
        (post(b"Transfer-Encoding: gzip") + b"{}", 501),
        (CHUNKED + b"xyz\r\n{}\r\n0\r\n\r\n", 400),
        (CHUNKED + b"2\r\n{}wrong\r\n0\r\n\r\n", 400),
        (CHUNKED + b"-2\r\n{}\r\n0\r\n\r\n", 400),
        (CHUNKED + b"2;" + b"x" * 2 * MAX_CHUNK_LINE, 400),
        (CHUNKED + b"1" * 2 * MAX_CHUNK_LINE, 400),
        (CHUNKED + b"2\r\n{}\r\n0\r\nX: " + b"y" * 2 * MAX_CHUNK_LINE, 400),
    ],
    ids=range(12),
)
def test_a_body_that_is_not_as_it_should_be_is_refused_and_others_are_served(proxy, answers, sent, status):
    with proxy.line() as line:
        line.sendall(sent)
        line.shutdown(socket.SHUT_WR)
        assert everything(line).startswith(b"HTTP/1.1 %d " % status)
    assert answers.calls == 0
    assert proxy.serves_others()
    assert proxy.empties()


@pytest.mark.parametrize("piece", [b"10000\r\n" + b"x" * 0x10000 + b"\r\n", b"1\r\nx\r\n" * 10_000])
def test_chunks_without_end_are_cut_off_at_the_bound(url, tmp_path, piece):
    with Served(url, tmp_path / "spool", max_body=MB) as proxy, proxy.line() as line:
        line.sendall(CHUNKED)
        with pytest.raises(ConnectionError):
            line.sendall(piece * (10 * MAX_BODY // len(piece)))
        assert proxy.empties()
        assert proxy.serves_others()


def test_many_slow_bodies_keep_nobody_waiting(proxy):
    lines = [proxy.line() for _ in range(THREADS + 8)]
    for line in lines:
        line.sendall(post(b"Content-Length: 1000") + b'{"a":')
    assert proxy.serves_others()


def test_one_container_cannot_take_all_connections(proxy):
    lines = [proxy.line() for _ in range(CONNECTIONS_EACH + 1)]
    assert everything(lines[-1]) == b""
    assert proxy.serves_others()
    for line in lines:
        line.close()
    assert becomes(lambda: proxy.get("version", "127.0.0.1").startswith(b"HTTP/1.1 200 "))


def asking_without_reading(proxy, many):
    lines = [proxy.line() for _ in range(many)]
    for line in lines:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        line.sendall(b"GET /task/1 HTTP/1.1\r\n" + HEAD + b"\r\n")
    return lines


def test_answers_that_are_not_read_keep_nobody_waiting_and_are_dropped_after_a_while(url, tmp_path, answers):
    answers.with_length(*repeated(b"x" * MB, 6))
    with Served(url, tmp_path / "spool", idle_seconds=10) as proxy:
        for _ in range(THREADS + 8):
            (line,) = asking_without_reading(proxy, 1)
            # its first byte is there when the whole answer lies on disk, and its thread is about to be free
            assert line.recv(1, socket.MSG_PEEK)
        assert proxy.spool.taken > 0
        answers.with_length(b"{}")
        assert proxy.serves_others()
        assert proxy.empties()


def test_calls_sent_before_the_answer_was_read_are_not_begun(proxy, answers):
    answers.with_length(*repeated(b"x" * MB, 2))
    with proxy.line() as line:
        line.sendall((b"GET /task/1 HTTP/1.1\r\n" + HEAD + b"\r\n") * 5)
        found = everything(line)
    assert found.count(b"HTTP/1.1 200 ") == 1
    assert b"Connection: close" in found
    assert len(found) > 2 * MB
    assert answers.calls == 1


def test_a_container_that_vanishes_while_it_is_answered_leaves_nothing(proxy, answers):
    answers.with_length(*repeated(b"x" * MB, 6))
    answers.wait.clear()
    for line in asking_without_reading(proxy, 5):
        answers.asked.acquire()
        line.close()
    answers.wait.set()
    assert proxy.serves_others()
    assert proxy.empties()


# --- the server's answers ---------------------------------------------------------------------------------------


def bomb():
    return gzip.compress(b"\0" * 10 * MAX_BODY)


@pytest.mark.parametrize(
    ("pieces", "headers"),
    [
        ([b"{}"], {"Content_Length": "1000"}),
        ([b"x" * MB], {"Content_Length": str(3 * MB)}),
        ([b"5\r\nhello\r\n"], {"Transfer_Encoding": "chunked"}),
        ([b"no chunk\r\n"], {"Transfer_Encoding": "chunked"}),
        ([b"not zipped"], {"Content_Encoding": "gzip", "Content_Length": "10"}),
        ([b"x" * MB] * 9, {}),
        ([b"100000\r\n" + b"x" * MB + b"\r\n"] * 100, {"Transfer_Encoding": "chunked"}),
        ([bomb()], {"Content_Encoding": "gzip"}),
    ],
    ids=range(8),
)
def test_an_answer_that_is_not_as_it_should_be_is_a_bad_gateway(proxy, answers, pieces, headers):
    answers.as_they_are(*pieces, **headers)
    response = requests.get(f"http://127.0.0.1:{proxy.port}/task/1", headers=TOKEN, timeout=LONG)
    assert response.status_code == 502
    assert response.json()["msg"]
    assert proxy.empties()
    answers.with_length(b"{}")
    assert proxy.serves_others()


def test_a_server_that_is_slow_for_one_is_not_slow_for_others(proxy, answers):
    answers.wait.clear()
    lines = asking_without_reading(proxy, 5)
    for _ in lines:
        answers.asked.acquire()
    slow, answers.wait = answers.wait, threading.Event()
    answers.wait.set()
    assert proxy.serves_others()
    slow.set()
