"""The real server goes away behind a road, in ways a stopped process does not show, and comes back.

Many more ways stand in tests/integration/test_outages.py; here are those where it matters what the real server does: how
it confirms pings, and what it does with a connection that fell silent.
"""

import time
from collections.abc import Iterator
from typing import Any

import pytest
import socketio

from node_agent.store import presence
from tests.interop.stage import SMALL_LIMITS, Stage, eventually
from tests.lab.agents import AgentProcess
from tests.lab.road import LOOPBACK, Road

pytestmark = pytest.mark.interop

SOON = 60.0
COUNTED = "starts = count_start(); time.sleep(1); write({'starts': starts})"


@pytest.fixture(scope="module")
def road(real: Stage) -> Iterator[Road]:
    with Road((LOOPBACK, int(real.server.root.rpartition(":")[2]))) as made:
        yield made


@pytest.fixture(scope="module")
def agent(real: Stage, road: Road) -> Iterator[AgentProcess]:
    with AgentProcess(
        server_url=real.server.url.replace(real.server.root, f"http://{LOOPBACK}:{road.port}"),
        api_key=real.server.api_keys["alpha"],
        settings={"limits": SMALL_LIMITS},
    ) as made:
        yield made


def is_well(agent: AgentProcess) -> bool:
    said = presence.read(agent.state_dir).presence
    return said is not None and said.online and not said.server_problem


def knows(agent: AgentProcess) -> bool:
    said = presence.read(agent.state_dir).presence
    return said is not None and bool(said.server_problem)


def status_of(real: Stage) -> str:
    nodes = real.client.call("node.list")["data"]
    return next(str(node["status"]) for node in nodes if node["id"] == real.server.node_ids["alpha"])


@pytest.mark.parametrize("how", ["gone", "silent"])
def test_what_ends_while_the_real_server_is_away_is_reported_once_when_it_is_back(
    real: Stage, road: Road, agent: AgentProcess, how: str
) -> None:
    eventually(lambda: is_well(agent), within=SOON, what="all well")
    task = real.submit(COUNTED)
    run_id = task.reached("active")["id"]
    road.close()
    agent.wait_for("run_advanced", within=SOON, run_id=run_id, to="finished")
    eventually(lambda: knows(agent), within=SOON, what="the agent's knowing")
    if how == "silent":
        road.fall_silent()
        before = road.visitors
        road.open()
        eventually(lambda: road.visitors > before, within=SOON, what="a try")
        began = time.monotonic()
        road.speak()
    else:
        began = time.monotonic()
        road.open()
    assert task.result() == {"starts": 1}
    reported = time.monotonic() - began
    eventually(lambda: is_well(agent), within=SOON, what="all well")
    print(f"\n{how}: reported after {reported:.1f} s, all well after {time.monotonic() - began:.1f} s")
    eventually(lambda: status_of(real) == "online", within=SOON, what="the node online")


def test_the_real_server_confirms_pings(real: Stage, agent: AgentProcess) -> None:
    """What the agent's watch over a silent connection stands on."""
    heard: list[Any] = []
    client = socketio.Client(reconnection=False)
    token = real.user_token()
    client.connect(
        real.server.root, headers={"Authorization": f"Bearer {token}"}, namespaces=["/tasks"], wait_timeout=20
    )
    try:
        client.emit("ping", None, namespace="/tasks", callback=lambda *words: heard.append(words))
        eventually(lambda: heard, within=SOON, what="a confirmation")
    finally:
        client.disconnect()
