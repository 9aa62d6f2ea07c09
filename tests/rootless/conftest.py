"""These tests run beside an engine without root, which only `make rootless` starts."""

import os
from collections.abc import Iterator

import pytest

from node_agent.runtime.connection import EngineConnection
from node_agent.runtime.engine import DockerEngine
from node_agent.runtime.keeper import Keeper
from node_agent.runtime.network import IsolatedNetwork, prepare_network
from tests.integration.machine import LIMITS, USER, Machine
from tests.lab.engine import Engine

collect_ignore_glob = [] if os.environ.get("ROOTLESS_ENGINE") else ["test_*.py"]


@pytest.fixture(scope="session")
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
        made.clear()
        keeper.remove()
        network.remove()
        client.close()


@pytest.fixture
def place(session_place: Machine) -> Iterator[Machine]:
    yield session_place
    session_place.clear()
