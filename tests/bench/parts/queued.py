"""Many queued runs beside few: the time of each, and what the agent's memory does.

All tasks come to the server while the agent is away; it finds them when it starts. The time runs from when it is ready
until the last run is over at the server.
"""

import time
from collections.abc import Sequence
from typing import Any

from tests.bench.figures import spread, tenths
from tests.bench.machine import Peak, held_by
from tests.bench.own import logged, moment
from tests.bench.researcher import Job, Researcher
from tests.bench.scale import Scale
from tests.bench.stage import Stage, agent_for, researcher_at
from tests.lab.agents import AgentProcess
from tests.lab.places import say
from tests.lab.vantage6 import RealServer

SECONDS_PER_RUN = 3
REST_SECONDS = 3.0


def measure(stage: Stage, scale: Scale) -> dict[str, Any]:
    """Let the agent find few runs several times, then many."""
    job = Job(stage.empty_image)
    with RealServer(("alpha",), host=stage.bridge) as server, researcher_at(server) as researcher:
        agent = agent_for(server, "alpha")
        try:
            agent.start()
            researcher.whole_task("alpha", job)
            few = [_found(agent, researcher, job, scale.few) for _ in range(scale.few_rounds)]
            time.sleep(REST_SECONDS)
            idle = held_by([agent.pid])
            many = _found(agent, researcher, job, scale.many)
            time.sleep(REST_SECONDS)
            after = held_by([agent.pid])
        finally:
            agent.stop()
            agent.clean_up()
    return {
        "few": {
            "runs": scale.few,
            "per_run": spread([one["per_run"] for one in few]),
            "cpu_per_run": spread([one["cpu_per_run"] for one in few]),
        },
        "many": {
            "runs": scale.many,
            **{name: many[name] for name in ("per_run", "cpu_per_run", "tenths")},
        },
        "memory": {"idle": idle.rss, "highest": many["highest"], "after": after.rss},
        "threads": {"idle": idle.threads, "after": after.threads},
    }


def _found(agent: AgentProcess, researcher: Researcher, job: Job, count: int) -> dict[str, Any]:
    agent.stop()
    tasks = researcher.post_many("alpha", job, count)
    agent.start()
    ready = moment(logged(agent, "agent_ready"))
    peak, before = Peak(agent.pid), held_by([agent.pid])
    found = researcher.await_all(tasks, within=120 + count * SECONDS_PER_RUN)
    seconds = time.time() - ready
    cpu = held_by([agent.pid]).cpu_seconds - before.cpu_seconds
    say(f"{count} queued runs took {seconds:.1f} s, and {cpu:.1f} s of the agent's CPU")
    return {
        "per_run": seconds / count,
        "cpu_per_run": cpu / count,
        "tenths": tenths(_ends(found.values())),
        "highest": peak.highest,
    }


def _ends(found: Any) -> Sequence[float]:
    return [ended for _, ended in found if ended is not None]
