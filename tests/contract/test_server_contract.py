"""What the agent expects of a coordinating server: held against the fake one, the embedded one and the real one."""

import base64
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import requests

from node_agent.domain.messages import KillRequested, ServerOffline, TaskHinted
from node_agent.domain.ports import ProxiedRequest, StatusChange
from node_agent.domain.run import Run, RunId, Status
from node_agent.domain.runlogs import LogPiece
from node_agent.domain.secret import Secret
from node_agent.domain.task import DatabaseRequest, OrganizationId, TaskId
from node_agent.errors import AccessDenied, RunClosed, RunFailed
from node_agent.payload.chunks import Literal
from tests.contract.server_stage import (
    AT,
    IMAGE,
    Agent,
    Connected,
    FakeStage,
    RealStage,
    Stage,
    agent_at,
    b64,
    create,
    final,
    only,
    poll,
    started,
    write,
)
from tests.doubles.fake_server import FakeServer
from tests.lab.sandbox import SandboxLab
from tests.lab.vantage6 import COLLABORATION, RealServer


@pytest.fixture(scope="module", params=["fake", "sandbox", pytest.param("real", marks=pytest.mark.interop)])
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    if request.param == "fake":
        with FakeServer() as server:
            yield FakeStage(server)
        return
    if request.param == "sandbox":
        with SandboxLab(("alpha",)) as sandbox:
            yield RealStage(sandbox)
        return
    with started(RealServer(("alpha",))) as real:
        yield RealStage(real)


@pytest.fixture(scope="module")
def agent(stage: Stage) -> Iterator[Agent]:
    found = agent_at(stage.url, stage.api_key)
    yield found
    found.server.close()


# --- login ----------------------------------------------------------------------------------------------------


def test_the_node_learns_who_it_is(agent: Agent) -> None:
    identity = agent.server.identify()
    assert identity.node_id > 0
    assert identity.organization_name == "alpha"
    assert identity.collaboration_name in {"fake", COLLABORATION}
    assert identity.encrypted is False


@pytest.mark.parametrize("key", ["2d1c1ba4-6a0e-4d39-a4f7-6c2f2b1f0d11", "no uuid"])
def test_a_wrong_api_key_is_access_denied_and_names_the_setting(stage: Stage, key: str) -> None:
    stranger = agent_at(stage.url, key)
    with pytest.raises(AccessDenied) as caught:
        stranger.server.identify()
    assert "server.api_key" in str(caught.value)
    assert key not in str(caught.value)
    stranger.server.close()


def test_a_refused_token_is_renewed_and_the_new_one_works(agent: Agent) -> None:
    before = agent.tokens.access_token()
    after = agent.tokens.renew(before)
    assert after != before
    assert agent.tokens.renew(before) == after
    agent.server.identify()


# --- listing --------------------------------------------------------------------------------------------------


def test_a_task_is_listed_as_it_was_created(stage: Stage, agent: Agent) -> None:
    wanted = {
        "label": "default",
        "query": "select 1",
        "sheet_name": "s",
        "preprocessing": [{"function": "f", "parameters": {"a": 1}}],
        "arguments": {"x": [1, 2]},
    }
    created = stage.create_task(b64(b'{"method": "m"}'), [wanted, {"label": "other"}])
    run = only(agent.server.open_runs(TaskId(created.task_id)))
    assert run.id == created.run_ids[0]
    assert run.fault == ""
    assert b"".join(run.input) == b'{"method": "m"}'
    assert run.status is Status.PENDING
    assert run.claimed_at is None
    assert run.task.id == created.task_id
    assert run.task.job_id > 0
    assert run.task.image == IMAGE
    assert run.task.collaboration_id == agent.server.identify().collaboration_id
    assert run.task.init_org_id == agent.server.identify().organization_id
    assert run.task.parent_id is None
    assert run.task.databases == (
        DatabaseRequest(
            label="default",
            query="select 1",
            sheet_name="s",
            preprocessing=({"function": "f", "parameters": {"a": 1}},),
            arguments={"x": [1, 2]},
        ),
        DatabaseRequest(label="other"),
    )


def test_the_listing_is_complete_over_several_pages_and_oldest_first(stage: Stage, agent: Agent) -> None:
    created = [create(stage)[1] for _ in range(53)]
    listed = [run.id for run in agent.server.open_runs()]
    assert listed == sorted(listed)
    assert set(created) <= set(listed)


