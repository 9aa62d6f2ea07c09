"""The server's blob store, as the agent uses it: held against the fake server and the real one with a real store."""

import base64
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import ParamSpec, Protocol, TypeVar

import pytest
import requests

from node_agent.domain.run import BlobId, RunId
from node_agent.domain.task import TaskId
from node_agent.errors import BlobUnreadable, InputUnreadable, ServerUnreachable
from tests.contract.server_stage import (
    Agent,
    FakeStage,
    RealStage,
    agent_at,
    final,
    only,
    started,
    write,
)
from tests.doubles.fake_server import Created, FakeServer
from tests.lab.blob_store import BlobStore, BlobStoreError
from tests.lab.vantage6 import RealServer
from tests.lab.venvs import VenvError

Args = ParamSpec("Args")
Result = TypeVar("Result")


def insist(action: Callable[Args, Result], *args: Args.args, **kwargs: Args.kwargs) -> Result:
    """Repeat a call as the control loop does: uWSGI ends a connection without an answer now and then."""
    for _ in range(4):
        try:
            return action(*args, **kwargs)
        except ServerUnreachable:
            continue
    return action(*args, **kwargs)


class BlobStage(Protocol):
    """A server with a blob store, and what users do there."""

    url: str
    api_key: str

    def ask(self, content: bytes) -> Created:
        """Create a task whose input was put into the store as these bytes."""

    def result(self, run_id: int) -> str | None:
        """Give what stands as a run's result in the server's books."""

    def blob(self, name: str) -> bytes:
        """Give what lies in the store."""

    def lose(self, name: str) -> None:
        """Take something out of the store that the server still expects there."""


class FakeBlobStage(FakeStage):
    def ask(self, content: bytes) -> Created:
        return self.create_task(self.server.world.store_blob(content))

    def result(self, run_id: int) -> str | None:
        return self.server.run(run_id).result

    def blob(self, name: str) -> bytes:
        return self.server.world.blob(name)

    def lose(self, name: str) -> None:
        assert self.server.world.blobs is not None
        del self.server.world.blobs[name]


class RealBlobStage(RealStage):
    def __init__(self, server: RealServer, store: BlobStore) -> None:
        super().__init__(server)
        self._store = store

    def ask(self, content: bytes) -> Created:
        stored = requests.post(f"{self.url}/blobstream", headers=self._headers, data=content, timeout=30)
        return self.create_task(stored.json()["uuid"])

    def result(self, run_id: int) -> str | None:
        found: str | None = self.run(run_id)["result"]
        return found

    def blob(self, name: str) -> bytes:
        answer = requests.get(f"{self.url}/blobstream/{name}", headers=self._headers, timeout=30)
        assert answer.ok, answer.text
        return answer.content

    def lose(self, name: str) -> None:
        self._store.delete(name)


@pytest.fixture(scope="module", params=["fake", pytest.param("real", marks=pytest.mark.interop)])
def stage(request: pytest.FixtureRequest) -> Iterator[BlobStage]:
    if request.param == "fake":
        with FakeServer(blobs={}) as server:
            yield FakeBlobStage(server)
        return
    with ExitStack() as stack:
        try:
            store = stack.enter_context(BlobStore())
        except (BlobStoreError, VenvError) as error:
            if os.environ.get("CI") == "true":
                raise
            pytest.skip(f"missing: the blob store ({error})")
        yield RealBlobStage(stack.enter_context(started(RealServer(("alpha",), blob_store=store))), store)


@pytest.fixture(scope="module")
def agent(stage: BlobStage) -> Iterator[Agent]:
    found = agent_at(stage.url, stage.api_key)
    yield found
    found.server.close()


def listed(agent: Agent, created: Created) -> tuple[RunId, BlobId]:
    run = only(agent.server.open_runs(TaskId(created.task_id)))
    assert (run.fault, list(run.input)) == ("", [])
    assert run.input_blob is not None
    return run.id, run.input_blob


def read(agent: Agent, blob: BlobId) -> bytes:
    with agent.server.open_input(blob) as content:
        return b"".join(content)


@pytest.mark.parametrize("content", [b"", b'{"method": "m"}', bytes(range(256)) * 2000])
def test_an_input_is_read_as_it_was_before_it_was_stored(
    stage: BlobStage, agent: Agent, content: bytes
) -> None:
    _, blob = listed(agent, stage.ask(base64.b64encode(content)))
    assert insist(read, agent, blob) == content


@pytest.mark.parametrize("content", [b"42", bytes(range(256)) * 10_000])
def test_a_result_is_stored_and_then_reported_by_its_name(
    stage: BlobStage, agent: Agent, content: bytes, tmp_path: Path
) -> None:
    run_id, _ = listed(agent, stage.ask(base64.b64encode(b"{}")))
    report = final(result=write(tmp_path / "result", content))
    blob = insist(agent.server.store_result, run_id, report)
    insist(agent.server.report, run_id, replace(report, stored_as=blob))
    assert stage.result(run_id) == blob
    assert base64.b64decode(stage.blob(blob), validate=True) == content


def test_a_result_that_was_sealed_before_is_stored_as_it_lies(
    stage: BlobStage, agent: Agent, tmp_path: Path
) -> None:
    run_id, _ = listed(agent, stage.ask(base64.b64encode(b"{}")))
    sealed = b"block$start$" + bytes(range(256)) * 1000
    report = replace(final(result=write(tmp_path / "result.sealed", sealed)), is_sealed=True)
    blob = insist(agent.server.store_result, run_id, report)
    insist(agent.server.report, run_id, replace(report, stored_as=blob))
    assert stage.blob(blob) == sealed


def test_an_empty_result_stands_in_the_books_itself(stage: BlobStage, agent: Agent) -> None:
    run_id, _ = listed(agent, stage.ask(base64.b64encode(b"{}")))
    insist(agent.server.report, run_id, final())
    assert stage.result(run_id) == ""


def test_a_refused_token_is_renewed_before_anything_is_moved(
    stage: BlobStage, agent: Agent, tmp_path: Path
) -> None:
    run_id, blob = listed(agent, stage.ask(base64.b64encode(b"{}")))
    agent.tokens.renew(agent.tokens.access_token())
    assert insist(read, agent, blob) == b"{}"
    insist(agent.server.store_result, run_id, final(result=write(tmp_path / "result", b"42")))


def test_what_vanished_from_the_store_may_come_back(stage: BlobStage, agent: Agent) -> None:
    _, blob = listed(agent, stage.ask(base64.b64encode(b"{}")))
    stage.lose(blob)
    with pytest.raises(BlobUnreadable, match="Error streaming result!"):
        read(agent, blob)


def test_what_belongs_to_no_run_is_not_given(agent: Agent) -> None:
    with pytest.raises(InputUnreadable, match="No run found"):
        read(agent, BlobId("00000000-0000-4000-8000-000000000000"))


def test_what_is_no_base64_may_have_been_cut_off(stage: BlobStage, agent: Agent) -> None:
    _, blob = listed(agent, stage.ask(base64.b64encode(b'{"method": "m"}')[:-3]))
    with pytest.raises(BlobUnreadable, match="base64"):
        read(agent, blob)


def test_json_that_ends_in_the_middle_was_cut_off(stage: BlobStage, agent: Agent) -> None:
    _, blob = listed(agent, stage.ask(base64.b64encode(b'{"method": "some met')))
    with pytest.raises(BlobUnreadable, match="ends in the middle"):
        read(agent, blob)
