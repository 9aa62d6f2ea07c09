"""How often the agent asks engine and server for one empty run, cleaning included.

The agent reaches the engine through a relay that notes each request; the server's calls are in its debug log.
"""

import re
import socket
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from node_agent.domain.run import State
from tests.bench.figures import spread
from tests.bench.own import calls_between, moments_of
from tests.bench.researcher import Job, Researcher
from tests.bench.scale import Scale
from tests.bench.stage import Stage, agent_for, researcher_at
from tests.lab.agents import AgentProcess
from tests.lab.engine import DEFAULT_HOST
from tests.lab.road import Road
from tests.lab.vantage6 import RealServer

REQUEST = re.compile(rb"(GET|POST|PUT|DELETE|HEAD) (?:/v[\d.]+)?(/\S*) HTTP/1\.1\r\n")
NAMES = re.compile(r"[0-9a-f]{12,}|sha256:\w+|[\w.-]*-run-\d+|127\.0\.0\.1:\d+/\S+?(?=/json|$)")
REST_SECONDS = 3.0
RUNS = 3


class CountingRoad(Road):
    """A relay that notes what is asked of the engine."""

    def __init__(self, to: str, at: Path) -> None:
        super().__init__(to, at=at)
        self.asked: list[tuple[float, str]] = []
        """When, and what, without names and numbers."""

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        super()._carry(_Noting(source, self._note), target)  # type: ignore[arg-type]

    def _note(self, piece: bytes) -> None:
        for method, path in REQUEST.findall(piece):
            self.asked.append((time.time(), f"{method.decode()} {named(path.decode())}"))


class _Noting:
    """A socket to read from, which tells what was read."""

    def __init__(self, source: socket.socket, note: Any) -> None:
        self._source = source
        self._note = note

    def recv(self, size: int) -> bytes:
        piece = self._source.recv(size)
        self._note(piece)
        return piece


def named(path: str) -> str:
    """Take ids, names and parameters out of a path of the engine's API."""
    return NAMES.sub("…", path.partition("?")[0])


def measure(stage: Stage, scale: Scale) -> dict[str, Any]:
    """Run a few empty runs, one after the other, and count."""
    del scale
    job = Job(stage.empty_image)
    with (
        TemporaryDirectory(prefix="bench-road-") as folder,
        CountingRoad(DEFAULT_HOST.removeprefix("unix://"), Path(folder, "engine.sock")) as road,
        RealServer(("alpha",)) as server,
        researcher_at(server) as researcher,
    ):
        settings = {"docker_host": f"unix://{folder}/engine.sock", "logging": {"level": "debug"}}
        with agent_for(server, "alpha", settings) as agent:
            researcher.whole_task("alpha", job)
            counted = [_counted(road, agent, researcher, job) for _ in range(RUNS)]
    return {
        name: {**spread([float(len(one[name])) for one in counted]), "calls": _tally(counted[-1][name])}
        for name in ("engine", "server")
    }


def _counted(
    road: CountingRoad, agent: AgentProcess, researcher: Researcher, job: Job
) -> dict[str, Sequence[str]]:
    # what the run before it left behind is over, and so is this one's before it is counted
    time.sleep(REST_SECONDS)
    done = researcher.whole_task("alpha", job)
    last = moments_of(agent, done.run_id, until=State.REMOVED)[State.REMOVED.name]
    time.sleep(REST_SECONDS)
    return {
        "engine": [name for at, name in road.asked if done.posted <= at <= last],
        "server": [re.sub(r"\d+", "…", name) for name, _ in calls_between(agent, done.posted, last)],
    }


def _tally(names: Sequence[str]) -> dict[str, int]:
    return dict(Counter(names))