def test_a_finished_run_is_not_listed_and_not_open(stage: Stage, agent: Agent) -> None:
    task_id, run_id = create(stage)
    assert agent.server.is_open(run_id)
    agent.server.report(run_id, final())
    assert not agent.server.is_open(run_id)
    assert list(agent.server.open_runs(task_id)) == []


def test_it_is_seen_when_a_run_was_taken_to_the_microsecond_and_that_it_is_over(
    stage: Stage, agent: Agent
) -> None:
    _, run_id = create(stage)
    assert agent.server.claimed_at(run_id) is None
    agent.server.claim(run_id, at=AT + 0.123456)
    assert agent.server.claimed_at(run_id) == pytest.approx(AT + 0.123456, abs=1e-6)
    agent.server.report(run_id, final())
    with pytest.raises(RunClosed):
        agent.server.claimed_at(run_id)


def test_a_deleted_run_is_not_open(stage: Stage, agent: Agent) -> None:
    task_id, run_id = create(stage)
    stage.delete(task_id)
    assert not agent.server.is_open(run_id)


def test_a_task_that_is_gone_has_no_open_runs(stage: Stage, agent: Agent) -> None:
    task_id, _ = create(stage)
    stage.delete(task_id)
    assert list(agent.server.open_runs(task_id)) == []


# --- updates --------------------------------------------------------------------------------------------------


def test_a_claimed_run_is_initializing_and_has_its_start(stage: Stage, agent: Agent) -> None:
    task_id, run_id = create(stage)
    agent.server.claim(run_id, at=AT)
    assert stage.run(run_id)["status"] == "initializing"
    run = only(agent.server.open_runs(task_id))
    assert (run.claimed_at, run.status) == (AT, Status.INITIALIZING)


def test_a_claim_may_be_repeated(stage: Stage, agent: Agent) -> None:
    _, run_id = create(stage)
    agent.server.claim(run_id, at=AT)
    agent.server.claim(run_id, at=AT)
    assert stage.run(run_id)["status"] == "initializing"


def test_an_announced_status_is_kept_and_leaves_the_start_alone(stage: Stage, agent: Agent) -> None:
    _, run_id = create(stage)
    agent.server.claim(run_id, at=AT)
    agent.server.announce(run_id, Status.ACTIVE)
    assert stage.run(run_id)["status"] == "active"
    assert stage.run(run_id)["started_at"] is not None


def test_a_report_delivers_everything_in_one_message(stage: Stage, agent: Agent, tmp_path: Path) -> None:
    _, run_id = create(stage)
    result = write(tmp_path / "result", bytes(range(256)) * 401)
    log = write(tmp_path / "log", 'line "1"\n\tpäng 🎉 \\'.encode() + b"\xff\x00\n")
    agent.server.report(run_id, final(result=result, log=log))
    run = stage.run(run_id)
    assert run["status"] == "completed"
    assert base64.b64decode(run["result"]) == result.read_bytes()
    assert run["log"] == 'line "1"\n\tpäng 🎉 \\��\n'
    assert run["started_at"] is not None
    assert run["finished_at"] is not None


def test_a_report_without_files_leaves_empty_texts(stage: Stage, agent: Agent) -> None:
    _, run_id = create(stage)
    agent.server.report(run_id, final(Status.NOT_ALLOWED))
    run = stage.run(run_id)
    assert (run["status"], run["result"], run["log"]) == ("not allowed", "", "")


@pytest.mark.parametrize("status", [s for s in Status if s not in {Status.PENDING, Status.INITIALIZING}])
def test_every_status_is_accepted_as_it_is_written(stage: Stage, agent: Agent, status: Status) -> None:
    _, run_id = create(stage)
    agent.server.report(run_id, final(status))
    assert stage.run(run_id)["status"] == status


@pytest.mark.parametrize("at", [AT, AT + 0.5, AT + 0.000001])
def test_times_are_accepted_with_and_without_a_fraction(stage: Stage, agent: Agent, at: float) -> None:
    task_id, run_id = create(stage)
    agent.server.claim(run_id, at=at)
    assert only(agent.server.open_runs(task_id)).claimed_at == pytest.approx(at, abs=1e-6)


