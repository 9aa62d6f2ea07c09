"""These tests run beside an engine without root, which only `make rootless` starts."""

import os
import time
from collections.abc import Iterator

import pytest

from node_agent.errors import EngineUnreachable
from node_agent.runtime.connection import EngineConnection
from node_agent.runtime.engine import DockerEngine
from node_agent.runtime.keeper import Keeper
from node_agent.runtime.network import IsolatedNetwork, prepare_network
from tests.integration.machine import LIMITS, USER, Machine
from tests.lab.engine import Engine

CLEAR_SECONDS = 30
collect_ignore_glob = [] if os.environ.get("ROOTLESS_ENGINE") else ["test_*.py"]


# Of every test: without its keeper, Podman would drop the namespace all this runs in with the first sandbox that ends.
@pytest.fixture(scope="session", autouse=True)
def session_place() -> Iterator[Machine]:
    name = f"rootless-{os.getpid()}"
    host = os.environ["DOCKER_HOST"]
    connection = EngineConnection(host)
    network = IsolatedNetwork(name, connection)
    client = Engine(host).client()
    made = Machine(
        name=name,
        host=host,
        client=client,
        connection=connection,
        network=network,
        engine=DockerEngine(name, connection, network),
        image_id=str(client.images.get("node-agent-lab/python:latest").id),
    )
    prepared = prepare_network(network, name=name, proxy_port=7480)
    assert prepared.firewall.loaded, prepared.firewall.reason
    keeper = Keeper(name, connection, user=USER, limits=LIMITS)
    keeper.ensure_bridge(prepared.network)
    try:
        yield made
    finally:
        _clear(made)
        keeper.remove()
        network.remove()
        client.close()


def _clear(place: Machine) -> None:
    """Podman refuses to remove a container that ends at that very moment; the agent then tries again, as here."""
    deadline = time.monotonic() + CLEAR_SECONDS
    while True:
        try:
            return place.clear()
        except EngineUnreachable:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


@pytest.fixture
def place(session_place: Machine) -> Iterator[Machine]:
    yield session_place
    _clear(session_place)
