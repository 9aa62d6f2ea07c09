"""All gates of one agent: made from what the owner configured, opened and shut together.

Owns the folder with what the gates need. A gate that is not configured is not there.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from node_agent.domain.container import NetworkFacts
from node_agent.domain.egress import EgressRule
from node_agent.domain.run import RunId
from node_agent.domain.service import Entrance, Service
from node_agent.gates.egress import Egress, EgressPlan
from node_agent.gates.tunnel import TunnelChild

if TYPE_CHECKING:
    from node_agent.gates.visitors import Listing
    from node_agent.gates.ways import AddressesOf


@dataclass(frozen=True, slots=True, kw_only=True)
class GatePlan:
    """What the owner opened."""

    agent: str
    folder: Path
    egress: tuple[EgressRule, ...] = ()
    egress_port: int
    entrances: Mapping[str, Entrance]
    services: tuple[Service, ...] = ()

    @property
    def services_in_use(self) -> Mapping[str, Service]:
        """Give the services that a database names, by name."""
        named = {entrance.place.host.lower() for entrance in self.entrances.values()}
        return {service.name: service for service in self.services if service.name in named}


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What the gates ask about the machine and the runs."""

    runs_at: "Callable[[], Listing]"
    """Which run has which address in the isolated network now."""
    asked: Callable[[RunId, str], bool]
    """Tells whether a run asked for a label."""
    addresses_of: "AddressesOf"
    inside: Callable[[], Iterable[str]]
    """The addresses of this machine and of its containers' networks."""


class Gates:
    """The gates of one agent."""

    def __init__(self, plan: GatePlan, surroundings: Surroundings) -> None:
        self._plan = plan
        self._surroundings = surroundings
        self._egress: Egress | None = None
        self._stack = ExitStack()

    def start(self, network: NetworkFacts) -> None:
        """Open every gate on our side of the isolated network. Raises ConfigError."""
        with ExitStack() as stack:
            if self._plan.egress or self._plan.entrances:
                self._plan.folder.mkdir(mode=0o700, exist_ok=True)
            if self._plan.egress:
                self._start_egress(network, stack)
            if self._plan.entrances:
                self._start_services(network, stack)
            self._stack = stack.pop_all()

    def refresh(self) -> None:
        """Look again at what changes by itself around the gates."""
        if self._egress is not None:
            self._egress.refresh()

    def stop(self) -> None:
        """Shut every gate; not started is fine."""
        self._stack.close()

    def _start_egress(self, network: NetworkFacts, stack: ExitStack) -> None:
        plan = EgressPlan(
            agent=self._plan.agent,
            address=network.gateway,
            port=self._plan.egress_port,
            clients=network.subnet,
            rules=self._plan.egress,
        )
        egress = Egress(plan, folder=self._plan.folder, inside=self._surroundings.inside)
        stack.callback(egress.stop)
        egress.start()
        self._egress = egress

    def _start_services(self, network: NetworkFacts, stack: ExitStack) -> None:
        # most nodes open nothing, and do without the event loop and its memory
        from node_agent.gates.forwarder import Forwarder
        from node_agent.gates.ways import way_to

        services = self._plan.services_in_use
        tunnels = {
            name: TunnelChild(name, service.tunnel, folder=self._plan.folder)
            for name, service in services.items()
            if service.tunnel is not None
        }
        for tunnel in tunnels.values():
            stack.callback(tunnel.stop)
            tunnel.start()
        ways = {
            entrance: way_to(
                entrance, services, tunnels=tunnels, addresses_of=self._surroundings.addresses_of
            )
            for entrance in self._plan.entrances.values()
        }
        forwarder = Forwarder(
            address=network.gateway,
            doors=ways,
            runs_at=self._surroundings.runs_at,
            asked=self._surroundings.asked,
        )
        stack.callback(forwarder.stop)
        forwarder.start()
