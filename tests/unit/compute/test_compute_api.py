"""The compute API over HTTP: what jobs, results, tokens and documents look like to those who may see them."""

import json
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from werkzeug.test import Client, EnvironBuilder, run_wsgi_app

from node_agent.compute.access import Grants, Question
from node_agent.compute.api import LONG_ANSWERS, LONG_ANSWERS_EACH
from node_agent.compute.ledger import Grant
from node_agent.compute.pace import MOST_KNOWN, Pace, Places, TooFast, peer_name
from node_agent.compute.routes import ENDPOINTS
from node_agent.domain.messages import JobsHandedOver
from node_agent.errors import EngineUnreachable
from tests.doubles.compute_scene import (
    ALGORITHM,
    ANNE,
    BERT,
    DATA,
    DIGEST,
    META,
    MORE_DATA,
    Scene,
    errors_of,
    without,
)


@pytest.fixture
def scene(quick_dir: Path) -> Iterator[Scene]:
    made = Scene(quick_dir)
    yield made
    made.ledger.close()


# --- starting -----------------------------------------------------------------------------------------------------


def test_a_job_is_taken_in_and_set_in_motion(scene: Scene) -> None:
    job = scene.started()
    assert (job["status"], job["statusText"], job["dateFinished"]) == (1, "Warming up", None)
    assert (job["owner"], job["documentId"], job["inputDID"]) == (ANNE.shown, DATA, [DATA])
    assert len(job["jobId"]) == 32
    scene.desk.tend()
    (message,) = scene.posted
    assert isinstance(message, JobsHandedOver)
    assert message.runs[0].task.image == f"registry.example/average@{DIGEST}"
    assert message.runs[0].task.databases[0].label == "patients"


def test_service_zero_may_be_a_number(scene: Scene) -> None:
    scene.started(dataset={"documentId": DATA, "serviceId": 0, "transferTxId": "order"})


def test_a_grant_is_needed_named_and_used_up(scene: Scene) -> None:
    scene.access = Grants(scene.ledger, scene.clock)
    scene.ledger.add_grant(
        Grant(id="g", consumer=ANNE.address, data_set=DATA, uses_left=1, expires_at=None, created_at=0.0)
    )
    refused = {"error": {"dataset.serviceId": "order_invalid"}}
    assert scene.ask("computeStart", scene.start_fields(1)).get_json() == refused
    order = {"documentId": DATA, "serviceId": "0", "transferTxId": "g"}
    assert scene.ask("computeStart", scene.start_fields(2, by=BERT, dataset=order)).get_json() == refused
    scene.started(2, dataset=order)
    assert scene.ask("computeStart", scene.start_fields(3, dataset=order)).get_json() == refused


def test_more_jobs_than_may_wait_are_refused_without_being_lost(scene: Scene) -> None:
    scene.max_waiting = 1
    scene.started(1)
    answer = scene.ask("computeStart", scene.start_fields(2))
    assert answer.status_code == 429
    assert int(answer.headers["Retry-After"]) > 0


# --- status, stop, delete -----------------------------------------------------------------------------------------


def test_a_status_without_signature_shows_little_and_only_with_the_number(scene: Scene) -> None:
    job = scene.started(1)
    asked = {"consumerAddress": ANNE.shown, "jobId": job["jobId"]}
    (shown,) = scene.ask("computeStatus", asked).get_json()
    assert shown["status"] == 1
    assert not shown.keys() & {"results", "resultsUrls", "algorithmLogUrl", "terminationDetails", "inputDID"}
    assert scene.ask("computeStatus", {"consumerAddress": ANNE.shown}).get_json() == []
    assert scene.ask("computeStatus", {**asked, "consumerAddress": BERT.shown}).get_json() == []
    scene.unsigned_status = False
    assert scene.ask("computeStatus", asked).get_json() == []


def test_a_signed_status_shows_everything_and_uses_its_nonce_up(scene: Scene) -> None:
    job = scene.started(1)
    fields = scene.of_job(job, 2)
    (shown,) = scene.ask("computeStatus", fields).get_json()
    assert shown["terminationDetails"] == {"exitCode": None, "OOMKilled": False}
    assert list(errors_of(scene.ask("computeStatus", fields))) == ["nonce"]
    # what stands in the log of some proxy is good for nothing any more
    assert list(errors_of(scene.ask("computeStop", fields))) == ["nonce"]


