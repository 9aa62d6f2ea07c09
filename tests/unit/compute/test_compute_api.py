"""The compute API over HTTP: who is let in, what is refused in which words, and what jobs look like."""

import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import Client, TestResponse

from node_agent.compute.access import Grants, ListedAddresses
from node_agent.compute.api import ENDPOINTS, ComputeApi
from node_agent.compute.authentication import Authentication
from node_agent.compute.desk import JobDesk, run_id_of
from node_agent.compute.ledger import Grant, Ledger
from node_agent.compute.objects import Environment
from node_agent.compute.pace import Pace
from node_agent.compute.results import ResultStore
from node_agent.compute.signatures import Address
from node_agent.compute.tokens import AuthTokens
from node_agent.domain.assets import (
    Assets,
    CatalogueAlgorithm,
    DataSet,
    JobContract,
    TrustedAlgorithm,
    container_checksum,
    derived_did,
)
from node_agent.domain.messages import KillRequested, Message, RunsListed
from node_agent.domain.run import Run, RunId, State
from tests.doubles.clock import ManualClock
from tests.doubles.core import make_run
from tests.doubles.wallet import Wallet

DIGEST = "sha256:" + "12" * 32
ANNE, BERT = Wallet(0x11), Wallet(0x22)
DATA, MORE_DATA = derived_did("data"), derived_did("more data")
ALGORITHM = CatalogueAlgorithm(
    did=derived_did("algorithm"),
    owner=BERT.address,
    service_id="0",
    image="registry.example/average",
    digest=DIGEST,
    entrypoint="python $ALGO",
    contract=JobContract.OCEAN,
    files_checksum="",
)
TABLE = CatalogueAlgorithm(
    did=derived_did("table"),
    owner=ANNE.address,
    service_id="0",
    image="registry.example/table",
    digest=DIGEST,
    entrypoint="",
    contract=JobContract.VANTAGE6,
)
TRUSTED = (TrustedAlgorithm(did=ALGORITHM.did), TrustedAlgorithm(did=TABLE.did))
META = {
    "rawcode": "print('hello world')",
    "container": {"entrypoint": "python $ALGO", "image": "registry.example/python", "checksum": DIGEST},
}


