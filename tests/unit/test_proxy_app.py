"""What the proxy forwards, refuses and answers; no socket is opened."""

import json
import threading
from base64 import b64encode
from hashlib import sha256

import pytest
import structlog
from werkzeug.test import Client

from node_agent.domain.ports import ProxiedResponse
from node_agent.errors import ServerUnreachable
from node_agent.proxy.app import MAX_PER_RUN, ProxyApp
from node_agent.proxy.sealer import PlainSealer

TOKEN = "header.claims.signature"
RUN = 7
UUID = "0f8fad5b-d9cb-469f-a165-70867728950e"
TASK = {"image": "i", "organizations": [{"id": 1, "input": "e30="}]}


def run_of_token(digest):
    return RUN if digest == sha256(TOKEN.encode()).hexdigest() else None


class StubServer:
    """Remembers what was forwarded and answers what it is told to."""

    def __init__(self, status=200, body=b'{"id": 1}', content_type="application/json"):
        self.seen = []
        self.answer = ProxiedResponse(status=status, body=body, content_type=content_type)

    def __call__(self, request):
        self.seen.append(request)
        return self.answer


class MarkingSealer(PlainSealer):
    """Shows where it was asked."""

    def seal_inputs(self, body):
        return b"sealed:" + body

    def open_results(self, body):
        return b"opened:" + body


class Proxy:
    """The application with a client that speaks as the run's container."""

    def __init__(self, server=None, **settings):
        self.server = server or StubServer()
        self.subtasks = []
        app = ProxyApp(
            forward=self.server, run_of_token=run_of_token, on_subtask=self.subtasks.append, **settings
        )
        self._client = Client(app)

    def ask(self, method, path, *, token=TOKEN, **more):
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return self._client.open(path, method=method, headers=headers | more.pop("headers", {}), **more)


def message(response):
    assert response.content_type == "application/json"
    return response.json["msg"]


def test_a_call_is_forwarded_with_its_own_token_path_and_query():
    proxy = Proxy()
    response = proxy.ask("GET", "/run?task_id=3&page=1&x=%2F..")
    (sent,) = proxy.server.seen
    assert (sent.method, sent.path, sent.query) == ("GET", "run", "task_id=3&page=1&x=%2F..")
    assert sent.token.reveal() == TOKEN
    assert sent.body == b""
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
    assert json.loads(sent.body) == TASK
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
    assert json.loads(proxy.server.seen[0].body) == task


def test_a_body_sent_with_a_get_is_not_forwarded():
    proxy = Proxy()
    proxy.ask("GET", "/run/1", json={"a": 1})
    assert proxy.server.seen[0].body == b""


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
    proxy = Proxy(StubServer(200, b"answer"), sealer=MarkingSealer())
    proxy.ask("POST", "/task", json=TASK)
    assert proxy.server.seen[0].body.startswith(b"sealed:{")
    assert proxy.ask("GET", "/result?task_id=1").data == b"opened:answer"
    assert proxy.ask("GET", "/result/1").data == b"opened:answer"
    assert proxy.ask("GET", "/task/1").data == b"answer"


def test_an_error_in_place_of_results_is_not_opened():
    proxy = Proxy(StubServer(404, b"answer"), sealer=MarkingSealer())
    assert proxy.ask("GET", "/result/1").data == b"answer"


def test_blobs_travel_as_base64_text_and_arrive_as_they_were():
    proxy = Proxy(StubServer(201))
    proxy.ask("POST", "/blobstream", data=b"\x00\xff")
    (sent,) = proxy.server.seen
    assert (sent.body, sent.content_type) == (b"AP8=", "application/octet-stream")
    kept = Proxy(StubServer(200, b"AP8=", "application/octet-stream"))
    assert kept.ask("GET", f"/blobstream/{UUID}").data == b"\x00\xff"


@pytest.mark.parametrize("content", [b"", b"x", b"\x00" * 1000])
def test_the_plain_sealer_opens_what_it_sealed(content):
    sealer = PlainSealer()
    assert sealer.open_blob(sealer.seal_blob(content)) == content
    assert sealer.open_blob(b"not base64!") == b"not base64!"
    results = b'{"data": [{"result": "%s"}]}' % b64encode(content)
    assert sealer.open_results(results) == sealer.seal_inputs(results) == results


def test_one_run_cannot_take_every_turn():
    arrived, leave = threading.Semaphore(0), threading.Event()

    class Slow(StubServer):
        def __call__(self, request):
            arrived.release()
            leave.wait()
            return super().__call__(request)

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
