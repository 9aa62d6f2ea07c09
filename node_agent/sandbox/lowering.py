"""Takes a sandbox down: ends its processes, removes its containers, networks, rules and files.

Owns the order. May be repeated, also after a sandbox came up only in part.
"""

from typing import Final

from node_agent.commands import load_place
from node_agent.sandbox.place import Place, ProcessPlace
from node_agent.sandbox.processes import end
from node_agent.site import Site

_NODE_SECONDS: Final = 20.0
_SERVER_SECONDS: Final = 5.0


def take_down(place: Place) -> None:
    """Leave nothing of a sandbox on this machine. Raises ConfigError, EngineUnreachable; then it may be repeated."""
    nodes = list(place.nodes.values())
    _end(nodes, patience=_NODE_SECONDS)
    _end([place.server], patience=_SERVER_SECONDS)
    for node in nodes:
        # the configuration is written before anything is done with it
        if node.config.exists():
            _remove_traces(node)
    place.remove()


def _end(processes: list[ProcessPlace], *, patience: float) -> None:
    end([mark for process in processes if (mark := process.mark) is not None], patience=patience)


def _remove_traces(node: ProcessPlace) -> None:
    site = Site.of(load_place(node.config))
    for container in site.engine.list_containers():
        site.engine.remove(container.id)
    site.remove()
