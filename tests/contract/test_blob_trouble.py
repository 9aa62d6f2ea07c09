"""What the agent does when the server's blob store, or the way to it, is in trouble; over connections on loopback."""

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest

from node_agent.domain.run import BlobId, RunId, Status
from node_agent.errors import BlobUnreadable, DiskFull, RunClosed, ServerUnreachable, Transient
from tests.contract.server_stage import Agent, agent_at, final, write
from tests.doubles.fake_server import FakeServer, Fault

LARGE = b"0123456789" * 300_000


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    with FakeServer(blobs={}) as server:
        yield server


@pytest.fixture
def agent(fake: FakeServer) -> Iterator[Agent]:
    found = agent_at(fake.url, fake.api_key)
    yield found
    found.server.close()


@pytest.fixture
def result(tmp_path: Path) -> Path:
    return write(tmp_path / "result", LARGE)


def stored(fake: FakeServer, content: bytes) -> tuple[RunId, BlobId]:
    name = fake.world.store_blob(content)
    return RunId(fake.create_task(input=name).run_ids[0]), BlobId(name)


def read(agent: Agent, blob: BlobId) -> bytes:
    with agent.server.open_input(blob) as content:
        return b"".join(content)


@pytest.mark.parametrize(
    "fault",
    [Fault(drop=True), Fault(status=502), Fault(status=404, body="<html>"), Fault(truncate=True)],
    ids=["dropped", "bad gateway", "another server's 404", "cut off"],
)
def test_trouble_on_the_way_is_tried_again(fake: FakeServer, agent: Agent, fault: Fault) -> None:
    _, blob = stored(fake, base64.b64encode(LARGE))
    fake.fail("GET", f"/blobstream/{blob}", fault)
    with pytest.raises(Transient) as caught:
        read(agent, blob)
    assert not isinstance(caught.value, DiskFull)
    assert read(agent, blob) == LARGE


def test_an_upload_that_failed_is_tried_the_other_way(fake: FakeServer, agent: Agent, result: Path) -> None:
    fake.world.uploads_need_a_length = True
    run_id, _ = stored(fake, b"e30=")
    with pytest.raises(ServerUnreachable, match="Error uploading result!"):
        agent.server.store_result(run_id, final(result=result))
    blob = agent.server.store_result(run_id, final(result=result))
    # and the way that works is kept
    assert agent.server.store_result(run_id, final(result=result)) != blob
    lengths = [call.headers.get("Content-Length") for call in fake.calls if call.method == "POST"]
    assert lengths[-3:] == [None, "4000000", "4000000"]


def test_a_server_without_its_store_is_asked_again_later(
    fake: FakeServer, agent: Agent, result: Path
) -> None:
    run_id, blob = stored(fake, b"e30=")
    kept, fake.world.blobs = fake.world.blobs, None
    with pytest.raises(ServerUnreachable, match="no blob store"):
        read(agent, blob)
    with pytest.raises(ServerUnreachable, match="no blob store"):
        agent.server.store_result(run_id, final(result=result))
    fake.world.blobs = kept
    assert read(agent, blob) == b"{}"


def test_a_result_that_the_store_will_never_take_ends_the_run(
    fake: FakeServer, agent: Agent, result: Path
) -> None:
    run_id, _ = stored(fake, b"e30=")
    fake.fail("POST", "/blobstream", Fault(status=413, body="too large"))
    with pytest.raises(RunClosed, match="too large"):
        agent.server.store_result(run_id, final(result=result))
    run = fake.run(run_id)
    assert (run.status, run.result) == (Status.FAILED, "")
    assert "too large" in (run.log or "")


def test_what_is_no_name_of_a_blob_never_becomes_part_of_an_address(fake: FakeServer, agent: Agent) -> None:
    for text in ("../organization/1", "e30=", "", "6F1C9A52-6A0E-4D39-A4F7-6C2F2B1F0D11", "x" * 100_000):
        fake.create_task(input=text)
    runs = list(agent.server.open_runs())
    assert all("blob store" in run.fault for run in runs)
    assert {run.input_blob for run in runs} == {None}
    assert fake.count("GET", "/blobstream") == 0


def test_a_blob_that_is_away_is_no_trouble_of_the_server(fake: FakeServer, agent: Agent) -> None:
    _, blob = stored(fake, b"e30=")
    fake.world.blobs = {}
    with pytest.raises(BlobUnreadable):
        read(agent, blob)
