"""The OpenAPI document says what is served: every route, every required field, and the shape of real answers."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012
from werkzeug.test import Client, TestResponse

from node_agent import __version__
from node_agent.compute.openapi import openapi
from node_agent.compute.routes import ENDPOINTS, ROUTES, UNLISTED
from node_agent.domain.jobstatus import NUMBER_OF_OUTCOME, NUMBER_OF_STATE, WORDS
from tests.doubles.compute_scene import ALGORITHM, ANNE, BERT, DATA, META, Scene, without
from tests.openapi import FILE, text

DOCUMENT = openapi(version=__version__)
EVERY_ROUTE = {**UNLISTED, **ENDPOINTS}
REGISTRY: Registry[Any] = Registry().with_resource(
    "urn:api", Resource.from_contents(DOCUMENT, default_specification=DRAFT202012)
)


@pytest.fixture
def scene(quick_dir: Path) -> Iterator[Scene]:
    made = Scene(quick_dir)
    made.data_sets[DATA] = replace(made.data_sets[DATA], share_log=True)
    yield made
    made.ledger.close()


def operation_of(route: str) -> Mapping[str, Any]:
    verb, path = EVERY_ROUTE[route]
    found: Mapping[str, Any] = DOCUMENT["paths"][re.sub("<(.*)>", r"{\1}", path)][verb.lower()]
    return found


def fields_of(route: str) -> tuple[set[str], set[str]]:
    """Give the documented fields of a route: those that are required, and all."""
    operation = operation_of(route)
    if "requestBody" in operation:
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        return set(schema["required"]), set(schema["properties"])
    parameters = operation.get("parameters", [])
    return {one["name"] for one in parameters if one["required"]}, {one["name"] for one in parameters}


def assert_as_described(route: str, answer: TestResponse) -> None:
    """Hold an answer against what the document says of it."""
    described = operation_of(route)["responses"][str(answer.status_code)].get("content", {})
    kind = answer.headers["Content-Type"]
    assert kind in described
    if kind == "application/json":
        schema = {"$ref": f"urn:api#{pointer(route, answer.status_code)}"}
        Draft202012Validator(schema, registry=REGISTRY).validate(answer.get_json())


def pointer(route: str, status: int) -> str:
    verb, path = EVERY_ROUTE[route]
    parts = ["paths", re.sub("<(.*)>", r"{\1}", path), verb.lower(), "responses", str(status)]
    parts += ["content", "application/json", "schema"]
    return "".join("/" + part.replace("~", "~0").replace("/", "~1") for part in parts)


def test_the_file_in_the_documentation_is_the_document_that_is_served(scene: Scene) -> None:
    assert FILE.read_text(encoding="utf-8") == text()
    served = Client(scene.api).get("/api/services/openapi.json").get_json()
    assert served == openapi(version="1")


def test_every_route_is_described_and_no_other() -> None:
    served = {
        (re.sub("<(.*)>", r"{\1}", rule.rule), method.lower())
        for rule in ROUTES.iter_rules()
        for method in (rule.methods or set()) - {"HEAD"}
    }
    assert served == {(path, verb) for path, verbs in DOCUMENT["paths"].items() for verb in verbs}


@pytest.mark.parametrize("name", DOCUMENT["components"]["schemas"])
def test_every_shape_is_a_schema(name: str) -> None:
    Draft202012Validator.check_schema(DOCUMENT["components"]["schemas"][name])


def test_every_reference_leads_somewhere() -> None:
    wanted = set(re.findall(r'"#/components/schemas/(\w+)"', text()))
    assert wanted == set(DOCUMENT["components"]["schemas"])


def test_every_number_a_job_may_show_has_its_words() -> None:
    assert {*NUMBER_OF_STATE.values(), *NUMBER_OF_OUTCOME.values()} <= WORDS.keys()


Asked = Callable[[Scene, Mapping[str, Any]], dict[str, Any]]
COMPLETE: dict[str, Asked] = {
    "nonce": lambda scene, job: {"userAddress": ANNE.shown},
    "computeEnvironments": lambda scene, job: {"chainId": "1"},
    "computeStart": lambda scene, job: scene.start_fields(
        9, additionalDatasets=[], maxJobDuration=5, output={}
    ),
    "freeCompute": lambda scene, job: scene.newer_fields(
        9,
        maxJobDuration=5,
        queueMaxWaitTime=5,
        metadata={"a": 1},
        additionalViewers=[BERT.shown],
        resources=[{"id": "cpu", "amount": 1}],
    ),
    "computeStatus": lambda scene, job: scene.of_job(job, 9),
    "computeStop": lambda scene, job: scene.of_job(job, 9),
    "computeDelete": lambda scene, job: scene.of_job(job, 9),
    "computeResult": lambda scene, job: scene.result_fields(job, 0, 9),
    "computeStreamableLogs": lambda scene, job: scene.log_fields(job, 9),
    "createAuthToken": lambda scene, job: scene.token_fields(9),
    "deleteAuthToken": lambda scene, job: {**scene.token_fields(9), "token": scene.token_for(8)},
    "generateAuthToken": lambda scene, job: {
        **without(scene.token_fields(9), "expiration"),
        "validUntil": int(scene.clock.now() + 9),
    },
    "invalidateAuthToken": lambda scene, job: {**scene.token_fields(9), "token": scene.token_for(8)},
    "initializeCompute": lambda scene, job: {
        "consumerAddress": ANNE.shown,
        "datasets": [{"documentId": DATA, "serviceId": "0"}],
        "algorithm": {"documentId": ALGORITHM.did, "serviceId": "0"},
        "compute": {"env": "small", "validUntil": int(scene.clock.now()) + 60},
    },
    "fileinfo": lambda scene, job: {"did": DATA, "serviceId": "0"},
    "validateContainer": lambda scene, job: {**META["container"], "tag": "1"},
}
NEEDED_FOR_ANOTHER_READING = {"deleteAuthToken": {"expiration"}, "invalidateAuthToken": {"expiration"}}


def job_for(scene: Scene, route: str) -> Mapping[str, Any]:
    """Give a job in the state in which the route has something to give."""
    job = scene.started(1)
    if route == "computeStreamableLogs":
        scene.runs_now(job)
    else:
        scene.end(job)
    return job


def test_every_route_that_takes_fields_is_tried() -> None:
    assert COMPLETE.keys() == ENDPOINTS.keys()


@pytest.mark.parametrize("route", COMPLETE)
def test_what_is_taken_and_given_is_described(scene: Scene, route: str) -> None:
    fields = COMPLETE[route](scene, job_for(scene, route))
    required, known = fields_of(route)
    given = fields.keys() - NEEDED_FOR_ANOTHER_READING.get(route, set())
    assert required <= given <= known
    answer = scene.ask(route, fields)
    assert answer.status_code == 200, answer.text
    assert_as_described(route, answer)


@pytest.mark.parametrize("route", COMPLETE)
def test_what_is_required_is_refused_as_described_when_it_is_missing(scene: Scene, route: str) -> None:
    fields = COMPLETE[route](scene, job_for(scene, route))
    for name in fields_of(route)[0]:
        answer = scene.ask(route, without(fields, name))
        assert answer.status_code == 400
        assert_as_described(route, answer)


STRANGE: tuple[Any, ...] = ("", "x" * 5000, "'\"<>\0", {}, [[]], None, -1, 1.5, 10**30, True)


@pytest.mark.parametrize("route", COMPLETE)
def test_nothing_anybody_sends_is_answered_in_another_way(scene: Scene, route: str) -> None:
    fields, api = COMPLETE[route](scene, job_for(scene, route)), scene.api
    for name, value in product(fields, STRANGE):
        answer = scene.ask(route, {**fields, name: value}, as_json=True, api=api)
        assert answer.status_code < 500
        assert_as_described(route, answer)


def test_jobs_in_every_state_are_as_described(scene: Scene) -> None:
    waiting, running, ended, deleted, expired = (scene.started(nonce) for nonce in range(1, 6))
    scene.runs_now(running)
    scene.end(expired)
    scene.clock.advance(3601)
    scene.desk.forget_old(keep_jobs=10_000)
    scene.end(ended)
    scene.end(deleted)
    listing = {"consumerAddress": ANNE.shown, "nonce": "7", "signature": ANNE.sign(f"{ANNE.shown}7")}
    assert_as_described("computeDelete", scene.ask("computeDelete", scene.of_job(deleted, 6)))
    answer = scene.ask("computeStatus", listing)
    assert [job["removed"] for job in answer.get_json()] == [1, 0, 0, 0]
    assert_as_described("computeStatus", answer)
    unsigned = {"consumerAddress": ANNE.shown, "jobId": waiting["jobId"]}
    assert_as_described("computeStatus", scene.ask("computeStatus", unsigned))


def test_what_is_served_without_being_listed_is_as_described(scene: Scene) -> None:
    client = Client(scene.api)
    assert_as_described("root", client.get("/"))
    for name in (DATA, ALGORITHM.did, "nothing"):
        assert_as_described("document", client.get(f"/api/aquarius/assets/ddo/{name}"))


def test_files_come_as_described(scene: Scene) -> None:
    job = job_for(scene, "computeResult")
    for nonce, asked_for, status in ((5, "bytes=0-1", 206), (6, "bytes=9999-", 416)):
        fields = scene.result_fields(job, 0, nonce)
        answer = scene.ask("computeResult", fields, headers={"Range": asked_for})
        assert answer.status_code == status
        assert_as_described("computeResult", answer)


def test_an_answer_that_is_not_as_described_is_noticed(scene: Scene) -> None:
    answer = Client(scene.api).get("/")
    with pytest.raises(Exception, match="required property"):
        assert_as_described("nonce", answer)
