"""Network namespaces kept ready, so that a run need not wait until the engine has made it one.

Making the network takes an engine most of the start of a container. A namespace of the isolated network can be made before
anybody asks: a container that only sleeps, its holder, has it, and the container of a run joins it instead of getting its
own. Owns the holders. Must not know which run may have which: that is in lending.py.
"""

import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import structlog
from docker import APIClient
from docker.errors import APIError, NotFound

from node_agent.domain.container import ContainerLimits, NetworkFacts
from node_agent.domain.run import ContainerId
from node_agent.errors import ConfigError, EngineUnreachable, RunFailed
from node_agent.runtime.connection import EngineConnection, engine_text
from node_agent.runtime.lending import Lending
from node_agent.runtime.own_python import sleeping_container
from node_agent.runtime.podman import is_podman
from node_agent.runtime.spec import (
    HOLDER,
    LABEL_KEEPER,
    LABEL_NAME,
    joined_namespace,
)

log = structlog.get_logger()

LOOK_SECONDS = 120.0
"""How often it is looked whether the holders still run, while no run comes or goes."""
STOP_SECONDS = 10.0
_ENDED = frozenset({"exited", "dead", "removing"})
_MIB = 1 << 20
_HOLDER_LIMITS = ContainerLimits(cpus=1, memory=64 * _MIB, pids=16, tmp_size=_MIB, file_size=_MIB)


@dataclass(slots=True)
class Loan:
    """A namespace lent while a container is being made."""

    holder: ContainerId | None
    container: ContainerId | None = None
    """Who joined; stays None when there was nothing to join, or nobody came."""


