"""What the agent itself costs: an empty run, less the same container started by hand, less the server's calls.

    python -m tests.lab.engine run -- .venv/bin/python -m tests.bench.empty_run [--runs 15]

For each run: the whole task, from the moment it is posted until the server has taken the final report; beside it the same
image with the same settings on the same network, created, started, awaited and read by hand; and the time the server
itself took for the calls on the way (posting the task, listing, claiming, the container's token, the report), as the
agent measured them. Their difference is the agent's own part. All of it on one machine, interleaved, medians.
"""

import argparse
import base64
import contextlib
import json
import secrets
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import docker
import psutil
import requests

from node_agent.domain import contract
from node_agent.domain.container import ContainerLimits, ContainerSpec
from node_agent.runtime.connection import EngineConnection
from node_agent.runtime.network import IsolatedNetwork
from node_agent.runtime.spec import container_config
from tests.lab.agents import AgentProcess
from tests.lab.engine import engine
from tests.lab.images import tiny_image
from tests.lab.vantage6 import RealServer

WARM_UP = 2
GIB = 1 << 30


@dataclass(frozen=True)
class Sample:
    """One empty run, in seconds."""

    whole: float
    by_hand: float
    server: float

    @property
    def own(self) -> float:
        """Return what is left for the agent."""
        return self.whole - self.by_hand - self.server


def main() -> int:
    """Measure and print; the exit code is 0 whatever the figures are."""
    parser = argparse.ArgumentParser(description="Measure the agent's own part of an empty run.")
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    asked = parser.parse_args()
    with engine() as found, contextlib.closing(found.client()) as client:
        image = tiny_image(client)
        with RealServer(("alpha",)) as server, _agent(server) as agent:
            samples = [_measure(client, server, agent, image) for _ in range(WARM_UP + asked.runs)]
            time.sleep(3)
            memory = psutil.Process(agent.pid).memory_full_info()
    _print(samples[WARM_UP:], memory, as_json=asked.json)
    return 0


def _agent(server: RealServer) -> AgentProcess:
    return AgentProcess(
        server_url=server.url,
        api_key=server.api_keys["alpha"],
        settings={"logging": {"level": "debug"}},
    )


def _measure(client: docker.DockerClient, server: RealServer, agent: AgentProcess, image: str) -> Sample:
    seen = len(agent.log_lines())
    started = time.time()
    _post_task(server, image)
    posted = time.time() - started
    lines = _lines_until_reported(agent, seen)
    whole = _time_of(lines[-1]) - started
    return Sample(whole, _by_hand(client, agent, image), posted + _seconds_at_server(lines))


def _post_task(server: RealServer, image: str) -> None:
    if not hasattr(_post_task, "session"):
        session = requests.Session()
        login = {"username": "alpha", "password": server.passwords["alpha"]}
        token = session.post(f"{server.url}/token/user", json=login, timeout=30).json()["access_token"]
        session.headers["Authorization"] = f"Bearer {token}"
        _post_task.session = session  # type: ignore[attr-defined]
    task = {
        "image": image,
        "name": "empty",
        "collaboration_id": server.collaboration_id,
        "organizations": [
            {
                "id": server.organization_ids["alpha"],
                "input": base64.b64encode(json.dumps({"method": "nothing"}).encode()).decode(),
            }
        ],
        "databases": [],
    }
    _post_task.session.post(f"{server.url}/task", json=task, timeout=30).raise_for_status()  # type: ignore[attr-defined]


def _lines_until_reported(agent: AgentProcess, seen: int) -> list[dict[str, Any]]:
    """Return the log lines of one run, up to the accepted report."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        lines = agent.log_lines()[seen:]
        for number, line in enumerate(lines):
            if line.get("event") == "run_advanced" and line.get("to") == "reported":
                return lines[: number + 1]
        time.sleep(0.05)
    raise TimeoutError(agent.log_tail())


def _seconds_at_server(lines: list[dict[str, Any]]) -> float:
    """Add up the calls the run had to wait for; `active` is announced while the container works already."""
    calls = [line for line in lines if line.get("event") == "server_call"]
    announced = [line for line in calls if line["call"].startswith("PATCH")][1:-1]
    return float(sum(line["ms"] for line in calls) - sum(line["ms"] for line in announced)) / 1000


def _time_of(line: dict[str, Any]) -> float:
    return datetime.fromisoformat(line["timestamp"]).timestamp()


def _by_hand(client: docker.DockerClient, agent: AgentProcess, image: str) -> float:
    """Do with the bare engine what a run needs: create, start, wait, read the log."""
    network = IsolatedNetwork(agent.name, EngineConnection()).ensure_network()
    spec = ContainerSpec(
        name=f"by-hand-{secrets.token_hex(4)}",
        run_id=None,
        image_id=client.images.get(image).id or "",
        user=(64198, 64198),
        groups=(),
        environment={"OUTPUT_FILE": contract.encode("/tmp/output")},
        mounts=(),
        limits=ContainerLimits(cpus=2, memory=4 * GIB, pids=512, tmp_size=GIB, file_size=GIB),
    )
    config = container_config(spec, agent="by-hand", network=network)
    with _taken_away(client, spec.name):
        started = time.monotonic()
        made = client.api.create_container_from_config(config, name=spec.name)
        client.api.start(made["Id"])
        ended = client.api.wait(made["Id"])["StatusCode"]
        said = client.api.logs(made["Id"])
        seconds = time.monotonic() - started
    assert ended == 0, said
    return seconds


@contextlib.contextmanager
def _taken_away(client: docker.DockerClient, name: str) -> Iterator[None]:
    try:
        yield
    finally:
        client.api.remove_container(name, force=True, v=True)


def _print(samples: list[Sample], memory: Any, *, as_json: bool) -> None:
    figures = {
        name: statistics.median(getattr(sample, name) for sample in samples)
        for name in ("whole", "by_hand", "server", "own")
    }
    idle = memory.rss / 2**20
    if as_json:
        print(
            json.dumps(
                {**figures, "runs": len(samples), "idle_rss_mib": idle, "idle_pss_mib": memory.pss / 2**20}
            )
        )
        return
    print(f"Medians of {len(samples)} empty runs, in seconds:")
    print(f"  whole task            {figures['whole']:.3f}")
    print(f"  container by hand     {figures['by_hand']:.3f}")
    print(f"  the server's calls    {figures['server']:.3f}")
    print(f"  the agent's own part  {figures['own']:.3f}")
    print(f"Idle memory of the agent: {idle:.0f} MiB resident ({memory.pss / 2**20:.0f} MiB proportional)")


if __name__ == "__main__":
    sys.exit(main())
