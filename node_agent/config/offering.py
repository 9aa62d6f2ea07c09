"""What one part of the compute API's settings says of another: labels that exist, DIDs that differ, room that is there.

Also says which DID has what was given none. Looked at in the tree, part by part, so that a fault somewhere else in the
file does not hide these. Must not know what is done with an offer.
"""

from collections.abc import Iterator
from typing import Any, Final, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

from node_agent.config.compute import (
    AlgorithmSection,
    ComputeApiSection,
    EnvironmentSection,
    OfferedSection,
    place_of_listener,
)
from node_agent.config.document import Loc, Source
from node_agent.config.faults import Fault, path_text
from node_agent.config.machine import Machine
from node_agent.config.shape import LimitsSection, NetworkSection, in_words
from node_agent.config.values import suggest
from node_agent.domain.assets import Did, derived_did

Section = TypeVar("Section", bound=BaseModel)
_HERE: Final = "compute_api"
_LIMIT_OF: Final = {
    "cpus": "cpus",
    "memory": "memory",
    "disk": "output_size",
    "max_jobs": "concurrent_runs",
    "max_job_time": "run_time",
}
"""What bounds each part of an environment."""
_EVERY_ADDRESS: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared with, not listened on


class _Finding(NamedTuple):
    loc: Loc
    text: str


def did_of_data_set(node: str, offered: OfferedSection) -> Did:
    """Give the DID a data set has: its own, or the one of its label on this node."""
    return derived_did(node, offered.label) if offered.did is None else Did(offered.did)


def did_of_algorithm(node: str, algorithm: AlgorithmSection) -> Did:
    """Give the DID an algorithm has: its own, or the one of what it is; a new digest does not change it."""
    if algorithm.did is not None:
        return Did(algorithm.did)
    return derived_did(node, "algorithm", algorithm.image, algorithm.entrypoint, str(algorithm.code or ""))


def faults_of_offer(source: Source, machine: Machine) -> Iterator[Fault]:
    """Find what does not fit together, as far as the parts themselves are right."""
    compute = _part(ComputeApiSection, source, _HERE, machine)
    if compute is None:
        return
    for loc, text in _findings(compute, source, machine):
        yield Fault(source.line_of(loc), path_text(loc), text)


def _findings(compute: ComputeApiSection, source: Source, machine: Machine) -> Iterator[_Finding]:
    yield from _unknown_labels(compute, _labels(source))
    yield from _repeated_dids(compute, str(source.tree.get("name")))
    limits = _part(LimitsSection, source, "limits", machine)
    if limits is not None:
        yield from _too_large(compute, limits)
    network = _part(NetworkSection, source, "network", machine)
    if network is not None:
        yield from _taken_port(compute, network)


def _part(section: type[Section], source: Source, key: str, machine: Machine) -> Section | None:
    """Read one part of the file alone; None when it has faults of its own, which are told elsewhere."""
    try:
        return section.model_validate(source.tree.get(key, {}), context={"machine": machine})
    except ValidationError:
        return None


def _labels(source: Source) -> list[str]:
    databases: Any = source.tree.get("databases")
    entries = databases if isinstance(databases, list) else []
    return [str(entry.get("label")) for entry in entries if isinstance(entry, dict)]


def _unknown_labels(compute: ComputeApiSection, labels: list[str]) -> Iterator[_Finding]:
    for at, offered in enumerate(compute.data_sets):
        if offered.label not in labels:
            text = f'"{offered.label}" is no label of a database{suggest(offered.label, labels)}'
            yield _Finding((_HERE, "data_sets", at, "label"), text)


def _repeated_dids(compute: ComputeApiSection, node: str) -> Iterator[_Finding]:
    first: dict[Did, str] = {}
    for loc, did, given in _dids(compute, node):
        here = path_text(loc)
        there = first.setdefault(did, here)
        if there != here:
            derived = "" if given else "; give one of the two a did of its own"
            yield _Finding(
                (*loc, "did") if given else loc, f"has the DID that {there} has, {did[:16]}…{derived}"
            )


def _dids(compute: ComputeApiSection, node: str) -> Iterator[tuple[Loc, Did, bool]]:
    for at, offered in enumerate(compute.data_sets):
        yield (_HERE, "data_sets", at), did_of_data_set(node, offered), offered.did is not None
    for at, algorithm in enumerate(compute.algorithms):
        yield (_HERE, "algorithms", at), did_of_algorithm(node, algorithm), algorithm.did is not None


def _too_large(compute: ComputeApiSection, limits: LimitsSection) -> Iterator[_Finding]:
    for at, environment in enumerate(compute.environments):
        yield from _larger_than(limits, environment, (_HERE, "environments", at))


def _larger_than(limits: LimitsSection, environment: EnvironmentSection, place: Loc) -> Iterator[_Finding]:
    for name, limit in _LIMIT_OF.items():
        wanted, most = getattr(environment, name), getattr(limits, limit)
        if wanted is not None and wanted > most:
            loc = (*place, name)
            text = (
                f"is {in_words(loc, wanted)}, more than limits.{limit} ({in_words(('limits', limit), most)})"
            )
            yield _Finding(loc, f"{text}; lower it, or raise the limit")


def _taken_port(compute: ComputeApiSection, network: NetworkSection) -> Iterator[_Finding]:
    if compute.listen is None:
        return
    host, port = place_of_listener(compute.listen)
    if host in _EVERY_ADDRESS and port == network.proxy_port:
        yield _Finding(
            (_HERE, "listen"), "has the port of network.proxy_port on every address; choose another one"
        )
