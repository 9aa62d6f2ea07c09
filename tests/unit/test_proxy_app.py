"""What the proxy forwards, refuses and answers; no socket is opened."""

import json
import threading
from base64 import b64decode, b64encode
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from tempfile import mkdtemp

import pytest
import structlog
from cryptography.hazmat.primitives.asymmetric import rsa
from werkzeug.test import Client

from node_agent.domain.ports import ProxiedResponse
from node_agent.errors import AccessDenied, KeyMissing, ServerUnreachable
from node_agent.payload.chunks import Literal
from node_agent.payload.envelope import unseal, unseal_blob
from node_agent.payload.keys import PrivateKey
from node_agent.proxy.app import MAX_PER_RUN, ProxyApp
from node_agent.proxy.held import Arrived
from node_agent.proxy.inquiry import Caller
from node_agent.proxy.sealer import EnvelopeSealer, PlainSealer
from node_agent.proxy.spool import Spool

TOKEN = "header.claims.signature"
RUN = 7
UUID = "0f8fad5b-d9cb-469f-a165-70867728950e"
TASK = {"image": "i", "organizations": [{"id": 1, "input": "e30="}]}


CALLER = Caller(run=RUN, task=1, job=1, collaboration=1, user=5)


def caller_of_token(digest):
    return CALLER if digest == sha256(TOKEN.encode()).hexdigest() else None


class StubServer:
    """Remembers what was forwarded and answers what it is told to."""

    def __init__(self, status=200, body=b'{"id": 1}', content_type="application/json"):
        self.seen = []
        self.answer = ProxiedResponse(status=status, body=[body], content_type=content_type)

    @contextmanager
    def __call__(self, request):
        # what a request brings is gone when it is over
        self.seen.append(replace(request, body=None if request.body is None else Literal(content(request))))
        yield self.answer


def json_answer(value, status=200):
    return ProxiedResponse(status=status, body=[json.dumps(value).encode()], content_type="application/json")


def content(request):
    found = b"".join(request.body)
    assert len(found) == request.body.length
    return found


class MarkingSealer(PlainSealer):
    """Shows where it was asked."""

    def seal_inputs(self, body, task):
        return Literal(b"sealed:" + b"".join(body))

    def open_results(self, body, parse):
        return Literal(b"opened:" + b"".join(body))


class Proxy:
    """The application with a client that speaks as the run's container."""

    root: Path

    def __init__(self, server=None, *, sealer=None, max_body=64 << 20, room=1 << 30):
        self.server = server or StubServer()
        self.subtasks = []
        self.addresses = {}
        self.folder = Path(mkdtemp(dir=self.root))
        self.spool = Spool(self.folder, total=room)
        self.app = ProxyApp(
            forward=self.server,
            caller_of_token=caller_of_token,
            runs_at=lambda: self.addresses,
            on_subtask=self.subtasks.append,
            spool=self.spool,
            max_body=max_body,
        )
        self.app.seal_with(sealer or PlainSealer())
        self._client = Client(self.app)

    def made(self, subtask=9, blob=""):
        """Let the run make a subtask, and see a result of it that lies in the blob store."""
        after = self.server.answer
        self.server.answer = json_answer({"id": subtask}, 201)
        self.ask("POST", "/task", json=TASK, headers={"X-Public-Key": ""})
        if blob:
            row = {"id": 1, "task": {"id": subtask}, "result": blob, "blob_storage_used": True}
            self.server.answer = json_answer({"data": [row]})
            self.ask("GET", f"/result?task_id={subtask}").close()
        self.server.answer = after
        self.server.seen.clear()
        self.subtasks.clear()
        return self

    def nothing_is_left(self):
        return self.spool.taken == 0 and list(self.folder.iterdir()) == []

    def ask(self, method, path, *, token=TOKEN, **more):
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return self._client.open(path, method=method, headers=headers | more.pop("headers", {}), **more)


@pytest.fixture(autouse=True)
def root(tmp_path):
    Proxy.root = tmp_path


def message(response):
    assert response.content_type == "application/json"
    return response.json["msg"]


