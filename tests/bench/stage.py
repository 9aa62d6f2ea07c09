"""What the parts of the bench stand on: engine, registry, images, the real server, our agent, vantage6's own node.

Owns how these are set up, once for those parts that share them, and put away. Must not know what is measured.
"""

import contextlib
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import docker

from tests.bench.researcher import Researcher
from tests.bench.watching import EngineWatch
from tests.lab.agents import AgentProcess, merged
from tests.lab.engine import engine
from tests.lab.images import tiny_image
from tests.lab.places import say
from tests.lab.registry import Registry, registry
from tests.lab.vantage6 import RealServer
from tests.lab.vantage6_node import PeerNode, command_line, node_image

# After a run its owner still clears up, and vantage6's node looks for work and for ends once a second. The pause lets
# the first pass, and being uneven it meets the second at any moment.
PAUSE_SECONDS = (0.7, 1.7)
PARALLEL = 4
"""Runs at once: the agent's default, and what the bare engine gets beside it."""
AGENT_NAME_LABEL = "node-agent.name"
RUN_LABEL = "node-agent.run"

Value = TypeVar("Value")


@dataclass(frozen=True)
class Pair:
    """One server, our agent for `alpha`, vantage6's own node for `beta`; nobody serves `gamma`."""

    server: RealServer
    agent: AgentProcess
    peer: PeerNode
    researcher: Researcher
    peer_start: float
    """Seconds from calling its command line until it waits for tasks."""


class Stage:
    """Everything that is set up; what parts share is made when the first of them asks."""

    def __init__(self) -> None:
        self._whole = ExitStack()
        self._shared = ExitStack()
        self._made: dict[str, Any] = {}
        self._images: dict[str, str] = {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.client = stack.enter_context(contextlib.closing(stack.enter_context(engine()).client()))
            self.registry: Registry = stack.enter_context(registry())
            self.watch = stack.enter_context(EngineWatch(self.client))
            self._whole = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        with self._whole:
            self.leave()

    @property
    def bridge(self) -> str:
        """Return where containers of the engine's own network find this machine."""
        return bridge_address(self.client)

    def offered(self, make: Callable[[docker.DockerClient], str], name: str) -> str:
        """Offer an image in the registry, and have it here: all nodes ask for it each time, as they do by default."""
        if name not in self._images:
            reference = self.registry.push(self.client, make(self.client), f"bench/{name}").reference
            self.client.images.pull(reference)
            self._whole.callback(_forget, self.client, reference)
            self._images[name] = reference
        return self._images[name]

    @property
    def empty_image(self) -> str:
        """Return the image of an empty run."""
        return self.offered(tiny_image, "empty")

    def shared(self, name: str, make: Callable[["Stage", ExitStack], Value]) -> Value:
        """Return what *make* sets up, once for all parts that come before the next `leave`."""
        if name not in self._made:
            with ExitStack() as stack:
                self._made[name] = make(self, stack)
                self._shared.push(stack.pop_all())
        made: Value = self._made[name]
        return made

    def leave(self) -> None:
        """Put away what parts share; the next part that needs it gets it new."""
        self._made.clear()
        shared, self._shared = self._shared, ExitStack()
        shared.close()


def pair_on(stage: Stage) -> Pair:
    """Return the two nodes side by side."""
    return stage.shared("pair", _make_pair)


def _make_pair(stage: Stage, stack: ExitStack) -> Pair:
    # made before the clock of the start runs
    node_image(stage.client)
    command_line()
    # The peer sits in a container: it reaches the host at the address of the engine's own bridge.
    server = stack.enter_context(RealServer(("alpha", "beta", "gamma"), host=stage.bridge))
    called = time.monotonic()
    peer = stack.enter_context(PeerNode(stage.client, server, "beta"))
    took = time.monotonic() - called
    agent = stack.enter_context(agent_for(server, "alpha", {"logging": {"level": "debug"}}))
    researcher = stack.enter_context(contextlib.closing(Researcher(server)))
    return Pair(server, agent, peer, researcher, took)


def agent_for(
    server: Any,
    organization: str,
    settings: Mapping[str, Any] | None = None,
    **more: Any,
) -> AgentProcess:
    """Return an agent that asks the registry each time, as is the default, and may run any image of the bench."""
    usual = {
        "policy": {"algorithms": ["127.0.0.1:*/bench/*", "node-agent-lab/*"]},
        "images": {"pull": "always"},
        # the runs of a burst must fit beside each other on a small machine too
        "limits": {"concurrent_runs": PARALLEL, "memory": "512MiB"},
    }
    return AgentProcess(
        server_url=server.url,
        api_key=server.api_keys[organization],
        settings=merged(usual, settings or {}),
        **more,
    )


def in_turns(ways: Mapping[str, Callable[[], Value]], *, rounds: int, what: str) -> dict[str, list[Value]]:
    """Let all ways take turns, in another order each time, so that what else the machine does falls on all alike."""
    took: dict[str, list[Value]] = {name: [] for name in ways}
    for number in range(1, rounds + 1):
        say(f"{what}: round {number}/{rounds}")
        for name in random.sample(list(ways), len(ways)):
            time.sleep(random.uniform(*PAUSE_SECONDS))
            took[name].append(ways[name]())
    return took


def bridge_address(client: docker.DockerClient) -> str:
    """Return where containers of the default network find this machine."""
    (address, *_) = client.networks.get("bridge").attrs["IPAM"]["Config"]
    return str(address.get("Gateway") or address["Subnet"].rpartition(".")[0] + ".1")


def _forget(client: docker.DockerClient, reference: str) -> None:
    repository = reference.rpartition(":")[0]
    with contextlib.suppress(docker.errors.ImageNotFound):
        image = client.images.get(reference)
        digests = [name for name in image.attrs["RepoDigests"] if name.startswith(f"{repository}@")]
        for name in [reference, *digests]:
            with contextlib.suppress(docker.errors.ImageNotFound):
                client.images.remove(name, force=True)


@contextmanager
def researcher_at(server: RealServer, **more: Any) -> Iterator[Researcher]:
    """Give a researcher who leaves again."""
    with contextlib.closing(Researcher(server, **more)) as researcher:
        yield researcher
