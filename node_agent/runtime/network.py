"""The isolated network of the runs: an internal bridge from which only the proxy and the gates can be reached.

Owns the network's properties and its check; the firewall rule is in firewall.py, the proof in probe.py. Must not know
which containers are attached.
"""

import socket
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv4Network
from typing import Any

from docker import APIClient
from docker.errors import APIError, NotFound
from requests import Response

from node_agent.domain.container import NetworkFacts
from node_agent.errors import ConfigError, EngineUnreachable
from node_agent.runtime import podman
from node_agent.runtime.connection import EngineConnection, engine_text, one_line
from node_agent.runtime.firewall import FirewallFacts, bridge_name, ensure_firewall, remove_firewall
from node_agent.runtime.spec import LABEL_NAME
from node_agent.runtime.subnets import candidates, routed_networks

BRIDGE_OPTION = podman.BRIDGE_OPTION
ICC_OPTION = "com.docker.network.bridge.enable_icc"
_SERVER_FAULT = 500
_TRIES = 32
# How engines say that a range of addresses is in use: try the next one.
_TAKEN = ("overlap", "already used")


def network_name(agent: str) -> str:
    """Name the isolated network of an agent."""
    return f"node-agent-{agent}"


class IsolatedNetwork:
    """The isolated network of the agent *name*."""

    def __init__(self, name: str, connection: EngineConnection, *, subnet: str | None = None) -> None:
        self._agent = name
        self._name = network_name(name)
        self._connection = connection
        self._subnet = subnet

    def ensure_network(self) -> NetworkFacts:
        """Create the network, or adopt ours after checking that it is as it must be."""
        with self._connection.client() as client:
            found = self._find(client) or self._created(client)
        options = self._options
        faults = network_faults(found, agent=self._agent, subnet=self._subnet, options=options)
        if faults:
            command = "podman" if self._is_podman else "docker"
            raise ConfigError(
                f"The container network {self._name} is not as it must be: {'; '.join(faults)}.",
                hint=f"Remove it, it will be made anew: {command} network rm {self._name}",
                faults=tuple(faults),
            )
        return _facts(found)

    @cached_property
    def _is_podman(self) -> bool:
        with self._connection.client() as client:
            return podman.is_podman(client)

    @property
    def _options(self) -> dict[str, str]:
        bridge = bridge_name(self._agent)
        return podman.network_options(bridge) if self._is_podman else docker_options(bridge)

    def _find(self, client: APIClient) -> Mapping[str, Any] | None:
        return podman.find_network(client, self._name) if self._is_podman else _find(client, self._name)

    def remove(self) -> None:
        """Remove the network if it is ours; already gone is fine."""
        with self._connection.client() as client:
            found = self._find(client)
            if found is None or (found.get("Labels") or {}).get(LABEL_NAME) != self._agent:
                return
            try:
                client.remove_network(found["Id"])
            except NotFound:
                return
            except APIError as error:
                raise ConfigError(
                    f"The container network {self._name} cannot be removed: {engine_text(error)}.",
                    hint="Stop the agent and remove its containers first.",
                ) from error

    def _created(self, client: APIClient) -> Mapping[str, Any]:
        refusal = "no free range of addresses was found"
        for subnet in self._choices(client):
            response = self._ask_for(client, subnet)
            found = self._find(client)
            if found is not None:
                # Made by us just now, or by another process of ours meanwhile: the check of it is the same.
                return found
            refusal = _refusal(response)
        raise ConfigError(
            f"The container network {self._name} cannot be created: {refusal}.",
            hint="Choose free addresses: network.subnet, e.g. 10.213.7.0/24.",
        )

    def _choices(self, client: APIClient) -> list[IPv4Network]:
        if self._subnet is not None:
            return [IPv4Network(self._subnet)]
        taken = [*routed_networks(), *_engine_subnets(client.networks())]
        return [
            subnet for subnet, _ in zip(candidates(self._agent, taken=taken), range(_TRIES), strict=False)
        ]

    def _ask_for(self, client: APIClient, subnet: IPv4Network) -> Response:
        if self._is_podman:
            return podman.create_network(
                client,
                self._name,
                bridge=bridge_name(self._agent),
                subnet=subnet,
                labels={LABEL_NAME: self._agent},
            )
        return client.post(_url(client), json=self._request(subnet), timeout=client.timeout)

    def _request(self, subnet: IPv4Network) -> dict[str, Any]:
        return {
            "Name": self._name,
            "CheckDuplicate": True,
            "Driver": "bridge",
            "Internal": True,
            "EnableIPv6": False,
            "Attachable": False,
            "IPAM": {"Driver": "default", "Config": [{"Subnet": str(subnet), "Gateway": str(subnet[1])}]},
            "Options": docker_options(bridge_name(self._agent)),
            "Labels": {LABEL_NAME: self._agent},
        }