class Scene:
    """An API with its books, and consumers who sign."""

    def __init__(self, state_dir: Path) -> None:
        self.clock = ManualClock()
        self.ledger = Ledger(state_dir)
        self.results = ResultStore(state_dir)
        self.posted: list[Message] = []
        self.runs: dict[RunId, Run] = {}
        self.data_sets = {
            DATA: DataSet(did=DATA, label="patients", service_id="0", trusted_algorithms=TRUSTED),
            MORE_DATA: DataSet(did=MORE_DATA, label="visits", service_id="7", trusted_algorithms=TRUSTED),
        }
        self.access: Any = ListedAddresses(["*"])
        self.unsigned_status = True
        self.max_waiting = 50
        self.pace = Pace(per_second=1000, burst=100_000, monotonic=self.clock.monotonic)

    @property
    def desk(self) -> JobDesk:
        return JobDesk(
            ledger=self.ledger,
            results=self.results,
            environments=[
                Environment(
                    id="small", cpus=1, memory=2**30, disk=2**30, longest=60, max_jobs=2, keep_results=3600
                )
            ],
            run_of=self.runs.get,
            post=self.posted.append,
            follow=lambda run: iter([f"log of {run.id}\n".encode()]),
            clock=self.clock,
            max_waiting=self.max_waiting,
        )

    @property
    def api(self) -> ComputeApi:
        tokens = AuthTokens(self.ledger, self.clock)
        return ComputeApi(
            desk=self.desk,
            ledger=self.ledger,
            assets=Assets(self.data_sets, {ALGORITHM.did: ALGORITHM, TABLE.did: TABLE}),
            access=self.access,
            authentication=Authentication(self.ledger, tokens),
            tokens=tokens,
            pace=self.pace,
            clock=self.clock,
            own_address=Address("0x" + "c" * 40),
            software="node-agent",
            version="1",
            unsigned_status=self.unsigned_status,
        )

    def ask(
        self, name: str, fields: Mapping[str, Any], *, as_json: bool = False, **more: Any
    ) -> TestResponse:
        method, path = ENDPOINTS[name]
        if as_json or method == "POST":
            return Client(self.api).open(path, method=method, json=fields, buffered=True, **more)
        return Client(self.api).open(path, method=method, query_string=fields, buffered=True, **more)

    def start_fields(self, nonce: int, *, by: Wallet = ANNE, **changed: Any) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "consumerAddress": by.shown,
            "nonce": str(nonce),
            "environment": "small",
            "dataset": {"documentId": DATA, "serviceId": "0", "transferTxId": "order"},
            "algorithm": {"documentId": ALGORITHM.did, "serviceId": "0", "transferTxId": "order"},
            **changed,
        }
        named = (fields.get("dataset") or {}).get("documentId", "")
        fields["signature"] = by.sign(f"{by.shown}{named}{nonce}")
        return fields

    def started(self, nonce: int = 1, *, by: Wallet = ANNE, **changed: Any) -> dict[str, Any]:
        answer = self.ask("computeStart", self.start_fields(nonce, by=by, **changed))
        assert answer.status_code == 200, answer.text
        (job,) = answer.get_json()
        return dict(job)

    def of_job(self, job: Mapping[str, Any], nonce: int, *, by: Wallet = ANNE) -> dict[str, Any]:
        job_id, named = job["jobId"], job["documentId"]
        return {
            "consumerAddress": by.shown,
            "jobId": job_id,
            "documentId": named,
            "nonce": str(nonce),
            "signature": by.sign(f"{by.shown}{job_id}{named}{nonce}"),
        }

    def result_fields(
        self, job: Mapping[str, Any], index: int, nonce: int, *, by: Wallet = ANNE
    ) -> dict[str, Any]:
        return {
            "consumerAddress": by.shown,
            "jobId": job["jobId"],
            "index": str(index),
            "nonce": str(nonce),
            "signature": by.sign(f"{by.shown}{job['jobId']}{index}{nonce}"),
        }

    def end(self, job: Mapping[str, Any], log: str = "said\n") -> None:
        """Let the job end with two outputs and a log."""
        record = self.ledger.job(job["jobId"])
        assert record is not None
        place = self.results._root / "left"
        place.mkdir()
        (place / "b.txt").write_text("second")
        (place / "a.txt").write_text("0123456789")
        (place / "log").write_text(log)
        (place / "out").mkdir()
        for name in ("a.txt", "b.txt"):
            (place / name).rename(place / "out" / name)
        self.results.publish(record.id, outputs=place / "out", result=None, log=place / "log", limit=10_000)
        self.ledger.finish_job(record.number, at=self.clock.now(), ending={"status": 70, "exit_code": 0})


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path)
    yield made
    made.ledger.close()


def errors_of(answer: TestResponse) -> dict[str, list[str]]:
    body = answer.get_json()
    assert answer.status_code == 400
    assert (body["message"], body["success"]) == ("Validation error", False)
    return dict(body["errors"])


# --- starting -----------------------------------------------------------------------------------------------------


def test_a_job_is_taken_in_and_set_in_motion(scene: Scene) -> None:
    job = scene.started()
    assert (job["status"], job["statusText"], job["dateFinished"]) == (1, "Warming up", None)
    assert (job["owner"], job["documentId"], job["inputDID"]) == (ANNE.shown, DATA, [DATA])
    assert len(job["jobId"]) == 32
    (message,) = scene.posted
    assert isinstance(message, RunsListed)
    assert message.runs[0].task.image == f"registry.example/average@{DIGEST}"
    assert message.runs[0].task.databases[0].label == "patients"
    assert not message.complete


