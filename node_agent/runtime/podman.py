"""Podman's own words, where its Docker-compatible interface leaves out what matters.

That interface drops every network option without a word: the bridge's name, and that no name server listens there. So
networks are made and looked up through Podman's own interface, and networks and containers are described in Docker's words.
Must not know what either has to be like: network.py and spec.py judge it.
"""

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Network
from typing import Any, Final
from weakref import WeakKeyDictionary

from docker import APIClient
from requests import Response

from node_agent.runtime.connection import one_line

BRIDGE_OPTION: Final = "com.docker.network.bridge.name"
DNS_OPTION: Final = "dns"
WITHOUT_IPV6: Final[Mapping[str, str]] = {
    "net.ipv6.conf.all.disable_ipv6": "1",
    "net.ipv6.conf.default.disable_ipv6": "1",
}
"""What a Docker engine sets by itself on a network without IPv6."""
_INTERFACE: Final = "v4.0.0/libpod"
_NOT_FOUND: Final = 404
_MARK: Final = "Libpod-API-Version"
_KNOWN: Final[WeakKeyDictionary[APIClient, bool]] = WeakKeyDictionary()


def is_podman(client: APIClient) -> bool:
    """Tell whether it is Podman that answers; asked once for each client."""
    if client not in _KNOWN:
        # Its answer to the question for its version takes a second; this one carries the mark as well.
        response = client.get(f"{client.base_url}/_ping", timeout=client.timeout)
        response.raise_for_status()
        _KNOWN[client] = _MARK in response.headers
    return _KNOWN[client]


def network_options(bridge: str) -> dict[str, str]:
    """Give the options our network has here; that containers on one bridge may talk is no option of Podman's."""
    return {BRIDGE_OPTION: bridge, DNS_OPTION: "false"}


def create_network(
    client: APIClient, name: str, *, bridge: str, subnet: IPv4Network, labels: Mapping[str, str]
) -> Response:
    """Ask for an internal bridge without a name server."""
    request = {
        "name": name,
        "driver": "bridge",
        "internal": True,
        "dns_enabled": False,
        "ipv6_enabled": False,
        "network_interface": bridge,
        "subnets": [{"subnet": str(subnet), "gateway": str(subnet[1])}],
        "labels": dict(labels),
    }
    return client.post(_url(client, "networks/create"), json=request, timeout=client.timeout)


def find_network(client: APIClient, name: str) -> Mapping[str, Any] | None:
    """Describe a network in Docker's words; None when there is none of this name."""
    response = client.get(_url(client, f"networks/{name}/json"), timeout=client.timeout)
    if response.status_code == _NOT_FOUND:
        return None
    response.raise_for_status()
    return in_docker_words(response.json())


def in_docker_words(found: Mapping[str, Any]) -> dict[str, Any]:
    """Translate Podman's description of a network."""
    options = {one_line(str(key)): str(value) for key, value in (found.get("options") or {}).items()}
    return {
        "Id": found.get("id"),
        "Name": found.get("name"),
        "Driver": found.get("driver"),
        "Internal": found.get("internal"),
        "EnableIPv6": found.get("ipv6_enabled"),
        "IPAM": {"Config": [_range(subnet) for subnet in found.get("subnets") or ()]},
        "Labels": found.get("labels") or {},
        "Options": options
        | {
            BRIDGE_OPTION: found.get("network_interface"),
            DNS_OPTION: "true" if found.get("dns_enabled") else "false",
        },
    }


def _range(subnet: Mapping[str, Any]) -> dict[str, str]:
    return {"Subnet": str(subnet.get("subnet") or ""), "Gateway": str(subnet.get("gateway") or "")}


def _url(client: APIClient, path: str) -> str:
    return f"{client.base_url}/{_INTERFACE}/{path}"


def host_of(client: APIClient) -> Mapping[str, Any]:
    """Give what Podman says of the machine and of its own rights."""
    response = client.get(_url(client, "info"), timeout=client.timeout)
    response.raise_for_status()
    host: Mapping[str, Any] = response.json().get("host") or {}
    return host


# --- containers -----------------------------------------------------------------------------------------------


def describe_container(client: APIClient, container: str) -> Mapping[str, Any]:
    """Describe a container in the words a Docker engine would use for the same one."""
    found: Mapping[str, Any] = client.inspect_container(container)
    response = client.get(_url(client, f"containers/{found['Id']}/json"), timeout=client.timeout)
    response.raise_for_status()
    return container_in_docker_words(found, response.json())


def container_in_docker_words(found: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Translate where both name the same thing differently; what *own* does not say stays as it is.

    Podman lists the single capabilities for "all", names the kind of a network instead of the network, repeats mounts as
    binds, and fills in its defaults.
    """
    host = dict(found.get("HostConfig") or {})
    networks = list((found.get("NetworkSettings") or {}).get("Networks") or ())
    if "BoundingCaps" in own and not own["BoundingCaps"]:
        host["CapDrop"] = ["ALL"]
    for key in ("PidMode", "UTSMode"):
        host[key] = "" if host.get(key) == "private" else host.get(key)
    if host.get("IpcMode") == "shareable":
        # a namespace of its own, which another container gets only by asking for it
        host["IpcMode"] = "private"
    if host.get("NetworkMode") == "bridge" and len(networks) == 1:
        host["NetworkMode"] = networks[0]
    host["Tmpfs"] = {path: _own_words(options) for path, options in (host.get("Tmpfs") or {}).items()}
    host["Binds"] = _beside_mounts(host.get("Binds") or (), found.get("Mounts") or ())
    # Podman 4 does not tell kernel settings at all: whether they hold is seen by the probe, from inside.
    host["Sysctls"] = host.get("Sysctls") or dict(WITHOUT_IPV6)
    host["LogConfig"] = _log_config(host.get("LogConfig") or {}, own)
    return {**found, "HostConfig": host}


def _own_words(options: str) -> str:
    return ",".join(word for word in options.split(",") if word not in {"rprivate", "tmpcopyup"})


def _beside_mounts(binds: Iterable[str], mounts: Iterable[Mapping[str, Any]]) -> list[str]:
    told = {f"{mount.get('Source')}:{mount.get('Destination')}" for mount in mounts}
    return [bind for bind in binds if ":".join(bind.split(":")[:2]) not in told]


def _log_config(said: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    size = str(((own.get("HostConfig") or {}).get("LogConfig") or {}).get("Size") or "")
    # One file that is begun anew when it is full: there is no number of files.
    return {"Type": said.get("Type"), "Config": {"max-size": size.lower().removesuffix("b"), "max-file": "2"}}
