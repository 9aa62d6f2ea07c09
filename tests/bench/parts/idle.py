"""What a node costs that has nothing to do, and how long it takes to be online and to be ready for work.

Our agent is a new one with the settings as they are written nowhere: the defaults.
"""

import time
from typing import Any

from tests.bench.figures import spread
from tests.bench.machine import Held, as_json, held_by
from tests.bench.own import logged, moment
from tests.bench.researcher import Researcher
from tests.bench.scale import Scale
from tests.bench.stage import Pair, Stage, agent_for, pair_on
from tests.lab.agents import AgentProcess
from tests.lab.places import say


def measure(stage: Stage, scale: Scale) -> dict[str, Any]:
    """Start the agent so many times, then leave it and vantage6's own node alone, both at the same time."""
    pair = pair_on(stage)
    agent = agent_for(pair.server, "gamma")
    try:
        starts = [_started(agent, pair.researcher) for _ in range(scale.starts)]
        return {
            "online": spread([online for online, _ in starts]),
            "ready": {**spread([ready for _, ready in starts]), "peer": pair.peer_start},
            "seconds": scale.idle,
            "idle": _left_alone(agent, pair, scale),
        }
    finally:
        agent.stop()
        agent.clean_up()


def _started(agent: AgentProcess, researcher: Researcher) -> tuple[float, float]:
    """Return after how many seconds the server showed it online, and after how many it began to work."""
    agent.stop()
    researcher.await_node("gamma", online=False)
    called = time.time()
    agent.launch()
    online = researcher.await_node("gamma", online=True) - called
    agent.wait_until_ready()
    return online, moment(logged(agent, "agent_ready")) - called


def _left_alone(agent: AgentProcess, pair: Pair, scale: Scale) -> dict[str, Any]:
    say(f"idle for {scale.settle + scale.idle:.0f} s …")
    time.sleep(scale.settle)
    owners = {"agent": [agent.pid], "vantage6_node": pair.peer.pids()}
    before = {name: held_by(pids) for name, pids in owners.items()}
    began = time.monotonic()
    time.sleep(scale.idle)
    after = {name: held_by(pids) for name, pids in owners.items()}
    passed = time.monotonic() - began
    return {name: _idle(before[name], after[name], passed) for name in owners}


def _idle(before: Held, after: Held, seconds: float) -> dict[str, float]:
    return {**as_json(after), "cpu_percent": 100 * (after.cpu_seconds - before.cpu_seconds) / seconds}
