"""What a run may know: which calls are passed on for it, and whose results are opened."""

import json
from contextlib import contextmanager
from hashlib import sha256

import pytest
import structlog
from werkzeug.test import Client

from node_agent.domain.ports import ProxiedResponse
from node_agent.errors import EngineUnreachable, ServerUnreachable
from node_agent.payload.chunks import Literal
from node_agent.proxy.app import ProxyApp
from node_agent.proxy.inquiry import AccessRefused, Caller
from node_agent.proxy.residence import Residence
from node_agent.proxy.rights import (
    REMEMBERED_EACH,
    REMEMBERED_RUNS,
    SEARCH_CALLS,
    Relation,
    Rights,
    relation_of,
)
from node_agent.proxy.sealer import PlainSealer
from node_agent.proxy.spool import Spool

OWN, JOB, COLLABORATION, USER = 10, 8, 2, 5
SUBTASK, SIBLING, FOREIGN = 11, 12, 99
UUID = "0f8fad5b-d9cb-469f-a165-70867728950e"
OTHER_UUID = "1f8fad5b-d9cb-469f-a165-70867728950e"
FOREIGN_UUID = "2f8fad5b-d9cb-469f-a165-70867728950e"
SECRET = "alice's result"


def caller(run=7, **changes):
    facts = {"task": OWN, "job": JOB, "collaboration": COLLABORATION, "user": USER}
    return Caller(run=run, **facts | changes)


def described(number, **changes):
    """Describe a task of the job as the server does."""
    return {
        "id": number,
        "job_id": JOB,
        "collaboration": {"id": COLLABORATION},
        "init_user": {"id": USER},
        "parent": None,
    } | changes


TASKS = {
    OWN: described(OWN),
    SUBTASK: described(SUBTASK, parent={"id": OWN}),
    SIBLING: described(SIBLING, parent={"id": SUBTASK}),
    FOREIGN: described(FOREIGN, job_id=JOB + 1),
}


def result(number, task, text=SECRET):
    return {"id": number, "task": {"id": task}, "result": text}


class Server:
    """Answers by path, and shows everything to everybody."""

    def __init__(self):
        self.seen = []
        self.answers = {f"task/{number}": task for number, task in TASKS.items()}
        self.answers |= {f"task/{number}/status": {"status": "completed"} for number in TASKS}
        self.answers |= {
            f"{kind}/{number}": result(number, number) for kind in ("run", "result") for number in TASKS
        }

    def shows(self, path, value):
        self.answers[path] = value

    @contextmanager
    def __call__(self, request):
        self.seen.append(f"{request.method} {request.path}?{request.query}")
        found = self.answers.get(request.path)
        status = 201 if request.method == "POST" else 404 if found is None else 200
        body = json.dumps({"msg": "not found"} if found is None else found).encode()
        yield ProxiedResponse(status=status, body=[body], content_type="application/json")


class OpeningSealer(PlainSealer):
    """Shows where it opened something."""

    def open_results(self, body, parse):
        return Literal(b"opened:" + b"".join(body))

    def open_blob(self, content):
        return Literal(b"opened:" + b"".join(content))


class Proxy:
    """The proxy, asked by the container of one run."""

    def __init__(self, folder, **more):
        self.server = Server()
        self.callers = {}
        self.app = ProxyApp(
            forward=self.server,
            caller_of_token=self.callers.get,
            on_subtask=lambda _: None,
            spool=Spool(folder, total=1 << 20),
            max_body=1 << 20,
            **more,
        )
        self.knows("token", caller())
        self.app.seal_with(OpeningSealer())
        self._client = Client(self.app)

    def knows(self, token, who):
        self.callers[sha256(token.encode()).hexdigest()] = who

    def get(self, path, *, token="token", **more):
        return self._client.get(path, headers={"Authorization": f"Bearer {token}"}, **more)

    def create(self, number):
        self.server.shows("task", {"id": number})
        body = {"organizations": [{"id": 1, "input": "e30="}]}
        self._client.post("/task", json=body, headers={"Authorization": "Bearer token"})


@pytest.fixture
def proxy(tmp_path):
    return Proxy(tmp_path / "spool")