def test_a_call_is_forwarded_with_its_own_token_path_and_query():
    proxy = Proxy()
    response = proxy.ask("GET", "/organization?collaboration_id=1&page=1&x=%2F..")
    (sent,) = proxy.server.seen
    assert (sent.method, sent.path, sent.query) == (
        "GET",
        "organization",
        "collaboration_id=1&page=1&x=%2F..",
    )
    assert sent.token.reveal() == TOKEN
    assert sent.body is None
    assert (response.status_code, response.data) == (200, b'{"id": 1}')


@pytest.mark.parametrize("status", [400, 401, 403, 404, 500, 501, 503])
def test_errors_of_the_server_come_through_with_their_own_code_and_text(status):
    proxy = Proxy(StubServer(status, b'{"msg": "own words"}'))
    response = proxy.ask("GET", "/task/1")
    assert (response.status_code, message(response)) == (status, "own words")
    assert len(proxy.server.seen) == 1


def test_what_the_server_says_the_body_is_comes_through():
    assert Proxy(StubServer(404, b"<html>", "text/html")).ask("GET", "/task/1").content_type == "text/html"
    assert Proxy(StubServer(200, b"{}", "")).ask("GET", "/task/1").content_type == "application/json"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": TOKEN},
        {"Authorization": "Bearer another.runs.token"},
        {"Authorization": f"Bearer {TOKEN} "},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": "Bearer " + "x" * 9000},
    ],
)
def test_without_the_token_of_a_known_run_nothing_is_forwarded(headers):
    proxy = Proxy()
    response = proxy.ask("GET", "/run/1", token=None, headers=headers)
    assert response.status_code == 401
    assert "token" in message(response)
    assert proxy.server.seen == []


@pytest.mark.parametrize("path", ["/version", "/health"])
def test_version_and_health_need_no_token_and_pass_none_on(path):
    proxy = Proxy()
    assert proxy.ask("GET", path).status_code == 200
    assert proxy.ask("GET", path, token=None).status_code == 200
    assert [sent.token for sent in proxy.server.seen] == [None, None]


@pytest.mark.parametrize("path", ["/user", "/token/node", "/task/%2e%2e/user", "/api/task/1", "/"])
def test_other_paths_are_not_there_and_not_forwarded(path):
    proxy = Proxy()
    response = proxy.ask("GET", path)
    assert response.status_code == 404
    assert "no such call" in message(response)
    assert proxy.server.seen == []


@pytest.mark.parametrize("method", ["PATCH", "DELETE", "PUT"])
def test_other_methods_are_refused_with_the_methods_there_are(method):
    proxy = Proxy()
    response = proxy.ask(method, "/task", json={})
    assert response.status_code == 405
    assert response.headers["Allow"] == "GET, POST"
    assert message(response)
    assert proxy.server.seen == []


@pytest.mark.parametrize(("query", "status"), [("x" * 5000, 414), ("name=a b", 400), ("name=\x7f", 400)])
def test_a_query_that_is_too_long_or_malformed_is_refused(query, status):
    proxy = Proxy()
    response = proxy.ask("GET", "/run", environ_overrides={"QUERY_STRING": query})
    assert response.status_code == status
    assert proxy.server.seen == []


@pytest.mark.parametrize("query", ["", "?page=1", "?task_id="])
def test_results_need_a_task_id(query):
    proxy = Proxy()
    response = proxy.ask("GET", f"/result{query}")
    assert response.status_code == 400
    assert message(response).startswith("No task id found in request from algorithm")
    assert proxy.server.seen == []


def test_a_new_task_is_forwarded_as_it_is_and_the_run_is_said_to_have_a_subtask():
    proxy = Proxy(StubServer(201, b'{"id": 9}'))
    response = proxy.ask("POST", "/task", json=TASK)
    (sent,) = proxy.server.seen
    assert json.loads(content(sent)) == TASK
    assert sent.content_type == "application/json"
    assert (response.status_code, response.json) == (201, {"id": 9})
    assert response.content_type == "application/json"
    assert proxy.subtasks == [RUN]


