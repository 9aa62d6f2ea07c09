"""Which answers end a run, which are tried again, and what is never repeated."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from node_agent.domain.ports import FinalReport, ProxiedRequest
from node_agent.domain.run import RunId, Status
from node_agent.domain.secret import Secret
from node_agent.domain.task import OrganizationId, TaskId
from node_agent.errors import NodeAgentError, RunClosed, RunFailed, ServerUnreachable
from node_agent.payload.chunks import Literal, Sequence
from node_agent.server.client import HttpServer, brief_patience
from node_agent.server.exchange import LONGEST_PAUSE, READ_SECONDS, Call, Reply, Stream, pause_asked
from node_agent.server.tokens import Tokens
from tests.unit.test_server_tokens import Server as TokenServer

RUN = RunId(9)
BLIP = ServerUnreachable("no connection")
FINISHED = (400, "Cannot update an already finished algorithm run!")


def said(status: int, message: str | None = None) -> Reply:
    body = b"{}" if message is None else json.dumps({"msg": message}).encode()
    return Reply(call="CALL", status=status, content_type="application/json", body=body)


HTML = Reply(call="CALL", status=404, content_type="text/html", body=b"<html>nothing here</html>")


class Script:
    """Answers calls from a list; logins are always granted."""

    def __init__(self, *answers: Reply | NodeAgentError) -> None:
        self._answers = list(answers)
        self._login = TokenServer()
        self.calls: list[Call] = []

    def send(self, call: Call) -> Reply:
        if call.path in {"token/node", "token/refresh"}:
            return self._login.send(call)
        self.calls.append(call)
        answer = self._answers.pop(0)
        if isinstance(answer, NodeAgentError):
            raise answer
        return answer

    @contextmanager
    def open(self, call: Call) -> Iterator[Stream]:
        reply = self.send(call)
        yield Stream(status=reply.status, content_type=reply.content_type, pieces=iter([reply.body]))

    def close(self) -> None:
        pass

    @property
    def bodies(self) -> list[Any]:
        return [
            json.loads(b"".join(c.body) if not isinstance(c.body, bytes) else c.body)
            for c in self.calls
            if c.body
        ]


def server(script: Script) -> HttpServer:
    tokens = Tokens(script, Secret("key"), monotonic=lambda: 0.0)
    return HttpServer(script, tokens, patience=brief_patience(lambda _: None))


def final(status: Status = Status.COMPLETED, result: Path | None = None) -> FinalReport:
    return FinalReport(status=status, result=result, log=None, started_at=0, finished_at=1, init_org_id=None)


# --- blips and tokens ---


def test_a_blip_is_tried_again_at_once() -> None:
    script = Script(BLIP, said(503), said(200))
    server(script).announce(RUN, Status.ACTIVE)
    assert len(script.calls) == 3


def test_a_server_that_stays_away_is_given_up_after_three_tries() -> None:
    script = Script(BLIP, BLIP, BLIP, said(200))
    with pytest.raises(ServerUnreachable):
        server(script).is_open(RUN)
    assert len(script.calls) == 3


LOGIN_PAGE = Reply(
    call="CALL", status=200, content_type="text/html", body=b"<html>Log in to the network</html>"
)


def test_the_login_page_of_a_network_is_not_taken_for_the_servers_consent() -> None:
    for act in (
        lambda it: it.report(RUN, final()),
        lambda it: it.claim(RUN, at=0),
        lambda it: it.announce(RUN, Status.ACTIVE),
        lambda it: it.is_open(RUN),
        lambda it: list(it.open_runs()),
        lambda it: it.knock(),
    ):
        with pytest.raises(ServerUnreachable, match="not the server's"):
            act(server(Script(*[LOGIN_PAGE] * 3)))


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_asks_to_be_left_alone_is_not_asked_twice(status: int) -> None:
    script = Script(replace(said(status, "busy"), asked_pause=20.0))
    with pytest.raises(ServerUnreachable) as caught:
        server(script).is_open(RUN)
    assert len(script.calls) == 1
    assert caught.value.after == 20.0


@pytest.mark.parametrize(
    ("said_by_server", "seconds"),
    [
        ({}, 0),
        ({"Retry-After": "7"}, 7),
        ({"Retry-After": "99999999999999999999"}, LONGEST_PAUSE),
        ({"Retry-After": "-5"}, 0),
        ({"Retry-After": "soon"}, 0),
        (
            {"Date": "Sun, 22 Nov 2020 07:00:00 GMT", "Retry-After": "Sun, 22 Nov 2020 07:00:30 GMT"},
            30,
        ),
        (
            {"Date": "Sun, 22 Nov 2020 07:00:00 GMT", "Retry-After": "Sun, 22 Nov 2099 07:00:00 GMT"},
            LONGEST_PAUSE,
        ),
        ({"Retry-After": "Sun, 22 Nov 2020 07:00:30 GMT"}, 0),
        ({"Date": "Sun, 22 Nov 2020 07:00:00 GMT", "Retry-After": "Sun, 22 Nov 2020 07:00:30"}, 0),
    ],
)
def test_a_pause_that_is_asked_for_is_read_and_bounded(
    said_by_server: dict[str, str], seconds: float
) -> None:
    assert pause_asked(said_by_server) == seconds


def test_a_knock_costs_the_server_next_to_nothing() -> None:
    script = Script(replace(said(200), body=b'{"version": "4.15.2"}'))
    server(script).knock()
    (call,) = script.calls
    assert (call.method, call.path, call.token) == ("GET", "version", None)
    assert call.read_seconds < READ_SECONDS


@pytest.mark.parametrize("answer", [said(404, "nothing"), said(500), said(302), said(200)])
def test_only_the_servers_own_answer_to_a_knock_counts(answer: Reply) -> None:
    with pytest.raises(ServerUnreachable):
        server(Script(answer)).knock()


def test_an_error_500_is_left_to_the_caller() -> None:
    script = Script(said(500, "An unexpected error occurred on the server!"))
    with pytest.raises(ServerUnreachable, match="500"):
        server(script).claim(RUN, at=0)
    assert len(script.calls) == 1


@pytest.mark.parametrize("status", [401, 422])
def test_a_refused_token_is_replaced_and_the_call_made_once_more(status: int) -> None:
    script = Script(said(status, "Token has expired"), said(200))
    server(script).announce(RUN, Status.ACTIVE)
    first, second = script.calls
    assert first.token != second.token


def test_a_call_is_not_made_a_third_time_for_its_token() -> None:
    script = Script(said(401, "no"), said(401, "no"))
    with pytest.raises(RunClosed):
        server(script).announce(RUN, Status.ACTIVE)


@pytest.mark.parametrize(
    "wrong",
    [
        HTML,
        said(302),
        said(429, "slow"),
        said(408, "late"),
        Reply(call="C", status=200, content_type="application/json", body=b'{"half'),
    ],
)
def test_what_is_not_the_servers_word_ends_no_run(wrong: Reply) -> None:
    with pytest.raises(ServerUnreachable):
        server(Script(wrong)).is_open(RUN)


def test_an_error_text_is_short_and_printable() -> None:
    noise = Reply(call="CALL", status=500, body=b"\x1b[31m" + b"<p>\n" * 100_000)
    with pytest.raises(ServerUnreachable) as caught:
        server(Script(noise)).is_open(RUN)
    text = str(caught.value)
    assert len(text) < 400
    assert text.isprintable()


# --- runs ---


def test_a_run_is_open_until_it_has_an_end() -> None:
    def run(finished_at: str | None) -> Reply:
        body = json.dumps({"id": 9, "status": "active", "finished_at": finished_at}).encode()
        return Reply(call="C", status=200, content_type="application/json", body=body)

    assert server(Script(run(None))).is_open(RUN) is True
    assert server(Script(run("2026-01-01T00:00:00.5"))).is_open(RUN) is False
    assert server(Script(said(404, "Run id=9 not found!"))).is_open(RUN) is False


def test_a_run_that_may_not_be_read_is_not_taken_as_closed() -> None:
    with pytest.raises(ServerUnreachable):
        server(Script(said(401, "no"), said(401, "no"))).is_open(RUN)


@pytest.mark.parametrize("refusal", [FINISHED, (404, "Run id=9 not found!"), (403, "no"), (410, "gone")])
def test_a_closed_run_cannot_be_claimed_or_announced(refusal: tuple[int, str]) -> None:
    with pytest.raises(RunClosed):
        server(Script(said(*refusal))).claim(RUN, at=0)
    with pytest.raises(RunClosed):
        server(Script(said(*refusal))).announce(RUN, Status.ACTIVE)


def test_a_claim_the_server_does_not_understand_fails_the_run() -> None:
    with pytest.raises(RunFailed, match="Request body is incorrect"):
        server(Script(said(400, "Request body is incorrect"))).claim(RUN, at=0)


def test_an_announcement_the_server_does_not_understand_is_no_reason_to_stop() -> None:
    with pytest.raises(ServerUnreachable):
        server(Script(said(400, "Request body is incorrect"))).announce(RUN, Status.ACTIVE)


@pytest.mark.parametrize(
    ("refusal", "error"),
    [
        ((400, "Task is already finished!"), RunFailed),
        ((400, "Parent task does not exist!"), RunClosed),
        ((400, "Request body is incorrect"), RunFailed),
        ((403, "no"), RunFailed),
    ],
)
def test_without_a_container_token_the_run_ends(refusal: tuple[int, str], error: type[Exception]) -> None:
    with pytest.raises(error):
        server(Script(said(*refusal))).container_token(TaskId(1), "i")


# --- reports ---


def test_a_report_is_one_message() -> None:
    script = Script(said(200))
    server(script).report(RUN, final())
    assert [set(body) for body in script.bodies] == [{"status", "started_at", "finished_at", "result", "log"}]


@pytest.mark.parametrize("trouble", [BLIP, said(500, "oops"), said(502), HTML])
def test_a_report_that_may_get_through_later_is_left_to_the_caller(trouble: Reply | NodeAgentError) -> None:
    script = Script(trouble)
    with pytest.raises(ServerUnreachable):
        server(script).report(RUN, final())
    assert len(script.calls) == 1


def books(status: str, finished_at: str) -> Reply:
    body = json.dumps({"id": 9, "status": status, "finished_at": finished_at}).encode()
    return Reply(call="C", status=200, content_type="application/json", body=body)


def test_a_report_whose_answer_was_lost_counts_as_delivered() -> None:
    script = Script(said(*FINISHED), books("completed", "1970-01-01T00:00:01"))
    server(script).report(RUN, final())


@pytest.mark.parametrize(
    "found",
    [
        books("killed by user", "1970-01-01T00:00:01"),
        books("completed", "1970-01-01T00:00:02"),
        said(404, "Run id=9 not found!"),
    ],
)
def test_a_run_somebody_else_ended_is_closed(found: Reply) -> None:
    with pytest.raises(RunClosed):
        server(Script(said(*FINISHED), found)).report(RUN, final())


def test_a_report_for_a_deleted_run_is_closed() -> None:
    with pytest.raises(RunClosed):
        server(Script(said(404, "Run id=9 not found!"))).report(RUN, final())


@pytest.mark.parametrize(
    ("refusal", "why"),
    [
        (Reply(call="C", status=413, body=b"<html>413</html>"), "too large"),
        (said(400, "Request body is incorrect"), "Request body is incorrect"),
    ],
)
def test_a_report_refused_for_good_still_ends_the_run_at_the_server(refusal: Reply, why: str) -> None:
    script = Script(refusal, said(200))
    with pytest.raises(RunClosed, match=why):
        server(script).report(RUN, final())
    last = script.bodies[-1]
    assert (last["status"], last["result"]) == ("failed", "")
    assert why in last["log"]
    assert last["finished_at"]


def test_a_refused_ending_is_tried_again_when_the_server_goes_away_in_between() -> None:
    with pytest.raises(ServerUnreachable):
        server(Script(said(413), BLIP, BLIP, BLIP)).report(RUN, final())


# --- forwarding ---


def request(method: str = "GET", path: str = "task/1", **changes: Any) -> ProxiedRequest:
    usual = ProxiedRequest(method=method, path=path, query="a=b", token=Secret("algorithm"))
    return replace(usual, **changes)


def forwarded(script: Script, asked: ProxiedRequest) -> tuple[int, str, bytes]:
    with server(script).forward(asked) as answer:
        return answer.status, answer.content_type, b"".join(answer.body)


@pytest.mark.parametrize("status", [200, 201, 400, 401, 404, 422, 500, 502])
def test_an_algorithm_gets_the_servers_own_answer(status: int) -> None:
    script = Script(Reply(call="C", status=status, content_type="text/x", body=b"\x00raw"))
    assert forwarded(script, request()) == (status, "text/x", b"\x00raw")


def test_an_algorithm_speaks_with_its_own_token() -> None:
    script = Script(said(200))
    forwarded(script, request())
    (call,) = script.calls
    assert (call.token, call.query, call.body) == (Secret("algorithm"), "a=b", None)


def test_what_an_algorithm_sends_is_sent_as_what_it_is_and_with_its_length() -> None:
    script = Script(said(201))
    forwarded(script, request("POST", body=Literal(b"raw"), content_type="application/octet-stream"))
    (call,) = script.calls
    assert isinstance(call.body, Sequence)
    assert (b"".join(call.body), len(call.body)) == (b"raw", 3)
    assert call.content_type == "application/octet-stream"


@pytest.mark.parametrize(("size", "patient"), [(10, False), (1 << 20, True)])
def test_the_server_gets_time_for_a_large_body(size: int, patient: bool) -> None:
    script = Script(said(201))
    forwarded(script, request("POST", body=Literal(b"x" * size)))
    assert (script.calls[0].read_seconds > READ_SECONDS) is patient


def test_a_post_of_an_algorithm_is_never_repeated() -> None:
    script = Script(BLIP, said(201))
    with pytest.raises(ServerUnreachable):
        forwarded(script, request("POST", "task"))
    assert len(script.calls) == 1


def test_a_get_of_an_algorithm_survives_a_blip() -> None:
    script = Script(BLIP, said(200))
    assert forwarded(script, request())[0] == 200


@pytest.mark.parametrize("path", ["task/../token/node", "..", "./task", "task//1", "/task", "a\\..\\b", ""])
def test_a_path_that_leads_elsewhere_is_not_forwarded(path: str) -> None:
    script = Script()
    assert forwarded(script, request(path=path))[0] == 404
    assert script.calls == []


# --- what a policy asks for ---


def found(content: object) -> Reply:
    return Reply(call="CALL", status=200, content_type="application/json", body=json.dumps(content).encode())


TASK = {
    "id": 4,
    "job_id": 7,
    "image": "a/b:1",
    "collaboration": {"id": 1},
    "parent": None,
    "init_org": {"id": 2},
    "init_user": {"id": 3},
    "databases": [],
}


def test_a_task_an_organization_and_a_store_can_be_looked_up() -> None:
    script = Script(found(TASK), found({"name": "beta"}), found({"url": "https://store.example.org/api"}))
    asked = server(script)
    task = asked.find_task(TaskId(4))
    assert task is not None
    assert (task.init_org_id, task.init_user_id, task.init_user_name, task.parent_id) == (2, 3, None, None)
    assert asked.organization_name(OrganizationId(2)) == "beta"
    assert asked.store_url(9) == "https://store.example.org/api"
    assert [call.path for call in script.calls] == ["task/4", "organization/2", "algorithmstore/9"]


@pytest.mark.parametrize("status", [403, 404])
def test_what_the_server_does_not_show_is_not_there(status: int) -> None:
    assert server(Script(said(status, "not found"))).find_task(TaskId(4)) is None
    assert server(Script(said(status, "not found"))).organization_name(OrganizationId(2)) is None
    assert server(Script(said(status, "not found"))).store_url(9) is None


@pytest.mark.parametrize(
    "content",
    [[], {"name": ["beta"], "url": 7}, {"name": "x" * 2000, "url": "x" * 5000}, TASK | {"job_id": "7"}],
)
def test_an_answer_that_makes_no_sense_is_none(content: object) -> None:
    for ask in (
        lambda asked: asked.find_task(TaskId(4)),
        lambda asked: asked.organization_name(OrganizationId(2)),
        lambda asked: asked.store_url(9),
    ):
        with pytest.raises(ServerUnreachable):
            ask(server(Script(found(content))))


def test_the_name_of_a_user_is_taken_where_a_server_tells_it() -> None:
    told = found(TASK | {"init_user": {"id": 3, "username": "alice"}})
    task = server(Script(told)).find_task(TaskId(4))
    assert task is not None
    assert task.init_user_name == "alice"