@pytest.mark.parametrize(
    "name", ["consumerAddress", "nonce", "dataset.documentId", "dataset.serviceId", "dataset.transferTxId"]
)
def test_a_field_that_is_required_is_named(scene: Scene, name: str) -> None:
    fields = scene.start_fields(1)
    place = fields
    *path, last = name.split(".")
    for part in path:
        place = place[part]
    del place[last]
    fields["signature"] = ANNE.sign(f"{ANNE.shown}{fields['dataset'].get('documentId', '')}1")
    assert errors_of(scene.ask("computeStart", fields)) == {name: [f"The {name} field is required."]}
    assert scene.posted == []


def test_a_start_without_signature_is_refused(scene: Scene) -> None:
    fields = scene.start_fields(1)
    del fields["signature"]
    assert errors_of(scene.ask("computeStart", fields)) == {
        "signature": ["Invalid signature provided. Please check the nonce or documentId."]
    }


def test_service_zero_may_be_a_number(scene: Scene) -> None:
    scene.started(dataset={"documentId": DATA, "serviceId": 0, "transferTxId": "order"})


REFUSALS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "no algorithm": ({"algorithm": {}}, {"algorithm": "missing_meta_documentId"}),
    "both": (
        {"algorithm": {"documentId": ALGORITHM.did, "serviceId": "0", "transferTxId": "x", "meta": META}},
        {"algorithm": "either_meta_or_documentId"},
    ),
    "a data set as algorithm": (
        {"algorithm": {"documentId": DATA, "serviceId": "0", "transferTxId": "x"}},
        {"algorithm": "not_algo"},
    ),
    "an unknown algorithm": (
        {"algorithm": {"documentId": derived_did("?"), "serviceId": "0", "transferTxId": "x"}},
        {"algorithm": "did_not_found"},
    ),
    "an algorithm without service": (
        {"algorithm": {"documentId": ALGORITHM.did, "transferTxId": "x"}},
        {"algorithm.serviceId": "missing"},
    ),
    "additional data sets that are no list": ({"additionalDatasets": "no"}, {"additional_input": "invalid"}),
    "an additional data set without document": (
        {"additionalDatasets": [{"serviceId": "7", "transferTxId": "x"}]},
        {"datasets[1].documentId": "missing"},
    ),
    "an additional data set without service": (
        {"additionalDatasets": [{"documentId": MORE_DATA, "transferTxId": "x"}]},
        {"datasets[1].serviceId": "missing"},
    ),
    "an additional data set without order": (
        {"additionalDatasets": [{"documentId": MORE_DATA, "serviceId": "7"}]},
        {"datasets[1].transferTxId": "missing"},
    ),
    "an unknown additional data set": (
        {"additionalDatasets": [{"documentId": derived_did("?"), "serviceId": "7", "transferTxId": "x"}]},
        {"datasets[1].documentId": "did_not_found"},
    ),
    "an unknown service": (
        {"additionalDatasets": [{"documentId": MORE_DATA, "serviceId": "8", "transferTxId": "x"}]},
        {"datasets[1].serviceId": "not_found"},
    ),
    "an algorithm as data set": (
        {"dataset": {"documentId": ALGORITHM.did, "serviceId": "0", "transferTxId": "x"}},
        {"dataset.serviceId": "service_not_access_compute"},
    ),
    "raw code": ({"algorithm": {"meta": META}}, {"dataset": "no_raw_algo_allowed"}),
    "an output that is none": ({"output": "no"}, {"output": "invalid"}),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refusal_names_what_and_why(scene: Scene, case: str) -> None:
    changed, expected = REFUSALS[case]
    answer = scene.ask("computeStart", scene.start_fields(1, **changed))
    assert (answer.status_code, answer.get_json()) == (400, {"error": expected})
    assert scene.posted == []
    assert scene.ledger.open_jobs() == []


RAW_REFUSALS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "no code": ({"rawcode": ""}, {"algorithm": "meta_oneof_url_rawcode_remote"}),
    "hardly any code": ({"rawcode": "0123456789"}, {"algorithm": "meta_oneof_url_rawcode_remote"}),
    "code somewhere else": ({"url": "https://example.org"}, {"algorithm": "url_remote_envs_not_supported"}),
    "no container": ({"container": {}}, {"algorithm.container": "missing_entrypoint_image_checksum"}),
    "no entrypoint": (
        {"container": {"image": "a", "checksum": DIGEST}},
        {"algorithm.container": "missing_entrypoint_image_checksum"},
    ),
    "a checksum of another kind": (
        {"container": {"image": "a", "checksum": "md5:1", "entrypoint": "x"}},
        {"algorithm.container": "checksum_prefix"},
    ),
}