def test_a_task_the_server_refuses_is_no_subtask():
    proxy = Proxy(StubServer(401, b'{"msg": "Container-token is not valid"}'))
    assert proxy.ask("POST", "/task", json=TASK).status_code == 401
    assert proxy.subtasks == []


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe\xff", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[]", "not a JSON object"),
        (b"{}", "Organizations missing from input"),
        (b'{"organizations": []}', "Organizations missing from input"),
    ],
)
def test_a_new_task_that_is_none_is_refused(body, text):
    proxy = Proxy()
    response = proxy.ask("POST", "/task", data=body)
    assert response.status_code == 400
    assert text in message(response)
    assert proxy.server.seen == []


def test_a_body_over_the_bound_is_refused_before_it_is_read():
    proxy = Proxy(max_body=10)
    response = proxy.ask("POST", "/task", json=TASK)
    assert response.status_code == 413
    assert "10 bytes" in message(response)
    assert proxy.server.seen == []


def test_a_large_body_within_the_bound_is_forwarded():
    proxy = Proxy(StubServer(201))
    task = TASK | {"description": "x" * (2 << 20)}
    assert proxy.ask("POST", "/task", json=task).status_code == 201
    assert json.loads(content(proxy.server.seen[0])) == task


def test_a_body_sent_with_a_get_is_not_forwarded():
    proxy = Proxy()
    proxy.ask("GET", "/run/1", json={"a": 1})
    assert proxy.server.seen[0].body is None


class Away:
    """A server that cannot be reached."""

    def __init__(self):
        self.asked = 0

    def __call__(self, request):
        self.asked += 1
        raise ServerUnreachable("https://secret.example does not answer")


@pytest.mark.parametrize(("method", "path"), [("GET", "/task/1"), ("POST", "/task"), ("GET", "/version")])
def test_a_server_that_is_away_is_a_bad_gateway_and_asked_once(method, path):
    proxy = Proxy(Away())
    response = proxy.ask(method, path, json=TASK if method == "POST" else None)
    assert response.status_code == 502
    assert "cannot be reached" in message(response)
    assert "secret" not in response.text
    assert proxy.server.asked == 1


def test_an_error_of_our_own_is_logged_and_answered_and_the_proxy_lives_on():
    def broken(request):
        raise RuntimeError("a bug")

    proxy = Proxy(broken)
    with structlog.testing.capture_logs() as lines:
        response = proxy.ask("GET", "/task/1")
    assert response.status_code == 500
    assert "a bug" not in message(response)
    assert [line["event"] for line in lines] == ["proxy_failed"]
    assert proxy.ask("GET", "/nowhere").status_code == 404


def test_each_call_is_one_debug_line_without_query_body_or_token():
    proxy = Proxy(StubServer(201))
    with structlog.testing.capture_logs() as lines:
        proxy.ask("POST", "/task?name=private", json=TASK)
    (line,) = lines
    assert line["ms"] >= 0
    assert {key: line[key] for key in ("event", "log_level", "run_id", "method", "path", "status")} == {
        "event": "proxy_request",
        "log_level": "debug",
        "run_id": RUN,
        "method": "POST",
        "path": "task",
        "status": 201,
    }
    assert not any(word in str(lines) for word in ("private", TOKEN, "e30="))


def test_inputs_are_sealed_and_results_opened_on_their_way():
    row = b'{"id": 4, "task": {"id": 9}}'
    proxy = Proxy(StubServer(201, b'{"id": 9}'), sealer=MarkingSealer())
    proxy.ask("POST", "/task", json=TASK)
    assert content(proxy.server.seen[0]).startswith(b"sealed:{")
    proxy.server.answer = ProxiedResponse(status=200, body=[row], content_type="application/json")
    assert proxy.ask("GET", "/result?task_id=9").data == b"opened:" + row
    assert proxy.ask("GET", "/result/4").data == b"opened:" + row
    assert proxy.ask("GET", "/run/4").data == row
    assert proxy.ask("GET", "/task/1").data == row


