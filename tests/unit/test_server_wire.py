"""What the server writes is checked at the door."""

import json
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from node_agent.domain.messages import KillRequested, TaskHinted
from node_agent.domain.ports import FinalReport, NodeIdentity, OpenRun
from node_agent.domain.run import FIRST_JOB_RUN, RunId, Status
from node_agent.domain.task import OrganizationId, TaskId
from node_agent.errors import InputUnreadable, ServerUnreachable
from node_agent.payload.chunks import Literal
from node_agent.payload.codec import PlainCodec
from node_agent.payload.longtext import LongText
from node_agent.server import wire
from node_agent.server.exchange import Reply

ME = NodeIdentity(
    node_id=4,
    node_name="n",
    organization_id=OrganizationId(2),
    organization_name="alpha",
    collaboration_id=1,
    collaboration_name="c",
    encrypted=False,
)


BLOB = "6f1c9a52-6a0e-4d39-a4f7-6c2f2b1f0d11"


def element(**changes: Any) -> dict[str, Any]:
    task = {
        "id": 7,
        "job_id": 5,
        "image": "some/img:1",
        "collaboration": {"id": 1, "link": "/api/collaboration/1", "methods": ["GET"]},
        "parent": None,
        "init_org": {"id": 2},
        "init_user": {"id": 3},
        "study": None,
        "algorithm_store": None,
        "databases": [{"label": "default", "parameters": "{}"}],
    }
    return {"id": 9, "input": "e30=", "status": "pending", "started_at": None, "task": task} | changes


def with_task(**changes: Any) -> dict[str, Any]:
    return element(task=element()["task"] | changes)


def parsed(content: object) -> OpenRun:
    run = wire.parse_run(content, PlainCodec())
    assert run is not None
    return run


def reply(content: object) -> Reply:
    return Reply(call="GET /x", status=200, body=json.dumps(content).encode())


# --- runs ---


def test_a_run_is_read_with_its_input() -> None:
    run = parsed(element(started_at="2026-11-21T22:35:36.964284", status="initializing"))
    assert (run.id, run.task.id, run.task.job_id, b"".join(run.input), run.fault) == (9, 7, 5, b"{}", "")
    assert run.claimed_at == pytest.approx(1795300536.964284, abs=1e-5)
    assert run.status is Status.INITIALIZING


def test_unknown_fields_are_ignored() -> None:
    assert parsed(element(weather="fine")).fault == ""
    assert parsed(with_task(weather="fine")).fault == ""


def test_an_empty_input_is_no_fault() -> None:
    assert b"".join(parsed(element(input="")).input) == b""


def test_an_input_in_the_blob_store_is_known_by_its_name() -> None:
    run = parsed(element(blob_storage_used=True, input=BLOB))
    assert (run.input_blob, list(run.input), run.fault) == (BLOB, [], "")


@pytest.mark.parametrize("said", [{}, {"blob_storage_used": None}, {"blob_storage_used": False}])
def test_a_server_that_does_not_speak_of_blobs_has_none(said: dict[str, Any]) -> None:
    run = parsed(element(**said))
    assert (run.input_blob, b"".join(run.input)) == (None, b"{}")


@pytest.mark.parametrize("uuid", [None, 7, "", "no uuid", BLOB.upper(), f"{BLOB}\n", f"../{BLOB}"])
def test_a_stored_result_must_have_a_proper_name(uuid: object) -> None:
    with pytest.raises(ServerUnreachable, match="not understood"):
        wire.parse_blob(reply({"uuid": uuid}))