def test_a_consumer_sees_all_its_own_jobs(scene: Scene) -> None:
    scene.started(1)
    scene.started(2)
    scene.started(1, by=BERT)
    fields = {"consumerAddress": ANNE.shown, "nonce": "3", "signature": ANNE.sign(f"{ANNE.shown}3")}
    assert len(scene.ask("computeStatus", fields).get_json()) == 2


def test_a_job_is_stopped_by_its_owner(scene: Scene) -> None:
    job = scene.started(1)
    (shown,) = scene.ask("computeStop", scene.of_job(job, 2)).get_json()
    assert (shown["status"], shown["stopreq"], shown["dateFinished"]) == (1, 1, None)
    scene.desk.tend()
    record = scene.record(job)
    assert record.ending is not None
    assert (record.ending["status"], record.ending["text"]) == (70, "Job stopped")


def test_a_deleted_job_has_no_results_and_is_shown_to_nobody(scene: Scene) -> None:
    job = scene.started(1)
    scene.end(job)
    (shown,) = scene.ask("computeDelete", scene.of_job(job, 2)).get_json()
    assert (shown["removed"], shown["status"], shown["statusText"]) == (1, 70, "Job deleted successfully")
    assert (shown["results"], shown["resultsUrls"], shown["algorithmLogUrl"]) == ([], [], "")
    asked = {"consumerAddress": ANNE.shown, "jobId": job["jobId"]}
    assert scene.ask("computeStatus", asked).get_json() == []
    assert scene.ask("computeStatus", scene.of_job(job, 3)).get_json() == []


def test_a_job_that_waits_is_deleted_as_well(scene: Scene) -> None:
    job = scene.started(1)
    (shown,) = scene.ask("computeDelete", scene.of_job(job, 2)).get_json()
    assert (shown["removed"], shown["stopreq"], shown["dateFinished"]) == (1, 1, None)
    scene.desk.tend()
    assert scene.ledger.open_jobs() == []
    assert scene.posted == []


def test_a_job_whose_results_are_kept_no_longer_says_so(scene: Scene) -> None:
    job = scene.started(1)
    scene.end(job)
    scene.clock.advance(3601)
    scene.desk.forget_old(keep_jobs=10_000)
    (shown,) = scene.ask("computeStatus", scene.of_job(job, 2)).get_json()
    assert (shown["removed"], shown["status"], shown["statusText"]) == (1, 70, "Job finished")
    assert (shown["results"], shown["resultsUrls"], shown["algorithmLogUrl"]) == ([], [], "")
    assert shown["reason"] == "The results were deleted: this node does not keep them for longer."
    assert "index" in errors_of(scene.ask("computeResult", scene.result_fields(job, 0, 3)))


def test_a_job_tells_what_it_was_given_and_asked_for(scene: Scene) -> None:
    fields = scene.newer_fields(1, maxJobDuration=30, queueMaxWaitTime=5, metadata={"for": "me"})
    (job,) = scene.ask("freeCompute", fields).get_json()
    assert (job["maxJobDuration"], job["queueMaxWaitTime"], job["metadata"]) == (30, 5, {"for": "me"})
    assert job["resources"] == [
        {"id": "cpu", "amount": 1},
        {"id": "ram", "amount": 1.0},
        {"id": "disk", "amount": 1.0},
    ]


# --- results ------------------------------------------------------------------------------------------------------


def test_results_are_numbered_by_name_and_the_log_comes_last(scene: Scene) -> None:
    job = scene.started(1)
    scene.end(job)
    (shown,) = scene.ask("computeStatus", scene.of_job(job, 2)).get_json()
    assert [(entry["index"], entry["filename"], entry["type"]) for entry in shown["results"]] == [
        (0, "a.txt", "output"),
        (1, "b.txt", "output"),
        (2, "algorithm.log", "algorithmLog"),
    ]
    assert (shown["status"], shown["terminationDetails"]["exitCode"]) == (70, 0)
    path = f"/api/services/computeResult?jobId={job['jobId']}&index="
    assert shown["resultsUrls"] == [path + "0", path + "1"]
    assert shown["algorithmLogUrl"] == path + "2"
    answer = scene.ask("computeResult", scene.result_fields(job, 0, 3))
    assert answer.data == b"a.txt" * 10
    assert answer.headers["Content-Disposition"] == "attachment; filename=a.txt"
    assert answer.headers["Access-Control-Expose-Headers"] == "Content-Disposition"