@pytest.mark.parametrize("case", RAW_REFUSALS)
def test_raw_code_is_refused_when_it_is_not_complete(scene: Scene, case: str) -> None:
    changed, expected = RAW_REFUSALS[case]
    scene.data_sets[DATA] = replace(scene.data_sets[DATA], raw_algorithms=True)
    answer = scene.ask("computeStart", scene.start_fields(1, algorithm={"meta": {**META, **changed}}))
    assert (answer.status_code, answer.get_json()) == (400, {"error": expected})


def test_raw_code_runs_where_the_data_set_allows_it(scene: Scene) -> None:
    scene.data_sets[DATA] = replace(scene.data_sets[DATA], raw_algorithms=True)
    assert scene.started(algorithm={"meta": json.dumps(META)})["algoDID"] == "raw"


TRUST: dict[str, tuple[dict[str, Any], str]] = {
    "nobody": ({"trusted_algorithms": ()}, "not_trusted_algo"),
    "another algorithm": (
        {"trusted_algorithms": (TrustedAlgorithm(did=TABLE.did),)},
        "not_trusted_algo",
    ),
    "another publisher": ({"trusted_publishers": (ANNE.address,)}, "not_trusted_algo_publisher"),
    "the publisher but not the algorithm": (
        {"trusted_algorithms": (TrustedAlgorithm(did=TABLE.did),), "trusted_publishers": (BERT.address,)},
        "not_trusted_algo",
    ),
    "other files": (
        {"trusted_algorithms": (TrustedAlgorithm(did=ALGORITHM.did, files_checksum="ab"),)},
        "algorithm_file_checksum_mismatch",
    ),
    "another container": (
        {"trusted_algorithms": (TrustedAlgorithm(did=ALGORITHM.did, container_checksum="ab"),)},
        "algorithm_container_checksum_mismatch",
    ),
}
GOOD_TRUST: dict[str, dict[str, Any]] = {
    "everybody": {"trusted_algorithms": (TrustedAlgorithm(did="*"),)},
    "the publisher": {"trusted_algorithms": (), "trusted_publishers": (BERT.address,)},
    "every publisher": {"trusted_algorithms": (), "trusted_publishers": ("*",)},
    "both": {"trusted_publishers": (BERT.address,)},
    "this container": {
        "trusted_algorithms": (
            TrustedAlgorithm(
                did=ALGORITHM.did, container_checksum=container_checksum("python $ALGO", DIGEST)
            ),
        )
    },
}


@pytest.mark.parametrize("case", TRUST)
@pytest.mark.parametrize("at", [0, 1])
def test_every_data_set_must_trust_the_algorithm(scene: Scene, case: str, at: int) -> None:
    changed, message = TRUST[case]
    did = (DATA, MORE_DATA)[at]
    scene.data_sets[did] = replace(scene.data_sets[did], **changed)
    more = [{"documentId": MORE_DATA, "serviceId": "7", "transferTxId": "x"}]
    answer = scene.ask("computeStart", scene.start_fields(1, additionalDatasets=more))
    assert (answer.status_code, answer.get_json()) == (
        400,
        {"error": {("dataset", "datasets[1]")[at]: message}},
    )


@pytest.mark.parametrize("case", GOOD_TRUST)
def test_trust_opens_what_it_says(scene: Scene, case: str) -> None:
    scene.data_sets[DATA] = replace(scene.data_sets[DATA], **GOOD_TRUST[case])
    scene.started()


def test_a_consumer_the_data_set_does_not_list_is_told_so(scene: Scene) -> None:
    scene.data_sets[DATA] = replace(scene.data_sets[DATA], consumers=(BERT.address,))
    answer = scene.ask("computeStart", scene.start_fields(1))
    assert answer.get_json()["error"]["dataset"].endswith("denied with code: 3.")