# --- which task ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "relation"),
    [
        ({}, Relation.JOB),
        ({"parent": {"id": OWN}}, Relation.SUBTASK),
        ({"parent": {"id": SIBLING}}, Relation.JOB),
        ({"id": SIBLING + 1}, Relation.FOREIGN),
        ({"job_id": JOB + 1}, Relation.FOREIGN),
        ({"job_id": str(JOB)}, Relation.FOREIGN),
        ({"job_id": None}, Relation.FOREIGN),
        ({"collaboration": {"id": COLLABORATION + 1}}, Relation.FOREIGN),
        ({"collaboration": None}, Relation.FOREIGN),
        # the number of a deleted job is given to the next one
        ({"init_user": {"id": USER + 1}}, Relation.FOREIGN),
        ({"init_user": None}, Relation.FOREIGN),
        # a parent that is ours does not make up for a job that is not
        ({"parent": {"id": OWN}, "job_id": JOB + 1}, Relation.FOREIGN),
    ],
)
def test_a_task_is_of_the_job_only_when_job_collaboration_and_user_are_the_same(changes, relation):
    assert relation_of(caller(), SIBLING, described(SIBLING) | changes) is relation


@pytest.mark.parametrize("answer", [None, [], "x", 3, {}, {"id": True}, {"id": {"id": SIBLING}}])
def test_an_answer_that_is_no_task_gives_no_right(answer):
    assert relation_of(caller(), SIBLING, answer) is Relation.FOREIGN


@pytest.mark.parametrize("number", [OWN, SUBTASK, SIBLING])
@pytest.mark.parametrize(
    "path",
    ["/task/{}", "/task/{}/status", "/run/{}", "/result/{}", "/run?task_id={}&page=1", "/result?task_id={}"],
)
def test_what_belongs_to_the_job_is_passed_on(proxy, path, number):
    proxy.server.shows("run", {"data": [result(1, number)]})
    proxy.server.shows("result", {"data": [result(1, number)]})
    assert proxy.get(path.format(number)).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/task/99",
        "/task/99/status",
        "/run/99",
        "/result/99",
        "/run?task_id=99",
        "/result?task_id=99",
        "/task?parent_id=99",
        "/task?job_id=9",
        "/task?job_id=9&parent_id=10",
        "/collaboration/3",
        "/organization?collaboration_id=3",
        "/organization?collaboration_id=2&collaboration_id=3",
        "/study?collaboration_id=",
        "/node?collaboration%5fid=3",
    ],
)
def test_what_belongs_to_others_is_refused_and_never_shown(proxy, path):
    proxy.server.shows("run", {"data": [result(1, FOREIGN)]})
    proxy.server.shows("result", {"data": [result(1, FOREIGN)]})
    with structlog.testing.capture_logs() as lines:
        response = proxy.get(path)
    assert response.status_code == 403
    assert list(response.json) == ["msg"]
    assert SECRET not in response.text
    (line,) = [line for line in lines if line["event"] == "proxy_access_refused"]
    assert (line["run_id"], line["log_level"]) == (7, "warning")


def test_refusals_beyond_the_rate_are_not_logged(tmp_path):
    rate = iter([0, None, 1])
    proxy = Proxy(tmp_path / "spool", log_rate=lambda: next(rate))
    with structlog.testing.capture_logs() as lines:
        for _ in range(3):
            proxy.get("/task/99")
    assert [line["unsaid"] for line in lines if line["event"] == "proxy_access_refused"] == [0, 1]


@pytest.mark.parametrize(
    "query",
    [
        "",
        "page=1",
        "task_id=",
        "task_id=x",
        "task_id=-1",
        "task_id=1.0",
        "task_id=+11",
        "task_id=%D9%A3",
        "task_id=1234567890123456789",
        "task_id=11&task_id=99",
        "task_id=11&task%5Fid=99",
        "task_id[]=11",
        "TASK_ID=11",
        "task_id=11&collaboration_id=2",
        "task_id=11&organization_id=1",
        "task_id=11&node_id=1",
        "task_id=11;task_id=99",
        "collaboration_id=2",
        "state=open",
        "&".join(f"a{number}=1" for number in range(60)),
    ],
)
@pytest.mark.parametrize("kind", ["run", "result"])
def test_a_list_that_is_not_of_one_task_alone_is_refused_before_the_server_is_asked(proxy, kind, query):
    assert proxy.get(f"/{kind}?{query}").status_code == 400
    assert proxy.server.seen == []


