"""The machine as a place for algorithms: the engine, the isolated network, and the proof that it is isolated."""

from dataclasses import dataclass

import structlog

from node_agent.config import Settings
from node_agent.errors import ConfigError
from node_agent.runtime.connection import EngineConnection
from node_agent.runtime.engine import DockerEngine
from node_agent.runtime.network import IsolatedNetwork, PreparedNetwork, prepare_network, remove_network
from node_agent.runtime.probe import Check, ProbePlan, probe_isolation

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Site:
    """The engine and the network of one agent."""

    settings: Settings
    connection: EngineConnection
    engine: DockerEngine
    network: IsolatedNetwork

    @classmethod
    def of(cls, settings: Settings) -> "Site":
        """Build the site of a configuration; nothing is touched yet."""
        connection = EngineConnection(settings.docker_host)
        network = IsolatedNetwork(settings.name, connection, subnet=settings.network.subnet)
        engine = DockerEngine(settings.name, connection, network, logins=settings.images.registries)
        return cls(settings, connection, engine, network)

    def prepare(self) -> PreparedNetwork:
        """Create the network and load the firewall rule, as far as our rights go. Raises ConfigError."""
        return prepare_network(
            self.network, name=self.settings.name, proxy_port=self.settings.network.proxy_port
        )

    def remove(self) -> None:
        """Take the network and the rule away again. Raises ConfigError."""
        facts = remove_network(self.network, name=self.settings.name)
        if not facts.loaded:
            raise ConfigError(
                f"The firewall rule could not be removed: {facts.reason}.", hint="Do it as root."
            )

    def prove(self, prepared: PreparedNetwork) -> None:
        """Prove from inside that runs are shut in; refuse to go on when they are not. Raises ConfigError."""
        report = probe_isolation(self.connection, self.engine, prepared.network, self.plan(prepared))
        for finding in report.findings:
            log.warning("isolation_open", check=str(finding.check), finding=finding.text)
        accepted = frozenset({Check.HOST}) if self.settings.network.accept_open_host else frozenset()
        refused = report.without(accepted).findings
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
            user=self.settings.container_user,
            groups=(),
            limits=self.settings.container_limits,
            proxy_port=self.settings.network.proxy_port,
            firewall=prepared.firewall,
            image=self.settings.network.probe_image,
        )
