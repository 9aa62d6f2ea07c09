"""What an engine can enforce, as it says of itself.

Owns the reading of its words. What it says is not believed: the probe looks from inside, and a limit that is not asked
for here is found missing there.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from docker import APIClient

from node_agent.runtime import podman, seccomp
from node_agent.runtime.spec import EngineTraits

_SAID_BY_DOCKER: Mapping[str, str] = {"MemoryLimit": "memory", "CpuCfsQuota": "cpus", "PidsLimit": "pids"}
_CONTROLLERS: Mapping[str, str] = {"memory": "memory", "cpu": "cpus", "pids": "pids"}


def traits_of(client: APIClient) -> EngineTraits:
    """Ask the engine what it can enforce."""
    if podman.is_podman(client):
        return podman_traits(podman.host_of(client))
    return docker_traits(client.info())


def docker_traits(said: Mapping[str, Any]) -> EngineTraits:
    """Read what a Docker engine says of itself."""
    return EngineTraits(
        limits_swap=bool(said.get("SwapLimit", True)),
        cgroup_version=str(said.get("CgroupVersion", "2")),
        unenforced=frozenset(name for key, name in _SAID_BY_DOCKER.items() if said.get(key) is False),
        seccomp=seccomp.inline_option() if _can_filter_calls(said) else "",
    )


def _can_filter_calls(said: Mapping[str, Any]) -> bool:
    options = said.get("SecurityOptions")
    # An engine that says nothing is asked: better a container that is refused than one that is open.
    return options is None or any("name=seccomp" in str(option) for option in options)


def podman_traits(host: Mapping[str, Any]) -> EngineTraits:
    """Read what Podman says of itself; through Docker's interface it says that it can do everything."""
    version = str(host.get("cgroupVersion") or "v1").removeprefix("v")
    return EngineTraits(
        cgroup_version=version,
        # Podman takes these from its own configuration alone.
        unenforced=frozenset({"ulimits", *_without_controller(host)}),
        sysctls=podman.WITHOUT_IPV6,
        seccomp=seccomp.file_option() if _podman_filters(host) else "",
        memory_folders=("/run", "/var/tmp"),  # noqa: S108 - the container's own
    )


def _podman_filters(host: Mapping[str, Any]) -> bool:
    return (host.get("security") or {}).get("seccompEnabled") is not False


def _without_controller(host: Mapping[str, Any]) -> Iterator[str]:
    present = host.get("cgroupControllers") or ()
    # With root on cgroup v1 none are listed, and all are there.
    if not (host.get("security") or {}).get("rootless") and not present:
        return
    for controller, name in _CONTROLLERS.items():
        if controller not in present:
            yield name
