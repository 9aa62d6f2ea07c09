"""The proxy on a real port, called by many at once and by the official algorithm client."""

import json
import os
import socket
import subprocess
import threading
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from hashlib import sha256
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory, mkdtemp
from urllib.parse import parse_qs

import pytest
import requests

from node_agent.domain.ports import ProxiedResponse
from node_agent.domain.secret import Secret
from node_agent.domain.task import TaskId
from node_agent.errors import ConfigError
from node_agent.payload.keys import create_private_key
from node_agent.proxy.app import ProxyApp
from node_agent.proxy.inquiry import Caller
from node_agent.proxy.sealer import EnvelopeSealer, PlainSealer
from node_agent.proxy.server import ProxyServer
from node_agent.proxy.spool import Spool
from node_agent.server.address import ServerAddress
from node_agent.server.client import HttpServer
from node_agent.server.exchange import Exchange
from node_agent.server.tokens import Tokens
from tests.lab.client import ClientWorker
from tests.lab.engine import EngineError, engine
from tests.lab.images import tools_image
from tests.lab.vantage6 import RealServer
from tests.lab.venvs import client_venv, environment

RUN = 7
RESULT = b64encode(b'{"a": 1}').decode()


def caller(run):
    """Return a run of the task 3, which is of the job 3."""
    return Caller(run=run, task=3, job=3, collaboration=1, user=5)


def part(value):
    return b64encode(json.dumps(value).encode()).decode().rstrip("=").replace("+", "-").replace("/", "_")


def container_token(**claims):
    """A token of the shape the algorithm client takes apart; its signature is nobody's."""
    subject = {"image": "i", "databases": [], "node_id": 4, "collaboration_id": 1, "organization_id": 2}
    return f"{part({'alg': 'HS256', 'typ': 'JWT'})}.{part({'sub': subject | claims})}.{part('signature')}"


TOKEN = container_token()


def json_answer(value, status=200):
    body = [json.dumps(value).encode()]
    return nullcontext(ProxiedResponse(status=status, content_type="application/json", body=body))


def page_of(query, pages):
    page = int(parse_qs(query).get("page", ["1"])[0])
    links = {"next": "more"} if page < pages else {}
    row = {"id": page, "result": RESULT, "task": {"id": 5}, "blob_storage_used": False}
    return {"data": [row], "links": links}


class StubServer:
    """Answers as the real server does, as far as the algorithm client looks."""

    def __init__(self):
        self.seen = []

    def __call__(self, request):
        self.seen.append(f"{request.method} {request.path}")
        assert request.body is None or sum(map(len, request.body)) == request.body.length
        if request.method == "POST":
            return json_answer({"id": 5, "runs": "/api/run?task_id=5"}, 201)
        answers = {
            "blobstream/status": {"blob_store_enabled": False},
            "task/5/status": {"status": "completed"},
            "vpn/algorithm/addresses": {"addresses": [{"ip": "10.76.0.2", "port": 49200}]},
            "result/1": {"id": 1, "result": RESULT, "task": {"id": 5}, "blob_storage_used": False},
            "run/1": {"id": 1, "task": {"id": 5}},
            "version": {"version": "4.15.2"},
        }
        if request.path in {"run", "result", "organization", "study"}:
            return json_answer(page_of(request.query, pages=3))
        if request.path == "run/99":
            return json_answer({"msg": "Run id=99 not found!"}, 404)
        return json_answer(answers.get(request.path, {"id": 1, "public_key": ""}))