@pytest.mark.parametrize("absent", ["databases", "parent", "study", "init_org"])
def test_what_is_not_needed_may_be_missing_or_null(absent: str) -> None:
    task = element()["task"]
    assert parsed(with_task(**{absent: None})).fault == ""
    del task[absent]
    assert parsed(element(task=task)).fault == ""


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"id": 9}, "`input`"),
        (element(input=None), "`input`"),
        (element(task={"id": 7, "link": "/api/task/7"}), "`task.job_id`"),
        (element(task=None), "`task`"),
        (with_task(image=None), "`task.image`"),
        (with_task(image=""), "`task.image`"),
        (with_task(image="i" * 513), "`task.image`"),
        (with_task(image="a b"), "white space"),
        (with_task(image="a\x1b[31mb"), "cannot be printed"),
        (with_task(job_id="5"), "`task.job_id`"),
        (with_task(job_id=True), "`task.job_id`"),
        (with_task(job_id=-5), "`task.job_id`"),
        (with_task(collaboration=None), "`task.collaboration`"),
        (with_task(databases={}), "`task.databases`"),
        (with_task(databases=[{"label": "d"}] * 101), "`task.databases`"),
        (with_task(databases=[{"label": "l" * 129}]), "`task.databases.0.label`"),
        (with_task(databases=[{"label": "a\nb"}]), "cannot be printed"),
        (
            with_task(databases=[{"label": "d", "parameters": "{"}]),
            "database `d` cannot be understood: not JSON",
        ),
        (with_task(databases=[{"label": "d", "parameters": "[" * 100_000}]), "not JSON"),
        (with_task(databases=[{"label": "d", "parameters": "[]"}]), "database `d`"),
        (with_task(databases=[{"label": "d", "parameters": '{"query": 1}'}]), "`query`"),
        (with_task(databases=[{"label": "d", "parameters": '{"preprocessing": [1]}'}]), "`preprocessing.0`"),
        (element(blob_storage_used=True), wire.NO_BLOB),
        (element(blob_storage_used=True, input=f"{BLOB}/../../organization"), wire.NO_BLOB),
        (element(blob_storage_used=True, input=BLOB.upper()), wire.NO_BLOB),
        (element(blob_storage_used=True, input=f"{BLOB}\n"), wire.NO_BLOB),
    ],
)
def test_a_wrong_run_with_an_id_has_one_clear_fault(content: object, named: str) -> None:
    run = parsed(content)
    assert run.id == 9
    assert list(run.input) == []
    assert run.task.image == ""
    assert named in run.fault
    assert "\n" not in run.fault


@pytest.mark.parametrize("text", ["no base64!", "e30", "ä", "e30=\ud83d"])
def test_an_input_that_cannot_be_decoded_says_so_when_it_is_read(text: str) -> None:
    run = parsed(element(input=text))
    assert run.fault == ""
    with pytest.raises(InputUnreadable, match="not valid base64"):
        list(run.input)


def test_long_texts_are_read_from_their_files(tmp_path: Path) -> None:
    def long(content: bytes) -> LongText:
        path = tmp_path / str(len(content))
        path.write_bytes(content)
        return LongText(path, len(content))

    query = "q" * 100_000
    wanted = {"label": "d", "parameters": long(json.dumps({"query": query}).encode())}
    run = parsed(with_task(databases=[wanted]) | {"input": long(b"e30=")})
    assert (b"".join(run.input), run.task.databases[0].query) == (b"{}", query)
    too_long = {"label": "d", "parameters": long(b" " * 1_000_001)}
    assert "database `d` cannot be understood" in parsed(with_task(databases=[too_long])).fault
    assert "`task.image`" in parsed(with_task(image=long(b"image"))).fault


def test_a_fault_does_not_repeat_the_input() -> None:
    assert "c2VjcmV0" not in parsed(element(input="c2VjcmV0", task=None)).fault


def test_a_run_with_a_fault_keeps_the_id_of_its_task() -> None:
    assert parsed(with_task(image=None)).task.id == 7


@pytest.mark.parametrize(
    "content", [None, 3, "x", [], {}, {"id": None}, {"id": "9"}, {"id": 0}, {"id": True}]
)
def test_an_element_without_a_usable_id_is_left_out(content: object) -> None:
    page = wire.parse_page(reply({"data": [content, element()]}), PlainCodec())
    assert [run.id for run in page.runs] == [9]
    assert page.count == 2