@pytest.mark.parametrize("query", ["", "page=1", "is_user_created=1", "collaboration_id=2", "parent_id=x"])
def test_tasks_are_listed_below_a_task_or_of_the_job_only(proxy, query):
    assert proxy.get(f"/task?{query}").status_code == 400
    assert proxy.server.seen == []


@pytest.mark.parametrize("query", ["parent_id=10", "parent_id=11", "job_id=8", "job_id=8&parent_id=10"])
def test_tasks_of_the_own_job_are_listed(proxy, query):
    proxy.server.shows("task", {"data": [TASKS[SUBTASK]]})
    assert proxy.get(f"/task?{query}").json["data"] == [TASKS[SUBTASK]]


def test_the_query_of_a_list_is_written_anew_from_what_was_read(proxy):
    proxy.server.shows("run", {"data": []})
    assert proxy.get("/run?page=1&task%5Fid=10&sort=-id&include=task").status_code == 200
    assert proxy.server.seen == ["GET run?page=1&task_id=10&sort=-id&include=task"]


# --- what the server is asked ---------------------------------------------------------------------------------------


def test_the_server_is_asked_once_about_each_task_and_never_about_the_own_one(proxy):
    for _ in range(3):
        proxy.get(f"/task/{OWN}/status")
        proxy.get(f"/task/{SUBTASK}/status")
        proxy.get(f"/task/{FOREIGN}/status")
    assert proxy.server.seen.count(f"GET task/{OWN}?") == 0
    assert proxy.server.seen.count(f"GET task/{SUBTASK}?") == 1
    assert proxy.server.seen.count(f"GET task/{FOREIGN}?") == 1
    assert f"GET task/{FOREIGN}/status?" not in proxy.server.seen


def test_a_subtask_the_run_has_made_is_known_without_asking(proxy):
    proxy.create(20)
    proxy.server.shows("task/20/status", {"status": "active"})
    assert proxy.get("/task/20/status").json == {"status": "active"}
    assert "GET task/20?" not in proxy.server.seen


def test_what_one_run_has_made_is_not_another_runs(proxy):
    proxy.knows("another", caller(run=8, task=40, job=41, user=6))
    proxy.create(20)
    proxy.server.shows("task/20", described(20, parent={"id": OWN}))
    proxy.server.shows("task/20/status", {"status": "active"})
    assert proxy.get("/task/20/status").status_code == 200
    assert proxy.get("/task/20/status", token="another").status_code == 403


def test_what_the_server_says_of_a_task_it_does_not_show_comes_through_and_is_not_remembered(proxy):
    response = proxy.get("/task/77")
    assert (response.status_code, response.json) == (404, {"msg": "not found"})
    proxy.server.shows("task/77", described(77))
    assert proxy.get("/task/77").status_code == 200


@pytest.mark.parametrize(("status", "told"), [(401, 401), (404, 404), (500, 500), (302, 502), (204, 502)])
def test_a_task_the_server_does_not_show_gives_no_right(tmp_path, status, told):
    @contextmanager
    def unwilling(request):
        yield ProxiedResponse(status=status, body=[b"<html>"], content_type="text/html")

    proxy = Proxy(tmp_path / "spool")
    proxy.app._rights = Rights(unwilling)
    response = proxy.get("/task/77")
    assert (response.status_code, response.json) == (told, {"msg": "The server does not show task 77."})


def test_rows_are_looked_into_whatever_success_is_called(tmp_path):
    @contextmanager
    def odd(request):
        body = json.dumps({"data": [result(1, FOREIGN)]}).encode()
        yield ProxiedResponse(status=203, body=[body], content_type="application/json")

    proxy = Proxy(tmp_path / "spool")
    proxy.app._forward = odd
    response = proxy.get(f"/result?task_id={OWN}")
    assert response.status_code == 502
    assert SECRET not in response.text


