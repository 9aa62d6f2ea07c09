"""Every key of a vantage6 version 4 node's configuration, and what becomes of it.

Owns the table that the import, the hints for pasted settings and the page for people share. Must not know how a value
is carried over.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType


class Fate(StrEnum):
    """What becomes of a key."""

    SAME = "supported"
    REPLACED = "replaced"
    NOT_NEEDED = "not needed"
    NOT_SUPPORTED = "not supported"


@dataclass(frozen=True, slots=True)
class Row:
    """One key of the old node; *text* is what the import says about it."""

    key: str
    fate: Fate
    here: str
    """The setting that says the same here; empty when there is none."""
    text: str


_LOG = "the log goes to standard error; systemd or the container engine keeps and rotates it"
_INFRASTRUCTURE = "the agent runs no helper containers"
_METRICS = "no metrics are sent to the server"
_DEBUG = "logging.level: debug says more"

ROWS: tuple[Row, ...] = (
    Row("api_key", Fate.REPLACED, "server.api_key_file", "moves into a file of its own"),
    Row("server_url", Fate.REPLACED, "server.url", "is one address with port and path"),
    Row("port", Fate.REPLACED, "server.url", "is part of the address"),
    Row("api_path", Fate.REPLACED, "server.url", "is part of the address"),
    Row(
        "task_dir",
        Fate.REPLACED,
        "state_dir",
        "was never used by the old node; journal and results are kept in state_dir",
    ),
    Row("databases[].label", Fate.SAME, "databases[].label", "is what tasks name"),
    Row("databases[].uri", Fate.SAME, "databases[].uri", "is the path on this machine, or the address of a service"),
    Row("databases[].type", Fate.SAME, "databases[].type", "says how algorithms read it"),
    Row(
        "databases[].mount_mode",
        Fate.NOT_NEEDED,
        "",
        "files and folders are always mounted in place and read-only, never copied",
    ),
    Row("databases[].env", Fate.SAME, "databases[].env", "is given only to runs that ask for this database"),
    Row(
        "encryption.enabled",
        Fate.REPLACED,
        "encryption.private_key",
        "follows from the key: with one the collaboration must be encrypted, without one it must not",
    ),
    Row("encryption.private_key", Fate.SAME, "encryption.private_key", "is the path of the organization's key"),
    Row("logging.level", Fate.SAME, "logging.level", "is said in small letters"),
    Row("logging.use_console", Fate.NOT_NEEDED, "", _LOG),
    Row("logging.backup_count", Fate.NOT_NEEDED, "", _LOG),
    Row("logging.max_size", Fate.NOT_NEEDED, "", _LOG),
    Row("logging.file", Fate.NOT_NEEDED, "", _LOG),
    Row("logging.format", Fate.REPLACED, "logging.format", "is chosen among console, json and auto"),
    Row("logging.datefmt", Fate.NOT_NEEDED, "", "moments are written in UTC, in ISO 8601"),
    Row("logging.loggers", Fate.NOT_NEEDED, "", "there is one level for everything"),
    Row(
        "policies.allowed_algorithms",
        Fate.REPLACED,
        "policy.algorithms",
        "is a list of globs over the image name without tag, or of contents as name@sha256:…",
    ),
    Row(
        "policies.allowed_algorithm_stores",
        Fate.REPLACED,
        "policy.algorithm_stores",
        "is a list of addresses or globs over the whole address",
    ),
    Row(
        "policies.allow_either_whitelist_or_store",
        Fate.REPLACED,
        "policy.combine",
        "is either or both; with one list only, that list decides",
    ),
    Row("policies.allowed_users", Fate.REPLACED, "policy.users", "is a list of ids or names"),
    Row("policies.allowed_organizations", Fate.REPLACED, "policy.organizations", "is a list of ids or names"),
    Row(
        "policies.allow_basics_algorithm",
        Fate.REPLACED,
        "policy.basics_algorithm",
        "means the same: true lets the lists decide, false refuses it",
    ),
    Row("policies.require_algorithm_pull", Fate.REPLACED, "images.pull", "is always for true, missing for false"),
    Row("allowed_images", Fate.REPLACED, "policy.algorithms", "of version 3 is the list of allowed algorithms"),
    Row("share_config", Fate.REPLACED, "share.node_facts", "means the same"),
    Row(
        "share_algorithm_logs",
        Fate.REPLACED,
        "share.algorithm_logs",
        "is full for true, off for false; share.live_logs sends lines while a run goes on",
    ),
    Row("algorithm_env", Fate.SAME, "algorithm_env", "is given to every run"),
    Row(
        "algorithm_device_requests.gpu",
        Fate.REPLACED,
        "policy.gpu",
        "is given to the images that are named, not to every run",
    ),
    Row("docker_registries[].registry", Fate.REPLACED, "images.registries[].host", "is the name of the host"),
    Row("docker_registries[].username", Fate.REPLACED, "images.registries[].username", "is the user name there"),
    Row(
        "docker_registries[].password",
        Fate.REPLACED,
        "images.registries[].password_file",
        "moves into a file of its own",
    ),
    Row(
        "docker_services",
        Fate.REPLACED,
        "services",
        "are reached through a database whose address names them, by runs that ask for it, and at that port only",
    ),
    Row(
        "whitelist.domains",
        Fate.REPLACED,
        "egress.allow",
        "are named with their port; a leading dot becomes the name itself and *. before it",
    ),
    Row("whitelist.ips", Fate.REPLACED, "egress.allow", "are named with their port"),
    Row("whitelist.ports", Fate.REPLACED, "egress.allow", "stand behind each host"),
    Row("ssh-tunnels[].hostname", Fate.REPLACED, "services[].name", "is the host in a database's address"),
    Row("ssh-tunnels[].ssh.host", Fate.REPLACED, "services[].tunnel.host", "is the machine that is logged in to"),
    Row("ssh-tunnels[].ssh.port", Fate.REPLACED, "services[].tunnel.port", "is its port, 22 if not given"),
    Row(
        "ssh-tunnels[].ssh.fingerprint",
        Fate.REPLACED,
        "services[].tunnel.host_key",
        "is the machine's public key (ssh-ed25519 AAAA…) or its fingerprint (SHA256:…)",
    ),
    Row("ssh-tunnels[].ssh.identity.username", Fate.REPLACED, "services[].tunnel.user", "is the user name there"),
    Row(
        "ssh-tunnels[].ssh.identity.key",
        Fate.REPLACED,
        "services[].tunnel.key_file",
        "is a private key that only the agent's user reads",
    ),
    Row("ssh-tunnels[].tunnel.bind.ip", Fate.NOT_NEEDED, "", "the agent chooses where algorithms reach a tunnel"),
    Row("ssh-tunnels[].tunnel.bind.port", Fate.NOT_NEEDED, "", "the agent chooses where algorithms reach a tunnel"),
    Row("ssh-tunnels[].tunnel.dest.ip", Fate.REPLACED, "services[].tunnel.target", "is the host of host:port"),
    Row("ssh-tunnels[].tunnel.dest.port", Fate.REPLACED, "services[].tunnel.target", "is the port of host:port"),
    Row(
        "vpn_subnet",
        Fate.NOT_SUPPORTED,
        "",
        "algorithms of different nodes cannot reach each other: such a network is a way around the isolation of every "
        "run; let them exchange results through subtasks",
    ),
    Row("images.node", Fate.NOT_NEEDED, "", "the agent is installed, not pulled"),
    Row("images.alpine", Fate.NOT_NEEDED, "", _INFRASTRUCTURE),
    Row("images.vpn_client", Fate.NOT_NEEDED, "", _INFRASTRUCTURE),
    Row("images.network_config", Fate.NOT_NEEDED, "", _INFRASTRUCTURE),
    Row("images.ssh_tunnel", Fate.NOT_NEEDED, "", _INFRASTRUCTURE),
    Row("images.ssh-tunnel", Fate.NOT_NEEDED, "", _INFRASTRUCTURE),
    Row("images.squid", Fate.NOT_NEEDED, "", _INFRASTRUCTURE),
    Row("alpine", Fate.NOT_NEEDED, "", _INFRASTRUCTURE),
    Row(
        "node_extra_env",
        Fate.REPLACED,
        "server.ca_bundle",
        "is the environment of the service (systemctl edit: Environment=NAME=value); certificate authorities are "
        "named with server.ca_bundle",
    ),
    Row(
        "node_extra_mounts",
        Fate.NOT_NEEDED,
        "",
        "the agent sees the machine's own files; name their paths as they are here",
    ),
    Row("node_extra_hosts", Fate.NOT_NEEDED, "", "the agent uses the machine's names: write them into /etc/hosts"),
    Row("run_context_file", Fate.SAME, "run_context_file", "means the same"),
    Row("prometheus.enabled", Fate.NOT_SUPPORTED, "", _METRICS),
    Row("prometheus.report_interval_seconds", Fate.NOT_SUPPORTED, "", _METRICS),
    Row("directories.log", Fate.NOT_NEEDED, "", _LOG),
    Row("directories.data", Fate.NOT_NEEDED, "", "everything the agent keeps is in state_dir"),
    Row("debug.socketio", Fate.NOT_NEEDED, "", _DEBUG),
    Row("debug.proxy_server", Fate.NOT_NEEDED, "", _DEBUG),
)  # fmt: skip

BLOCKS: Mapping[str, str] = MappingProxyType(
    {
        "policies": "policy",
        "whitelist": "egress.allow",
        "ssh-tunnels": "services",
        "docker_registries": "images.registries",
        "algorithm_device_requests": "policy.gpu",
    }
)
"""Blocks whose keys all moved to one place."""

ROW_OF: Mapping[str, Row] = MappingProxyType({row.key: row for row in ROWS})
_BY_LAST_WORD: Mapping[str, Row] = MappingProxyType(
    {row.key.rpartition(".")[2]: row for row in reversed(ROWS)}
)


def looks_like_vantage6(tree: Mapping[str, object]) -> bool:
    """Tell whether a configuration is one of the old node, and not one of ours with a key too many."""
    return "server" not in tree and not tree.keys().isdisjoint({"server_url", "task_dir", "application"})


def key_text(loc: Sequence[int | str]) -> str:
    """Write a place in the old file as the table does: `databases[].uri`."""
    return "".join("[]" if isinstance(part, int) else f".{part}" for part in loc).lstrip(".")


def hint(loc: Sequence[int | str]) -> str | None:
    """Say where a setting of the old node is said here; None when it is none of its settings."""
    key = key_text(loc)
    if key in BLOCKS:
        return f"here it is said with {BLOCKS[key]}"
    row = ROW_OF.get(key) or _BY_LAST_WORD.get(str(loc[-1]))
    if row is not None:
        return f"here it is said with {row.here}" if row.here else row.text
    inner = [row for row in ROWS if row.key.startswith(f"{key}.")]
    return inner[0].text if inner else None