def test_an_unknown_environment_is_refused(scene: Scene) -> None:
    answer = scene.ask("computeStart", scene.start_fields(1, environment="huge"))
    assert (answer.status_code, answer.get_json()) == (400, {"error": "Compute environment does not exist"})


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


# --- signatures and nonces ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("nonce", ["0", "1", "2"])
def test_a_nonce_counts_once(scene: Scene, nonce: str) -> None:
    scene.started(2)
    answer = scene.ask("computeStart", scene.start_fields(int(nonce)))
    assert list(errors_of(answer)) == ["nonce"]
    assert len(scene.ledger.open_jobs()) == 1


@pytest.mark.parametrize("nonce", [str(2**53), "9" * 17, "1.5", "-1", "01", "1e3", "0x1", "١", " ", ""])
def test_a_nonce_is_a_whole_number_that_clients_can_count(scene: Scene, nonce: str) -> None:
    fields = scene.start_fields(1)
    fields |= {"nonce": nonce, "signature": ANNE.sign(f"{ANNE.shown}{DATA}{nonce}")}
    assert list(errors_of(scene.ask("computeStart", fields))) == ["nonce"]


def test_the_highest_nonce_may_be_used(scene: Scene) -> None:
    scene.started(2**53 - 1)


def test_of_many_starts_with_one_nonce_one_makes_a_job(scene: Scene) -> None:
    fields, codes = scene.start_fields(1), []

    def start() -> None:
        codes.append(scene.ask("computeStart", fields).status_code)

    threads = [threading.Thread(target=start) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes) == [200] + [400] * 11
    assert len(scene.ledger.open_jobs()) == 1


def test_a_refused_start_uses_its_nonce_up_and_a_forged_one_does_not(scene: Scene) -> None:
    scene.ask("computeStart", scene.start_fields(5, algorithm={"meta": META}))
    assert scene.ledger.last_nonce(ANNE.address) == 5
    fields = scene.start_fields(9)
    fields["signature"] = BERT.sign(f"{ANNE.shown}{DATA}9")
    scene.ask("computeStart", fields)
    assert scene.ledger.last_nonce(ANNE.address) == 5


def test_a_captured_request_read_in_another_way_finds_nothing(scene: Scene) -> None:
    job = scene.started(1)
    scene.end(job)
    # signed for index 1 and nonce 23456; the same bytes are index 12 and nonce 3456
    captured = scene.result_fields(job, 1, 23456)
    assert "index" in errors_of(scene.ask("computeResult", {**captured, "index": "12", "nonce": "3456"}))
    assert scene.ledger.last_nonce(ANNE.address) == 1
    assert scene.ask("computeResult", captured).status_code == 200
    assert "nonce" in errors_of(scene.ask("computeResult", captured))


def test_a_stranger_a_wrong_signature_and_an_unknown_job_look_the_same(scene: Scene) -> None:
    job = scene.started(1)
    unknown = {**job, "jobId": "0" * 32}
    forged = {**scene.of_job(job, 7), "signature": BERT.sign("x")}
    answers = [
        scene.ask("computeStop", scene.of_job(job, 7, by=BERT)),
        scene.ask("computeStop", scene.of_job(unknown, 7)),
        scene.ask("computeStop", forged),
    ]
    assert len({(answer.status_code, answer.text) for answer in answers}) == 1
    assert errors_of(answers[0])["signature"][0].startswith("Invalid signature provided.")


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


@pytest.mark.parametrize("as_json", [False, True])
def test_a_job_is_stopped_by_its_owner_from_query_or_body(scene: Scene, as_json: bool) -> None:
    job = scene.started(1)
    answer = scene.ask("computeStop", scene.of_job(job, 2), as_json=as_json)
    (shown,) = answer.get_json()
    assert (shown["status"], shown["stopreq"]) == (1, 1)
    record = scene.ledger.job(job["jobId"])
    assert record is not None
    assert scene.posted[-1] == KillRequested(frozenset({run_id_of(record)}))