def test_a_part_of_a_result_may_be_asked_for(scene: Scene) -> None:
    job = scene.started(1)
    scene.end(job)
    answer = scene.ask("computeResult", scene.result_fields(job, 0, 3), headers={"Range": "bytes=2-4"})
    assert (answer.status_code, answer.data) == (206, b"txt")
    assert answer.headers["Content-Range"] == "bytes 2-4/50"


def test_a_part_that_is_not_there_is_refused_with_the_size(scene: Scene) -> None:
    job = scene.started(1)
    scene.end(job)
    answer = scene.ask("computeResult", scene.result_fields(job, 0, 3), headers={"Range": "bytes=90-"})
    assert (answer.status_code, answer.headers["Content-Range"]) == (416, "bytes */50")
    assert answer.get_json() == {"error": "Requested Range Not Satisfiable"}


@pytest.mark.parametrize("index", ["3", "-1", "x", "1.0", "00"])
def test_a_result_that_is_not_there_is_refused_before_the_nonce_is_used(scene: Scene, index: str) -> None:
    job = scene.started(1)
    scene.end(job)
    fields = {**scene.result_fields(job, 0, 3), "index": index}
    fields["signature"] = ANNE.sign(f"{ANNE.shown}{job['jobId']}{index}3")
    assert list(errors_of(scene.ask("computeResult", fields))) == ["index"]
    assert scene.ledger.last_nonce(ANNE.address) == 1


def test_results_are_for_their_owner_and_whom_the_owner_named(scene: Scene) -> None:
    fields = scene.newer_fields(1, additionalViewers=[BERT.shown])
    (job,) = scene.ask("freeCompute", fields).get_json()
    scene.end(job)
    assert scene.ask("computeResult", scene.result_fields(job, 0, 3, by=BERT)).status_code == 200
    job = {**job, "documentId": DATA}
    assert "signature" in errors_of(scene.ask("computeStop", scene.of_job(job, 4, by=BERT)))
    assert scene.ask("computeStatus", scene.of_job(job, 5, by=BERT)).get_json() == []


def test_a_result_that_vanishes_meanwhile_is_no_result(scene: Scene) -> None:
    job = scene.started(1)
    scene.end(job)
    scene.results.path(scene.record(job).id, 0).unlink()
    assert "index" in errors_of(scene.ask("computeResult", scene.result_fields(job, 0, 3)))
    assert scene.ask("computeResult", scene.result_fields(job, 1, 4)).status_code == 200


def test_one_consumer_fetches_only_so_many_files_at_once_and_loses_no_nonce(scene: Scene) -> None:
    job = scene.started(1)
    scene.end(job)
    client = Client(scene.api)
    path = ENDPOINTS["computeResult"][1]

    def fetch(nonce: int) -> Any:
        return client.get(path, query_string=scene.result_fields(job, 0, nonce))

    under_way = [fetch(nonce) for nonce in range(2, 2 + LONG_ANSWERS_EACH)]
    assert {answer.status_code for answer in under_way} == {200}
    refused = fetch(100)
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
    under_way[0].close()
    under_way.append(fetch(100))
    assert under_way[-1].status_code == 200
    for answer in under_way:
        answer.close()


def test_long_answers_leave_threads_for_short_ones() -> None:
    places = Places(most=LONG_ANSWERS, most_each=LONG_ANSWERS_EACH)
    taken = [places.take(f"consumer {number}") for number in range(LONG_ANSWERS)]
    with pytest.raises(TooFast):
        places.take("another")
    taken[0]()
    taken[0]()
    places.take("another")
    with pytest.raises(TooFast):
        places.take("one more")


# --- tokens -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "prefix"), [("AuthToken", ""), ("Authorization", ""), ("Authorization", "Bearer ")]
)
def test_a_token_stands_for_a_signature(scene: Scene, header: str, prefix: str) -> None:
    token = prefix + scene.token_for(1)
    fields = scene.start_fields(2)
    del fields["signature"]
    assert scene.ask("computeStart", fields, headers={header: token}).status_code == 200
    assert list(errors_of(scene.ask("computeStart", fields, headers={header: token}))) == ["nonce"]


