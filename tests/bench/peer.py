"""Three ways to one and the same empty run: through our agent, through vantage6's own node, and by `docker run`.

Owns the stage they stand on (one server, one registry, one image) and the stopwatch of each. Must not know how often
they are asked, nor what the figures mean.
"""

import base64
import contextlib
import json
import queue
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import docker
import psutil
import requests
import socketio

from tests.lab.agents import AgentProcess
from tests.lab.engine import engine
from tests.lab.images import tiny_image
from tests.lab.registry import registry
from tests.lab.vantage6 import RealServer
from tests.lab.vantage6_node import PeerNode

RUN_SECONDS = 60
# The server speaks of a change shortly before it stores it.
STORED_SECONDS = 0.01
LOOK_SECONDS = 0.25
NAMESPACE = "/tasks"
HTTP_SECONDS = 30
INPUT = base64.b64encode(json.dumps({"method": "nothing"}).encode()).decode()
# As an algorithm is told it, in the form the environment of a run is written in.
OUTPUT = base64.b32encode(b"/tmp/output").decode().replace("=", "!")
MIB = 1 << 20


class BenchError(Exception):
    """An empty run did not end well; the text says what became of it."""


@dataclass(frozen=True)
class Memory:
    """What processes hold, in MiB: resident, and with shared pages divided among those who share them."""

    rss: float
    pss: float


@dataclass(frozen=True)
class Contestant:
    """One way to run something: its name, one timed run, and its idle memory where it has something that idles."""

    name: str
    title: str
    run: Callable[[], float]
    memory: Callable[[], Memory] | None = None


class Researcher:
    """Sends empty tasks and sees when the server has their end.

    It asks the server only when the server says that a run changed: asking all the time would keep its one thread busy
    with us, and slow down the calls of those who are measured.
    """

    def __init__(self, server: RealServer, image: str) -> None:
        self._server = server
        self._image = image
        self._changes: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._session = requests.Session()
        login = {"username": "alpha", "password": server.passwords["alpha"]}
        token = self._asked("POST", "token/user", json=login)["access_token"]
        self._session.headers["Authorization"] = f"Bearer {token}"
        self._socket = self._listening(token)

    def whole_task(self, organization: str) -> float:
        """Return the seconds from posting a task until the server shows its run as completed."""
        while not self._changes.empty():
            self._changes.get()
        started = time.monotonic()
        task = self._asked("POST", "task", json=self._task(organization))["id"]
        run = self._run_once_changed(task)
        while run["status"] != "completed":
            self._check(organization, run, since=started)
            self._await_change()
            run = self._asked("GET", f"run/{run['id']}")
        return time.monotonic() - started

    def close(self) -> None:
        """Leave the server."""
        self._socket.disconnect()
        self._session.close()

    def _listening(self, token: str) -> Any:
        client = socketio.Client()
        client.on("status_update", lambda seen: self._changes.put(seen["run_id"]), namespace=NAMESPACE)
        authorization = {"Authorization": f"Bearer {token}"}
        client.connect(self._server.root, headers=authorization, namespaces=[NAMESPACE])
        return client

    def _run_once_changed(self, task: int) -> dict[str, Any]:
        self._await_change()
        (run,) = self._asked("GET", f"run?task_id={task}")["data"]
        found: dict[str, Any] = run
        return found

    def _await_change(self) -> None:
        """Wait for the word that a run changed, or for a while: it comes shortly before the server stores the change."""
        with contextlib.suppress(queue.Empty):
            self._changes.get(timeout=LOOK_SECONDS)
        time.sleep(STORED_SECONDS)

    def _check(self, organization: str, run: dict[str, Any], *, since: float) -> None:
        if run["finished_at"] or time.monotonic() - since > RUN_SECONDS:
            raise BenchError(f"{organization}: the empty run is {run['status']!r}; its log: {run['log']}")

    def _task(self, organization: str) -> dict[str, Any]:
        return {
            "image": self._image,
            "name": "empty",
            "collaboration_id": self._server.collaboration_id,
            "organizations": [{"id": self._server.organization_ids[organization], "input": INPUT}],
            "databases": [],
        }

    def _asked(self, method: str, path: str, **content: Any) -> Any:
        answer = self._session.request(method, f"{self._server.url}/{path}", timeout=HTTP_SECONDS, **content)
        answer.raise_for_status()
        return answer.json()


@contextmanager
def contestants() -> Iterator[Sequence[Contestant]]:
    """Set the stage: the server, our agent for one organization, vantage6's own node for the other."""
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(contextlib.closing(stack.enter_context(engine()).client()))
        image = stack.enter_context(_offered_image(client))
        # The peer sits in a container: it reaches the host at the address of the engine's own bridge.
        server = stack.enter_context(RealServer(("alpha", "beta"), host=bridge_address(client)))
        peer = stack.enter_context(PeerNode(client, server, "beta"))
        agent = stack.enter_context(_agent(server, image))
        researcher = stack.enter_context(contextlib.closing(Researcher(server, image)))
        yield (
            Contestant(
                "agent", "our agent", lambda: researcher.whole_task("alpha"), lambda: memory_of([agent.pid])
            ),
            Contestant(
                "vantage6_node",
                "vantage6's own node",
                lambda: researcher.whole_task("beta"),
                lambda: memory_of(peer.pids()),
            ),
            Contestant("docker_run", "docker run", lambda: _docker_run(image)),
        )


@contextmanager
def _offered_image(client: docker.DockerClient) -> Iterator[str]:
    """Offer the image of the empty run in a registry: both nodes ask for it each time, as they do by default."""
    with registry() as offered:
        reference = offered.push(client, tiny_image(client), "bench/empty").reference
        client.images.pull(reference)
        try:
            yield reference
        finally:
            _forget(client, reference)


def _forget(client: docker.DockerClient, reference: str) -> None:
    repository = reference.rpartition(":")[0]
    image = client.images.get(reference)
    digests = [name for name in image.attrs["RepoDigests"] if name.startswith(f"{repository}@")]
    for name in [reference, *digests]:
        with contextlib.suppress(docker.errors.ImageNotFound):
            client.images.remove(name, force=True)


def bridge_address(client: docker.DockerClient) -> str:
    """Return where containers of the default network find this machine."""
    (address, *_) = client.networks.get("bridge").attrs["IPAM"]["Config"]
    return str(address.get("Gateway") or address["Subnet"].rpartition(".")[0] + ".1")


def _agent(server: RealServer, image: str) -> AgentProcess:
    return AgentProcess(
        server_url=server.url,
        api_key=server.api_keys["alpha"],
        settings={
            "policy": {"algorithms": [image.rpartition(":")[0]]},
            "images": {"pull": "always"},
        },
    )


def _docker_run(image: str) -> float:
    started = time.monotonic()
    command = ["docker", "run", "--rm", "--env", f"OUTPUT_FILE={OUTPUT}", image]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BenchError(f"docker run failed: {done.stderr.strip()[-600:]}")
    return time.monotonic() - started


def memory_of(pids: Sequence[int]) -> Memory:
    """Add up what these processes and their children hold."""
    processes = {process for pid in pids for process in _family(pid)}
    held = [process.memory_full_info() for process in processes]
    return Memory(rss=sum(one.rss for one in held) / MIB, pss=sum(one.pss for one in held) / MIB)


def _family(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]