@pytest.mark.parametrize("name", ["computeStop", "computeDelete"])
def test_stopping_and_deleting_need_a_job_and_a_nonce(scene: Scene, name: str) -> None:
    job = scene.started(1)
    for missing in ("jobId", "nonce"):
        fields = scene.of_job(job, 2)
        del fields[missing]
        assert missing in errors_of(scene.ask(name, fields))


def test_a_deleted_job_is_stopped_and_gone(scene: Scene) -> None:
    job = scene.started(1)
    (shown,) = scene.ask("computeDelete", scene.of_job(job, 2)).get_json()
    assert (shown["removed"], shown["statusText"]) == (1, "Job deleted successfully")
    assert isinstance(scene.posted[-1], KillRequested)
    asked = {"consumerAddress": ANNE.shown, "jobId": job["jobId"]}
    assert scene.ask("computeStatus", asked).get_json() == []


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
    answer = scene.ask("computeResult", scene.result_fields(job, 0, 3))
    assert answer.data == b"0123456789"
    assert "a.txt" in answer.headers["Content-Disposition"]


def test_a_part_of_a_result_may_be_asked_for(scene: Scene) -> None:
    job = scene.started(1)
    scene.end(job)
    answer = scene.ask("computeResult", scene.result_fields(job, 0, 3), headers={"Range": "bytes=2-4"})
    assert (answer.status_code, answer.data) == (206, b"234")


@pytest.mark.parametrize("index", ["3", "-1", "x", "1.0", "00"])
def test_a_result_that_is_not_there_is_refused_before_the_nonce_is_used(scene: Scene, index: str) -> None:
    job = scene.started(1)
    scene.end(job)
    fields = {**scene.result_fields(job, 0, 3), "index": index}
    fields["signature"] = ANNE.sign(f"{ANNE.shown}{job['jobId']}{index}3")
    assert list(errors_of(scene.ask("computeResult", fields))) == ["index"]
    assert scene.ledger.last_nonce(ANNE.address) == 1


def test_results_are_for_their_owner_alone(scene: Scene) -> None:
    job = scene.started(1)
    scene.end(job)
    assert scene.ask("computeResult", scene.result_fields(job, 0, 3, by=BERT)).status_code == 400


# --- tokens -------------------------------------------------------------------------------------------------------


def token_for(scene: Scene, nonce: int, *, by: Wallet = ANNE, until: float | None = None) -> str:
    fields = {
        "address": by.shown,
        "expiration": str(int(until or scene.clock.now() + 100)),
        "nonce": str(nonce),
        "signature": by.sign(f"{by.shown}{nonce}"),
    }
    answer = scene.ask("createAuthToken", fields)
    assert answer.status_code == 200, answer.text
    return str(answer.get_json()["token"])


@pytest.mark.parametrize("header", ["AuthToken", "Authorization"])
def test_a_token_stands_for_a_signature(scene: Scene, header: str) -> None:
    token = token_for(scene, 1)
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
    token = token_for(scene, 1)
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
    token = token_for(scene, 1)
    fields = {"address": ANNE.shown, "token": token, "nonce": "2", "signature": ANNE.sign(f"{ANNE.shown}2")}
    assert scene.ask("deleteAuthToken", fields).get_json() == {"success": "Token has been deactivated."}
    again = {**fields, "nonce": "3", "signature": ANNE.sign(f"{ANNE.shown}3")}
    assert scene.ask("deleteAuthToken", again).get_json() == {"error": "Token is deleted."}
    assert token_for(scene, 4) != token


def test_a_token_is_not_made_for_the_past(scene: Scene) -> None:
    fields = {
        "address": ANNE.shown,
        "expiration": str(int(scene.clock.now()) - 1),
        "nonce": "1",
        "signature": ANNE.sign(f"{ANNE.shown}1"),
    }
    assert "expiration" in errors_of(scene.ask("createAuthToken", fields))


# --- the rest -----------------------------------------------------------------------------------------------------