@pytest.mark.parametrize("blob", [None, False])
def test_blob_storage_that_is_not_used_is_no_fault(blob: object) -> None:
    assert parsed(element(blob_storage_used=blob)).fault == ""


def test_an_unknown_status_counts_as_pending() -> None:
    assert parsed(element(status="shiny")).status is Status.PENDING


def test_database_parameters_are_read_in_order() -> None:
    parameters = json.dumps(
        {"query": "q", "sheet_name": "s", "preprocessing": [{"a": 1}], "arguments": {"b": 2}}
    )
    run = parsed(with_task(databases=[{"label": "x", "parameters": parameters}, {"label": "x"}]))
    first, second = run.task.databases
    assert (first.query, first.sheet_name, first.preprocessing, first.arguments) == (
        "q",
        "s",
        ({"a": 1},),
        {"b": 2},
    )
    assert (second.label, second.query) == ("x", None)


@pytest.mark.parametrize("content", [[], {}, {"data": None}, {"data": {}}, "x", None])
def test_a_page_that_is_none_is_not_taken_as_empty(content: object) -> None:
    with pytest.raises(ServerUnreachable, match="GET /x"):
        wire.parse_page(reply(content), PlainCodec())


# --- times ---


@pytest.mark.parametrize(
    ("at", "text"),
    [
        (0.0, "1970-01-01T00:00:00.000000+00:00"),
        (1_700_000_000.0, "2023-11-14T22:13:20.000000+00:00"),
        (1_700_000_000.25, "2023-11-14T22:13:20.250000+00:00"),
    ],
)
def test_times_have_six_digits_and_a_zone_always(at: float, text: str) -> None:
    assert wire.format_time(at) == text
    assert wire.parse_time(text) == at


def test_a_time_without_zone_is_utc() -> None:
    assert wire.parse_time("1970-01-01T00:00:01") == 1.0


@pytest.mark.parametrize("text", [None, "", "yesterday", "9999-99-99"])
def test_what_is_no_time_is_none(text: str | None) -> None:
    assert wire.parse_time(text) is None


# --- final message ---


def final(status: Status = Status.COMPLETED) -> FinalReport:
    return FinalReport(status=status, result=None, log=None, started_at=0, finished_at=1, init_org_id=None)


def test_the_final_message_is_json_with_every_field() -> None:
    body = wire.final_body(final(), Literal(b"QUJD"))
    assert json.loads(b"".join(body)) == {
        "status": "completed",
        "started_at": "1970-01-01T00:00:00.000000+00:00",
        "finished_at": "1970-01-01T00:00:01.000000+00:00",
        "result": "QUJD",
        "log": "",
    }


@pytest.mark.parametrize(
    ("status", "told"), [(Status.COMPLETED, Status.FAILED), (Status.CRASHED, Status.CRASHED)]
)
def test_a_refused_report_ends_the_run_with_the_reason(status: Status, told: Status) -> None:
    body = json.loads(wire.refusal_body(final(status), 'too "large"'))
    assert (body["status"], body["result"], body["log"]) == (told, "", 'too "large"')
    assert body["finished_at"] == "1970-01-01T00:00:01.000000+00:00"


# --- socket ---


def test_a_hint_names_its_task() -> None:
    assert wire.parse_hint({"id": 3, "parent_id": None}) == TaskHinted(TaskId(3))


@pytest.mark.parametrize("event", [None, 3, "3", [], {}, {"id": "3"}, {"id": 0}])
def test_a_hint_that_says_nothing_is_ignored(event: object) -> None:
    assert wire.parse_hint(event) is None


def killed(run: object, organization: object) -> dict[str, object]:
    return {"task_id": 1, "run_id": run, "organization_id": organization}


