"""Two agents for one node: on one machine the second is refused, on two they notice each other and share the runs."""

import contextlib
import json
from collections.abc import Iterator

import pytest

from node_agent.sandbox.researcher import Order, Researcher
from tests.interop.stage import eventually
from tests.lab.agents import AgentProcess
from tests.lab.counting import ENDED_RUNS, counted, counting_image, left_in_engine, nothing_is_left
from tests.lab.engine import EngineError, engine
from tests.lab.sandbox import SandboxLab
from tests.parts import or_missing

pytestmark = [pytest.mark.engine, pytest.mark.timeout(200)]

RUNS = 8
LIMITS = {"concurrent_runs": 2, "cpus": 1, "memory": "64MiB", "tmp_size": "4MiB", "output_size": "256KiB"}
WITHIN = 90


@pytest.fixture(scope="module")
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        with or_missing(EngineError):
            stack.enter_context(engine())
        yield stack


@pytest.fixture(scope="module")
def lab(stack: contextlib.ExitStack) -> SandboxLab:
    return counted(stack.enter_context(SandboxLab(("alpha",))))


@pytest.fixture(scope="module")
def first(stack: contextlib.ExitStack, lab: SandboxLab) -> AgentProcess:
    return stack.enter_context(_agent(lab))


def _agent(lab: SandboxLab) -> AgentProcess:
    return AgentProcess(server_url=lab.url, api_key=lab.api_keys["alpha"], settings={"limits": LIMITS})


def test_a_second_agent_of_the_same_name_is_refused_and_says_which_process_is_in_the_way(
    first: AgentProcess,
) -> None:
    refused = first.command("run")
    assert refused.returncode == 78
    assert f"Another node-agent named '{first.name}' is running (process {first.pid})" in refused.stderr


def test_two_agents_with_one_key_notice_each_other_and_no_run_is_started_or_reported_twice(
    stack: contextlib.ExitStack, lab: SandboxLab, first: AgentProcess
) -> None:
    with contextlib.closing(first.engine()) as client:
        image = counting_image(client)
    second = stack.enter_context(_agent(lab))
    said = second.wait_for("another_agent_noticed", within=WITHIN)
    assert said["sign"] == "online before this agent"
    first.wait_for("another_agent_noticed", within=WITHIN)
    researcher = Researcher.at(lab.url, username="alpha", password=lab.server.passwords["alpha"])
    for _ in range(RUNS):
        researcher.send(
            Order(
                image=image,
                method="count",
                organizations=(lab.organization_ids["alpha"],),
                collaboration_id=lab.collaboration_id,
                kwargs={"seconds": 0.2},
            )
        )

    def rows() -> list[dict[str, object]]:
        return [dict(row) for row in lab.server.database.rows(ENDED_RUNS, lab.node_ids["alpha"])]

    eventually(lambda: all(row["accepted"] for row in rows()), within=WITHIN, what="every report")
    assert [(row["status"], row["result"], row["accepted"]) for row in rows()] == [
        ("completed", "eA==", 1)
    ] * RUNS
    both = (first, second)
    eventually(lambda: all(nothing_is_left(agent) for agent in both), within=WITHIN, what="nothing left")
    starts = [file.read_text() for agent in both for file in agent.state_dir.glob("jobs/*/starts")]
    assert starts == ["x"] * RUNS
    for agent in both:
        assert not any(left_in_engine(agent).values())
        status = json.loads(agent.command("status", "--json").stdout)
        assert "a key of its own" in status["company_problem"]
        assert "Another agent" in agent.command("status").stdout