def test_the_root_names_every_route(scene: Scene) -> None:
    body = Client(scene.api).get("/").get_json()
    assert body["software"] == "node-agent"
    assert body["serviceEndpoints"]["computeStart"] == ["POST", "/api/services/compute"]
    assert body["providerAddress"].startswith("0x")


def test_a_free_start_of_the_newer_dialect_runs(scene: Scene) -> None:
    fields = {
        "consumerAddress": ANNE.shown,
        "nonce": "6",
        "environment": "small",
        "datasets": [{"documentId": DATA, "serviceId": "0"}],
        "algorithm": {"documentId": ALGORITHM.did, "serviceId": "0"},
        "signature": ANNE.sign(f"{ANNE.shown}6freeStartCompute"),
    }
    assert scene.ask("freeCompute", fields).status_code == 200


def test_environments_carry_the_fields_of_both_dialects(scene: Scene) -> None:
    (environment,) = scene.ask("computeEnvironments", {}).get_json()
    assert (environment["priceMin"], environment["maxJobDuration"]) == (0, 60)
    assert {"free", "resources", "cpuNumber", "nCPU", "consumerAddress"} <= environment.keys()


@pytest.mark.parametrize(
    ("path", "method", "status"), [("/nowhere", "GET", 404), ("/api/services/compute", "PATCH", 405)]
)
def test_other_routes_and_verbs_are_refused_as_json(
    scene: Scene, path: str, method: str, status: int
) -> None:
    answer = Client(scene.api).open(path, method=method)
    assert answer.status_code == status
    assert "error" in answer.get_json()


@pytest.mark.parametrize("body", [b"{", b"[]", b"\xff", b'{"a": 1, "a": 2}', b"[" * 100_000, b'{"a": NaN}'])
def test_a_body_that_is_no_object_is_refused(scene: Scene, body: bytes) -> None:
    answer = Client(scene.api).open("/api/services/compute", method="POST", data=body)
    assert list(errors_of(answer)) == ["body"]


def test_nobody_asks_too_often(scene: Scene) -> None:
    scene.pace = Pace(per_second=1, burst=2, monotonic=scene.clock.monotonic)
    codes = [Client(scene.api).get("/").status_code for _ in range(3)]
    assert codes == [200, 200, 429]
    scene.clock.advance(1)
    assert Client(scene.api).get("/").status_code == 200


def test_a_refusal_repeats_nothing_of_the_request(scene: Scene) -> None:
    secret = "do-not-repeat-me"
    fields = scene.start_fields(
        1, algorithm={"documentId": secret, "serviceId": secret, "transferTxId": secret}
    )
    answer = scene.ask("computeStart", fields)
    assert answer.status_code == 400
    assert secret not in answer.text


def log_fields(job: Mapping[str, Any], nonce: int, *, by: Wallet = ANNE) -> dict[str, Any]:
    return {
        "consumerAddress": by.shown,
        "jobId": job["jobId"],
        "nonce": str(nonce),
        "signature": by.sign(f"{by.shown}{nonce}getComputeStreamableLogs"),
    }


def test_the_log_of_a_running_job_is_followed_where_the_data_set_shares_it(scene: Scene) -> None:
    scene.data_sets[DATA] = replace(scene.data_sets[DATA], share_log=True)
    job = scene.started(1)
    assert scene.ask("computeStreamableLogs", log_fields(job, 2)).status_code == 404
    record = scene.ledger.job(job["jobId"])
    assert record is not None
    scene.runs[run_id_of(record)] = make_run(run_id_of(record), state=State.RUNNING)
    assert scene.ask("computeStreamableLogs", log_fields(job, 3)).data.startswith(b"log of ")
    assert "signature" in errors_of(scene.ask("computeStreamableLogs", log_fields(job, 4, by=BERT)))


def test_a_log_that_is_not_shared_is_not_followed(scene: Scene) -> None:
    job = scene.started(1)
    record = scene.ledger.job(job["jobId"])
    assert record is not None
    scene.runs[run_id_of(record)] = make_run(run_id_of(record), state=State.RUNNING)
    assert scene.ask("computeStreamableLogs", log_fields(job, 3)).status_code == 404


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
