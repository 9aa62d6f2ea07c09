"""What the compute API refuses, in exactly which words: the trust of data sets, required fields, and what strangers see."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import Client, TestResponse

from node_agent.compute.access import DenyEverybody, Grants
from node_agent.compute.ledger import Grant
from node_agent.domain.assets import TrustedAlgorithm, container_checksum, derived_did
from tests.doubles.compute_scene import (
    ALGORITHM,
    ANNE,
    BERT,
    DATA,
    DIGEST,
    META,
    MORE_DATA,
    TABLE,
    Scene,
    errors_of,
    whole,
    without,
)

BAD_SIGNATURE = "Invalid signature provided. Please check the nonce or documentId."
UNKNOWN = derived_did("?")


@pytest.fixture
def scene(quick_dir: Path) -> Iterator[Scene]:
    made = Scene(quick_dir)
    yield made
    made.ledger.close()


def named(did: str, service: object = "0") -> dict[str, Any]:
    return {"documentId": did, "serviceId": service, "transferTxId": "order"}


def started_as(scene: Scene, dialect: str, algorithm: Any, *more: Any) -> TestResponse:
    """Ask for a job over one data set and perhaps more, in one of the two dialects."""
    if dialect == "specified":
        extra = {"additionalDatasets": list(more)} if more else {}
        return scene.ask("computeStart", scene.start_fields(1, algorithm=algorithm, **extra))
    data_sets = [named(DATA), *more]
    return scene.ask("freeCompute", scene.newer_fields(1, algorithm=algorithm, datasets=data_sets))


# --- which algorithm may meet which data ----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Case:
    """One meeting of an algorithm and data sets; *refusal* is what becomes of it, None when a job does."""

    algorithm: Mapping[str, Any] = field(default_factory=lambda: named(ALGORITHM.did))
    more: tuple[Mapping[str, Any], ...] = ()
    first: Mapping[str, Any] = field(default_factory=dict)
    """What is different about the first data set."""
    second: Mapping[str, Any] = field(default_factory=dict)
    refusal: Mapping[str, str] | None = None


def raw(**changed: Any) -> dict[str, Any]:
    return {"meta": {**META, **changed}}


def container(**changed: Any) -> dict[str, Any]:
    section = {**META["container"], **changed}
    return raw(container={name: value for name, value in section.items() if value is not None})


BOTH = (named(MORE_DATA, "7"),)
RAW = {"raw_algorithms": True}
NO_CONTAINER = {"algorithm.container": "missing_entrypoint_image_checksum"}
NO_CODE = {"algorithm": "meta_oneof_url_rawcode_remote"}
ELSEWHERE = {"algorithm": "url_remote_envs_not_supported"}
ONLY_TABLE = (TrustedAlgorithm(did=TABLE.did),)
OTHER_FILES = (TrustedAlgorithm(did=ALGORITHM.did, files_checksum="ab"),)
OTHER_CONTAINER = (TrustedAlgorithm(did=ALGORITHM.did, container_checksum="ab"),)
THIS_CONTAINER = container_checksum("python $ALGO", DIGEST)
MEETINGS: dict[str, Case] = {
    # what runs
    "a trusted algorithm": Case(),
    "an algorithm both data sets trust": Case(more=BOTH),
    "raw code where the data set allows it": Case(algorithm=raw(), first=RAW),
    "raw code as a JSON text": Case(algorithm={"meta": json.dumps(META)}, first=RAW),
    "everybody is trusted": Case(first={"trusted_algorithms": (TrustedAlgorithm(did="*"),)}),
    "the publisher is trusted": Case(first={"trusted_algorithms": (), "trusted_publishers": (BERT.address,)}),
    "every publisher is trusted": Case(first={"trusted_algorithms": (), "trusted_publishers": ("*",)}),
    "algorithm and publisher are trusted": Case(first={"trusted_publishers": (BERT.address,)}),
    "this container is trusted": Case(
        first={
            "trusted_algorithms": (TrustedAlgorithm(did=ALGORITHM.did, container_checksum=THIS_CONTAINER),)
        }
    ),
    # the algorithm
    "no algorithm": Case(algorithm={}, refusal={"algorithm": "missing_meta_documentId"}),
    "an algorithm by name and by content": Case(
        algorithm={**named(ALGORITHM.did), **raw()}, refusal={"algorithm": "either_meta_or_documentId"}
    ),
    "a data set as algorithm": Case(algorithm=named(DATA), refusal={"algorithm": "not_algo"}),
    "an unknown algorithm": Case(algorithm=named(UNKNOWN), refusal={"algorithm": "did_not_found"}),
    "an algorithm without service": Case(
        algorithm=without(named(ALGORITHM.did), "serviceId"), refusal={"algorithm.serviceId": "missing"}
    ),
    "an unknown service of the algorithm": Case(
        algorithm=named(ALGORITHM.did, "9"), refusal={"algorithm.serviceId": "not_found"}
    ),
    "variables for the container": Case(
        algorithm={**named(ALGORITHM.did), "envs": {"A": "b"}}, refusal=ELSEWHERE
    ),
    # raw code
    "raw code where the data set does not allow it": Case(
        algorithm=raw(), refusal={"dataset": "no_raw_algo_allowed"}
    ),
    "raw code where only one data set allows it": Case(
        algorithm=raw(), first=RAW, more=BOTH, refusal={"datasets[1]": "no_raw_algo_allowed"}
    ),
    "raw code without code": Case(algorithm=raw(rawcode=""), first=RAW, refusal=NO_CODE),
    "raw code of ten characters": Case(algorithm=raw(rawcode="0123456789"), first=RAW, refusal=NO_CODE),
    "code at another place": Case(
        algorithm=raw(url="https://example.org/a.py"), first=RAW, refusal=ELSEWHERE
    ),
    "code behind another service": Case(algorithm=raw(remote={"a": 1}), first=RAW, refusal=ELSEWHERE),
    "raw code without container": Case(algorithm=raw(container=None), first=RAW, refusal=NO_CONTAINER),
    "a container without entrypoint": Case(
        algorithm=container(entrypoint=None), first=RAW, refusal=NO_CONTAINER
    ),
    "a container without image": Case(algorithm=container(image=None), first=RAW, refusal=NO_CONTAINER),
    "a container without checksum": Case(algorithm=container(checksum=None), first=RAW, refusal=NO_CONTAINER),
    "a checksum of another kind": Case(
        algorithm=container(checksum="md5:1"),
        first=RAW,
        refusal={"algorithm.container": "checksum_prefix"},
    ),
    "a checksum that is no digest": Case(
        algorithm=container(checksum="sha256:1"),
        first=RAW,
        refusal={"algorithm.container": "checksum_prefix"},
    ),
    "an image to be built here": Case(
        algorithm=container(dockerfile="FROM scratch"),
        first=RAW,
        refusal={"algorithm.container": "dockerfile_not_supported"},
    ),
    # trust
    "nobody is trusted": Case(first={"trusted_algorithms": ()}, refusal={"dataset": "not_trusted_algo"}),
    "another algorithm is trusted": Case(
        first={"trusted_algorithms": ONLY_TABLE}, refusal={"dataset": "not_trusted_algo"}
    ),
    "the second data set trusts another algorithm": Case(
        more=BOTH, second={"trusted_algorithms": ONLY_TABLE}, refusal={"datasets[1]": "not_trusted_algo"}
    ),
    "another publisher is trusted": Case(
        first={"trusted_publishers": (ANNE.address,)}, refusal={"dataset": "not_trusted_algo_publisher"}
    ),
    "the publisher is trusted and the algorithm is not": Case(
        first={"trusted_algorithms": ONLY_TABLE, "trusted_publishers": (BERT.address,)},
        refusal={"dataset": "not_trusted_algo"},
    ),
    "other files are trusted": Case(
        first={"trusted_algorithms": OTHER_FILES},
        refusal={"dataset": "algorithm_file_checksum_mismatch"},
    ),
    "another container is trusted": Case(
        first={"trusted_algorithms": OTHER_CONTAINER},
        refusal={"dataset": "algorithm_container_checksum_mismatch"},
    ),
    # the data sets
    "an unknown data set": Case(more=(named(UNKNOWN),), refusal={"datasets[1].documentId": "did_not_found"}),
    "a data set twice": Case(more=(named(DATA),), refusal={"datasets[1].documentId": "repeated"}),
    "a data set without document": Case(
        more=(without(named(MORE_DATA, "7"), "documentId"),), refusal={"datasets[1].documentId": "missing"}
    ),
    "a data set without service": Case(
        more=(without(named(MORE_DATA), "serviceId"),), refusal={"datasets[1].serviceId": "missing"}
    ),
    "an unknown service of the data set": Case(
        more=(named(MORE_DATA, "8"),), refusal={"datasets[1].serviceId": "not_found"}
    ),
    "an algorithm as data set": Case(
        more=(named(ALGORITHM.did),), refusal={"datasets[1].serviceId": "service_not_access_compute"}
    ),
    "a database that is no file": Case(
        first={"as_files": False}, refusal={"dataset.serviceId": "service_not_access_compute"}
    ),
    # the consumer
    "a consumer who is not listed": Case(
        first={"consumers": (BERT.address,)},
        refusal={"dataset": f"Error: Access to asset {DATA} was denied with code: 3."},
    ),
    "a consumer who is shut out": Case(
        first={"denied_consumers": (ANNE.address,)},
        refusal={"dataset": f"Error: Access to asset {DATA} was denied with code: 4."},
    ),
}


@pytest.mark.parametrize("dialect", ["specified", "newer"])
@pytest.mark.parametrize("name", MEETINGS)
def test_an_algorithm_meets_data_only_where_their_owners_want_it(
    scene: Scene, name: str, dialect: str
) -> None:
    case = MEETINGS[name]
    scene.data_sets[DATA] = replace(scene.data_sets[DATA], **case.first)
    scene.data_sets[MORE_DATA] = replace(scene.data_sets[MORE_DATA], **case.second)
    answer = started_as(scene, dialect, case.algorithm, *case.more)
    if case.refusal is None:
        assert answer.status_code == 200, answer.text
        assert len(scene.ledger.open_jobs()) == 1
    else:
        assert (answer.status_code, answer.get_json()) == (400, {"error": case.refusal})
        assert scene.ledger.open_jobs() == []


def test_there_are_at_least_nineteen_such_cases() -> None:
    assert sum(case.refusal is not None for case in MEETINGS.values()) >= 19


def test_code_of_the_catalogue_that_has_gone_is_said(scene: Scene, tmp_path: Path) -> None:
    scene.algorithms[ALGORITHM.did] = replace(ALGORITHM, code=tmp_path / "gone.py")
    answer = scene.ask("computeStart", scene.start_fields(1))
    assert answer.get_json() == {"error": {"algorithm": "file_unavailable"}}


@pytest.mark.parametrize("dialect", ["specified", "newer"])
def test_who_has_no_right_to_the_data_is_refused_as_without_an_order(scene: Scene, dialect: str) -> None:
    scene.access = DenyEverybody()
    answer = started_as(scene, dialect, named(ALGORITHM.did))
    assert (answer.status_code, answer.get_json()) == (400, {"error": {"dataset.serviceId": "order_invalid"}})


def test_a_right_to_one_of_two_data_sets_is_not_enough(scene: Scene) -> None:
    scene.access = Grants(scene.ledger, scene.clock)
    scene.ledger.add_grant(
        Grant(id="g", consumer=ANNE.address, data_set=DATA, uses_left=1, expires_at=None, created_at=0.0)
    )
    first = {**named(DATA), "transferTxId": "g"}
    fields = scene.start_fields(1, dataset=first, additionalDatasets=list(BOTH))
    answer = scene.ask("computeStart", fields)
    assert answer.get_json() == {"error": {"datasets[1].serviceId": "order_invalid"}}
    left = scene.ledger.grant("g")
    assert left is not None
    assert left.uses_left == 1


def test_the_vantage6_contract_needs_a_method(scene: Scene) -> None:
    answer = scene.ask("computeStart", scene.start_fields(1, algorithm=named(TABLE.did)))
    assert answer.get_json() == {"error": {"algorithm.algocustomdata": "missing_method"}}


SPECIFIED_ONLY: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "further data sets that are no list": (
        {"additionalDatasets": "no"},
        {"error": {"additional_input": "invalid"}},
    ),
    "a further data set that is none": (
        {"additionalDatasets": ["no"]},
        {"error": {"additional_input": "invalid"}},
    ),
    "too many data sets": (
        {"additionalDatasets": [named(MORE_DATA)] * 32},
        {"error": {"additional_input": "invalid"}},
    ),
    "an output that is none": ({"output": "no"}, {"error": {"output": "invalid"}}),
    "a further data set without order": (
        {"additionalDatasets": [without(named(MORE_DATA, "7"), "transferTxId")]},
        {"error": {"datasets[1].transferTxId": "missing"}},
    ),
    "an unknown environment": (
        {"environment": "huge"},
        {"error": "Compute environment does not exist"},
    ),
    "a request of the newer dialect, which pays": (
        {"datasets": [named(DATA)]},
        {"error": "payments not supported; use freeCompute"},
    ),
}


@pytest.mark.parametrize("case", SPECIFIED_ONLY)
def test_a_start_of_the_specification_is_refused_in_its_words(scene: Scene, case: str) -> None:
    changed, expected = SPECIFIED_ONLY[case]
    answer = scene.ask("computeStart", scene.start_fields(1, **changed))
    assert (answer.status_code, answer.get_json()) == (400, expected)
    assert scene.ledger.open_jobs() == []


def test_the_first_data_set_must_be_there(scene: Scene) -> None:
    answer = scene.ask("computeStart", scene.start_fields(1, dataset=named(UNKNOWN)))
    assert answer.get_json() == {"error": {"dataset.documentId": "did_not_found"}}


NEWER_ONLY: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "an output somewhere else": ({"output": {"a": 1}}, {"error": {"output": "not_supported"}}),
    "a bucket": ({"outputBucketId": "b"}, {"error": {"outputBucketId": "not_supported"}}),
    "a login for a registry": (
        {"encryptedDockerRegistryAuth": "x"},
        {"error": {"encryptedDockerRegistryAuth": "not_supported"}},
    ),
    "a file somewhere else": (
        {"datasets": [{"fileObject": {"url": "https://example.org"}, "serviceId": "0"}]},
        {"error": {"dataset.documentId": "missing"}},
    ),
    "more than the environment gives": (
        {"resources": [{"id": "cpu", "amount": 64}]},
        {"error": {"resources": "not_available"}},
    ),
    "what the environment does not have": (
        {"resources": [{"id": "gpu", "amount": 1}]},
        {"error": {"resources": "not_available"}},
    ),
}


@pytest.mark.parametrize("case", NEWER_ONLY)
def test_a_start_of_the_newer_dialect_is_refused_by_name(scene: Scene, case: str) -> None:
    changed, expected = NEWER_ONLY[case]
    answer = scene.ask("freeCompute", scene.newer_fields(1, **changed))
    assert (answer.status_code, answer.get_json()) == (400, expected)


MISSHAPEN: dict[str, tuple[dict[str, Any], str, str]] = {
    "too many data sets": ({"datasets": [named(DATA)] * 33}, "datasets", "must be at most 32."),
    "data sets that are none": ({"datasets": [1]}, "datasets", "must be a list of objects."),
    "viewers that are no addresses": (
        {"additionalViewers": ["0x1"]},
        "additionalViewers",
        "must be at most 32 addresses.",
    ),
    "viewers that are no list": (
        {"additionalViewers": "x"},
        "additionalViewers",
        "must be at most 32 addresses.",
    ),
    "too many viewers": (
        {"additionalViewers": [BERT.shown] * 33},
        "additionalViewers",
        "must be at most 32 addresses.",
    ),
    "too much about a job": (
        {"metadata": {"a": "b" * 1024}},
        "metadata",
        "must have at most 1024 characters as JSON.",
    ),
    "nothing about a job": ({"metadata": 1}, "metadata", "must be an object."),
    "an hour in words": (
        {"maxJobDuration": "1h"},
        "maxJobDuration",
        "must be a whole number of at most 2592000.",
    ),
    "no time at all": ({"maxJobDuration": 0}, "maxJobDuration", "must be at least 1 second."),
    "patience below zero": (
        {"queueMaxWaitTime": -1},
        "queueMaxWaitTime",
        "must be a whole number of at most 9007199254740991.",
    ),
    "data of a data set that are none": (
        {"datasets": [{**named(DATA), "userdata": 1}]},
        "datasets[0].userdata",
        "must be an object.",
    ),
    "too many parameters": (
        {"algorithm": {**named(ALGORITHM.did), "algocustomdata": {"a": "b" * 70_000}}},
        "algorithm.algocustomdata",
        "must have at most 65536 characters as JSON.",
    ),
}


@pytest.mark.parametrize("case", MISSHAPEN)
def test_what_is_misshapen_is_named_and_not_repeated(scene: Scene, case: str) -> None:
    changed, name, text = MISSHAPEN[case]
    errors = errors_of(scene.ask("freeCompute", scene.newer_fields(1, **changed)))
    assert errors == {name: [f"The {name} {text}"]}
    assert scene.ledger.last_nonce(ANNE.address) == 0


def test_amounts_that_are_none_are_refused(scene: Scene) -> None:
    fields = scene.newer_fields(1, resources=[{"id": "cpu", "amount": "many"}])
    assert errors_of(scene.ask("freeCompute", fields)) == {
        "resources": ["Each of the resources must be an object with an id and an amount."]
    }


def test_a_job_that_is_not_to_wait_is_refused_while_the_environment_is_full(scene: Scene) -> None:
    for nonce in (1, 2):
        scene.started(nonce)
    answer = scene.ask("freeCompute", scene.newer_fields(3, queueMaxWaitTime=0))
    assert (answer.status_code, answer.get_json()) == (
        400,
        {"error": "The environment has no free place, and the job is not to wait."},
    )
    assert scene.ask("freeCompute", scene.newer_fields(4, queueMaxWaitTime=60)).status_code == 200


# --- required fields ------------------------------------------------------------------------------------------------


def of_a_job(scene: Scene) -> Mapping[str, Any]:
    job = scene.started(1)
    scene.end(job)
    return job


def token_removal(scene: Scene) -> dict[str, Any]:
    return {
        "address": ANNE.shown,
        "token": scene.token_for(1),
        "nonce": "2",
        "signature": ANNE.sign(f"{ANNE.shown}2"),
    }


def dry_run(scene: Scene) -> dict[str, Any]:
    return {
        "consumerAddress": ANNE.shown,
        "datasets": [named(DATA)],
        "algorithm": named(ALGORITHM.did),
        "compute": {"env": "small", "validUntil": int(scene.clock.now()) + 60},
    }


Complete = Callable[[Scene], dict[str, Any]]
REQUIRED: dict[str, tuple[Complete, tuple[str, ...]]] = {
    "nonce": (lambda scene: {"userAddress": ANNE.shown}, ("userAddress",)),
    "computeStart": (
        lambda scene: scene.start_fields(1),
        (
            "consumerAddress",
            "nonce",
            "dataset.documentId",
            "dataset.serviceId",
            "dataset.transferTxId",
            "algorithm.transferTxId",
        ),
    ),
    "freeCompute": (
        lambda scene: scene.newer_fields(1),
        ("consumerAddress", "nonce", "environment", "datasets"),
    ),
    "computeStatus": (
        lambda scene: {"consumerAddress": ANNE.shown, "jobId": of_a_job(scene)["jobId"]},
        ("consumerAddress",),
    ),
    "computeStop": (lambda scene: scene.of_job(of_a_job(scene), 2), ("consumerAddress", "jobId", "nonce")),
    "computeDelete": (lambda scene: scene.of_job(of_a_job(scene), 2), ("consumerAddress", "jobId", "nonce")),
    "computeResult": (
        lambda scene: scene.result_fields(of_a_job(scene), 0, 2),
        ("consumerAddress", "jobId", "index", "nonce"),
    ),
    "computeStreamableLogs": (
        lambda scene: scene.log_fields(of_a_job(scene), 2),
        ("consumerAddress", "jobId", "nonce"),
    ),
    "createAuthToken": (
        lambda scene: scene.token_fields(1),
        ("address", "expiration", "nonce", "signature"),
    ),
    "deleteAuthToken": (token_removal, ("address", "token", "nonce", "signature")),
    "generateAuthToken": (
        lambda scene: without(scene.token_fields(1), "expiration"),
        ("address", "nonce", "signature"),
    ),
    "invalidateAuthToken": (token_removal, ("address", "token", "nonce", "signature")),
    "initializeCompute": (dry_run, ("consumerAddress", "datasets", "compute.env", "compute.validUntil")),
    "fileinfo": (lambda scene: {"did": DATA, "serviceId": "0"}, ("did", "serviceId")),
}
EVERY_REQUIRED = [(route, name) for route, (_, names) in REQUIRED.items() for name in names]


@pytest.mark.parametrize("route", REQUIRED)
def test_a_complete_request_is_taken(scene: Scene, route: str) -> None:
    scene.data_sets[DATA] = replace(scene.data_sets[DATA], share_log=True)
    answer = scene.ask(route, REQUIRED[route][0](scene))
    # the job has ended: it has no live log any more
    assert answer.status_code == (404 if route == "computeStreamableLogs" else 200), answer.text


@pytest.mark.parametrize(("route", "name"), EVERY_REQUIRED)
def test_a_field_that_is_required_is_named(scene: Scene, route: str, name: str) -> None:
    complete = REQUIRED[route][0](scene)
    before = scene.ledger.last_nonce(ANNE.address)
    answer = scene.ask(route, without(complete, name))
    assert errors_of(answer) == {name: [f"The {name} field is required."]}
    assert scene.ledger.last_nonce(ANNE.address) == before


@pytest.mark.parametrize("name", ["documentId", "serviceId", "transferTxId"])
def test_a_data_set_that_is_not_complete_is_refused_before_anything_is_looked_up(
    scene: Scene, name: str
) -> None:
    fields = scene.start_fields(1)
    fields["dataset"] = {"documentId": " ", "serviceId": "0", "transferTxId": "x", name: None}
    assert f"dataset.{name}" in errors_of(scene.ask("computeStart", fields))


def test_every_field_that_is_missing_is_named_at_once(scene: Scene) -> None:
    assert errors_of(scene.ask("computeStart", {"a": 1})).keys() == {
        "consumerAddress",
        "nonce",
        "dataset.documentId",
        "dataset.serviceId",
        "dataset.transferTxId",
    }


SIGNED = (
    "computeStart",
    "freeCompute",
    "computeStop",
    "computeDelete",
    "computeResult",
    "computeStreamableLogs",
)


@pytest.mark.parametrize("route", SIGNED)
def test_a_request_without_signature_and_token_is_refused(scene: Scene, route: str) -> None:
    complete = REQUIRED[route][0](scene)
    before = scene.ledger.last_nonce(ANNE.address)
    assert errors_of(scene.ask(route, without(complete, "signature"))) == {"signature": [BAD_SIGNATURE]}
    assert scene.ledger.last_nonce(ANNE.address) == before


@pytest.mark.parametrize("route", ["computeStart", "freeCompute", "createAuthToken", "nonce"])
@pytest.mark.parametrize(
    "address", ["0x1", "nobody", "0x" + "g" * 40, "19E7E376E7C213B7E7e7e46cc70A5dD086DAff2A"]
)
def test_what_is_no_address_is_refused(scene: Scene, route: str, address: str) -> None:
    complete = REQUIRED[route][0](scene)
    (name,) = {"consumerAddress", "address", "userAddress"} & complete.keys()
    answer = scene.ask(route, {**complete, name: address})
    assert list(errors_of(answer)) == [name]
    assert address not in answer.text


CONTAINERS: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({"tag": "1"}, "missing_entrypoint_image_checksum"),
    **{
        f"no {name}": (without(META["container"], name), "missing_entrypoint_image_checksum")
        for name in META["container"]
    },
    "another kind of checksum": ({**META["container"], "checksum": "md5:1"}, "checksum_prefix"),
    "a recipe": ({**META["container"], "dockerfile": "FROM scratch"}, "dockerfile_not_supported"),
}


@pytest.mark.parametrize("case", CONTAINERS)
def test_a_container_that_is_not_complete_is_refused(scene: Scene, case: str) -> None:
    section, fault = CONTAINERS[case]
    answer = scene.ask("validateContainer", section)
    assert (answer.status_code, answer.get_json()) == (400, {"error": fault})


def test_a_complete_container_is_given_back_and_nothing_else(scene: Scene) -> None:
    answer = scene.ask("validateContainer", {**META["container"], "tag": "1", "other": "x"})
    assert answer.get_json() == {**META["container"], "tag": "1"}


# --- what strangers see -----------------------------------------------------------------------------------------------

ABOUT_JOBS: dict[str, Callable[..., dict[str, Any]]] = {
    "computeStop": lambda scene, job, by: scene.of_job(job, 7, by=by),
    "computeDelete": lambda scene, job, by: scene.of_job(job, 7, by=by),
    "computeResult": lambda scene, job, by: scene.result_fields(job, 0, 7, by=by),
    "computeStreamableLogs": lambda scene, job, by: scene.log_fields(job, 7, by=by),
}


@pytest.mark.parametrize("route", ABOUT_JOBS)
@pytest.mark.parametrize("state", ["waiting", "running", "ended"])
def test_a_wrong_signature_a_wrong_owner_and_an_unknown_job_are_one_answer(
    scene: Scene, route: str, state: str
) -> None:
    scene.data_sets[DATA] = replace(scene.data_sets[DATA], share_log=True)
    job = scene.started(1)
    if state == "running":
        scene.runs_now(job)
    if state == "ended":
        scene.end(job)
    unknown = {**job, "jobId": "0" * 32}
    deleted = scene.started(2)
    scene.desk.delete(scene.record(deleted))
    fields = ABOUT_JOBS[route]
    answers = [
        scene.ask(route, fields(scene, job, BERT)),
        scene.ask(route, fields(scene, unknown, ANNE)),
        scene.ask(route, fields(scene, unknown, BERT)),
        scene.ask(route, fields(scene, deleted, ANNE)),
        scene.ask(route, {**fields(scene, job, ANNE), "signature": BERT.sign("x")}),
        scene.ask(route, {**fields(scene, job, ANNE), "signature": "0x"}),
        scene.ask(route, {**fields(scene, job, ANNE), "jobId": "no such number"}),
    ]
    assert len({whole(answer) for answer in answers}) == 1
    assert errors_of(answers[0]) == {"signature": [BAD_SIGNATURE]}
    assert (scene.ledger.last_nonce(ANNE.address), scene.ledger.last_nonce(BERT.address)) == (2, 0)


def test_a_status_tells_strangers_no_more_than_a_job_that_never_was(scene: Scene) -> None:
    job = scene.started(1)
    unknown = {**job, "jobId": "0" * 32}
    asked = {"consumerAddress": BERT.shown}
    answers = [
        scene.ask("computeStatus", scene.of_job(job, 7, by=BERT)),
        scene.ask("computeStatus", scene.of_job(unknown, 8, by=BERT)),
        scene.ask("computeStatus", {**asked, "jobId": job["jobId"]}),
        scene.ask("computeStatus", {**asked, "jobId": unknown["jobId"]}),
        scene.ask("computeStatus", asked),
    ]
    assert len({whole(answer) for answer in answers}) == 1
    assert answers[0].get_json() == []


# --- the rest -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/nowhere", "/api/services", "//api/services/nonce", "/api/services/compute/x"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "HEAD"])
def test_an_unknown_route_is_not_found(scene: Scene, path: str, method: str) -> None:
    answer = Client(scene.api).open(path, method=method)
    assert answer.status_code == 404
    assert method == "HEAD" or answer.get_json() == {"error": "Not Found", "context": {}}


@pytest.mark.parametrize("method", ["PATCH", "OPTIONS", "HEAD", "TRACE"])
def test_another_verb_is_not_allowed(scene: Scene, method: str) -> None:
    answer = Client(scene.api).open("/api/services/compute", method=method)
    assert answer.status_code == 405
    assert answer.headers["Allow"] == "DELETE, GET, POST, PUT"
    assert method == "HEAD" or answer.get_json() == {"error": "Method Not Allowed"}


BODIES = {
    "no JSON": b"{",
    "a list": b"[]",
    "no text": b"\xff",
    "a field twice": b'{"a": 1, "a": 2}',
    "without end": b"[" * 100_000,
    "deep": b'{"a":' * 30 + b"1" + b"}" * 30,
    "no number": b'{"a": NaN}',
    "a number without end": b'{"a": 1e999}',
    "half a character": b'{"a": "\\ud800"}',
    "a number of many digits": b'{"a": ' + b"9" * 5000 + b"}",
    "large": b'{"a": "' + b"x" * (1 << 20) + b'"}',
}


@pytest.mark.parametrize("name", BODIES)
def test_a_body_that_is_no_object_is_refused(scene: Scene, name: str) -> None:
    answer = Client(scene.api).open("/api/services/compute", method="POST", data=BODIES[name])
    assert list(errors_of(answer)) == ["body"]


def test_a_body_of_unknown_length_is_refused(scene: Scene) -> None:
    answer = Client(scene.api).post("/api/services/compute", headers={"Transfer-Encoding": "chunked"})
    assert (answer.status_code, answer.get_json()) == (411, {"error": "Length Required"})


def test_a_field_twice_in_the_query_is_refused_without_its_name(scene: Scene) -> None:
    answer = Client(scene.api).get("/api/services/nonce?secret=1&secret=2")
    assert errors_of(answer) == {"query": ["Each field must stand in the query once."]}


SECRET = "do-not-repeat-me"
LONG = SECRET + "x" * 5000
URL = f"https://{SECRET}.example/"


@pytest.mark.parametrize("value", [SECRET, LONG, URL, f"did:op:{SECRET}", [SECRET], {SECRET: SECRET}])
@pytest.mark.parametrize("route", REQUIRED)
def test_a_refusal_repeats_nothing_of_the_request(scene: Scene, route: str, value: Any) -> None:
    complete = REQUIRED[route][0](scene)
    for name in complete:
        answer = scene.ask(route, {**complete, name: value})
        assert SECRET not in answer.text
        assert SECRET not in str(answer.headers)
