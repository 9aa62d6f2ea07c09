"""What the engine is asked for when a container is made, and whether it is what was made.

Owns the translation of a ContainerSpec into the engine's words, with all the hardening, and the comparison of what the
engine says it has. Must not talk to an engine.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from node_agent.domain.container import ContainerLimits, ContainerSpec, Mount, NetworkFacts
from node_agent.domain.run import ContainerId
from node_agent.runtime import seccomp

LABEL_PREFIX = "node-agent."
LABEL_NAME = "node-agent.name"
LABEL_RUN = "node-agent.run"
LABEL_PROBE = "node-agent.probe"
LABEL_KEEPER = "node-agent.keeper"
HOLDER = "namespace"
"""What the label of a keeper says that keeps a network namespace ready, and not the bridge."""

PROXY_HOST = "proxyserver"
LOG_OPTIONS = {"max-size": "100m", "max-file": "2"}
SHM_SIZE = 64 * 1024 * 1024
ALL_GPUS: Mapping[str, Any] = {
    "Driver": "",
    "Count": -1,
    "DeviceIDs": None,
    "Capabilities": [["gpu"]],
    "Options": None,
}

Asked = Mapping[str, Any]

_KEYS_OF_LIMIT: Mapping[str, tuple[str, ...]] = {
    "memory": ("Memory", "MemorySwap"),
    "cpus": ("NanoCpus",),
    "pids": ("PidsLimit",),
    "ulimits": ("Ulimits",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineTraits:
    """What an engine can enforce, as it says itself."""

    limits_swap: bool = True
    cgroup_version: str = "2"
    unenforced: frozenset[str] = frozenset()
    """Limits it says it cannot enforce: they are not asked for, and the probe finds them missing."""
    memory_folders: tuple[str, ...] = ()
    """Folders it makes writable in memory on its own, without a limit unless they are asked for."""
    sysctls: Mapping[str, str] = field(default_factory=dict)
    """Kernel settings it has to be asked for."""
    seccomp: str = field(default_factory=seccomp.inline_option)
    """The security option with our filter of system calls, in this engine's form; empty where it cannot filter at all,
    which the probe finds."""


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What an image brings that its container must not have as it is."""

    volumes: tuple[str, ...] = ()
    """The paths it declares as volumes."""
    labels: tuple[str, ...] = ()
    """The names of our own labels on it: they are emptied, or its container would be taken for another kind of ours."""


def image_facts(image: Mapping[str, Any]) -> ImageFacts:
    """Read them from the engine's description of an image."""
    config = image.get("Config") or {}
    ours = (str(name) for name in config.get("Labels") or () if str(name).startswith(LABEL_PREFIX))
    return ImageFacts(tuple(config.get("Volumes") or ()), tuple(ours))


def container_config(
    spec: ContainerSpec,
    *,
    agent: str,
    network: NetworkFacts,
    image: ImageFacts | None = None,
    traits: EngineTraits | None = None,
) -> dict[str, Any]:
    """Translate *spec* into the body of the engine's create call."""
    image = image or ImageFacts()
    config: dict[str, Any] = {
        "Image": spec.image_id,
        "Env": _environment(spec),
        "Labels": {**dict.fromkeys(image.labels, ""), **labels(agent, spec)},
        "Tty": False,
        "OpenStdin": False,
        # A check of the image's author would be one more process that nobody reads.
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": _host_config(spec, network, image.volumes, traits or EngineTraits()),
    }
    if spec.namespace is None:
        config["NetworkingConfig"] = {"EndpointsConfig": {network.name: _endpoint(spec)}}
    if spec.user is not None:
        config["User"] = "{}:{}".format(*spec.user)
    if spec.command is not None:
        config["Entrypoint"] = list(spec.command)
        config["Cmd"] = []
    return config


def labels(agent: str, spec: ContainerSpec) -> dict[str, str]:
    """Return the labels by which a container is recognised as ours."""
    mark = {LABEL_PROBE: "true"} if spec.run_id is None else {LABEL_RUN: str(spec.run_id)}
    return {LABEL_NAME: agent, **mark}


def _environment(spec: ContainerSpec) -> list[str]:
    # A user without an entry in the image's passwd file would get "/" as its home, and the root is read-only.
    return [f"{name}={value}" for name, value in {"HOME": "/tmp", **spec.environment}.items()]  # noqa: S108 - the container's own


def _endpoint(spec: ContainerSpec) -> dict[str, Any]:
    return {"IPAMConfig": {"IPv4Address": spec.address}} if spec.address else {}


def _host_config(
    spec: ContainerSpec, network: NetworkFacts, volumes: tuple[str, ...], traits: EngineTraits
) -> dict[str, Any]:
    return {
        **_confinement(spec, traits),
        **_limits(spec.limits, traits),
        **_network(spec, network),
        **({"DeviceRequests": [dict(ALL_GPUS)]} if spec.gpus else {}),
        **({"Sysctls": dict(traits.sysctls)} if traits.sysctls else {}),
        "Mounts": [*map(_bind, spec.mounts), *_tmpfs_for_volumes(spec, volumes)],
        # Exec is left on: R and numba compile into /tmp and load what they compiled.
        "Tmpfs": dict.fromkeys(
            ("/tmp", *traits.memory_folders),  # noqa: S108 - the container's own
            f"rw,exec,nosuid,nodev,size={spec.limits.tmp_size},mode=1777",
        ),
        "LogConfig": {"Type": "json-file", "Config": dict(LOG_OPTIONS)},
        "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
        "AutoRemove": False,
    }