def test_a_kill_is_filtered_by_organization() -> None:
    event = {"collaboration_id": 1, "kill_list": [killed(10, 2), killed(11, 3), killed(12, 2)]}
    assert wire.parse_kill(event, ME) == KillRequested(frozenset({RunId(10), RunId(12)}))


@pytest.mark.parametrize(
    "event", [{"collaboration_id": 1}, {"collaboration_id": 1, "node_id": 4}, {"node_id": 4}]
)
def test_a_kill_without_list_is_for_every_run(event: object) -> None:
    assert wire.parse_kill(event, ME) == KillRequested(None)


@pytest.mark.parametrize(
    "event",
    [
        None,
        "all",
        {},
        {"collaboration_id": 2},
        {"collaboration_id": 1, "node_id": 5},
        {"collaboration_id": 2, "node_id": 4},
        {"collaboration_id": "1"},
        {"collaboration_id": 1, "kill_list": []},
        {"collaboration_id": 1, "kill_list": "all"},
        {"collaboration_id": 1, "kill_list": {"run_id": 1}},
        {"collaboration_id": 1, "kill_list": [killed(11, 3)]},
        {"collaboration_id": 1, "kill_list": [killed(None, 2), killed("10", 2), 3, None, {"run_id": 1}]},
        {"kill_list": [killed(10, 2)]},
    ],
)
def test_a_kill_for_others_or_nonsense_kills_nothing(event: object) -> None:
    assert wire.parse_kill(event, ME) is None


# --- who we are ---


def test_an_answer_that_is_not_understood_says_where() -> None:
    with pytest.raises(ServerUnreachable, match="GET /x is not understood: `organization`"):
        wire.parse_node(reply({"id": 4, "name": "n", "collaboration": {"id": 1}}))


def test_a_container_token_must_look_like_one() -> None:
    assert wire.parse_container_token(reply({"container_token": "a.b.c"})).reveal() == "a.b.c"
    with pytest.raises(ServerUnreachable) as caught:
        wire.parse_container_token(reply({"container_token": "secret\r\nX-Evil: 1"}))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("status", ["completed", "crashed", "killed by user", "a word of a later version"])
def test_a_run_that_ended_is_a_reason_to_look_at_its_task(status: str) -> None:
    event = {"status": status, "run_id": 9, "task_id": 7, "job_id": 5, "parent_id": None}
    assert wire.task_with_an_ended_run(event) == 7


@pytest.mark.parametrize(
    "event",
    [
        {"status": "active", "task_id": 7},
        {"status": "pending", "task_id": 7},
        {"status": "completed"},
        {"status": "completed", "task_id": "seven"},
        {"status": ["completed"], "task_id": 7},
        "completed",
        None,
    ],
)
def test_events_that_tell_of_no_end_are_no_reason_to_look_at_a_task(event: object) -> None:
    assert wire.task_with_an_ended_run(event) is None


# --- numbers that belong to the jobs of the compute API -------------------------------------------------------


@pytest.mark.parametrize("number", [FIRST_JOB_RUN, FIRST_JOB_RUN + 5, 0, -1, True, 9.0, "9", None])
def test_a_run_with_a_number_the_server_may_not_give_is_ignored_and_logged(number: object) -> None:
    with capture_logs() as lines:
        assert wire.parse_run(element(id=number), PlainCodec()) is None
    assert [line["event"] for line in lines] == ["run_ignored"]


def test_the_greatest_number_below_those_of_jobs_is_accepted() -> None:
    assert parsed(element(id=FIRST_JOB_RUN - 1)).id == FIRST_JOB_RUN - 1


def test_the_server_kills_no_job() -> None:
    event = {"collaboration_id": 1, "kill_list": [killed(FIRST_JOB_RUN + 1, 2), killed(12, 2)]}
    assert wire.parse_kill(event, ME) == KillRequested(frozenset({RunId(12)}))