def test_an_update_without_result_or_log_erases_them(stage: Stage, agent: Agent) -> None:
    _, run_id = create(stage)
    patch(agent, run_id, {"result": "AA==", "log": "text"})
    assert stage.run(run_id)["log"] == "text"
    agent.server.announce(run_id, Status.ACTIVE)
    run = stage.run(run_id)
    assert (run["result"], run["log"]) == (None, None)


def test_a_finished_run_refuses_every_update(stage: Stage, agent: Agent) -> None:
    _, run_id = create(stage)
    agent.server.report(run_id, final())
    with pytest.raises(RunClosed):
        agent.server.claim(run_id, at=AT)
    with pytest.raises(RunClosed):
        agent.server.announce(run_id, Status.ACTIVE)
    with pytest.raises(RunClosed):
        agent.server.report(run_id, final(Status.CRASHED))
    assert stage.run(run_id)["status"] == "completed"


def test_the_same_report_may_be_repeated(stage: Stage, agent: Agent) -> None:
    _, run_id = create(stage)
    agent.server.report(run_id, final())
    agent.server.report(run_id, final())
    assert stage.run(run_id)["status"] == "completed"


def test_a_killed_run_refuses_the_report_and_stays_killed(stage: Stage, agent: Agent) -> None:
    task_id, run_id = create(stage)
    stage.kill(task_id)
    with pytest.raises(RunClosed):
        agent.server.report(run_id, final())
    assert stage.run(run_id)["status"] == "killed by user"


def test_a_deleted_run_refuses_every_update(stage: Stage, agent: Agent) -> None:
    task_id, run_id = create(stage)
    stage.delete(task_id)
    with pytest.raises(RunClosed):
        agent.server.claim(run_id, at=AT)
    with pytest.raises(RunClosed):
        agent.server.report(run_id, final())


def patch(agent: Agent, run_id: RunId, body: Mapping[str, str]) -> None:
    headers = {"Authorization": f"Bearer {agent.tokens.access_token().reveal()}"}
    requests.patch(
        f"{agent.address.rest}/run/{run_id}", json=body, headers=headers, timeout=30
    ).raise_for_status()


# --- what a policy asks for -----------------------------------------------------------------------------------


def test_a_task_is_found_with_who_asked_it(stage: Stage, agent: Agent) -> None:
    task_id, _ = create(stage)
    listed = only(agent.server.open_runs(task_id)).task
    found = agent.server.find_task(task_id)
    assert found == listed
    assert found.init_org_id == agent.server.identify().organization_id
    assert found.init_user_name is None  # no server tells nodes the names of users


def test_a_task_that_does_not_exist_is_not_found(agent: Agent) -> None:
    assert agent.server.find_task(TaskId(4_000_000)) is None


def test_the_name_of_an_organization_is_found_by_its_number(agent: Agent) -> None:
    assert agent.server.organization_name(agent.server.identify().organization_id) == "alpha"
    assert agent.server.organization_name(OrganizationId(4_000_000)) is None


# --- containers -----------------------------------------------------------------------------------------------


def test_a_container_token_lets_the_algorithm_ask(stage: Stage, agent: Agent) -> None:
    task_id, run_id = create(stage)
    agent.server.claim(run_id, at=AT)
    token = agent.server.container_token(task_id, IMAGE)
    assert ask(agent, token, "GET", f"task/{task_id}/status") == (200, {"status": "initializing"})


def test_an_algorithm_creates_a_subtask(stage: Stage, agent: Agent) -> None:
    task_id, run_id = create(stage)
    agent.server.claim(run_id, at=AT)
    token = agent.server.container_token(task_id, IMAGE)
    me = agent.server.identify()
    body = (
        f'{{"name": "s", "image": "{IMAGE}", "collaboration_id": {me.collaboration_id},'
        f' "organizations": [{{"id": {me.organization_id}, "input": "{b64(b"{}")}"}}], "databases": []}}'
    )
    status, task = ask(agent, token, "POST", "task", body=body.encode())
    assert status == 201
    subtask = only(agent.server.open_runs(TaskId(task["id"])))
    assert subtask.task.parent_id == task_id
    assert subtask.task.job_id == only(agent.server.open_runs(task_id)).task.job_id