class Served:
    """A proxy that listens on loopback."""

    def __init__(
        self,
        forward,
        token=TOKEN,
        *,
        max_body=256 << 20,
        sealer=None,
        caller_of_token=None,
        reassure_seconds=4,
        **settings,
    ):
        self.subtasks = []
        self._digest = sha256(token.encode()).hexdigest()
        self._stack = ExitStack()
        self.folder = Path(self._stack.enter_context(TemporaryDirectory()))
        self.spool = Spool(self.folder, total=4 << 30)
        self.app = app = ProxyApp(
            forward=forward,
            reassure_seconds=reassure_seconds,
            caller_of_token=caller_of_token or self._caller_of,
            on_subtask=self.subtasks.append,
            spool=self.spool,
            max_body=max_body,
        )
        app.seal_with(sealer or PlainSealer())
        self.server = ProxyServer(
            app,
            address="127.0.0.1",
            port=0,
            spool=self.spool,
            max_body=max_body,
            holds=app,
            **settings,
        )

    def _caller_of(self, digest):
        return caller(RUN) if digest == self._digest else None

    def __enter__(self):
        self.server.start()
        self.url = f"http://127.0.0.1:{self.server.port}"
        return self

    def __exit__(self, *_):
        self.server.stop()
        self._stack.close()


def bare_server(**place):
    """Make a server that answers nothing."""
    folder = Path(mkdtemp())
    server = ProxyServer(lambda *_: [], spool=Spool(folder, total=1000), max_body=1000, **place)
    rmtree(folder)
    return server


def speak(method, url, **more):
    return requests.request(method, url, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=20, **more)


def test_a_call_goes_through_and_other_calls_are_refused():
    with Served(StubServer()) as proxy:
        assert speak("GET", f"{proxy.url}/run/99").json() == {"msg": "Run id=99 not found!"}
        assert speak("GET", f"{proxy.url}/user/1").status_code == 404
        assert requests.get(f"{proxy.url}/run/1", timeout=5).status_code == 401
        assert requests.get(f"{proxy.url}/version", timeout=5).json() == {"version": "4.15.2"}


def test_the_answer_does_not_say_what_serves_it():
    with Served(StubServer()) as proxy:
        assert "Server" not in requests.get(f"{proxy.url}/version", timeout=5).headers


def test_many_containers_are_served_at_once():
    together = threading.Barrier(8)

    def meet(request):
        together.wait(timeout=20)  # passed only when all are inside at the same time
        return json_answer({})

    answers = []
    with Served(meet) as proxy:
        callers = [
            threading.Thread(target=lambda: answers.append(speak("GET", f"{proxy.url}/task/3").status_code))
            for _ in range(8)
        ]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    assert answers == [200] * 8


@pytest.mark.parametrize("size", [1001, 5_000_000])
def test_a_body_over_the_bound_is_answered_in_json(size):
    with Served(StubServer(), max_body=1000) as proxy:
        response = speak("POST", f"{proxy.url}/task", data=b"x" * size)
    assert response.status_code == 413
    assert "msg" in response.json()


def test_nonsense_on_the_line_is_answered_and_the_next_call_is_served():
    with Served(StubServer()) as proxy:
        with socket.create_connection(("127.0.0.1", proxy.server.port), timeout=5) as line:
            line.sendall(b"\x00\x01 nonsense\r\n\r\n")
            assert line.recv(1000).startswith(b"HTTP/1.0 400")
        assert requests.get(f"{proxy.url}/version", timeout=5).status_code == 200


def test_a_port_in_use_is_an_error_that_names_the_port_and_the_setting():
    with Served(StubServer()) as first:
        second = bare_server(address="127.0.0.1", port=first.server.port)
        with pytest.raises(ConfigError, match=f"port {first.server.port}.*network.proxy_port"):
            second.start()


def test_an_address_that_does_not_exist_yet_can_be_listened_on():
    server = bare_server(address="198.51.100.1", port=0)
    server.start()
    server.stop()


def test_after_stop_the_port_is_free_and_the_threads_are_gone():
    with Served(StubServer()) as proxy:
        port = proxy.server.port
        with requests.Session() as session:
            session.get(f"{proxy.url}/version", timeout=5)
            proxy.server.stop()
    again = bare_server(address="127.0.0.1", port=port)
    again.start()
    again.stop()
    again.stop()
    assert not [thread for thread in threading.enumerate() if thread.name == "proxy"]


# --- who waits for a task ----------------------------------------------------------------------------------------