@pytest.mark.parametrize("value", ["undefined", "null", "", "nonsense", "a.b.c"])
def test_what_is_no_token_is_no_signature(scene: Scene, value: str) -> None:
    fields = scene.start_fields(2)
    del fields["signature"]
    assert "signature" in errors_of(scene.ask("computeStart", fields, headers={"Authorization": value}))


def test_a_token_speaks_for_one_address_and_for_a_while(scene: Scene) -> None:
    token = scene.token_for(1)
    fields = scene.start_fields(2, by=BERT)
    del fields["signature"]
    assert "signature" in errors_of(scene.ask("computeStart", fields, headers={"AuthToken": token}))
    scene.clock.advance(101)
    fields = scene.start_fields(2)
    del fields["signature"]
    assert (
        "expired"
        in errors_of(scene.ask("computeStart", fields, headers={"AuthToken": token}))["signature"][0]
    )


def test_a_deleted_token_is_good_for_nothing_and_stays_so(scene: Scene) -> None:
    token = scene.token_for(1)
    fields = {"address": ANNE.shown, "token": token, "nonce": "2", "signature": ANNE.sign(f"{ANNE.shown}2")}
    assert scene.ask("deleteAuthToken", fields).get_json() == {"success": "Token has been deactivated."}
    again = {**fields, "nonce": "3", "signature": ANNE.sign(f"{ANNE.shown}3")}
    assert scene.ask("deleteAuthToken", again).get_json() == {"error": "Token is deleted."}
    assert scene.token_for(4) != token


def test_a_token_is_not_made_for_the_past_and_its_nonce_is_left_alone(scene: Scene) -> None:
    fields = scene.token_fields(1, until=scene.clock.now() - 1)
    assert errors_of(scene.ask("createAuthToken", fields)) == {"expiration": ["Invalid timestamp provided."]}
    assert scene.ledger.last_nonce(ANNE.address) == 0


@pytest.mark.parametrize("per_second", [1, 1000])
def test_the_newer_dialect_counts_the_end_of_a_token_in_milliseconds(scene: Scene, per_second: int) -> None:
    until = int((scene.clock.now() + 100) * per_second)
    fields = {**without(scene.token_fields(1), "expiration"), "validUntil": until}
    token = scene.ask("generateAuthToken", fields).get_json()["token"]
    start = without(scene.newer_fields(2), "signature")
    assert scene.ask("freeCompute", start, headers={"Authorization": token}).status_code == 200
    scene.clock.advance(101)
    late = without(scene.newer_fields(3), "signature")
    assert "signature" in errors_of(scene.ask("freeCompute", late, headers={"Authorization": token}))


def test_a_token_without_end_ends_all_the_same(scene: Scene) -> None:
    token = scene.ask("createAuthToken", scene.token_fields(1, until=2**50)).get_json()["token"]
    scene.clock.advance(30 * 86_400 + 1)
    start = without(scene.start_fields(2), "signature")
    assert "signature" in errors_of(scene.ask("computeStart", start, headers={"AuthToken": token}))


def test_a_token_is_no_proof_of_who_asks_for_another(scene: Scene) -> None:
    token = scene.token_for(1)
    fields = {**scene.token_fields(2), "signature": "0x"}
    answer = scene.ask("createAuthToken", fields, headers={"AuthToken": token})
    assert "signature" in errors_of(answer)


def test_a_signature_counts_more_than_a_token(scene: Scene) -> None:
    token = scene.token_for(1)
    fields = {**scene.start_fields(2), "signature": BERT.sign("x")}
    assert "signature" in errors_of(scene.ask("computeStart", fields, headers={"AuthToken": token}))


def test_a_token_is_deleted_in_the_newer_dialect(scene: Scene) -> None:
    token = scene.token_for(1)
    signature = ANNE.sign(f"{ANNE.shown}2invalidateAuthToken")
    fields = {"address": ANNE.shown, "token": token, "nonce": "2", "signature": signature}
    assert scene.ask("invalidateAuthToken", fields).get_json() == {"success": True}
    start = without(scene.start_fields(3), "signature")
    assert "signature" in errors_of(scene.ask("computeStart", start, headers={"AuthToken": token}))


@pytest.mark.parametrize("token", ["nonsense", "a.b.c", "x" * 4000])
def test_what_is_no_token_cannot_be_deleted(scene: Scene, token: str) -> None:
    fields = {"address": ANNE.shown, "token": token, "nonce": "2", "signature": ANNE.sign(f"{ANNE.shown}2")}
    assert scene.ask("deleteAuthToken", fields).get_json() == {"error": "Token is invalid."}


