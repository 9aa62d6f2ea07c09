"""Brings a sandbox up: the server, then its nodes, as background processes, until every node is online.

Owns what the nodes of a sandbox are told. Must not know how server and agent work: both are started by their commands.
"""

import json
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import yaml

from node_agent.domain.database import DatabaseType
from node_agent.errors import ConfigError, NodeAgentError, Transient
from node_agent.runtime.connection import EngineConnection
from node_agent.sandbox.connection import Connection, Member, read_connection
from node_agent.sandbox.lowering import take_down
from node_agent.sandbox.place import Place, ProcessPlace
from node_agent.sandbox.processes import Mark, launch
from node_agent.sandbox.samples import write_samples
from node_agent.store import presence

ORGANIZATIONS: Final = (
    *("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu"),
    *("nu", "xi", "omicron", "pi", "rho", "sigma", "tau", "upsilon", "phi", "chi", "psi", "omega"),
)
TYPES: Final[Mapping[str, DatabaseType]] = {
    ".csv": DatabaseType.CSV,
    ".parquet": DatabaseType.PARQUET,
    ".xlsx": DatabaseType.EXCEL,
    ".sqlite": DatabaseType.SQLITE,
    ".db": DatabaseType.SQLITE,
}
ANY_IMAGE: Final = "*"
LABEL: Final = "default"
_PROGRAM: Final = (sys.executable, "-m", "node_agent")
_ENGINE_SECONDS: Final = 10.0
_SERVER_SECONDS: Final = 30.0
_FIRST_NODE_SECONDS: Final = 60.0
_FURTHER_NODE_SECONDS: Final = 10.0
_LOOK_SECONDS: Final = 0.1
_MOST_CPUS: Final = 2

Say = Callable[[str], None]
Seen = TypeVar("Seen")


@dataclass(frozen=True, slots=True, kw_only=True)
class Blueprint:
    """What a sandbox is to be like."""

    organizations: tuple[str, ...]
    sources: tuple[Path, ...] = ()
    """A file for each organization; sample data when there are none."""
    images: tuple[str, ...] = (ANY_IMAGE,)
    """What the nodes let run, as patterns."""

    @classmethod
    def of(cls, *, nodes: int | None, sources: Sequence[Path], images: Sequence[str]) -> "Blueprint":
        """Read what was asked for. Raises ConfigError."""
        count = nodes or len(sources) or 3
        if sources and len(sources) != count:
            raise ConfigError(
                f"{count} nodes cannot share {len(sources)} files.",
                hint="Give one file for each node: --data.",
            )
        for source in sources:
            _type_of(source)
        return cls(
            organizations=ORGANIZATIONS[:count],
            sources=tuple(source.resolve() for source in sources),
            images=tuple(images) or (ANY_IMAGE,),
        )


def _type_of(source: Path) -> DatabaseType:
    found = TYPES.get(source.suffix.lower())
    if found is None or not source.is_file():
        kinds = ", ".join(TYPES)
        raise ConfigError(
            f"This is no file a node could offer: {source}.", hint=f"Name files that end in {kinds}."
        )
    return found


def bring_up(place: Place, blueprint: Blueprint, *, say: Say) -> Connection:
    """Bring a sandbox up, or leave nothing of it behind. Raises NodeAgentError."""
    check_machine()
    place.claim(blueprint.organizations)
    try:
        return _started(place, blueprint, say)
    except BaseException:
        say("Taking everything down again …")
        # what went wrong first is what counts
        with suppress(NodeAgentError):
            take_down(place)
        raise


def check_machine() -> None:
    """Say at once what the nodes would stumble over. Raises ConfigError, EngineUnreachable."""
    if os.geteuid() != 0:
        raise ConfigError(
            "A sandbox needs root: its nodes shut algorithms in with a firewall rule.",
            hint="Do it as root, for instance with sudo.",
        )
    with EngineConnection(seconds=_ENGINE_SECONDS).client() as client:
        client.ping()


def _started(place: Place, blueprint: Blueprint, say: Say) -> Connection:
    connection = _start_server(place, blueprint)
    say(f"server  {connection.url}")
    marks = _start_nodes(place, blueprint, connection)
    waiting = dict(marks)
    deadline = time.monotonic() + _FIRST_NODE_SECONDS + _FURTHER_NODE_SECONDS * len(waiting)
    started = time.monotonic()
    while waiting:
        for name in [name for name, mark in waiting.items() if _is_online(name, place.nodes[name], mark)]:
            del waiting[name]
            say(f"node    {name} is online ({time.monotonic() - started:.1f} s)")
        if time.monotonic() > deadline:
            raise _late(waiting, place)
        time.sleep(_LOOK_SECONDS)
    return connection


