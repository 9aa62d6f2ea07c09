"""How a sandbox is: its server, its nodes, and what they are doing.

Owns the facts and their two forms. Must not change anything.
"""

from dataclasses import dataclass
from typing import Any

from node_agent.errors import ConfigError
from node_agent.sandbox.connection import Connection, read_connection, researcher_text
from node_agent.sandbox.place import Place, ProcessPlace
from node_agent.screen import plain
from node_agent.store import presence


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStanding:
    """How one node is."""

    organization: str
    running: bool
    online: bool
    working: int
    finished: int
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How one sandbox is."""

    name: str
    running: bool
    """The server runs, and so does every node."""
    connection: Connection | None
    nodes: tuple[NodeStanding, ...]

    @property
    def online(self) -> int:
        """Count the nodes that are online."""
        return sum(node.online for node in self.nodes)

    def as_dict(self) -> dict[str, Any]:
        """Give it for another program, secrets included."""
        names = ("organization", "running", "online", "working", "finished", "problem")
        return {
            "name": self.name,
            "running": self.running,
            "connection": None if self.connection is None else self.connection.as_dict(),
            "nodes": [{name: getattr(node, name) for name in names} for node in self.nodes],
        }


def standing_of(place: Place) -> Standing:
    """Look at a sandbox."""
    nodes = tuple(_node(name, process) for name, process in place.nodes.items())
    try:
        connection = read_connection(place.connection)
    except ConfigError:
        connection = None
    running = place.server.is_running and all(node.running for node in nodes)
    return Standing(name=place.name, running=running, connection=connection, nodes=nodes)


def _node(organization: str, process: ProcessPlace) -> NodeStanding:
    mark = process.mark
    running = process.is_running
    said = presence.read(process.state_dir).presence
    if said is None or mark is None or said.pid != mark.pid or not running:
        return NodeStanding(
            organization=organization, running=running, online=False, working=0, finished=0, problem=""
        )
    return NodeStanding(
        organization=organization,
        running=True,
        online=said.online,
        working=said.working,
        finished=said.finished,
        problem=said.server_problem or said.engine_problem,
    )


def short_text(standing: Standing) -> str:
    """Give a sandbox in one line."""
    where = standing.connection.url if standing.connection else "no server"
    word = "running" if standing.running else "NOT running"
    return f"{standing.name:<16} {word:<11}  {standing.online} of {len(standing.nodes)} nodes online  {where}"


def long_text(standing: Standing) -> str:
    """Give a sandbox with its nodes, and how to connect."""
    lines = [short_text(standing), *(f"  {_line(node)}" for node in standing.nodes)]
    if standing.connection is not None and standing.running:
        lines += ["", researcher_text(standing.connection)]
    return "\n".join(lines)


def _line(node: NodeStanding) -> str:
    word = "online" if node.online else "running" if node.running else "gone"
    problem = f"; {plain(node.problem)}" if node.problem else ""
    return f"{node.organization:<10} {word:<8} {node.working} working, {node.finished} ended{problem}"
