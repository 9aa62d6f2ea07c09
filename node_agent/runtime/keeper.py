"""The keeper: a container that does nothing, so that the bridge of the isolated network is there before the first run.

Podman makes a bridge with the first container on it and takes it away with the last, and without root its whole network
namespace with it. The proxy and the firewall rule need both to stay. Owns this one container. Must not know runs.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from docker import APIClient
from docker.errors import APIError, NotFound

from node_agent.domain.container import ContainerLimits, NetworkFacts
from node_agent.errors import ConfigError, StartFailed
from node_agent.runtime.connection import EngineConnection, engine_text
from node_agent.runtime.network import bridge_is_here
from node_agent.runtime.own_python import sleeping_container
from node_agent.runtime.podman import is_podman
from node_agent.runtime.spec import LABEL_KEEPER, LABEL_NAME


class Keeper:
    """The keeper of the agent *agent*'s network; runs as *user*."""

    def __init__(
        self,
        agent: str,
        connection: EngineConnection,
        *,
        user: tuple[int, int],
        limits: ContainerLimits,
        image: str | None = None,
        is_here: Callable[[str], bool] = bridge_is_here,
    ) -> None:
        self._agent = agent
        self._name = f"node-agent-{agent}-keeper"
        self._connection = connection
        self._user = user
        self._limits = limits
        self._image = image
        self._is_here = is_here

    def ensure_bridge(self, network: NetworkFacts) -> None:
        """See to it that this process has the network's bridge beside it. Raises ConfigError."""
        if self._is_here(network.bridge):
            return
        with self._connection.client() as client:
            if is_podman(client):
                self._ensure_running(client, network)
        if not self._is_here(network.bridge):
            raise ConfigError(
                f"The bridge {network.bridge} of the isolated network is not where this agent runs: the engine at"
                f" {self._connection.address} keeps its networks in a namespace of its own, as engines without root do.",
                hint="Start the agent inside of it: podman unshare --rootless-netns node-agent run -c FILE, or for Docker"
                " as docs/rootless.md says.",
            )

    def remove(self) -> None:
        """Remove the keeper; already gone is fine."""
        with self._connection.client() as client:
            found = self._find(client)
            if found is not None:
                _remove(client, found)

    def _ensure_running(self, client: APIClient, network: NetworkFacts) -> None:
        found = self._find(client)
        if found is not None and found["State"].get("Running") and _is_in(found, network):
            return
        if found is not None:
            _remove(client, found)
        self._start(client, network)

    def _find(self, client: APIClient) -> Mapping[str, Any] | None:
        try:
            found: Mapping[str, Any] = client.inspect_container(self._name)
        except NotFound:
            return None
        labels = (found.get("Config") or {}).get("Labels") or {}
        if labels.get(LABEL_NAME) != self._agent or not labels.get(LABEL_KEEPER):
            raise ConfigError(
                f"Another container has the name {self._name}, and it is not ours.",
                hint="Rename or remove it.",
            )
        return found

    def _start(self, client: APIClient, network: NetworkFacts) -> None:
        try:
            asked = self._config(client, network)
            made = client.create_container_from_config(asked, self._name)  # type: ignore[no-untyped-call]
            client.start(made["Id"])
        except APIError as error:
            raise ConfigError(
                f"The container that keeps the bridge of the isolated network cannot be started: {engine_text(error)}.",
                hint="Look at the engine's own log.",
            ) from error
        except StartFailed as error:
            raise ConfigError(error.message, hint=error.hint) from error

    def _config(self, client: APIClient, network: NetworkFacts) -> dict[str, Any]:
        return sleeping_container(
            client,
            agent=self._agent,
            network=network,
            user=self._user,
            limits=self._limits,
            image=self._image,
            keeps="true",
        )


def _is_in(found: Mapping[str, Any], network: NetworkFacts) -> bool:
    return network.name in ((found.get("NetworkSettings") or {}).get("Networks") or {})


def _remove(client: APIClient, found: Mapping[str, Any]) -> None:
    with suppress(NotFound):
        client.remove_container(found["Id"], v=True, force=True)