class Namespaces:
    """The namespaces of the agent *agent*: at most *most* of them, one of them fresh whenever there is room."""

    def __init__(
        self,
        agent: str,
        connection: EngineConnection,
        *,
        most: int,
        user: tuple[int, int],
        image: str | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._agent = agent
        self._connection = connection
        self._most = most
        self._user = user
        self._image = image
        self._network: NetworkFacts | None = None
        self._lending = Lending(most, now=now)
        self._looking = threading.Lock()
        """Held from a look at the engine to the entry in the books: what is added in between is not taken for dead."""
        self._wake = threading.Event()
        self._stopped = False
        self._trouble = ""

    # --- runs come and go ---------------------------------------------------------------------------------------

    @contextmanager
    def lent_to(self, series: str) -> Iterator[Loan]:
        """Lend a namespace to a run of *series*, for good as soon as its container joined; none without a series."""
        loan = Loan(self._lending.take(series) if series else None)
        if loan.holder is None:
            yield loan
            return
        self._wake.set()
        try:
            yield loan
        finally:
            if loan.container is None:
                self._lending.give_back(loan.holder)
            else:
                self._lending.joined(loan.container, loan.holder)

    def left(self, container: ContainerId, *, ended_well: bool) -> None:
        """Note that nothing of a container runs any more."""
        if self._lending.left(container, ended_well=ended_well):
            self._wake.set()

    def is_gone(self, container: ContainerId) -> bool:
        """Tell whether the namespace that a container joined is there no more. Raises EngineUnreachable."""
        if not self._lending.has_joined(container):
            return False
        self._forget_the_dead()
        return not self._lending.has_joined(container)

    # --- making and removing them -------------------------------------------------------------------------------

    def open(self, network: NetworkFacts) -> ContainerId | None:
        """Take over what an earlier agent left, and make the first namespace; None where there is to be none.

        Raises EngineUnreachable.
        """
        self._take_over()
        with self._connection.client() as client:
            if self._most and not is_podman(client):
                self._network = network
        with self._telling():
            self._tend()
        return self._lending.fresh

    def serve_forever(self) -> None:
        """Keep one namespace fresh and let go of what nobody needs, until stopped."""
        while not self._stopped:
            is_quiet = not self._wake.wait(LOOK_SECONDS)
            self._wake.clear()
            with self._telling():
                if is_quiet:
                    self._forget_the_dead()
                self._tend()

    def stop(self) -> None:
        """Remove every namespace that no run is in; those of running runs stay. A hung engine is not waited for."""
        self._stopped = True
        self._wake.set()
        removing = threading.Thread(target=self._remove_all, name="namespaces-end", daemon=True)
        removing.start()
        removing.join(STOP_SECONDS)

    def _remove_all(self) -> None:
        with self._telling(), self._looking:
            self._remove(self._lending.close())

    def remove_unused(self) -> None:
        """Remove every holder of the agent, whoever made it, whose namespace no run is in. Raises EngineUnreachable."""
        holders, used = self._found()
        self._remove(holders.keys() - used.values())

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Go on without when none can be had: runs then get their own. Each trouble is told once."""
        try:
            yield
        except (EngineUnreachable, ConfigError, RunFailed) as error:
            if str(error) != self._trouble:
                self._trouble = str(error)
                log.warning("namespaces_not_ready", reason=self._trouble)

    def _tend(self) -> None:
        self._remove(self._lending.let_go())
        network = self._network
        with self._looking:
            if network is not None and self._lending.is_one_wanted():
                self._lending.add(self._made(network))

    def _made(self, network: NetworkFacts) -> ContainerId:
        name = f"node-agent-{self._agent}-namespace-{secrets.token_hex(4)}"
        with self._connection.client() as client:
            config = self._config(client, network)
            try:
                holder = ContainerId(client.create_container_from_config(config, name)["Id"])  # type: ignore[no-untyped-call]
                try:
                    client.start(holder)
                except APIError:
                    self._remove([holder])
                    raise
            except APIError as error:
                said = engine_text(error)
                raise EngineUnreachable(f"A network namespace cannot be made ready: {said}.") from error
        return holder

    def _config(self, client: APIClient, network: NetworkFacts) -> dict[str, Any]:
        return sleeping_container(
            client,
            agent=self._agent,
            network=network,
            user=self._user,
            limits=_HOLDER_LIMITS,
            image=self._image,
            keeps=HOLDER,
        )

    def _remove(self, holders: Iterable[ContainerId]) -> None:
        holders = tuple(holders)
        if not holders:
            return
        with self._connection.client() as client:
            for holder in holders:
                with suppress(NotFound):
                    client.remove_container(holder, v=True, force=True)

    # --- what the engine has --------------------------------------------------------------------------------------

    def _take_over(self) -> None:
        """Keep the namespaces of runs that went on without an agent; who was in the others, nobody knows any more."""
        holders, used = self._found()
        self._lending.take_over(used)
        self._remove(holders.keys() - used.values())

    def _forget_the_dead(self) -> None:
        """Drop what does not run any more, as after a restart of the engine."""
        with self._looking:
            if not self._lending.holders:
                return
            holders, _ = self._found()
            running = {holder for holder, state in holders.items() if state == "running"}
            dead = self._lending.drop_all_but(running)
        self._remove(holder for holder in dead if holder in holders)

    def _found(self) -> tuple[dict[ContainerId, str], dict[ContainerId, ContainerId]]:
        """Give the state of each holder of ours, and the holder behind each container that joined one and goes on."""
        with self._connection.client() as client:
            listed = client.containers(all=True, filters={"label": f"{LABEL_NAME}={self._agent}"})
        holders = {ContainerId(entry["Id"]): str(entry["State"]) for entry in listed if _is_holder(entry)}
        used = {
            ContainerId(entry["Id"]): holder
            for entry in listed
            if (holder := joined_namespace(entry)) is not None
            and holder in holders
            and entry["State"] not in _ENDED
        }
        return holders, used


def _is_holder(entry: Mapping[str, Any]) -> bool:
    return (entry.get("Labels") or {}).get(LABEL_KEEPER) == HOLDER