def test_an_error_in_place_of_results_is_not_opened():
    proxy = Proxy(StubServer(404, b"answer"), sealer=MarkingSealer())
    assert proxy.ask("GET", "/result/1").data == b"answer"


def test_blobs_travel_as_base64_text_and_arrive_as_they_were():
    proxy = Proxy(StubServer(201))
    proxy.ask("POST", "/blobstream", data=b"\x00\xff")
    (sent,) = proxy.server.seen
    assert (content(sent), sent.content_type) == (b"AP8=", "application/octet-stream")
    kept = Proxy(StubServer(200, b"AP8=", "application/octet-stream")).made(blob=UUID)
    assert kept.ask("GET", f"/blobstream/{UUID}").data == b"\x00\xff"


def test_one_run_cannot_take_every_turn():
    arrived, leave = threading.Semaphore(0), threading.Event()

    class Slow(StubServer):
        @contextmanager
        def __call__(self, request):
            arrived.release()
            leave.wait()
            yield self.answer

    proxy = Proxy(Slow())
    calls = [threading.Thread(target=proxy.ask, args=("GET", "/task/1")) for _ in range(MAX_PER_RUN)]
    for call in calls:
        call.start()
    for _ in calls:
        arrived.acquire()
    refused = proxy.ask("GET", "/task/1")
    leave.set()
    for call in calls:
        call.join()
    assert refused.status_code == 429
    assert refused.headers["Retry-After"] == "1"
    assert proxy.ask("GET", "/task/1").status_code == 200


# --- bodies of any size -----------------------------------------------------------------------------------------

LARGE = json.dumps({"task": {"id": 1}, "id": 1, "result": "QUJD" * 100_000}).encode()


def pieces(content):
    return [content[at : at + 5000] for at in range(0, len(content), 5000)]


class Streams(StubServer):
    """Answers piece by piece."""

    def __init__(self, content, status=200, content_type="application/json"):
        super().__init__(status)
        self.answer = ProxiedResponse(status=status, body=pieces(content), content_type=content_type)


@pytest.mark.parametrize("path", ["/task/1", "/result/1", "/result?task_id=1"])
def test_a_large_answer_arrives_as_it_was_sent_with_its_length(path):
    proxy = Proxy(Streams(LARGE))
    response = proxy.ask("GET", path)
    assert (response.data, response.content_length) == (LARGE, len(LARGE))
    assert response.content_type == "application/json"
    response.close()
    assert proxy.nothing_is_left()


def test_a_large_answer_holds_its_room_until_it_is_sent():
    proxy = Proxy(Streams(LARGE))
    response = proxy.ask("GET", "/task/1", buffered=False)
    assert len(LARGE) // 2 < proxy.spool.taken <= len(LARGE)
    response.close()
    assert proxy.nothing_is_left()


def test_a_large_blob_is_made_readable():
    kept = b64encode(bytes(range(256)) * 2000)
    proxy = Proxy(Streams(kept, content_type="application/octet-stream")).made(blob=UUID)
    response = proxy.ask("GET", f"/blobstream/{UUID}")
    assert response.data == b64decode(kept)
    assert response.content_type == "application/octet-stream"
    response.close()
    assert proxy.nothing_is_left()


def test_a_large_input_leaves_nothing_behind():
    proxy = Proxy(StubServer(201))
    task = TASK | {"organizations": [{"id": 1, "input": "QUJD" * 100_000}]}
    assert proxy.ask("POST", "/task", json=task).status_code == 201
    assert json.loads(content(proxy.server.seen[0])) == task
    assert proxy.nothing_is_left()


def test_an_answer_over_the_bound_is_said_to_be_too_large():
    proxy = Proxy(Streams(LARGE), max_body=len(LARGE) - 1)
    response = proxy.ask("GET", "/task/1")
    assert response.status_code == 502
    assert "larger than" in message(response)
    assert proxy.nothing_is_left()


