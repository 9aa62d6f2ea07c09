"""An API with its books and no agent behind it, and consumers who sign: what the tests of the compute API ask."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from werkzeug.test import Client, TestResponse

from node_agent.compute.access import ListedAddresses
from node_agent.compute.api import ComputeApi
from node_agent.compute.authentication import Authentication
from node_agent.compute.desk import JobDesk, run_id_of
from node_agent.compute.ledger import JobRecord, Ledger
from node_agent.compute.objects import Environment
from node_agent.compute.pace import Pace
from node_agent.compute.results import ResultStore
from node_agent.compute.routes import ENDPOINTS
from node_agent.compute.signatures import Address
from node_agent.compute.tokens import AuthTokens
from node_agent.domain.assets import (
    Assets,
    CatalogueAlgorithm,
    DataSet,
    JobContract,
    TrustedAlgorithm,
    derived_did,
)
from node_agent.domain.jobstatus import JobEnding
from node_agent.domain.messages import Message
from node_agent.domain.run import Run, RunId, State
from node_agent.store.untrusted.opening import opened_folder
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


NODE = Address("0x" + "c" * 40)


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
        self.algorithms = {ALGORITHM.did: ALGORITHM, TABLE.did: TABLE}
        self.access: Any = ListedAddresses(["*"])
        self.unsigned_status = True
        self.only_signed_bodies = False
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
            store_input=lambda _run, _content: None,
            post=self.posted.append,
            follow=lambda run: iter([f"log of {run.id}\n".encode()]),
            clock=self.clock,
            max_waiting=self.max_waiting,
        )

    @property
    def api(self) -> ComputeApi:
        tokens = AuthTokens(self.ledger, self.clock)
        return self.api_that_asks(
            Authentication(
                self.ledger,
                tokens,
                node=NODE,
                now=self.clock.now,
                only_signed_bodies=self.only_signed_bodies,
            )
        )

    def api_that_asks(self, authentication: Authentication) -> ComputeApi:
        """Give an API for which *authentication* finds out who asks."""
        return ComputeApi(
            desk=self.desk,
            ledger=self.ledger,
            assets=Assets(self.data_sets, self.algorithms),
            access=self.access,
            authentication=authentication,
            tokens=AuthTokens(self.ledger, self.clock),
            pace=self.pace,
            clock=self.clock,
            own_address=NODE,
            software="node-agent",
            version="1",
            unsigned_status=self.unsigned_status,
        )

    def ask(
        self,
        name: str,
        fields: Mapping[str, Any],
        *,
        as_json: bool = False,
        api: ComputeApi | None = None,
        **more: Any,
    ) -> TestResponse:
        method, path = ENDPOINTS[name]
        client = Client(api or self.api)
        if as_json or method == "POST":
            return client.open(path, method=method, json=fields, buffered=True, **more)
        return client.open(path, method=method, query_string=fields, buffered=True, **more)

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

    def newer_fields(self, nonce: int, *, by: Wallet = ANNE, **changed: Any) -> dict[str, Any]:
        return {
            "consumerAddress": by.shown,
            "nonce": str(nonce),
            "environment": "small",
            "datasets": [{"documentId": DATA, "serviceId": "0"}],
            "algorithm": {"documentId": ALGORITHM.did, "serviceId": "0"},
            "signature": by.sign(f"{by.shown}{nonce}freeStartCompute"),
            **changed,
        }

    def log_fields(self, job: Mapping[str, Any], nonce: int, *, by: Wallet = ANNE) -> dict[str, Any]:
        return {
            "consumerAddress": by.shown,
            "jobId": job["jobId"],
            "nonce": str(nonce),
            "signature": by.sign(f"{by.shown}{nonce}getComputeStreamableLogs"),
        }

    def token_fields(self, nonce: int, *, by: Wallet = ANNE, until: float | None = None) -> dict[str, Any]:
        return {
            "address": by.shown,
            "expiration": str(int(until or self.clock.now() + 100)),
            "nonce": str(nonce),
            "signature": by.sign(f"{by.shown}{nonce}"),
        }

    def token_for(self, nonce: int, *, by: Wallet = ANNE) -> str:
        answer = self.ask("createAuthToken", self.token_fields(nonce, by=by))
        assert answer.status_code == 200, answer.text
        return str(answer.get_json()["token"])

    def record(self, job: Mapping[str, Any]) -> JobRecord:
        found = self.ledger.job(job["jobId"])
        assert found is not None
        return found

    def runs_now(self, job: Mapping[str, Any]) -> RunId:
        """Let the job's container run."""
        run_id = run_id_of(self.record(job))
        self.runs[run_id] = make_run(run_id, state=State.RUNNING)
        return run_id

    def end(
        self, job: Mapping[str, Any], *, names: Sequence[str] = ("b.txt", "a.txt"), status: int = 70
    ) -> None:
        """Let the job end with outputs of these names and a log; each says its name ten times."""
        record = self.record(job)
        place = self.results._root / f"left-{record.id}"
        (place / "out").mkdir(parents=True)
        for name in names:
            (place / "out" / name).write_text(name * 10)
        (place / "log").write_text("said\n")
        with opened_folder(place / "out") as outputs:
            self.results.collect(record.id, outputs=outputs, limit=1 << 20)
        self.results.publish(record.id, result=None, log=place / "log")
        ending = JobEnding(status=status, text="Job finished", exit_code=0)
        self.ledger.finish_job(record.number, at=self.clock.now(), ending=asdict(ending))


def errors_of(answer: TestResponse) -> dict[str, list[str]]:
    """Give what is said of fields, after a look at the rest of the body."""
    body = answer.get_json()
    assert answer.status_code == 400
    assert body.keys() == {"errors", "message", "success"}
    assert (body["message"], body["success"]) == ("Validation error", False)
    return dict(body["errors"])


def whole(answer: TestResponse) -> tuple[object, ...]:
    """Give everything a client sees of an answer."""
    headers = sorted((name.lower(), value) for name, value in answer.headers if name.lower() != "date")
    return answer.status, tuple(headers), answer.data


def without(fields: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Give the fields without the one at *path*, whose dots reach into objects."""
    first, _, rest = path.partition(".")
    if rest:
        return {**fields, first: without(fields[first], rest)}
    return {name: value for name, value in fields.items() if name != first}