def _confinement(spec: ContainerSpec, traits: EngineTraits) -> dict[str, Any]:
    confinement = {
        "Privileged": False,
        "CapDrop": ["ALL"],
        "CapAdd": list(spec.capabilities),
        "SecurityOpt": ["no-new-privileges", *([traits.seccomp] if traits.seccomp else [])],
        "ReadonlyRootfs": not spec.writable_root,
        "GroupAdd": [str(group) for group in spec.groups],
        "IpcMode": "private",
        "PidMode": "",
        "UTSMode": "",
        "UsernsMode": "",
        "Devices": [],
        "OomKillDisable": False,
        "PublishAllPorts": False,
    }
    if traits.cgroup_version == "2":
        confinement["CgroupnsMode"] = "private"
    return confinement


def _limits(limits: ContainerLimits, traits: EngineTraits) -> dict[str, Any]:
    asked = {
        "Memory": limits.memory,
        "NanoCpus": round(limits.cpus * 1_000_000_000),
        "PidsLimit": limits.pids,
        "ShmSize": SHM_SIZE,
        "Ulimits": [
            _ulimit("nofile", limits.open_files),
            _ulimit("fsize", limits.file_size),
            _ulimit("core", 0),
        ],
    }
    if traits.limits_swap:
        asked["MemorySwap"] = limits.memory
    left_out = {key for name in traits.unenforced for key in _KEYS_OF_LIMIT[name]}
    return {key: value for key, value in asked.items() if key not in left_out}


def _ulimit(name: str, value: int) -> dict[str, Any]:
    return {"Name": name, "Soft": value, "Hard": value}


_JOINED = "container:"


def joined_namespace(found: Asked) -> ContainerId | None:
    """Read whose network namespace a container has joined; None when it has its own."""
    mode = str((found.get("HostConfig") or {}).get("NetworkMode") or "")
    return ContainerId(mode.removeprefix(_JOINED)) if mode.startswith(_JOINED) else None


def _network(spec: ContainerSpec, network: NetworkFacts) -> dict[str, Any]:
    if spec.namespace is not None:
        # Names come with the namespace.
        return {"NetworkMode": f"{_JOINED}{spec.namespace}"}
    hosts = {**spec.hosts, **dict.fromkeys((*spec.gateway_names, PROXY_HOST), network.gateway)}
    # A name server that nobody runs: the engine's own one passes outside names on even from an internal network.
    return {
        "NetworkMode": network.name,
        "Dns": ["127.0.0.1"],
        "DnsSearch": ["."],
        "DnsOptions": ["timeout:1", "attempts:1"],
        "ExtraHosts": [f"{name}:{address}" for name, address in hosts.items()],
    }


def _bind(mount: Mount) -> dict[str, Any]:
    return {
        "Type": "bind",
        "Source": mount.source,
        "Target": mount.target,
        "ReadOnly": mount.read_only,
        "BindOptions": {"Propagation": "rprivate"},
    }


def _tmpfs_for_volumes(spec: ContainerSpec, volumes: Iterable[str]) -> list[dict[str, Any]]:
    # Without these, the engine would make a volume on disk that no limit bounds.
    taken = {"/tmp", *(mount.target for mount in spec.mounts)}  # noqa: S108 - the container's own
    options = {"SizeBytes": spec.limits.tmp_size, "Mode": 0o1777}
    paths = sorted({"/" + path.strip("/") for path in volumes} - taken - {"/"})
    return [{"Type": "tmpfs", "Target": path, "TmpfsOptions": options} for path in paths]


# --- what the engine says it made -----------------------------------------------------------------------------


def differences(asked: Asked, found: Asked) -> list[str]:
    """Say in which points the engine's description *found* is not what was *asked*; empty when it is the same."""
    host, made = asked["HostConfig"], found.get("HostConfig", {})
    return [
        *(
            f"{words} is {_shown(seen)} instead of {_shown(wanted)}"
            for key, (words, normal) in _COMPARED.items()
            if (wanted := normal(host.get(key))) != (seen := normal(made.get(key)))
            and not (key in _UNLESS_ASKED and key not in host)
        ),
        *_different_identity(asked, found),
        *_different_environment(asked, found),
        *_different_mounts(host, found),
        *_different_networks(asked, found),
    ]


def _same(value: Any) -> Any:
    return value or None


def _unordered(value: Any) -> frozenset[str]:
    return frozenset(map(str, value or ()))


def _capabilities(value: Any) -> frozenset[str]:
    return frozenset(str(name).upper().removeprefix("CAP_") for name in value or ())


def _security(value: Any) -> frozenset[str]:
    # The profile is compared by content: an engine may report it in other words.
    return frozenset(
        seccomp.comparable(str(option).removesuffix(":true").removesuffix("=true")) for option in value or ()
    )