@pytest.mark.parametrize("path", ["/version", "/task/10"])
def test_a_query_that_is_too_long_is_refused_also_where_no_token_is_needed(proxy, path):
    assert proxy.get(f"{path}?{'x' * 5000}").status_code == 414
    assert proxy.server.seen == []


def test_a_server_that_is_away_gives_no_right(tmp_path):
    def away(request):
        raise ServerUnreachable("nobody there")

    proxy = Proxy(tmp_path / "spool")
    rights = Rights(away)
    with pytest.raises(ServerUnreachable):
        rights.check_task(caller(), "token", SUBTASK)
    proxy.app._rights = rights
    assert proxy.get(f"/task/{SUBTASK}").status_code == 502


def test_a_task_described_without_end_is_refused(proxy):
    proxy.server.shows("task/13", described(13, name="x" * (2 << 20)))
    assert proxy.get("/task/13/status").status_code == 502


def test_what_is_remembered_is_bounded():
    rights = Rights(Server())
    for run in range(REMEMBERED_RUNS + 10):
        rights.note_subtask(caller(run=run), {"id": 1000})
    for number in range(REMEMBERED_EACH + 10):
        rights.note_subtask(caller(), {"id": 2000 + number})
    kept = rights._tasks._runs
    assert len(kept) == REMEMBERED_RUNS
    assert len(kept[7]) == REMEMBERED_EACH
    assert rights.check_task(caller(), "token", 2000 + REMEMBERED_EACH) is Relation.SUBTASK


# --- what the server answers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "query", "rows"),
    [
        ("run", "task_id=11", [result(1, SUBTASK), result(2, FOREIGN)]),
        ("result", "task_id=11", [result(2, FOREIGN)]),
        ("result", "task_id=11", [result(2, SIBLING)]),
        ("task", "parent_id=10", [TASKS[SUBTASK], TASKS[FOREIGN]]),
        ("task", "job_id=8", [TASKS[FOREIGN]]),
    ],
)
def test_a_list_with_more_than_was_asked_for_is_not_handed_on(proxy, path, query, rows):
    for shown in ({"data": rows}, rows):
        proxy.server.shows(path, shown)
        response = proxy.get(f"/{path}?{query}")
        assert response.status_code == 502
        assert SECRET not in response.text


@pytest.mark.parametrize("answer", [{}, {"id": 1, "result": SECRET}, [], "x", {"data": [result(1, OWN)]}])
def test_a_run_or_result_that_names_no_task_is_not_handed_on(proxy, answer):
    for kind in ("run", "result"):
        proxy.server.shows(f"{kind}/1", answer)
        response = proxy.get(f"/{kind}/1")
        assert response.status_code == 502
        assert SECRET not in response.text


# --- what is opened -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "opened"), [(OWN, False), (SUBTASK, True), (SIBLING, False)])
def test_only_results_of_own_subtasks_are_opened(proxy, number, opened):
    proxy.server.shows("result", {"data": [result(1, number)]})
    for path in (f"/result/{number}", f"/result?task_id={number}"):
        assert proxy.get(path).data.startswith(b"opened:") is opened


def test_only_blobs_with_results_of_own_subtasks_are_read(proxy):
    proxy.server.shows(f"blobstream/{UUID}", "content")
    assert proxy.get(f"/blobstream/{UUID}").status_code == 403
    proxy.server.shows("result", {"data": [result(1, SIBLING, UUID)]})
    proxy.get(f"/result?task_id={SIBLING}")
    assert proxy.get(f"/blobstream/{UUID}").status_code == 403
    assert f"GET blobstream/{UUID}?" not in proxy.server.seen
    proxy.server.shows("result", {"data": [result(1, SUBTASK, UUID)]})
    proxy.get(f"/result?task_id={SUBTASK}")
    assert proxy.get(f"/blobstream/{UUID}").data == b'opened:"content"'
    assert proxy.get(f"/blobstream/{UUID.upper()}").status_code == 404
    assert proxy.get(f"/blobstream/{OTHER_UUID}").status_code == 403