# --- the rest -----------------------------------------------------------------------------------------------------


def test_the_root_names_every_route(scene: Scene) -> None:
    body = Client(scene.api).get("/", headers={"Host": "elsewhere.example"}).get_json()
    assert body["software"] == "node-agent"
    assert body["serviceEndpoints"] == {name: list(where) for name, where in ENDPOINTS.items()}
    assert body["providerAddress"] == body["providerAddresses"]["0"]
    assert body["providerAddress"].lower() == "0x" + "c" * 40
    assert "elsewhere" not in str(body)


def test_a_free_start_of_the_newer_dialect_runs(scene: Scene) -> None:
    (job,) = scene.ask("freeCompute", scene.newer_fields(6)).get_json()
    assert (job["status"], job["inputDID"]) == (1, [DATA])


def test_environments_carry_the_fields_of_both_dialects(scene: Scene) -> None:
    scene.runs_now(scene.started(1))
    (environment,) = scene.ask("computeEnvironments", {"chainId": "1"}).get_json()
    assert (environment["priceMin"], environment["maxJobDuration"], environment["storageExpiry"]) == (
        0,
        60,
        3600,
    )
    assert {"free", "resources", "cpuNumber", "nCPU", "consumerAddress"} <= environment.keys()
    assert (environment["currentJobs"], environment["maxJobs"], environment["queuedJobs"]) == (1, 2, 0)
    assert (environment["ramGB"], environment["diskGB"]) == (1, 1)
    assert environment["resources"][0] == {
        "id": "cpu",
        "type": "cpu",
        "total": 2,
        "min": 0,
        "max": 1,
        "inUse": 1,
    }
    assert environment["platform"]["os"] == "linux"
    assert environment["platform"]["architecture"]


IN_QUERY_OR_BODY = (
    "nonce",
    "computeStatus",
    "computeStop",
    "computeDelete",
    "computeResult",
    "createAuthToken",
    "computeStart",
    "freeCompute",
)


@pytest.mark.parametrize("place", ["query", "body", "both"])
@pytest.mark.parametrize("route", IN_QUERY_OR_BODY)
def test_fields_stand_in_the_query_or_in_the_body_of_every_verb(scene: Scene, route: str, place: str) -> None:
    job = scene.started(1)
    scene.end(job)
    fields = {
        "nonce": {"userAddress": ANNE.shown},
        "computeResult": scene.result_fields(job, 0, 2),
        "createAuthToken": scene.token_fields(2),
        "computeStart": scene.start_fields(2),
        "freeCompute": scene.newer_fields(2),
    }.get(route, scene.of_job(job, 2))
    method, path = ENDPOINTS[route]
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in fields.items()}
    # where there is a query, nobody looks at the body
    sent: dict[str, Any] = {
        "query": {"query_string": texts},
        "body": {"json": fields},
        "both": {"query_string": texts, "json": {"nonce": "1"}},
    }[place]
    answer = Client(scene.api).open(path, method=method, buffered=True, **sent)
    assert answer.status_code == 200, answer.text


def test_every_answer_closes_its_connection_and_is_kept_by_nobody(scene: Scene) -> None:
    job = scene.started(1)
    scene.end(job)
    answers = [
        Client(scene.api).get("/"),
        Client(scene.api).get("/nowhere"),
        scene.ask("computeStop", {}),
        scene.ask("computeResult", scene.result_fields(job, 0, 2)),
    ]
    assert {answer.headers["Connection"] for answer in answers} == {"close"}
    assert {answer.headers["X-Content-Type-Options"] for answer in answers} == {"nosniff"}
    assert answers[0].headers["Cache-Control"] == "no-store"


def test_no_answer_invites_other_web_pages(scene: Scene) -> None:
    answer = Client(scene.api).get("/", headers={"Origin": "https://elsewhere.example"})
    assert "Access-Control-Allow-Origin" not in answer.headers


@pytest.mark.parametrize("path", ["/nowhere", "/api/services/nonce", "/api/services/compute"])
def test_a_body_is_taken_in_before_it_is_refused(scene: Scene, path: str) -> None:
    """To a client that is still sending, the answer would be lost."""
    environ = EnvironBuilder(path=path, method="POST", data=b"x" * 200_000).get_environ()
    body = environ["wsgi.input"]
    assert isinstance(body, BytesIO)
    _, status, _ = run_wsgi_app(scene.api, environ)
    assert status.startswith("4")
    assert body.read() == b""


