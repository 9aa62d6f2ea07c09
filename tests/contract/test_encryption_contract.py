"""What an encrypted collaboration asks of a server: held against the fake one, the embedded one and the real one."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from node_agent.domain.run import RunId
from node_agent.domain.task import OrganizationId, TaskId
from node_agent.errors import ConfigError, InputUnreadable
from node_agent.payload.envelope import seal, unseal
from node_agent.payload.keys import PrivateKey, PublicKey
from node_agent.payload.sealing import EnvelopeSeal
from node_agent.server.keys import KeyState, ensure_published
from tests.contract.server_stage import AT, Agent, FakeStage, RealStage, Stage, agent_at, final, started
from tests.doubles.fake_server import FakeServer
from tests.doubles.foreign import for_somebody_else
from tests.lab.sandbox import SandboxLab
from tests.lab.vantage6 import RealServer

OWN, OTHER = (PrivateKey(rsa.generate_private_key(65537, 2048)) for _ in range(2))


@pytest.fixture(scope="module", params=["fake", "sandbox", pytest.param("real", marks=pytest.mark.interop)])
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    if request.param == "fake":
        with FakeServer(encrypted=True) as server:
            yield FakeStage(server)
        return
    if request.param == "sandbox":
        with SandboxLab(("alpha",), encrypted=True) as sandbox:
            yield RealStage(sandbox)
        return
    with started(RealServer(("alpha",), encrypted=True)) as real:
        yield RealStage(real)


@pytest.fixture(scope="module")
def connected(stage: Stage) -> Iterator[Agent]:
    found = agent_at(stage.url, stage.api_key, key=OWN)
    yield found
    found.server.close()


@pytest.fixture(scope="module")
def organization(connected: Agent) -> OrganizationId:
    identity = connected.server.identify()
    assert identity.encrypted
    return identity.organization_id


@pytest.fixture
def agent(connected: Agent, organization: OrganizationId) -> Agent:
    connected.server.keys.publish(organization, OWN.public)
    return connected


def sealed(message: bytes, key: PublicKey = OWN.public) -> str:
    return b"".join(seal([message], key)).decode()


def test_a_key_is_uploaded_once_and_never_replaced_in_silence(
    agent: Agent, organization: OrganizationId
) -> None:
    keys = agent.server.keys
    ensure_published(keys, organization, OWN.public)
    assert keys.published(organization).state(OWN.public) is KeyState.SAME
    with pytest.raises(ConfigError) as caught:
        ensure_published(keys, organization, OTHER.public)
    assert OWN.public.fingerprint in caught.value.faults[0]
    keys.publish(organization, OTHER.public)
    assert keys.of(organization) == OTHER.public


def test_a_run_is_read_with_this_nodes_key_and_answered_with_the_askers(
    stage: Stage, agent: Agent, organization: OrganizationId, tmp_path: Path
) -> None:
    message = '{"method": "Größe"}'.encode()
    created = stage.create_task(sealed(message))
    with closing(agent.server.open_runs(TaskId(created.task_id))) as listed:
        run = next(listed)
        assert b"".join(run.input) == message
    run_id = RunId(created.run_ids[0])
    agent.server.claim(run_id, at=AT)
    (tmp_path / "result").write_bytes(b"\x00\xff the answer")
    agent.server.report(run_id, replace(final(result=tmp_path / "result"), init_org_id=organization))
    found = stage.run(run_id)
    assert found["status"] == "completed"
    assert b"".join(unseal([found["result"].encode()], OWN)) == b"\x00\xff the answer"


def test_a_result_that_was_sealed_before_arrives_as_it_was(
    stage: Stage, agent: Agent, organization: OrganizationId, tmp_path: Path
) -> None:
    run_id = RunId(stage.create_task(sealed(b"{}")).run_ids[0])
    agent.server.claim(run_id, at=AT)
    seal = EnvelopeSeal(agent.server.keys.of)
    (tmp_path / "result").write_bytes(b"\x00\xff the answer" * 10_000)
    (tmp_path / "sealed").write_bytes(
        b"".join(seal.sealed(tmp_path / "result", seal.reader_key(organization)))
    )
    agent.server.report(run_id, replace(final(result=tmp_path / "sealed"), is_sealed=True))
    found = stage.run(run_id)
    assert found["result"].encode() == (tmp_path / "sealed").read_bytes()
    assert b"".join(unseal([found["result"].encode()], OWN)) == (tmp_path / "result").read_bytes()


def test_a_run_for_another_key_fails_when_its_input_is_read_and_ends_without_a_key(
    stage: Stage, agent: Agent, tmp_path: Path
) -> None:
    foreign = for_somebody_else(lambda: sealed(b"{}", OTHER.public).encode(), unseal, OWN)
    created = stage.create_task(foreign.decode())
    with closing(agent.server.open_runs(TaskId(created.task_id))) as listed:
        run = next(listed)
        assert run.fault == ""
        with pytest.raises(InputUnreadable, match=OWN.public.fingerprint):
            list(run.input)
    agent.server.report(RunId(created.run_ids[0]), final())
    assert stage.run(created.run_ids[0])["result"] == ""


@pytest.mark.parametrize("size", [2_000_000, 12_000_000])
def test_a_large_input_is_read_from_disk(stage: Stage, agent: Agent, size: int) -> None:
    message = b'"' + b"x" * size + b'"'
    created = stage.create_task(sealed(message))
    with closing(agent.server.open_runs(TaskId(created.task_id))) as listed:
        assert b"".join(next(listed).input) == message
    assert agent.server.is_open(RunId(created.run_ids[0]))
    stage.delete(created.task_id)
