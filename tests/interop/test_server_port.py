"""The server side of the agent against the real server 4.15.2: outages, sizes, and facts the code relies on."""

import base64
import secrets
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import requests
import yaml

from node_agent.domain.messages import ServerOffline, ServerOnline, TaskHinted
from node_agent.domain.run import RunId, Status
from node_agent.errors import RunClosed, ServerUnreachable
from tests.contract.server_stage import (
    AT,
    Agent,
    Connected,
    RealStage,
    agent_at,
    b64,
    create,
    final,
    poll,
    started,
)
from tests.lab.vantage6 import RealServer

pytestmark = pytest.mark.interop


@pytest.fixture(scope="module")
def real() -> Iterator[RealServer]:
    with started(RealServer(("alpha", "beta"))) as server:
        yield server


@pytest.fixture
def agent(real: RealServer) -> Iterator[Agent]:
    found = agent_at(real.url, real.api_keys["alpha"])
    yield found
    found.server.close()


def test_an_outage_is_survived_by_calls_and_socket(real: RealServer, agent: Agent) -> None:
    stage = RealStage(real)
    _, run_id = create(stage)
    with Connected(agent) as connected:
        real.stop()
        connected.mailbox.wait_until(lambda: isinstance(connected.mailbox.messages[-1], ServerOffline))
        with pytest.raises(ServerUnreachable):
            agent.server.report(run_id, final())
        real.start()
        connected.mailbox.wait_until(lambda: connected.mailbox.messages.count(ServerOnline()) == 2)
        agent.server.report(run_id, final())
        poll(lambda: stage.node_status() == "online")
        task_id, _ = create(stage)
        connected.mailbox.wait_for(TaskHinted(task_id))
    assert stage.run(run_id)["status"] == "completed"


def test_tokens_of_a_server_that_forgot_its_secret_are_replaced() -> None:
    with started(RealServer(("alpha",))) as server:
        agent = agent_at(server.url, server.api_keys["alpha"])
        with Connected(agent) as connected:
            first = agent.tokens.access_token()
            server.stop()
            change_secret(server)
            server.start()
            connected.mailbox.wait_until(lambda: connected.mailbox.messages.count(ServerOnline()) == 2)
            assert agent.tokens.access_token() != first
            assert list(agent.server.open_runs()) == []
        agent.server.close()


def change_secret(server: RealServer) -> None:
    file = server.log.with_name("server.yaml")
    config = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump(config | {"jwt_secret_key": secrets.token_hex(32)}))


def test_a_large_input_and_a_large_result_get_through(real: RealServer, agent: Agent, tmp_path: Path) -> None:
    stage = RealStage(real)
    content = b'"' + b"x" * 10_000_000 + b'"'
    task_id, run_id = create(stage, content)
    with closing(agent.server.open_runs(task_id)) as listed:
        assert b"".join(next(listed).input) == content
    agent.server.claim(run_id, at=AT)
    result = tmp_path / "result"
    result.write_bytes(bytes(range(256)) * 80_000 + b"!")
    agent.server.report(run_id, final(result=result))
    assert base64.b64decode(stage.run(run_id)["result"]) == result.read_bytes()


def test_what_the_node_shares_is_kept_while_it_is_connected(real: RealServer, agent: Agent) -> None:
    url = f"{real.url}/node/{real.node_ids['alpha']}"

    def kept() -> set[tuple[str, str]]:
        headers = {"Authorization": f"Bearer {agent.tokens.access_token().reveal()}"}
        config = requests.get(url, headers=headers, timeout=30).json()["config"]
        return {(entry["key"], entry["value"]) for entry in config}

    with Connected(agent) as connected:
        connected.listener.tell_node(
            {"database_labels": ["a", "b"], "database_types": {"db_type_a": "csv"}, "database_columns": {}}
        )
        poll(lambda: kept() == {("database_labels", "a"), ("database_labels", "b"), ("db_type_a", "csv")})
    poll(lambda: kept() == set())


def test_a_failure_elsewhere_closes_a_run_that_was_not_claimed(real: RealServer, agent: Agent) -> None:
    stage = RealStage(real)
    mine, theirs = stage.create_for(["alpha", "beta"], b64(b"{}"))
    other = agent_at(real.url, real.api_keys["beta"])
    other.server.report(RunId(theirs), final(Status.CRASHED))
    assert not agent.server.is_open(RunId(mine))
    with pytest.raises(RunClosed):
        agent.server.claim(RunId(mine), at=AT)
    other.server.close()


def test_a_failure_elsewhere_leaves_a_claimed_run_open(real: RealServer, agent: Agent) -> None:
    stage = RealStage(real)
    mine, theirs = stage.create_for(["alpha", "beta"], b64(b"{}"))
    agent.server.claim(RunId(mine), at=AT)
    other = agent_at(real.url, real.api_keys["beta"])
    other.server.report(RunId(theirs), final(Status.CRASHED))
    assert agent.server.is_open(RunId(mine))
    other.server.close()


def test_a_run_of_another_node_cannot_be_changed(real: RealServer, agent: Agent) -> None:
    stage = RealStage(real)
    (theirs,) = stage.create_for(["beta"], b64(b"{}"))
    with pytest.raises(RunClosed):
        agent.server.claim(RunId(theirs), at=AT)
    with pytest.raises(RunClosed):
        agent.server.report(RunId(theirs), final())