def test_without_room_on_disk_the_algorithm_is_asked_to_come_back():
    proxy = Proxy(Streams(LARGE), room=len(LARGE))
    response = proxy.ask("GET", "/task/1")
    assert (response.status_code, response.headers["Retry-After"]) == (503, "5")
    assert "room on disk" in message(response)
    assert proxy.nothing_is_left()


def breaks_off():
    yield LARGE[:200_000]
    raise ServerUnreachable("the line broke")


def test_an_answer_that_breaks_off_is_no_answer():
    proxy = Proxy()
    proxy.server.answer = ProxiedResponse(status=200, content_type="application/json", body=breaks_off())
    response = proxy.ask("GET", "/task/1")
    assert response.status_code == 502
    assert "cannot be reached" in message(response)
    assert proxy.nothing_is_left()


@pytest.mark.parametrize(
    ("body", "status"), [(b'{"a": [' + b"[]," * 300_000, 413), (b'{"' + b"a" * 100_000 + b'": 1}', 400)]
)
def test_json_that_would_take_much_memory_is_refused(body, status):
    proxy = Proxy()
    assert proxy.ask("POST", "/task", data=body).status_code == status
    assert proxy.server.seen == []
    assert proxy.nothing_is_left()


def test_before_it_is_known_how_payloads_travel_none_does():
    proxy = Proxy(StubServer(200, b'{"id": 4, "task": 9}')).made(blob=UUID)
    proxy.app.seal_with(None)
    for method, path in (("POST", "/task"), ("GET", "/result/1"), ("GET", f"/blobstream/{UUID}")):
        response = proxy.ask(method, path, json=TASK)
        assert (response.status_code, response.headers.get("Retry-After")) == (503, "1")
    assert proxy.ask("GET", "/task/1").status_code == 200


# --- an encrypted collaboration -----------------------------------------------------------------------------------

KEY = PrivateKey(rsa.generate_private_key(public_exponent=65537, key_size=2048))


def public_key_of(organization):
    if organization == 404:
        raise KeyMissing("Organization 404 has no public key.")
    if organization == 401:
        raise AccessDenied("The API key is not accepted.")
    if organization == 503:
        raise ServerUnreachable("nobody there")
    return KEY.public


def encrypted(server):
    return Proxy(server, sealer=EnvelopeSealer(KEY, public_key_of))


@pytest.mark.parametrize("size", [2, 400_000])
def test_what_an_algorithm_asks_others_leaves_sealed_and_what_they_answer_arrives_open(size):
    plain = b"x" * size
    proxy = encrypted(StubServer(201))
    task = TASK | {"organizations": [{"id": 1, "input": b64encode(plain).decode()}]}
    assert proxy.ask("POST", "/task", json=task).status_code == 201
    sent = json.loads(content(proxy.server.seen[0]))["organizations"][0]["input"]
    assert b"".join(unseal([sent.encode()], KEY)) == plain
    assert proxy.nothing_is_left()

    results = json.dumps({"data": [{"id": 1, "result": sent, "blob_storage_used": False}]}).encode()
    proxy = encrypted(Streams(results)).made()
    response = proxy.ask("GET", "/result?task_id=9")
    assert b64decode(response.json["data"][0]["result"]) == plain
    response.close()
    assert proxy.nothing_is_left()


@pytest.mark.parametrize(("organization", "status"), [(404, 400), (401, 502), (503, 502)])
def test_without_the_key_of_one_organization_nothing_is_sent_to_any(organization, status):
    proxy = encrypted(StubServer(201))
    task = TASK | {"organizations": [{"id": 1, "input": "e30="}, {"id": organization, "input": "e30="}]}
    response = proxy.ask("POST", "/task", json=task)
    assert response.status_code == status
    assert message(response)
    assert proxy.server.seen == []
    assert proxy.subtasks == []


@pytest.mark.parametrize("answer", [b"", b"{", b"<html>", b"[" * 100_000])
def test_results_that_are_no_json_cannot_be_opened(answer):
    response = encrypted(StubServer(200, answer)).ask("GET", "/result/1")
    assert response.status_code == 502
    assert "cannot read" in message(response)


