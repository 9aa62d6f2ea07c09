"""Encrypted collaborations at the server port: results are sealed for who asked, inputs opened when they are read."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from node_agent.domain.ports import FinalReport
from node_agent.domain.run import Status
from node_agent.domain.secret import Secret
from node_agent.domain.task import OrganizationId
from node_agent.errors import InputUnreadable, RunClosed, ServerUnreachable
from node_agent.payload.envelope import seal, unseal
from node_agent.payload.keys import PrivateKey
from node_agent.server.client import HttpServer, brief_patience
from node_agent.server.exchange import Reply
from node_agent.server.tokens import Tokens
from tests.unit.test_server_client import BLIP, RUN, Script, final, said

KEY = PrivateKey(rsa.generate_private_key(65537, 2048))


def server(script: Script, spool: Path | None = None) -> HttpServer:
    tokens = Tokens(script, Secret("key"), monotonic=lambda: 0.0)
    return HttpServer(script, tokens, key=KEY, spool=spool, patience=brief_patience(lambda _: None))


def organization(public_key: str) -> Reply:
    return Reply(
        call="C",
        status=200,
        content_type="application/json",
        body=json.dumps({"name": "alpha", "public_key": public_key}).encode(),
    )


def answer(content: object) -> Reply:
    return Reply(call="C", status=200, content_type="application/json", body=json.dumps(content).encode())


def opened(text: str) -> bytes:
    return b"".join(unseal([text.encode()], KEY))


@pytest.fixture
def report(tmp_path: Path) -> FinalReport:
    (tmp_path / "result").write_bytes(b"the answer")
    return replace(final(result=tmp_path / "result"), init_org_id=OrganizationId(3))


# --- results --------------------------------------------------------------------------------------------------


def test_a_result_is_sealed_for_the_organization_that_asked(report: FinalReport) -> None:
    script = Script(organization(KEY.public.wire), said(200), said(200))
    asking = server(script)
    asking.report(RUN, report)
    asking.report(RUN, report)
    assert [call.path for call in script.calls] == ["organization/3", "run/9", "run/9"]
    assert [opened(body["result"]) for body in script.bodies] == [b"the answer"] * 2


def test_a_result_nobody_could_read_ends_the_run_with_the_reason(report: FinalReport) -> None:
    script = Script(organization(""), said(200))
    with pytest.raises(RunClosed, match="Organization 3 has no public key"):
        server(script).report(RUN, report)
    (body,) = script.bodies
    assert (body["status"], body["result"]) == ("failed", "")
    assert "Organization 3 has no public key" in body["log"]
    assert body["finished_at"]


def test_a_key_that_appears_before_the_end_is_told_is_used(report: FinalReport) -> None:
    script = Script(organization(""), BLIP, BLIP, BLIP, organization(KEY.public.wire), said(200))
    asking = server(script)
    with pytest.raises(ServerUnreachable):
        asking.report(RUN, report)
    asking.report(RUN, report)
    assert opened(script.bodies[-1]["result"]) == b"the answer"


def test_the_key_is_read_again_after_a_report_that_was_refused(report: FinalReport) -> None:
    shown = organization(KEY.public.wire)
    script = Script(shown, said(400, "no"), said(200), shown, said(200))
    asking = server(script)
    with pytest.raises(RunClosed):
        asking.report(RUN, report)
    asking.report(RUN, report)
    assert [call.path for call in script.calls].count("organization/3") == 2


def test_a_result_that_was_sealed_before_is_sent_as_it_lies(report: FinalReport) -> None:
    script = Script(said(200), said(200))
    asking = server(script)
    asking.report(RUN, replace(report, is_sealed=True))
    asking.report(RUN, replace(report, is_sealed=True))
    assert [call.path for call in script.calls] == ["run/9", "run/9"]
    assert [body["result"] for body in script.bodies] == ["the answer"] * 2


def test_a_result_that_was_sealed_before_is_stored_as_it_lies(report: FinalReport) -> None:
    blob = "00000000-0000-4000-8000-000000000001"
    script = Script(answer({"blob_store_enabled": True}), answer({"uuid": blob}))
    assert server(script).store_result(RUN, replace(report, is_sealed=True)) == blob
    assert [call.path for call in script.calls] == ["blobstream/status", "blobstream"]
    body = script.calls[-1].body
    assert body is not None
    assert not isinstance(body, bytes)
    assert b"".join(body) == b"the answer"


def test_a_run_without_result_needs_no_key() -> None:
    script = Script(said(200))
    server(script).report(RUN, final(Status.NOT_ALLOWED))
    assert [body["result"] for body in script.bodies] == [""]


# --- inputs ---------------------------------------------------------------------------------------------------


def page(*inputs: str) -> Reply:
    task = {"id": 7, "job_id": 5, "image": "i", "collaboration": {"id": 1}}
    runs = [{"id": 9 - number, "input": text, "task": task} for number, text in enumerate(inputs)]
    return Reply(
        call="C",
        status=200,
        content_type="application/json",
        body=json.dumps({"data": runs}).encode(),
        total=len(runs),
    )


def test_an_input_for_this_node_is_opened_and_another_says_so_when_it_is_read() -> None:
    ours = b"".join(seal([b"{}"], KEY.public)).decode()
    first, second = server(Script(page("e30=", ours))).open_runs()
    assert b"".join(first.input) == b"{}"
    with pytest.raises(InputUnreadable, match=KEY.public.fingerprint):
        list(second.input)


def test_nothing_of_a_listing_is_left_on_disk_however_it_ends(tmp_path: Path) -> None:
    folder = tmp_path / "answers"
    listing = server(Script(page("e30="), page("e30=", "e30="), BLIP, BLIP, BLIP), folder)
    assert len(list(listing.open_runs())) == 1
    half_read = listing.open_runs()
    next(half_read)
    assert list(folder.iterdir()) != []
    half_read.close()
    with pytest.raises(ServerUnreachable):
        list(listing.open_runs())
    assert list(folder.iterdir()) == []