def _ulimits(value: Any) -> frozenset[tuple[Any, ...]]:
    return frozenset((u.get("Name"), u.get("Soft"), u.get("Hard")) for u in value or ())


def _device_requests(value: Any) -> frozenset[str]:
    # An engine fills what was left open with empty values.
    return frozenset(
        ", ".join(f"{key}={request[key]}" for key in sorted(request) if request[key])
        for request in value or ()
    )


def _policy(value: Any) -> str:
    return (value or {}).get("Name") or "no"


def _text(value: Any) -> str:
    return str(value or "")


_COMPARED: Mapping[str, tuple[str, Callable[[Any], Any]]] = {
    "Privileged": ("privileged mode", bool),
    "CapDrop": ("the set of dropped capabilities", _capabilities),
    "CapAdd": ("the set of added capabilities", _capabilities),
    "SecurityOpt": ("the security options", _security),
    "ReadonlyRootfs": ("the read-only root", bool),
    "GroupAdd": ("the set of groups", _unordered),
    "IpcMode": ("the IPC namespace", _text),
    "PidMode": ("the PID namespace", _text),
    "UTSMode": ("the UTS namespace", _text),
    "UsernsMode": ("the user namespace", _text),
    "CgroupnsMode": ("the cgroup namespace", _text),
    "Devices": ("the devices", _same),
    "DeviceRequests": ("the set of GPUs", _device_requests),
    "DeviceCgroupRules": ("the device rules", _same),
    "OomKillDisable": ("the switched-off OOM killer", bool),
    "Memory": ("the memory limit", _same),
    "MemorySwap": ("the limit of memory and swap", _same),
    "NanoCpus": ("the CPU limit", _same),
    "PidsLimit": ("the limit of processes", _same),
    "Ulimits": ("the set of resource limits", _ulimits),
    "Tmpfs": ("the set of memory file systems", _same),
    "NetworkMode": ("the network", _text),
    "Dns": ("the name servers", _unordered),
    "DnsSearch": ("the name search", _unordered),
    "ExtraHosts": ("the host names", _unordered),
    "PortBindings": ("the published ports", _same),
    "PublishAllPorts": ("publishing all ports", bool),
    "Links": ("the links", _same),
    "Binds": ("the bind list", _same),
    "VolumesFrom": ("the volumes of others", _same),
    "Sysctls": ("the kernel settings", _same),
    "LogConfig": ("the log settings", _same),
    "RestartPolicy": ("the restart policy", _policy),
    "AutoRemove": ("removing itself", bool),
}
# Engines fill these in by themselves when they are not asked for. Limits that are not asked for are the probe's matter.
_UNLESS_ASKED = frozenset({"CgroupnsMode", "MemorySwap", "Memory", "NanoCpus", "PidsLimit", "Ulimits"})


def _different_identity(asked: Asked, found: Asked) -> list[str]:
    made = found.get("Config", {})
    pairs = {
        "the image": (asked["Image"], found.get("Image")),
        "the user": (asked.get("User", made.get("User")), made.get("User")),
        "the command": (asked.get("Entrypoint", made.get("Entrypoint")), made.get("Entrypoint")),
        "a terminal": (False, bool(made.get("Tty"))),
        "the label": (
            asked["Labels"],
            {key: value for key, value in (made.get("Labels") or {}).items() if key in asked["Labels"]},
        ),
    }
    return [f"{words} is {_shown(b)} instead of {_shown(a)}" for words, (a, b) in pairs.items() if a != b]


def _different_environment(asked: Asked, found: Asked) -> list[str]:
    made = set(found.get("Config", {}).get("Env") or ())
    # Names only: values may be credentials.
    return [
        f"the variable {entry.partition('=')[0]} is not as asked"
        for entry in asked["Env"]
        if entry not in made
    ]


def _different_mounts(host: Asked, found: Asked) -> list[str]:
    asked = {
        (m["Type"], m["Target"], m.get("Source", ""), not m.get("ReadOnly", False)) for m in host["Mounts"]
    }
    made = {
        (m.get("Type"), m.get("Destination"), _source_of(m), bool(m.get("RW")))
        for m in found.get("Mounts") or ()
    }
    return [
        *(f"the mount at {m[1]} is missing or not as asked" for m in sorted(asked - made)),
        *(f"there is a mount at {m[1]} that was not asked for" for m in sorted(made - asked, key=str)),
    ]


def _source_of(mount: Asked) -> str:
    return str(mount.get("Source") or "") if mount.get("Type") == "bind" else ""


def _different_networks(asked: Asked, found: Asked) -> list[str]:
    wanted = set((asked.get("NetworkingConfig") or {}).get("EndpointsConfig") or ())
    made = set(found.get("NetworkSettings", {}).get("Networks") or ())
    return [] if wanted == made else [f"the networks are {_shown(made)} instead of {_shown(wanted)}"]


def _shown(value: Any) -> str:
    if isinstance(value, (set, frozenset)):
        return ", ".join(sorted(map(str, value))) or "empty"
    return "not set" if value is None or value == "" else str(value)