# --- the server -------------------------------------------------------------------------------------------------


def _start_server(place: Place, blueprint: Blueprint) -> Connection:
    process = place.server
    names = ",".join(blueprint.organizations)
    words = ["sandbox", "server", "--json", "--organizations", names, "--state-dir", str(process.state_dir)]
    launch([*_PROGRAM, *words], output=process.output, log=process.log, mark_file=process.mark_file)
    deadline = time.monotonic() + _SERVER_SECONDS
    while (connection := read_connection(place.connection)) is None:
        if not process.is_running:
            raise _ended("The server", process)
        if time.monotonic() > deadline:
            raise Transient(f"The server does not come up within {_SERVER_SECONDS:.0f} seconds.")
        time.sleep(_LOOK_SECONDS)
    return connection


# --- the nodes --------------------------------------------------------------------------------------------------


def _start_nodes(place: Place, blueprint: Blueprint, connection: Connection) -> dict[str, Mark]:
    names = blueprint.organizations
    sources = blueprint.sources or tuple(write_samples(place.samples, names).values())
    files = dict(zip(names, sources, strict=True))
    return {
        member.name: _start_node(
            place.nodes[member.name],
            node_settings(
                place, member, url=connection.url, source=files[member.name], images=blueprint.images
            ),
            member,
        )
        for member in connection.members
    }


def node_name(sandbox: str, organization: str) -> str:
    """Name the node of an organization; networks and containers on this machine are named after it."""
    return f"sandbox-{sandbox}-{organization}"


def node_settings(
    place: Place, member: Member, *, url: str, source: Path, images: Sequence[str]
) -> dict[str, Any]:
    """Say how a node of a sandbox is configured: whatever its owner allows, from whatever lies on this machine."""
    node = place.nodes[member.name]
    return {
        "name": node_name(place.name, member.name),
        "server": {"url": url, "api_key_file": str(node.key_file)},
        "state_dir": str(node.state_dir),
        "databases": [{"label": LABEL, "type": str(_type_of(source)), "uri": str(source)}],
        "policy": {"algorithms": list(images)},
        # an image the author built a moment ago is in no registry
        "images": {"pull": "missing"},
        # A sandbox is never for real data: it may try itself out on an engine without root, which limits less.
        "limits": {"cpus": min(_MOST_CPUS, os.cpu_count() or 1), "accept_unenforced": True},
        "network": {"proxy_port": _free_port()},
        "logging": {"format": "json"},
        # whoever takes the sandbox down must find the same engine
        "docker_host": os.environ.get("DOCKER_HOST") or None,
    }


def _free_port() -> int:
    with socket.create_server(("", 0)) as listener:
        return int(listener.getsockname()[1])


def _start_node(node: ProcessPlace, settings: Mapping[str, Any], member: Member) -> Mark:
    node.key_file.touch(mode=0o600)
    node.key_file.write_text(member.api_key.reveal(), encoding="ascii")
    node.config.write_text(yaml.safe_dump(dict(settings), sort_keys=False), encoding="utf-8")
    words = ["run", "-c", str(node.config)]
    return launch([*_PROGRAM, *words], output=node.output, log=node.log, mark_file=node.mark_file)


def _is_online(name: str, node: ProcessPlace, mark: Mark) -> bool:
    said = presence.read(node.state_dir).presence
    if said is not None and said.pid == mark.pid and said.online:
        return True
    if not node.is_running:
        raise _ended(f"The node {name}", node)
    return False


def _late(waiting: Mapping[str, Mark], place: Place) -> Transient:
    said = [presence.read(place.nodes[name].state_dir).presence for name in waiting]
    problems = {
        problem for one in said if one for problem in (one.server_problem, one.engine_problem) if problem
    }
    return Transient(
        f"These nodes do not come online: {', '.join(waiting)}.",
        hint=" ".join(sorted(problems)) or "Is the machine very busy? Try fewer nodes: --nodes 1.",
    )


def _ended(what: str, process: ProcessPlace) -> ConfigError:
    """Say why a process that was to go on has ended, in its own words."""
    last = _last_words(process.log)
    reason = last.get("reason", "see its log above" if process.log.exists() else "it said nothing")
    return ConfigError(
        f"{what} has ended: {reason}",
        hint=str(last.get("hint", "")),
        faults=tuple(map(str, last.get("faults", ()))),
    )


def _last_words(log: Path) -> dict[str, Any]:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    for line in reversed(lines):
        with suppress(ValueError):
            said = json.loads(line)
            if isinstance(said, dict) and said.get("event") == "agent_ended":
                return said
    return {"reason": " / ".join(lines[-3:])} if lines else {}
