"""The stricter signature: what it covers, that it is taken wherever a signature is, and where nothing else is taken."""

import json
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from werkzeug.test import Client, TestResponse

from node_agent.compute.routes import ENDPOINTS
from node_agent.compute.signedbody import Sent, body_signature, signed_text
from tests.doubles.compute_scene import ANNE, BERT, DATA, NODE, Scene, errors_of, without
from tests.doubles.wallet import Wallet

ROOT = Path(__file__).parents[3]
WANTED = "Invalid signature provided. This node wants every request signed with its body (Signed-Body)."


@pytest.fixture
def scene(quick_dir: Path) -> Iterator[Scene]:
    made = Scene(quick_dir)
    yield made
    made.ledger.close()


def header_of(
    method: str,
    target: str,
    body: bytes,
    *,
    nonce: object,
    by: Wallet = ANNE,
    node: str = NODE,
    asker: str = "",
) -> str:
    content = sha256(body).hexdigest()
    lines = ["node-agent signed-body 1", method, target, content, node, asker or by.address, str(nonce)]
    return f"sha256={content}, signature={by.sign(chr(10).join(lines))}"


def asked(scene: Scene, route: str, fields: Mapping[str, Any], **changed: Any) -> TestResponse:
    """Ask with a signed body: GET with a query, everything else with a JSON body."""
    method, path = ENDPOINTS[route]
    body = b"" if method == "GET" else json.dumps(without(fields, "signature")).encode()
    target = f"{path}?{urlencode(without(fields, 'signature'))}" if method == "GET" else path
    signed = {"method": method, "target": target, "body": body, "nonce": fields.get("nonce"), **changed}
    header = header_of(
        signed.pop("method"), signed.pop("target"), signed.pop("body"), nonce=signed.pop("nonce"), **signed
    )
    return Client(scene.api).open(
        target, method=method, data=body, headers={"Signed-Body": header}, buffered=True
    )


def requests(scene: Scene) -> dict[str, dict[str, Any]]:
    job = scene.started(1)
    scene.end(job)
    return {
        "computeStart": scene.start_fields(2),
        "freeCompute": scene.newer_fields(3),
        "computeStatus": scene.of_job(job, 4),
        "computeResult": scene.result_fields(job, 0, 5),
        "computeStop": scene.of_job(job, 6),
        "createAuthToken": scene.token_fields(7),
        "computeDelete": scene.of_job(job, 8),
    }


def test_a_signed_body_is_taken_wherever_a_signature_is(scene: Scene) -> None:
    for route, fields in requests(scene).items():
        answer = asked(scene, route, fields)
        assert answer.status_code == 200, answer.text
        assert list(errors_of(asked(scene, route, fields))) in (["nonce"], ["signature"])


CHANGES: dict[str, dict[str, Any]] = {
    "another verb": {"method": "PUT"},
    "another path": {"target": "/api/services/computeStart"},
    "a query": {"target": "/api/services/compute?a=1"},
    "another body": {"body": b"{}"},
    "another node": {"node": "0x" + "d" * 40},
    "somebody else": {"asker": BERT.address},
    "somebody else's key": {"by": BERT, "asker": ANNE.address},
    "another nonce": {"nonce": 3},
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_signature_for_anything_else_is_none(scene: Scene, case: str) -> None:
    answer = asked(scene, "computeStart", scene.start_fields(2), **CHANGES[case])
    assert list(errors_of(answer)) == ["signature"]
    assert scene.ledger.last_nonce(ANNE.address) == 0


@pytest.mark.parametrize(
    "value", ["", "x", "sha256=, signature=", f"sha256={'0' * 64}, signature=0x{'0' * 130}"]
)
def test_a_header_that_is_none_spoils_a_good_signature(scene: Scene, value: str) -> None:
    answer = scene.ask("computeStart", scene.start_fields(2), headers={"Signed-Body": value})
    assert list(errors_of(answer)) == ["signature"]


def test_the_hash_of_the_body_is_that_of_the_body(scene: Scene) -> None:
    fields = scene.start_fields(2)
    body = json.dumps(fields).encode()
    header = header_of("POST", ENDPOINTS["computeStart"][1], body, nonce=2)
    swapped = {**fields, "algorithm": {**fields["algorithm"], "serviceId": "1"}}
    answer = scene.ask("computeStart", swapped, headers={"Signed-Body": header})
    assert list(errors_of(answer)) == ["signature"]


@pytest.mark.parametrize(
    "route", ["computeStart", "freeCompute", "computeStatus", "computeResult", "computeStop", "computeDelete"]
)
def test_where_bodies_must_be_signed_nothing_else_is_taken(scene: Scene, route: str) -> None:
    token = scene.token_for(1)
    job = scene.started(2)
    scene.end(job)
    fields = {
        "computeStart": scene.start_fields(3),
        "freeCompute": scene.newer_fields(3),
        "computeResult": scene.result_fields(job, 0, 3),
    }.get(route, scene.of_job(job, 3))
    scene.only_signed_bodies = True
    assert errors_of(scene.ask(route, fields)) == {"signature": [WANTED]}
    by_token = without(fields, "signature")
    assert errors_of(scene.ask(route, by_token, headers={"AuthToken": token})) == {"signature": [WANTED]}
    assert scene.ledger.last_nonce(ANNE.address) == 2
    assert asked(scene, route, fields).status_code == 200


def test_where_bodies_must_be_signed_there_are_no_tokens(scene: Scene) -> None:
    scene.only_signed_bodies = True
    expected = {"error": "Tokens are not used here: every request is signed with its body."}
    fields = {**scene.token_fields(1), "token": "x"}
    for route in ("createAuthToken", "deleteAuthToken", "generateAuthToken", "invalidateAuthToken"):
        assert scene.ask(route, fields).get_json() == expected


def test_where_bodies_must_be_signed_a_status_still_shows_a_little_to_who_knows_the_number(
    scene: Scene,
) -> None:
    job = scene.started(1)
    scene.only_signed_bodies = True
    fields = {"consumerAddress": ANNE.shown, "jobId": job["jobId"]}
    (shown,) = scene.ask("computeStatus", fields).get_json()
    assert "results" not in shown


def test_the_documented_example_is_right() -> None:
    """The example of docs/compute-api.md: its text, its header, and the key of the published vectors."""
    page = (ROOT / "docs" / "compute-api.md").read_text(encoding="utf-8")
    section = page.partition("### A worked example")[2]
    _, body, _, text, _, header, *_ = section.split("```")
    body, text = body.partition("\n")[2].rstrip("\n"), text.partition("\n")[2].rstrip("\n")
    header = header.partition("\n")[2].strip()
    sent = Sent(
        method="POST",
        target="/api/services/compute",
        body=body.encode(),
        signed_body=header.removeprefix("Signed-Body: "),
    )
    assert signed_text(sent, node=NODE, asker=ANNE.address, nonce=2) == text
    assert body_signature(sent) == ANNE.sign(text)
    assert json.loads(body)["nonce"] == "2"


def test_a_text_names_every_part_on_a_line_of_its_own() -> None:
    sent = Sent(method="GET", target=f"/api/services/compute?documentId={DATA}", body=b"")
    lines = signed_text(sent, node=NODE, asker=ANNE.address, nonce=7).split("\n")
    assert len(lines) == 7
    assert lines[3] == sha256(b"").hexdigest()