class BlobServer:
    """Has a task with two subtasks, whose results fill two pages and lie in the blob store."""

    def __init__(self):
        self.seen = []

    @contextmanager
    def __call__(self, request):
        self.seen.append(f"{request.path}?{request.query}")
        pages = {
            "task?parent_id=10&page=1": [TASKS[SUBTASK], TASKS[FOREIGN], TASKS[SIBLING]],
            "task?parent_id=10&page=2": [described(21, parent={"id": OWN})],
            "result?task_id=11&page=1": [result(1, SUBTASK, OTHER_UUID)],
            "result?task_id=21&page=1": [result(2, 21, UUID), result(3, FOREIGN, FOREIGN_UUID)],
        }
        rows = pages[self.seen[-1]]
        following = {"next": "more"} if self.seen[-1] == "task?parent_id=10&page=1" else {}
        body = json.dumps({"data": rows, "links": following}).encode()
        yield ProxiedResponse(status=200, body=[body], content_type="application/json")


def test_blobs_listed_before_a_restart_are_found_at_the_server_but_not_looked_for_all_the_time():
    server, now = BlobServer(), 100.0
    rights = Rights(server, monotonic=lambda: now)
    rights.check_blob(caller(), "token", UUID)
    rights.check_blob(caller(), "token", OTHER_UUID)
    assert len(server.seen) == 4
    for _ in range(3):
        with pytest.raises(AccessRefused):
            rights.check_blob(caller(), "token", FOREIGN_UUID)
    assert len(server.seen) == 4
    now += 60
    with pytest.raises(AccessRefused):
        rights.check_blob(caller(), "token", FOREIGN_UUID)
    assert len(server.seen) == 8


def test_a_search_for_blobs_ends_however_many_pages_there_are():
    @contextmanager
    def endless(request):
        endless.calls += 1
        rows = [described(1000 + endless.calls, parent={"id": OWN})] if request.path == "task" else []
        body = json.dumps({"data": rows, "links": {"next": "more"}}).encode()
        yield ProxiedResponse(status=200, body=[body], content_type="application/json")

    endless.calls = 0
    with pytest.raises(AccessRefused):
        Rights(endless).check_blob(caller(), "token", UUID)
    assert endless.calls == SEARCH_CALLS


# --- where a token is shown -----------------------------------------------------------------------------------------


def test_a_token_counts_at_the_address_of_its_run_only(tmp_path):
    proxy = Proxy(tmp_path / "spool", runs_at=lambda: {"10.0.0.2": 7, "10.0.0.3": 8})
    assert proxy.get("/task/10", environ_overrides={"REMOTE_ADDR": "10.0.0.2"}).status_code == 200
    with structlog.testing.capture_logs() as lines:
        for address in ("10.0.0.3", "10.0.0.4"):
            response = proxy.get("/task/10", environ_overrides={"REMOTE_ADDR": address})
            assert response.status_code == 403
            assert "another container" in response.json["msg"]
    assert [line["event"] for line in lines].count("proxy_access_refused") == 2


class Engine:
    """Lists runs, and counts how often it is asked."""

    def __init__(self, listed):
        self.listed = listed
        self.asked = 0

    def __call__(self):
        self.asked += 1
        if self.listed is None:
            raise EngineUnreachable("no engine")
        return self.listed


@pytest.mark.parametrize(
    ("listed", "elsewhere", "asked"),
    [
        ({"a": 7}, False, 1),
        ({"a": 8}, True, 2),
        ({"b": 7}, True, 2),
        # not listed yet, or an engine that cannot be asked: the token alone proves it
        ({}, False, 2),
        (None, False, 2),
    ],
)
def test_the_engine_is_asked_again_only_when_its_answer_was_not_final(listed, elsewhere, asked):
    now = 100.0
    engine = Engine(listed)
    residence = Residence(engine, monotonic=lambda: now)
    for _ in range(3):
        assert residence.is_elsewhere(7, "a") is elsewhere
    assert engine.asked == 1
    now += 60
    assert residence.is_elsewhere(7, "a") is elsewhere
    assert engine.asked == asked