def test_what_an_algorithm_sends_may_be_larger_than_what_is_read_at_once(stage: Stage, agent: Agent) -> None:
    task_id, _ = create(stage)
    token = agent.server.container_token(task_id, IMAGE)
    me = agent.server.identify()
    text = b64(b"x" * 3_000_000)
    body = {
        "name": "s",
        "image": IMAGE,
        "collaboration_id": me.collaboration_id,
        "organizations": [{"id": me.organization_id, "input": text}],
        "databases": [],
    }
    status, task = ask(agent, token, "POST", "task", body=json.dumps(body).encode())
    assert status == 201
    status, runs = ask(agent, token, "GET", "run", query=f"task_id={task['id']}")
    assert (status, runs["data"][0]["input"]) == (200, text)


def test_an_algorithm_sees_the_servers_own_refusal(stage: Stage, agent: Agent) -> None:
    task_id, _ = create(stage)
    token = agent.server.container_token(task_id, IMAGE)
    status, body = ask(agent, token, "GET", "task/999999")
    assert status == 404
    assert "999999" in body["msg"]


def test_an_algorithm_pages_through_results(stage: Stage, agent: Agent) -> None:
    task_id, _ = create(stage)
    token = agent.server.container_token(task_id, IMAGE)
    status, body = ask(agent, token, "GET", "result", query=f"task_id={task_id}&page=1")
    assert status == 200
    assert [element["result"] for element in body["data"]] == [None]


def test_no_token_for_a_finished_task(stage: Stage, agent: Agent) -> None:
    task_id, _ = create(stage)
    stage.kill(task_id)
    with pytest.raises(RunFailed, match="the task is over"):
        agent.server.container_token(task_id, IMAGE)


def test_no_token_for_a_deleted_task(stage: Stage, agent: Agent) -> None:
    task_id, _ = create(stage)
    stage.delete(task_id)
    with pytest.raises(RunClosed):
        agent.server.container_token(task_id, IMAGE)


def test_no_token_for_another_image(stage: Stage, agent: Agent) -> None:
    task_id, _ = create(stage)
    with pytest.raises(RunFailed, match="could not obtain algorithm container token"):
        agent.server.container_token(task_id, "another/image:2")


def ask(
    agent: Agent, token: Secret, method: str, path: str, *, query: str = "", body: bytes = b""
) -> tuple[int, Any]:
    request = ProxiedRequest(
        method=method, path=path, query=query, token=token, body=Literal(body) if body else None
    )
    with agent.server.forward(request) as response:
        answer = json.loads(b"".join(response.body))
        assert response.content_type.startswith("application/json")
        return response.status, answer


# --- socket ---------------------------------------------------------------------------------------------------


def test_the_node_is_present_while_connected(stage: Stage, agent: Agent) -> None:
    with Connected(agent) as connected:
        poll(lambda: stage.node_status() == "online")
        connected.listener.ping()
    poll(lambda: stage.node_status() == "offline")
    assert isinstance(connected.mailbox.messages[-1], ServerOffline)


def test_a_new_task_is_hinted(stage: Stage, agent: Agent) -> None:
    with Connected(agent) as connected:
        poll(lambda: stage.node_status() == "online")  # rooms are joined after `sync`
        task_id, _ = create(stage)
        connected.mailbox.wait_for(TaskHinted(task_id))


def test_a_kill_names_the_runs_of_this_node(stage: Stage, agent: Agent) -> None:
    task_id, run_id = create(stage)
    with Connected(agent) as connected:
        poll(lambda: stage.node_status() == "online")
        stage.kill(task_id)
        connected.mailbox.wait_for(KillRequested(frozenset({run_id})))


def test_what_the_node_tells_is_no_trouble_for_the_connection(stage: Stage, agent: Agent) -> None:
    task_id, _ = create(stage)
    open_run = only(agent.server.open_runs(task_id))
    run = Run(id=open_run.id, task=open_run.task, received_at=AT)
    with Connected(agent) as connected:
        connected.listener.tell_node(
            {"database_labels": ["default"], "database_types": {"db_type_default": "csv"}}
        )
        connected.listener.tell_status(StatusChange(run=run, status=Status.ACTIVE))
        connected.listener.tell_log(run, LogPiece(run.id, "half way\n"))
        connected.listener.ping()
        next_task, _ = create(stage)
        connected.mailbox.wait_for(TaskHinted(next_task))
        assert connected.listener.online