class WorkingServer:
    """Says of every task that it goes on, until it is over."""

    def __init__(self):
        self.over = threading.Event()
        self.asked = threading.Semaphore(0)

    def __call__(self, request):
        if request.path == "version":
            return json_answer({"version": "4.15.2"})
        self.asked.release()
        return json_answer({"status": "completed" if self.over.is_set() else "active"})

    def wait_until_asked(self, times=1):
        for _ in range(times):
            assert self.asked.acquire(timeout=30)


def by_number(digest):
    """Know forty runs by their tokens."""
    numbers = (n for n in range(40) if sha256(f"run.number.{n}".encode()).hexdigest() == digest)
    return next((caller(n) for n in numbers), None)


def asked_status(proxy, number, **more):
    headers = {"Authorization": f"Bearer run.number.{number}"}
    return requests.get(f"{proxy.url}/task/3/status", headers=headers, timeout=60, **more).json()["status"]


def test_more_containers_than_there_are_threads_wait_for_a_task_and_nobody_waits_for_them():
    server = WorkingServer()
    with Served(server, caller_of_token=by_number) as proxy, ThreadPoolExecutor(40) as pool:
        assert {asked_status(proxy, number) for number in range(40)} == {"active"}
        server.wait_until_asked(40)
        kept = [pool.submit(asked_status, proxy, number) for number in range(40)]
        # forty questions cannot be on forty threads: what is looked at now is looked at for all of them
        server.wait_until_asked()
        assert speak("GET", f"{proxy.url}/version").json() == {"version": "4.15.2"}
        server.over.set()
        proxy.app.waits.task_changed(TaskId(3))
        assert {one.result(60) for one in kept} == {"completed"}


def test_a_client_that_waits_longer_than_it_has_patience_hears_that_the_answer_comes():
    server = WorkingServer()
    with Served(server, caller_of_token=by_number, reassure_seconds=0.2) as proxy:
        assert asked_status(proxy, 1) == "active"
        with socket.create_connection(("127.0.0.1", proxy.server.port), timeout=30) as line:
            line.sendall(
                b"GET /task/3/status HTTP/1.1\r\nHost: p\r\nUser-Agent: python-requests/2\r\n"
                b"Connection: close\r\nAuthorization: Bearer run.number.1\r\n\r\n"
            )
            heard = line.recv(25, socket.MSG_WAITALL) + line.recv(25, socket.MSG_WAITALL)
            assert heard == b"HTTP/1.1 100 Continue\r\n\r\n" * 2
            server.over.set()
            rest = b"".join(iter(lambda: line.recv(4096), b""))
    answer = rest.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"")
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b'{"status": "completed"}')


def test_the_clients_library_reads_on_until_the_answer_comes():
    server = WorkingServer()
    with (
        Served(server, caller_of_token=by_number, reassure_seconds=0.1) as proxy,
        ThreadPoolExecutor(1) as pool,
        requests.Session() as session,
    ):
        session.headers["Authorization"] = "Bearer run.number.1"
        assert session.get(f"{proxy.url}/task/3/status", timeout=30).json() == {"status": "active"}
        waiting = pool.submit(session.get, f"{proxy.url}/task/3/status", timeout=2)
        server.wait_until_asked(6)
        server.over.set()
        assert waiting.result(30).json() == {"status": "completed"}
        assert session.get(f"{proxy.url}/version", timeout=30).status_code == 200


def test_whoever_hangs_up_while_it_waits_leaves_nothing():
    server = WorkingServer()
    with Served(server, caller_of_token=by_number, reassure_seconds=0.1) as proxy:
        assert asked_status(proxy, 1) == "active"
        with pytest.raises(requests.Timeout):
            requests.get(
                f"{proxy.url}/task/3/status",
                headers={"Authorization": "Bearer run.number.1", "User-Agent": "curl/8"},
                timeout=0.3,
            )
        server.over.set()
        proxy.app.waits.task_changed(TaskId(3))
        assert asked_status(proxy, 1) == "completed"