def test_a_blob_travels_sealed_for_the_key_in_the_header():
    proxy = encrypted(StubServer(201, b'{"uuid": "u"}'))
    headers = {"X-Public-Key": KEY.public.wire}
    assert proxy.ask("POST", "/blobstream", data=b"raw", headers=headers).json == {"uuid": "u"}
    sent = content(proxy.server.seen[0])
    assert b"".join(unseal_blob([sent], KEY)) == b"raw"
    reader = encrypted(StubServer(200, sent)).made(blob=UUID)
    assert reader.ask("GET", f"/blobstream/{UUID}").data == b"raw"
    refused = proxy.ask("POST", "/blobstream", data=b"raw")
    assert (refused.status_code, message(refused)) == (400, "Missing X-Public-Key header")


# --- calls that are kept until a task is over ---------------------------------------------------------------------


class StubLine:
    def let_go(self):
        """Nothing waits for this."""

    def reassure(self):
        """Nobody listens."""


def asked_again(server, *, first="/task/1/status", **changes):
    """Ask once, then say whether the same question, or a changed one, would be kept."""
    proxy = Proxy(server)
    proxy.app.waits.look_with(lambda _: None)
    proxy.ask("GET", first).close()
    arrived = {
        "method": "GET",
        "path": first,
        "authorization": f"Bearer {TOKEN}",
        "client": "python-requests/2.34.2",
        "is_current": True,
        "address": "",
    }
    return proxy.app.hold(Arrived(**arrived | changes), StubLine())


@pytest.mark.parametrize("status", ["pending", "initializing", "active"])
def test_who_was_told_that_a_task_is_not_over_is_kept_when_it_asks_again(status):
    assert asked_again(StubServer(body=json.dumps({"status": status}).encode()))


@pytest.mark.parametrize(
    "server",
    [
        StubServer(body=b'{"status": "completed"}'),
        StubServer(body=b'{"status": "killed by user"}'),
        StubServer(body=b'{"status": "a word of a later version"}'),
        StubServer(body=b'{"status": ["active"]}'),
        StubServer(body=b'["active"]'),
        StubServer(body=b"active"),
        StubServer(body=b"[" * 100_000),
        StubServer(404, b'{"status": "active"}'),
        StubServer(body=b'{"status": "active", "more": "' + b"x" * 100_000 + b'"}'),
    ],
)
def test_who_was_told_anything_else_is_answered_at_once_each_time(server):
    assert not asked_again(server)


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "POST"},
        {"path": "/task/4/status"},
        {"path": "/task/1"},
        {"authorization": ""},
        {"authorization": "Bearer another.runs.token"},
    ],
)
def test_only_the_same_question_of_the_same_run_is_kept(changes):
    assert not asked_again(StubServer(body=b'{"status": "active"}'), **changes)


def test_a_task_that_is_only_looked_at_is_never_kept():
    assert not asked_again(StubServer(body=b'{"status": "active"}'), first="/task/1")


@pytest.mark.parametrize(
    ("server", "goes_on"),
    [
        (StubServer(body=b'{"status": "active"}'), True),
        (StubServer(body=b'{"status": "completed"}'), False),
        (StubServer(500, b'{"status": "active"}'), False),
        (StubServer(body=b"nonsense"), False),
    ],
)
def test_a_look_says_that_a_task_goes_on_only_when_the_server_says_so(server, goes_on):
    looks = []
    proxy = Proxy(server)
    proxy.app.waits.look_with(looks.append)
    proxy.app.waits.told(RUN, "task/1/status")
    gone = []
    line = StubLine()
    line.let_go = lambda: gone.append(True)
    assert proxy.app.hold(
        Arrived(
            method="GET",
            path="/task/1/status",
            authorization=f"Bearer {TOKEN}",
            client="curl/8",
            is_current=True,
            address="",
        ),
        line,
    )
    proxy.app.waits.turn()
    looks.pop()()
    assert (gone == []) is goes_on
    (sent,) = proxy.server.seen
    assert (sent.path, sent.token.reveal()) == ("task/1/status", TOKEN)
