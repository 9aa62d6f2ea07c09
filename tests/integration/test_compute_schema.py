"""The compute API behind its real listener, tried by a program that knows nothing of it but its description.

The program makes up requests that fit the description and such that do not. Who asks is believed here, so that it gets
further than to the first check; that nobody is believed elsewhere is for other tests.
"""

import copy
import json
import logging
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from node_agent import __version__
from node_agent.compute.authentication import Asker, Authentication
from node_agent.compute.fields import Fields
from node_agent.compute.layouts import Operation
from node_agent.compute.openapi import openapi
from node_agent.compute.routes import ENDPOINTS
from node_agent.compute.server import ComputeServer
from node_agent.compute.signedbody import Sent
from node_agent.compute.tokens import AuthTokens
from tests.doubles.compute_scene import ALGORITHM, ANNE, DATA, DIGEST, META, MORE_DATA, NODE, TABLE, Scene
from tests.lab.venvs import VenvError, environment, schemathesis_venv
from tests.parts import or_missing
from tests.ports import free_port

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
    "allow_header_conformance",
)
EXAMPLES = 4
SECONDS = 300


class Believing(Authentication):
    """Takes everybody for whom they say they are."""

    def recognise(self, operation: Operation, fields: Fields, sent: Sent) -> Asker:
        del sent
        return self._named(operation, fields)

    def recognise_signer(self, operation: Operation, fields: Fields, sent: Sent) -> Asker:
        return self.recognise(operation, fields, sent)

    def use_nonce(self, asker: Asker) -> None:
        del asker


class Counted:
    """An application of which it is counted how each of its routes answered."""

    def __init__(self, app: "WSGIApplication") -> None:
        self._app = app
        self.answers: Counter[tuple[str, str]] = Counter()

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        def begin(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
            route = str(environ.get("node_agent.route", "unknown"))
            self.answers[route, status[:3]] += 1
            return start_response(status, headers, *more)

        return self._app(environ, begin)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Service:
    url: str
    jobs: dict[str, list[str]]
    counted: Counted


@pytest.fixture
def service(quick_dir: Path) -> Iterator[Service]:
    scene = Scene(quick_dir)
    scene.max_waiting = 1_000_000
    scene.data_sets[DATA] = replace(scene.data_sets[DATA], share_log=True, raw_algorithms=True)
    jobs = [scene.started(nonce) for nonce in range(1, 7)]
    scene.end(jobs[0])
    scene.end(jobs[1], names=[f"{number:02}" for number in range(15)])
    scene.runs_now(jobs[2])
    tokens = AuthTokens(scene.ledger, scene.clock)
    counted = Counted(scene.api_that_asks(Believing(scene.ledger, tokens, node=NODE, now=scene.clock.now)))
    server = ComputeServer(counted, address="127.0.0.1", port=free_port(), certificate=None)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    server.start()
    ids = [str(job["jobId"]) for job in jobs]
    yield Service(
        f"http://127.0.0.1:{server.port}",
        {"read": ids[:3], "computeStop": ids[3:4], "computeDelete": ids[4:]},
        counted,
    )
    server.stop()
    scene.ledger.close()


def narrowed(jobs: dict[str, list[str]]) -> dict[str, Any]:
    """Give the description with the names of what there is, which nobody would guess."""
    document = copy.deepcopy(openapi(version=__version__))
    data, algorithms = [DATA, MORE_DATA, "patients"], [ALGORITHM.did, TABLE.did]
    known = {
        "consumerAddress": [ANNE.shown],
        "address": [ANNE.shown],
        "userAddress": [ANNE.shown],
        "documentId": data,
        "did": [*data, *algorithms],
        "serviceId": ["0", "7", 0],
        "environment": ["small", ""],
        "env": ["small"],
        "container": [META["container"]],
        "checksum": [DIGEST],
        "index": [0, 1, 12, "2"],
        "jobId": jobs["read"],
    }
    _narrow(document, known)
    document["components"]["schemas"]["Algorithm"]["properties"]["documentId"] = {"enum": algorithms}
    for operation in (one for path in document["paths"].values() for one in path.values()):
        own = {**known, "jobId": jobs.get(operation["operationId"], jobs["read"])}
        for parameter in operation.get("parameters", []):
            if parameter["name"] in own:
                parameter["schema"] = {"enum": own[parameter["name"]]}
    return document


def _narrow(tree: Any, known: dict[str, list[Any]]) -> None:
    inner = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    for value in inner:
        _narrow(value, known)
    if isinstance(tree, dict) and tree.get("additionalProperties") is not False:
        for name in tree.get("properties", {}).keys() & known.keys():
            tree["properties"][name] = {"enum": known[name]}


def test_whatever_is_asked_the_answer_is_as_described(service: Service, tmp_path: Path) -> None:
    with or_missing(VenvError):
        python = schemathesis_venv()
    description = tmp_path / "openapi.json"
    description.write_text(json.dumps(narrowed(service.jobs)), encoding="utf-8")
    command = [python.with_name("st"), "run", description, "--url", service.url, "--checks", ",".join(CHECKS)]
    command += ["--phases", "coverage,fuzzing", "--max-examples", str(EXAMPLES), "--continue-on-failure"]
    tried = subprocess.run(
        [*map(str, command), "--warnings", "off", "--no-shrink", "--seed", "6"],
        cwd=tmp_path,
        env={**environment(), "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert tried.returncode == 0, tried.stdout[-6000:] + tried.stderr[-2000:]
    answers = service.counted.answers
    print(sorted(answers.items()))
    assert not [key for key in answers if key[1].startswith("5")]
    # else it would have tried hardly more than the first check of each route
    assert sum(1 for route in ENDPOINTS if answers[route, "200"]) >= len(ENDPOINTS) - 4
