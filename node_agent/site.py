"""The machine as a place for algorithms: the engine, the isolated network, and the proof that it is isolated."""

import threading
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from node_agent.config import Settings
from node_agent.errors import ConfigError
from node_agent.runtime.addresses import Addresses
from node_agent.runtime.connection import EngineConnection
from node_agent.runtime.engine import DockerEngine
from node_agent.runtime.keeper import Keeper
from node_agent.runtime.namespaces import Namespaces
from node_agent.runtime.network import (
    IsolatedNetwork,
    PreparedNetwork,
    network_name,
    prepare_network,
    remove_network,
)
from node_agent.runtime.probe import Check, ProbePlan, probe_isolation
from node_agent.runtime.registries import RegistryAccounts
from node_agent.runtime.remains import EngineRemains

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Site:
    """The engine and the network of one agent."""

    settings: Settings
    connection: EngineConnection
    engine: DockerEngine
    network: IsolatedNetwork
    namespaces: Namespaces
    remains: EngineRemains

    @classmethod
    def of(cls, settings: Settings) -> "Site":
        """Build the site of a configuration; nothing is touched yet."""
        connection = EngineConnection(settings.docker_host)
        network = IsolatedNetwork(settings.name, connection, subnet=settings.network.subnet)
        accounts = RegistryAccounts(settings.images.registries, docker_config=settings.images.docker_config)
        looking_up = threading.Lock()
        namespaces = Namespaces(
            settings.name,
            connection,
            most=settings.network.kept_ready,
            user=settings.container_user,
            image=settings.network.probe_image,
        )
        engine = DockerEngine(
            settings.name,
            connection,
            network,
            accounts=accounts,
            looking_up=looking_up,
            namespaces=namespaces,
        )
        remains = EngineRemains(
            settings.name, connection, network=network_name(settings.name), looking_up=looking_up
        )
        return cls(settings, connection, engine, network, namespaces, remains)

    def prepare(self) -> PreparedNetwork:
        """Create the network and load the firewall rule, as far as our rights go. Raises ConfigError."""
        prepared = prepare_network(
            self.network,
            name=self.settings.name,
            proxy_port=self.settings.network.proxy_port,
            gates=self.gate_ports,
        )
        # Last, so that the bridge is never there without its rule.
        self.keeper.ensure_bridge(prepared.network)
        return prepared

    @property
    def keeper(self) -> Keeper:
        """Give the one that keeps the bridge where the engine would take it away."""
        return Keeper(
            self.settings.name,
            self.connection,
            user=self.settings.container_user,
            limits=self.settings.container_limits,
            image=self.settings.network.probe_image,
        )

    @property
    def accepted(self) -> frozenset[Check]:
        """List what the owner puts up with."""
        choices = {
            Check.HOST: self.settings.network.accept_open_host,
            Check.LIMITS: self.settings.limits.accept_unenforced,
        }
        return frozenset(check for check, accepted in choices.items() if accepted)

    @property
    def gate_ports(self) -> tuple[int, ...]:
        """List the ports on our side of the network that runs may reach, beside the proxy's."""
        entrances = tuple(entrance.port for entrance in self.settings.entrances.values())
        return entrances if self.settings.egress_port is None else (self.settings.egress_port, *entrances)

    @property
    def addresses(self) -> Addresses:
        """Give the one that knows who has which address."""
        return Addresses(self.settings.name, self.connection, network=network_name(self.settings.name))

    def remove(self) -> None:
        """Take the network and the rule away again. Raises ConfigError."""
        self.keeper.remove()
        self.namespaces.remove_unused()
        facts = remove_network(self.network, name=self.settings.name)
        if not facts.loaded:
            raise ConfigError(
                f"The firewall rule could not be removed: {facts.reason}.", hint="Do it as root."
            )

    def prove(self, prepared: PreparedNetwork) -> None:
        """Prove from inside that runs are shut in; refuse to go on when they are not. Raises ConfigError.

        It is proven for a namespace that runs join: one of their own has the same settings.
        """
        report = probe_isolation(
            self.connection,
            self.engine,
            prepared.network,
            self.plan(prepared),
            ready=lambda: self.namespaces.open(prepared.network),
            clear=_beside,
        )
        for finding in report.findings:
            log.warning("isolation_open", check=str(finding.check), finding=finding.text)
        refused = report.without(self.accepted).findings
        if refused:
            raise ConfigError(
                "Algorithms on this machine would not be shut in.",
                hint="`node-agent check` looks again.",
                faults=tuple(str(finding) for finding in refused),
            )
        if not report.findings:
            log.info("isolation_proven", bridge=prepared.network.bridge, gateway=prepared.network.gateway)

    def plan(self, prepared: PreparedNetwork) -> ProbePlan:
        """Say what is to be proven here."""
        return ProbePlan(
            agent=self.settings.name,
            user=self.settings.container_reader,
            groups=(),
            limits=self.settings.container_limits,
            proxy_port=self.settings.network.proxy_port,
            gates=self.gate_ports,
            firewall=prepared.firewall,
            image=self.settings.network.probe_image,
        )


def _beside(action: Callable[[], None]) -> None:
    """Do it in a thread that the end of the process waits for: nobody waits for what a probe leaves to be gone."""
    threading.Thread(target=action, name="probe-removal").start()