def _url(client: APIClient) -> str:
    return f"{client.base_url}/v{client.api_version}/networks/create"


def _refusal(response: Response) -> str:
    try:
        said = one_line(str(response.json()["message"]))
    except (ValueError, KeyError, TypeError):
        said = f"the engine answered {response.status_code}"
    if response.status_code >= _SERVER_FAULT and not any(words in said for words in _TAKEN):
        raise EngineUnreachable(f"The container network cannot be created now: {said}.")
    return said


def docker_options(bridge: str) -> dict[str, str]:
    """Give the options our network has at a Docker engine."""
    return {BRIDGE_OPTION: bridge, ICC_OPTION: "false"}


def bridge_is_here(bridge: str) -> bool:
    """Tell whether this process sees the bridge: a rootless engine keeps it in a network namespace of its own."""
    with suppress(OSError):
        return bool(socket.if_nametoindex(bridge))
    return False


def _find(client: APIClient, name: str) -> Mapping[str, Any] | None:
    # The engine's own lookup also accepts the beginning of an id.
    with suppress(NotFound):
        found: Mapping[str, Any] = client.inspect_network(name)
        return found if found.get("Name") == name else None
    return None


def _engine_subnets(networks: Iterable[Mapping[str, Any]]) -> list[IPv4Network]:
    configs = (config for network in networks for config in (network.get("IPAM") or {}).get("Config") or ())
    return [
        IPv4Network(config["Subnet"], strict=False)
        for config in configs
        if ":" not in config.get("Subnet", ":")
    ]


def network_faults(
    found: Mapping[str, Any], *, agent: str, subnet: str | None, options: Mapping[str, str]
) -> list[str]:
    """Say in which points the engine's description of a network is not what it must be; it must have *options*."""
    seen = found.get("Options") or {}
    labels = found.get("Labels") or {}
    addresses = (found.get("IPAM") or {}).get("Config") or []
    checks = {
        f"it does not carry our label {LABEL_NAME}={agent}": labels.get(LABEL_NAME) == agent,
        "it is not a bridge": found.get("Driver") == "bridge",
        "it is not internal": found.get("Internal") is True,
        "it has IPv6": not found.get("EnableIPv6"),
        "other containers may be attached to it by hand": not found.get("Attachable"),
        f"its bridge is not called {bridge_name(agent)}": seen.get(BRIDGE_OPTION) == bridge_name(agent),
        "its containers may talk to each other": seen.get(ICC_OPTION) == options.get(ICC_OPTION),
        "it has a name server": seen.get(podman.DNS_OPTION) == options.get(podman.DNS_OPTION),
        "it has further options": set(seen) <= {*options, podman.DNS_OPTION},
        "it has not exactly one range of addresses with a gateway": _has_one_gateway(addresses),
        f"its addresses are not {subnet} (network.subnet)": subnet is None
        or [config.get("Subnet") for config in addresses] == [str(IPv4Network(subnet))],
    }
    return [fault for fault, fine in checks.items() if not fine]


def _has_one_gateway(addresses: list[Mapping[str, str]]) -> bool:
    return len(addresses) == 1 and bool(addresses[0].get("Gateway")) and bool(addresses[0].get("Subnet"))


def _facts(found: Mapping[str, Any]) -> NetworkFacts:
    config = found["IPAM"]["Config"][0]
    return NetworkFacts(
        id=found["Id"],
        name=found["Name"],
        bridge=found["Options"][BRIDGE_OPTION],
        subnet=config["Subnet"],
        gateway=config["Gateway"].partition("/")[0],
    )


# --- the root step of the service ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PreparedNetwork:
    """The network as it stands, and whether the firewall rule could be loaded."""

    network: NetworkFacts
    firewall: FirewallFacts


def prepare_network(
    network: IsolatedNetwork, *, name: str, proxy_port: int, gates: Iterable[int] = ()
) -> PreparedNetwork:
    """Create the network and load the firewall rule; both may be repeated at any time."""
    facts = network.ensure_network()
    firewall = ensure_firewall(name, gateway=facts.gateway, proxy_port=proxy_port, gates=gates)
    return PreparedNetwork(facts, firewall)


def remove_network(network: IsolatedNetwork, *, name: str) -> FirewallFacts:
    """Remove the network and then the rule, so that the network is never there without it."""
    network.remove()
    return remove_firewall(name)