def test_a_stop_ends_the_waiting():
    server = WorkingServer()
    with ThreadPoolExecutor(1) as pool:
        with Served(server, caller_of_token=by_number) as proxy:
            assert asked_status(proxy, 1) == "active"
            server.wait_until_asked()
            waiting = pool.submit(asked_status, proxy, 1)
            server.wait_until_asked(2)
        with pytest.raises(requests.ConnectionError):
            waiting.result(30)
    assert not [thread for thread in threading.enumerate() if thread.name == "held"]


# --- the official algorithm client, in the image algorithms are built on -----------------------------------------

ALL_CALLS = """
import json, os
from vantage6.algorithm.client import AlgorithmClient
client = AlgorithmClient(token=os.environ["TOKEN"], host="http://127.0.0.1", port=int(os.environ["PORT"]), path="")
task = client.task.create(input_={"method": "m"}, organizations=[1, 2], name="n")
told = {
    "task": task,
    "waited": client.wait_for_results(5),
    "results": client.result.from_task(5),
    "result": client.result.get(1),
    "run": client.run.get(1),
    "runs": len(client.run.from_task(5)),
    "task_get": client.task.get(5),
    "organization": client.organization.get(1),
    "organizations": len(client.organization.list()),
    "collaboration": client.collaboration.get(),
    "study": client.study.get(1),
    "studies": len(client.study.list()),
    "addresses": client.vpn.get_addresses(),
    "missing": client.run.get(99),
    "closed": client.request("user"),
    "refused": client.task.create(input_={"method": "m"}, organizations=[]),
}
print("TOLD" + json.dumps(told))
"""

REAL_CALLS = """
import json, os
from vantage6.algorithm.client import AlgorithmClient
client = AlgorithmClient(token=os.environ["TOKEN"], host="http://127.0.0.1", port=int(os.environ["PORT"]), path="")
organizations = [item["id"] for item in client.organization.list()]
task = client.task.create(input_={"method": "m"}, organizations=organizations, name="sub")
told = {
    "organizations": organizations,
    "task": task,
    "status": client.request(f"task/{task['id']}/status"),
    "runs": client.run.from_task(task["id"]),
    "results": client.request("result", params={"task_id": task["id"]}),
    "collaboration": client.collaboration.get(),
    "nodes": client.request("node"),
    "refused": client.task.create(input_={"method": "m"}, organizations=[4711]),
}
print("TOLD" + json.dumps(told))
"""


@pytest.fixture(scope="module")
def docker_client():
    try:
        with engine() as found:
            client = found.client()
            yield client
            client.close()
    except EngineError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


def told_by(client, script, *, token, port):
    """Run a script in a container with the algorithm tools and give what it told."""
    container = client.containers.create(
        tools_image(client),
        ["python3", "-c", script],
        environment={"TOKEN": token, "PORT": str(port)},
        network_mode="host",
        labels={"node-agent-lab": "1"},
    )
    try:
        container.start()
        container.wait(timeout=120)
        lines = container.logs().decode()
    finally:
        container.remove(force=True)
    told = [line.removeprefix("TOLD") for line in lines.splitlines() if line.startswith("TOLD")]
    assert told, lines
    return json.loads(told[0])


@pytest.mark.engine
def test_every_call_of_the_official_algorithm_client_works(docker_client):
    server = StubServer()
    with Served(server) as proxy:
        told = told_by(docker_client, ALL_CALLS, token=TOKEN, port=proxy.server.port)
    assert told["task"]["id"] == 5
    assert told["waited"] == told["results"] == [{"a": 1}] * 3
    assert told["result"] == {"a": 1}
    assert [told[name] for name in ("runs", "organizations", "studies")] == [3, 3, 3]
    assert [told[name]["id"] for name in ("run", "task_get", "organization", "collaboration", "study")] == [
        1
    ] * 5
    assert told["addresses"] == [{"ip": "10.76.0.2", "port": 49200}]
    assert told["missing"] == {"msg": "Run id=99 not found!"}
    assert "no such call" in told["closed"]["msg"]
    assert told["refused"] == {"msg": "Organizations missing from input"}
    assert proxy.subtasks == [RUN]
    assert server.seen.count("POST task") == 1