def test_the_log_names_routes_and_nothing_of_requests(scene: Scene) -> None:
    job = scene.started(1)
    fields = scene.of_job(job, 2)
    with capture_logs() as lines:
        scene.ask("computeStatus", fields)
        Client(scene.api).get("/secret-path?secret-query")
    assert [(line["event"], line["route"], line["status"]) for line in lines] == [
        ("compute_request", "computeStatus", 200),
        ("compute_request", "unknown", 404),
    ]
    assert not any(value in str(lines) for value in (job["jobId"], fields["signature"], "secret", ANNE.shown))


class Failing:
    """An access check that fails."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def right_to(self, question: Question) -> str | None:
        raise self._error


def test_a_mistake_of_ours_is_told_without_its_cause_and_logged_with_it(scene: Scene) -> None:
    scene.access = Failing(RuntimeError("secret"))
    with capture_logs() as lines:
        answer = scene.ask("computeStart", scene.start_fields(1))
    assert (answer.status_code, answer.get_json()) == (
        503,
        {"error": "The node failed at this request; its operator finds why in its log.", "context": {}},
    )
    assert [line["event"] for line in lines] == ["compute_request_bug", "compute_request"]
    assert "secret" in str(lines[0]["exc_info"])


def test_what_is_away_for_a_while_is_to_be_asked_again(scene: Scene) -> None:
    scene.access = Failing(EngineUnreachable("/var/run/secret"))
    answer = scene.ask("computeStart", scene.start_fields(1))
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    assert "secret" not in answer.text


def test_nobody_asks_too_often(scene: Scene) -> None:
    scene.pace = Pace(per_second=1, burst=2, monotonic=scene.clock.monotonic)
    codes = [Client(scene.api).get("/").status_code for _ in range(3)]
    assert codes == [200, 200, 429]
    scene.clock.advance(1)
    assert Client(scene.api).get("/").status_code == 200


def test_one_address_does_not_ask_too_often_from_many_places(scene: Scene) -> None:
    scene.pace = Pace(per_second=1, burst=2, monotonic=scene.clock.monotonic)

    def ask(nonce: int, place: int) -> int:
        fields = {
            "consumerAddress": ANNE.shown,
            "nonce": str(nonce),
            "signature": ANNE.sign(f"{ANNE.shown}{nonce}"),
        }
        peer = {"REMOTE_ADDR": f"192.0.2.{place}"}
        return scene.ask("computeStatus", fields, environ_overrides=peer).status_code

    assert [ask(nonce, nonce) for nonce in (1, 2, 3)] == [200, 200, 429]
    assert scene.ledger.last_nonce(ANNE.address) == 2


def test_who_signs_for_others_does_not_slow_them_down(scene: Scene) -> None:
    scene.pace = Pace(per_second=1, burst=2, monotonic=scene.clock.monotonic)
    for place in range(5):
        forged = {"consumerAddress": ANNE.shown, "nonce": "1", "signature": BERT.sign("x")}
        peer = {"REMOTE_ADDR": f"192.0.2.{place}"}
        assert scene.ask("computeStatus", forged, environ_overrides=peer).status_code == 400
    peer = {"REMOTE_ADDR": "198.51.100.1"}
    assert scene.ask("computeStart", scene.start_fields(1), environ_overrides=peer).status_code == 200


def test_a_pace_remembers_only_so_many(scene: Scene) -> None:
    pace = Pace(per_second=1, burst=1, monotonic=scene.clock.monotonic)
    for number in range(MOST_KNOWN * 2):
        pace.take(f"peer {number}")
    assert len(pace._buckets) == MOST_KNOWN


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8::1", "2001:db8::ffff:2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        (None, "nobody", True),
    ],
)
def test_a_network_of_many_addresses_counts_as_one_peer(one: str | None, other: str, same: bool) -> None:
    assert (peer_name(one) == peer_name(other)) is same


def test_the_log_of_a_running_job_is_followed_where_the_data_set_shares_it(scene: Scene) -> None:
    scene.data_sets[DATA] = replace(scene.data_sets[DATA], share_log=True)
    job = scene.started(1)
    assert scene.ask("computeStreamableLogs", scene.log_fields(job, 2)).status_code == 404
    scene.runs_now(job)
    assert scene.ask("computeStreamableLogs", scene.log_fields(job, 3)).data.startswith(b"log of ")
    assert "signature" in errors_of(scene.ask("computeStreamableLogs", scene.log_fields(job, 4, by=BERT)))


def test_a_log_that_is_not_shared_is_not_followed(scene: Scene) -> None:
    job = scene.started(1)
    scene.runs_now(job)
    assert scene.ask("computeStreamableLogs", scene.log_fields(job, 3)).status_code == 404


def test_a_dry_run_names_the_grant_to_come_with_and_begins_nothing(scene: Scene) -> None:
    scene.access = Grants(scene.ledger, scene.clock)
    scene.ledger.add_grant(
        Grant(id="g", consumer=ANNE.address, data_set=DATA, uses_left=1, expires_at=None, created_at=0.0)
    )
    fields = {
        "consumerAddress": ANNE.shown,
        "datasets": [{"documentId": DATA, "serviceId": "0"}],
        "algorithm": {"documentId": ALGORITHM.did, "serviceId": "0"},
        "compute": {"env": "small", "validUntil": int(scene.clock.now()) + 60},
    }
    body = scene.ask("initializeCompute", fields).get_json()
    assert body == {"datasets": [{"validOrder": "g"}], "algorithm": {"validOrder": "g"}}
    assert scene.ledger.open_jobs() == []
    stranger = scene.ask("initializeCompute", {**fields, "consumerAddress": BERT.shown})
    assert stranger.get_json() == {"error": {"dataset.serviceId": "order_invalid"}}
    late = {**fields, "compute": {"env": "small", "validUntil": 1}}
    assert scene.ask("initializeCompute", late).get_json() == {
        "error": "The validUntil value is not correct."
    }


def test_documents_tell_the_terms_and_nothing_of_the_data(scene: Scene) -> None:
    data = Client(scene.api).get(f"/api/aquarius/assets/ddo/{DATA}").get_json()
    assert data["metadata"]["type"] == "dataset"
    assert data["services"][0]["compute"]["publisherTrustedAlgorithms"][0]["did"] == ALGORITHM.did
    algorithm = Client(scene.api).get(f"/api/aquarius/assets/ddo/{ALGORITHM.did}").get_json()
    assert algorithm["metadata"]["algorithm"]["container"]["checksum"] == DIGEST
    assert Client(scene.api).get("/api/aquarius/assets/ddo/patients").status_code == 404


def test_file_lists_tell_that_there_is_a_file_and_not_how_large(scene: Scene) -> None:
    (found,) = scene.ask("fileinfo", {"did": DATA, "serviceId": "0"}).get_json()
    assert (found["valid"], found["contentLength"]) == (True, "")
    assert scene.ask("fileinfo", {"did": DATA, "serviceId": "1"}).status_code == 400


@pytest.mark.parametrize("changed", [{}, {"compute": None, "environment": "small"}])
def test_a_dry_run_is_asked_for_in_both_dialects(scene: Scene, changed: dict[str, Any]) -> None:
    fields = {
        "consumerAddress": ANNE.shown,
        "datasets": [{"documentId": DATA, "serviceId": "0"}, {"documentId": MORE_DATA, "serviceId": "7"}],
        "algorithm": {"documentId": ALGORITHM.did, "serviceId": "0"},
        "compute": {"env": "small", "validUntil": int(scene.clock.now()) + 60},
        **changed,
    }
    body = scene.ask("initializeCompute", fields).get_json()
    assert body["datasets"] == [{"validOrder": f"address:{ANNE.address}"}] * 2
    paid = {**fields, "payment": {"chainId": 1}}
    assert scene.ask("initializeCompute", paid).get_json() == {
        "error": "payments not supported; use freeCompute"
    }


def test_a_dry_run_with_raw_code_names_no_order_for_it(scene: Scene) -> None:
    scene.data_sets[DATA] = replace(scene.data_sets[DATA], raw_algorithms=True)
    fields = {
        "consumerAddress": ANNE.shown,
        "datasets": [{"documentId": DATA, "serviceId": "0"}],
        "algorithm": {"meta": META},
        "compute": {"env": "small", "validUntil": int(scene.clock.now()) + 60},
    }
    assert scene.ask("initializeCompute", fields).get_json().keys() == {"datasets"}
