"""What integration tests stand on: an engine that answers, a network of one test agent, and containers on it.

Owns making these and taking them away again. Used by fixtures here and by the contract tests.
"""

import io
import json
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import docker
from docker.errors import APIError, NotFound

from node_agent.domain.container import (
    ContainerLimits,
    ContainerReport,
    ContainerSpec,
    NetworkFacts,
    Phase,
    run_container_name,
)
from node_agent.domain.run import ContainerId, RunId
from node_agent.runtime.connection import EngineConnection
from node_agent.runtime.engine import DockerEngine
from node_agent.runtime.network import IsolatedNetwork, remove_network
from node_agent.runtime.spec import LABEL_NAME
from tests.lab.engine import Engine, EngineError
from tests.lab.engine import engine as lab_engine
from tests.lab.images import script_image

MIB = 1024 * 1024
USER = (64198, 64198)
LIMITS = ContainerLimits(cpus=1, memory=128 * MIB, pids=64, tmp_size=16 * MIB, file_size=4 * MIB)
OBEDIENT = "import os; exec(os.environ.get('DO', ''))"
END_SECONDS = 30

__all__ = ["LIMITS", "MIB", "USER", "EngineError", "Machine", "machine", "small_image"]


@dataclass(frozen=True)
class Machine:
    """One test agent's engine and network."""

    name: str
    host: str
    client: docker.DockerClient
    connection: EngineConnection
    network: IsolatedNetwork
    engine: DockerEngine
    image_id: str
    """An image that executes the Python in the variable DO."""

    @property
    def facts(self) -> NetworkFacts:
        """Give the network, made if it is missing."""
        return self.network.ensure_network()

    def spec(self, run_id: int, do: str = "", **changes: Any) -> ContainerSpec:
        """Ask for a container of a run that executes *do*."""
        plain = ContainerSpec(
            name=run_container_name(self.name, RunId(run_id)),
            run_id=RunId(run_id),
            image_id=self.image_id,
            user=USER,
            groups=(),
            environment={"DO": do},
            mounts=(),
            limits=LIMITS,
        )
        return replace(plain, **changes)

    def start(self, run_id: int, do: str = "", **changes: Any) -> ContainerId:
        """Create and start a container."""
        container = self.engine.ensure_container(self.spec(run_id, do, **changes))
        self.engine.ensure_started(container)
        return container

    def ended(self, container: ContainerId) -> ContainerReport:
        """Wait until the container has ended."""
        deadline = time.monotonic() + END_SECONDS
        while time.monotonic() < deadline:
            report = self.engine.inspect(container)
            assert report is not None, "the container is gone"
            if report.phase is Phase.EXITED:
                return report
            time.sleep(0.05)
        raise AssertionError(f"the container did not end in {END_SECONDS} s")

    def log(self, container: ContainerId, *, limit: int = MIB) -> str:
        """Give what the container wrote."""
        text = io.BytesIO()
        self.engine.copy_log(container, text, limit=limit, mask=iter)
        return text.getvalue().decode()

    def run(self, run_id: int, do: str, **changes: Any) -> tuple[ContainerReport, str]:
        """Run a container to its end; give its report and log."""
        container = self.start(run_id, do, **changes)
        report = self.ended(container)
        log = self.log(container)
        self.engine.remove(container)
        return report, log

    def answer(self, run_id: int, do: str, **changes: Any) -> Any:
        """Run a container to its end and read the last line of JSON it wrote.

        A warning on the other stream may come after it.
        """
        report, log = self.run(run_id, do, **changes)
        assert report.exit_code == 0, log
        for line in reversed(log.splitlines()):
            with suppress(json.JSONDecodeError):
                return json.loads(line)
        raise AssertionError(f"no line of JSON in the log:\n{log}")

    def address(self, container: ContainerId) -> str:
        """Give the container's address in the isolated network."""
        found = self.client.api.inspect_container(container)
        return str(found["NetworkSettings"]["Networks"][self.facts.name]["IPAddress"])

    def clear(self) -> None:
        """Remove every container of this agent."""
        for container in self.engine.list_containers():
            self.engine.remove(container.id)


def small_image(client: docker.DockerClient, agent: str, content: str) -> str:
    """Make an image of a few bytes, for registries: nothing in it can run."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        entry = tarfile.TarInfo("content")
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content.encode()))
    tag = f"{agent}-{content}"
    client.api.import_image_from_data(
        archive.getvalue(), repository=tag, tag="1", changes=[f"LABEL {LABEL_NAME}={agent}"]
    )
    return f"{tag}:1"


@contextmanager
def machine(name: str) -> Iterator[Machine]:
    """Provide the engine and what belongs to the test agent *name*; at the end nothing of it is left."""
    with lab_engine() as found:
        made = _machine(name, found)
        try:
            made.clear()
            yield made
        finally:
            made.clear()
            remove_network(made.network, name=name)
            _remove_images(made.client, name)
            made.client.close()


def _machine(name: str, found: Engine) -> Machine:
    client = found.client()
    connection = EngineConnection(found.docker_host)
    network = IsolatedNetwork(name, connection)
    return Machine(
        name=name,
        host=found.docker_host,
        client=client,
        connection=connection,
        network=network,
        engine=DockerEngine(name, connection, network),
        image_id=str(client.images.get(script_image(client, "obedient", OBEDIENT)).id),
    )


def _remove_images(client: docker.DockerClient, name: str) -> None:
    for image in client.images.list(filters={"label": f"{LABEL_NAME}={name}"}):
        try:
            client.images.remove(image.id, force=True)
        except (NotFound, APIError):
            continue
