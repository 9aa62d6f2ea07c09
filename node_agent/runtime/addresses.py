"""Who has which address on this machine's container networks, as the engine says at this moment.

Owns three questions and keeps no answer. Must not know why they are asked.
"""

from collections.abc import Mapping
from typing import Any

from docker.errors import NotFound

from node_agent.domain.run import RunId
from node_agent.errors import Transient
from node_agent.runtime.connection import EngineConnection
from node_agent.runtime.reading import run_of_labels
from node_agent.runtime.spec import LABEL_NAME, joined_namespace

LOOPBACK = "127.0.0.1"


class Addresses:
    """The questions, for the isolated network *network* of the agent *agent*."""

    def __init__(self, agent: str, connection: EngineConnection, *, network: str) -> None:
        self._agent = agent
        self._connection = connection
        self._network = network

    def of_runs(self) -> Mapping[str, RunId]:
        """Give the run behind each address of the isolated network. Raises EngineUnreachable."""
        filters = {"label": f"{LABEL_NAME}={self._agent}", "status": "running"}
        with self._connection.client() as client:
            listed = client.containers(filters=filters)
        addresses = {entry["Id"]: self._address_of(entry) for entry in listed}
        return {
            address: run_id
            for entry in listed
            # who has joined a namespace has the address of its holder
            if (address := addresses.get(joined_namespace(entry) or entry["Id"]))
            and (run_id := run_of_labels(entry.get("Labels"))) is not None
        }

    def _address_of(self, entry: Mapping[str, Any]) -> str:
        return str(_networks_of(entry).get(self._network, {}).get("IPAddress") or "")

    def of_container(self, name: str) -> tuple[str, ...]:
        """Give the addresses this machine reaches a container under. Raises Transient when it has none now."""
        with self._connection.client() as client:
            try:
                found: Mapping[str, Any] = client.inspect_container(name)
            except NotFound as error:
                raise Transient(f"There is no container {name} on this machine.") from error
        if name not in {str(found.get("Name")).removeprefix("/"), found.get("Id")}:
            # The engine also takes the beginning of an id.
            raise Transient(f"There is no container {name} on this machine.")
        if not found["State"].get("Running"):
            raise Transient(f"The container {name} does not run.")
        if "host" in _networks_of(found):
            return (LOOPBACK,)
        addresses = tuple(
            str(network["IPAddress"]) for network in _networks_of(found).values() if network["IPAddress"]
        )
        if not addresses:
            raise Transient(f"The container {name} has no address.")
        return addresses

    def of_networks(self) -> tuple[str, ...]:
        """Give the ranges of all container networks. Raises EngineUnreachable."""
        with self._connection.client() as client:
            listed = client.networks()
        configs = (config for network in listed for config in (network.get("IPAM") or {}).get("Config") or ())
        return tuple(str(config["Subnet"]) for config in configs if config.get("Subnet"))


def _networks_of(description: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    found: Mapping[str, Mapping[str, Any]] = (description.get("NetworkSettings") or {}).get("Networks") or {}
    return found
