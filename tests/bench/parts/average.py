"""A federated average over three nodes: three of ours, three of vantage6's own, and the same containers by hand.

By hand there is no node and no server: the central container finds a coordinator that costs nothing (tests/bench/ideal.py)
and starts the containers of the three parts, all at once, in the moment they are asked for.
"""

import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import docker

from tests.bench.bare import OnBridge
from tests.bench.failures import BenchError
from tests.bench.figures import spread
from tests.bench.ideal import IdealServer, container_token
from tests.bench.researcher import Job, Researcher
from tests.bench.scale import Scale
from tests.bench.stage import Stage, agent_for, in_turns, researcher_at
from tests.lab.images import average_image
from tests.lab.samples import write_hospitals
from tests.lab.vantage6 import RealServer
from tests.lab.vantage6_node import PeerNode

OURS, PEERS = ("alpha", "beta", "gamma"), ("delta", "epsilon", "zeta")
COLUMN = "age"
DATABASE = "/mnt/data/hospital.csv"


def measure(stage: Stage, scale: Scale) -> dict[str, Any]:
    """Let the three take turns; every one of them computes the same number."""
    image = stage.offered(average_image, "average")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="bench-average-")))
        folder.chmod(0o755)
        files = list(write_hospitals(folder).values())
        server = stack.enter_context(RealServer((*OURS, *PEERS), host=stage.bridge))
        researcher = stack.enter_context(researcher_at(server))
        _start_nodes(stage, stack, server, files)
        by_hand = ByHand(stage.client, image, stage.bridge, files)
        ways = {
            "agent": lambda: _central(server, researcher, image, OURS),
            "vantage6_node": lambda: _central(server, researcher, image, PEERS),
            "by_hand": by_hand.central,
        }
        in_turns(ways, rounds=min(1, scale.warm_up - 1), what="average, warm-up")
        took = in_turns(ways, rounds=scale.average_rounds, what="average over three nodes")
    answers = {answer for found in took.values() for _, answer in found}
    if len(answers) != 1:
        raise BenchError(f"the averages differ: {answers}")
    return {"seconds": {name: spread([seconds for seconds, _ in found]) for name, found in took.items()}}


def _start_nodes(stage: Stage, stack: ExitStack, server: RealServer, files: Sequence[Path]) -> None:
    sources = [{"hospital": file} for file in files]
    nodes: list[Any] = [
        agent_for(server, name, databases=one) for name, one in zip(OURS, sources, strict=True)
    ]
    nodes += [
        PeerNode(stage.client, server, name, databases=one) for name, one in zip(PEERS, sources, strict=True)
    ]
    with ThreadPoolExecutor() as pool:
        for started in [pool.submit(stack.enter_context, node) for node in nodes]:
            started.result()


def _central(
    server: RealServer, researcher: Researcher, image: str, organizations: Sequence[str]
) -> tuple[float, float]:
    arguments = {
        "column": COLUMN,
        "organizations": [server.organization_ids[name] for name in organizations],
    }
    job = Job(image, "central_average", arguments, ("hospital",))
    done = researcher.whole_task(organizations[0], job)
    (result,) = researcher.results(done.task_id)
    return done.seconds, result["average"]


class ByHand:
    """Runs one central container and three others, as the algorithm asks for them."""

    def __init__(self, client: docker.DockerClient, image: str, host: str, files: Sequence[Path]) -> None:
        self._containers = OnBridge(client, image)
        self._image = image
        self._host = host
        self._files = files

    def central(self) -> tuple[float, float]:
        """Return the seconds until the central container has ended, and its average."""
        organizations = list(range(1, len(self._files) + 1))
        asked = Job(self._image, "central_average", {"column": COLUMN, "organizations": organizations})
        with IdealServer(self._host, self._part) as server:
            way = {"HOST": f"http://{server.host}", "PORT": str(server.port), "API_PATH": ""}
            started = time.monotonic()
            output = self._containers.run(
                asked.plain_input, token=container_token(), environment=way, databases={}
            )
            took = time.monotonic() - started
        return took, json.loads(output)["average"]

    def _part(self, organization: int, given: bytes) -> bytes:
        nowhere = {"HOST": "http://127.0.0.1", "PORT": "1", "API_PATH": ""}
        source = {
            "USER_REQUESTED_DATABASE_LABELS": "hospital",
            "DB_LABELS": "hospital",
            "HOSPITAL_DATABASE_URI": DATABASE,
            "HOSPITAL_DATABASE_TYPE": "csv",
        }
        return self._containers.run(
            given,
            token=container_token(),
            environment={**nowhere, **source},
            databases={DATABASE: self._files[organization - 1]},
        )
