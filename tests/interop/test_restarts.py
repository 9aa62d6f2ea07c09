"""The agent, or the server, goes away and comes back: every run is started once and reported once."""

import time
from collections.abc import Callable, Iterator

import pytest

from tests.interop.stage import Stage, eventually
from tests.lab.agents import AgentProcess

pytestmark = pytest.mark.interop

AWAY_SECONDS = 5


@pytest.fixture(scope="module")
def agent(real: Stage) -> Iterator[AgentProcess]:
    made = real.agent()
    try:
        made.launch()
        yield made
        made.stop()
    finally:
        made.clean_up()


def node_status(real: Stage) -> str:
    nodes = real.client.call("node.list")["data"]
    node_id = real.server.node_ids["alpha"]
    return next(str(node["status"]) for node in nodes if node["id"] == node_id)


def working(seconds: float) -> str:
    return f"starts = count_start(); time.sleep({seconds}); write({{'starts': starts}})"


def test_the_node_is_online_soon_after_the_start_and_offline_after_the_stop(
    real: Stage, agent: AgentProcess
) -> None:
    agent.wait_for("server_online", within=40)
    agent.stop()
    eventually(lambda: node_status(real) == "offline", within=10, what="offline")
    started = time.monotonic()
    agent.launch()
    eventually(lambda: node_status(real) == "online", within=20, what="online")
    print(f"\nonline {time.monotonic() - started:.2f} s after the start of the process")
    print({line["event"]: line["timestamp"] for line in agent.log_lines()[-8:]})
    agent.wait_for("server_online", within=20)


def test_tasks_created_while_the_agent_is_down_run_in_the_order_they_came(
    real: Stage, agent: AgentProcess
) -> None:
    agent.stop()
    tasks = [real.submit(working(0)) for _ in range(3)]
    agent.start()
    assert [task.result() for task in tasks] == [{"starts": 1}] * 3
    runs = {run["run_id"]: run for run in agent.runs()}
    received = [runs[task.run["id"]]["received_at"] for task in tasks]
    assert received == sorted(received)


def test_runs_outlive_a_power_cut_of_the_agent_and_start_once(real: Stage, agent: AgentProcess) -> None:
    ends_meanwhile, ends_later = real.submit(working(3)), real.submit(working(12))
    ends_meanwhile.reached("active")
    ends_later.reached("active")
    joined = {agent.holder_of(container) for container in agent.containers()}
    left = {holder.id for holder in agent.holders()}
    agent.kill()
    time.sleep(AWAY_SECONDS)
    agent.start()
    kept = {holder.id for holder in agent.holders()}
    assert kept & left == joined & kept, (
        "of the namespaces kept ready, only those of running runs are taken over"
    )
    assert ends_meanwhile.result() == {"starts": 1}
    assert ends_later.result() == {"starts": 1}


def test_a_run_whose_network_namespace_is_taken_away_still_ends_as_it_ends(
    real: Stage, agent: AgentProcess
) -> None:
    task = real.submit(working(4))
    task.reached("active")
    for holder in agent.holders():
        holder.remove(force=True)
    assert task.result() == {"starts": 1}
    # whoever comes next finds no namespace, or a new one
    assert real.submit(working(0)).result() == {"starts": 1}


def test_a_stopped_agent_leaves_its_container_running_and_adopts_it(real: Stage, agent: AgentProcess) -> None:
    task = real.submit(working(8))
    task.reached("active")
    started = time.monotonic()
    agent.stop()
    print(f"\nthe agent stopped within {time.monotonic() - started:.2f} s")
    assert [container.status for container in agent.containers()] == ["running"]
    agent.start()
    assert task.result() == {"starts": 1}


def test_runs_that_end_while_the_server_is_away_are_reported_when_it_is_back(
    real: Stage, agent: AgentProcess
) -> None:
    ends_meanwhile, ends_later = real.submit(working(4)), real.submit(working(15))
    run_id = ends_meanwhile.reached("active")["id"]
    ends_later.reached("active")
    real.server.stop()
    try:
        agent.wait_for("run_advanced", within=30, run_id=run_id, to="finished")
        print(agent.command("status").stdout)
    finally:
        real.server.start()
    started = time.monotonic()
    assert ends_meanwhile.result() == {"starts": 1}
    print(f"\nreported {time.monotonic() - started:.2f} s after the server was back")
    assert ends_later.result() == {"starts": 1}
    eventually(lambda: node_status(real) == "online", within=30, what="online")


def test_an_agent_that_starts_before_the_server_waits_for_it(
    real: Stage, agent: AgentProcess, leaves_nothing: Callable[[AgentProcess], None]
) -> None:
    agent.stop()
    task = real.submit(working(0))
    real.server.stop()
    try:
        agent.launch()
        line = agent.wait_for("server_lost", within=20)
        print(line)
    finally:
        real.server.start()
    agent.wait_for("server_online", within=30)
    assert task.result() == {"starts": 1}
    assert sum(line["event"] == "server_lost" for line in agent.log_lines()[-30:]) <= 2
    leaves_nothing(agent)