SEALED_CALLS = """
import json, os
from vantage6.algorithm.client import AlgorithmClient
client = AlgorithmClient(token=os.environ["TOKEN"], host="http://127.0.0.1", port=int(os.environ["PORT"]), path="")
task = client.task.create(input_={"method": "m\u00e4"}, organizations=[1, 2], name="n")
told = {"task": task, "results": client.result.from_task(5), "result": client.result.get(1)}
print("TOLD" + json.dumps(told))
"""
REAL_CRYPTOGRAPHY = """
import json, sys
from pathlib import Path
from vantage6.common.encryption import RSACryptor
asked = json.load(sys.stdin)
cryptor = RSACryptor(Path(asked["key"]))
sealed = cryptor.encrypt_bytes_to_str(json.dumps({"b": 2}).encode(), cryptor.public_key_str)
print(json.dumps({"inputs": [cryptor.decrypt(text).decode() for text in asked["inputs"]], "sealed": sealed}))
"""


def real_cryptography(key, inputs):
    done = subprocess.run(
        [str(client_venv()), "-P", "-c", REAL_CRYPTOGRAPHY],
        input=json.dumps({"key": str(key), "inputs": inputs}),
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(),
        check=True,
    )
    return json.loads(done.stdout)


class SealedServer(StubServer):
    """Keeps what arrives, and has a sealed result."""

    def __init__(self, result):
        super().__init__()
        self.inputs = []
        self._result = {"id": 1, "result": result, "task": {"id": 5}, "blob_storage_used": False}

    def __call__(self, request):
        if request.path == "result":
            return json_answer({"data": [self._result], "links": {}})
        if request.path == "result/1":
            return json_answer(self._result)
        if request.method == "POST":
            task = json.loads(b"".join(request.body))
            self.inputs = [part["input"] for part in task["organizations"]]
        return super().__call__(request)


@pytest.mark.engine
@pytest.mark.interop
def test_what_the_official_client_says_in_a_container_leaves_sealed_for_the_real_code(
    docker_client, tmp_path
):
    key = create_private_key(tmp_path / "key.pem")
    sealed = real_cryptography(tmp_path / "key.pem", [])["sealed"]
    server = SealedServer(sealed)
    with Served(server, sealer=EnvelopeSealer(key, lambda organization: key.public)) as proxy:
        told = told_by(docker_client, SEALED_CALLS, token=TOKEN, port=proxy.server.port)
    assert (told["results"], told["result"]) == ([{"b": 2}], {"b": 2})
    inputs = real_cryptography(tmp_path / "key.pem", server.inputs)["inputs"]
    assert [json.loads(text)["method"] for text in inputs] == ["mä", "mä"]


@pytest.mark.engine
@pytest.mark.interop
def test_a_container_of_the_real_server_creates_and_reads_subtasks_through_the_proxy(docker_client):
    with RealServer() as real:
        with ClientWorker(real) as user:
            task = user.create_task(
                image="some/image:1", method="m", organizations=[real.organization_ids["alpha"]]
            )
        exchange = Exchange(ServerAddress.of(real.url))
        server = HttpServer(exchange, Tokens(exchange, Secret(real.api_keys["alpha"])))
        token = server.container_token(TaskId(task), "some/image:1").reveal()
        with Served(server.forward, token) as proxy:
            told = told_by(docker_client, REAL_CALLS, token=token, port=proxy.server.port)
        server.close()
    assert sorted(told["organizations"]) == sorted(real.organization_ids.values())
    assert told["task"]["parent"]["id"] == task
    assert told["status"] == {"status": "pending"}
    assert len(told["runs"]) == 3
    assert [item["result"] for item in told["results"]["data"]] == [None] * 3
    assert told["collaboration"]["id"] == real.collaboration_id
    assert "msg" in told["refused"]
    assert proxy.subtasks == [RUN]
