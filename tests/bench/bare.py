"""The same containers without any node: by the engine's API, as an agent would have to ask for them, and by `docker run`.

Owns how a container is run by hand. Must not know why.
"""

import base64
import contextlib
import secrets
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import docker

from node_agent.domain import contract
from node_agent.domain.container import ContainerLimits, ContainerSpec, Mount, NetworkFacts
from node_agent.domain.run import ContainerId
from node_agent.runtime.connection import EngineConnection
from node_agent.runtime.network import IsolatedNetwork
from node_agent.runtime.spec import container_config
from tests.bench.failures import BenchError
from tests.lab.agents import AgentProcess

MIB = 1 << 20
USER = (64198, 64198)
LABEL = "node-agent-bench"
FOLDER = "/mnt/data"
LIMITS = ContainerLimits(cpus=2, memory=512 * MIB, pids=512, tmp_size=1 << 30, file_size=1 << 30)
# As an algorithm is told it, in the form the environment of a run is written in.
OUTPUT = base64.b32encode(b"/tmp/output").decode().replace("=", "!")


@dataclass(frozen=True)
class ByHand:
    """Runs containers of one image with the settings and in the network of an agent's runs."""

    client: docker.DockerClient
    network: NetworkFacts
    image_id: str
    namespace: ContainerId | None = None
    """The container whose network namespace they join; None: each gets its own."""

    @classmethod
    def beside(cls, agent: AgentProcess, client: docker.DockerClient, image: str) -> "ByHand":
        """Take image and network of an agent's runs."""
        network = IsolatedNetwork(agent.name, EngineConnection()).ensure_network()
        return cls(client, network, client.images.get(image).id or "")

    @contextlib.contextmanager
    def joining(self) -> Iterator["ByHand"]:
        """Have them join a network namespace that is there already, as the agent's runs do."""
        spec = replace(self._spec({}, ()), command=("sleep", "infinity"))
        holder = ContainerId(self._created(spec))
        try:
            self.client.api.start(holder)
            yield replace(self, namespace=holder)
        finally:
            self.client.api.remove_container(holder, force=True, v=True)

    def run(self, *, environment: Mapping[str, str] | None = None, mounts: tuple[Mount, ...] = ()) -> float:
        """Create, start, wait, read the log; return the seconds. Taking the container away is not counted."""
        spec = self._spec(environment or {"OUTPUT_FILE": "/tmp/output"}, mounts)
        try:
            return self._timed(spec)
        finally:
            with contextlib.suppress(docker.errors.NotFound):
                self.client.api.remove_container(spec.name, force=True, v=True)

    def _spec(self, environment: Mapping[str, str], mounts: tuple[Mount, ...]) -> ContainerSpec:
        return ContainerSpec(
            name=f"{LABEL}-{secrets.token_hex(6)}",
            run_id=None,
            image_id=self.image_id,
            user=USER,
            groups=(),
            environment=contract.encoded(environment),
            mounts=mounts,
            limits=LIMITS,
            namespace=self.namespace,
        )

    def _created(self, spec: ContainerSpec) -> str:
        config = container_config(spec, agent=LABEL, network=self.network)
        made = self.client.api.create_container_from_config(config, name=spec.name)  # type: ignore[no-untyped-call]
        return str(made["Id"])

    def _timed(self, spec: ContainerSpec) -> float:
        started = time.monotonic()
        made = self._created(spec)
        self.client.api.start(made)
        code = self.client.api.wait(made)["StatusCode"]
        length = sum(map(len, self.client.api.logs(made, stream=True)))
        took = time.monotonic() - started
        if code != 0:
            raise BenchError(f"by hand the container ended with {code} and {length} bytes of log")
        return took


def docker_run(image: str) -> float:
    """Return the seconds of the command line's own run, without isolation or hardening."""
    started = time.monotonic()
    command = ["docker", "run", "--rm", "--env", f"OUTPUT_FILE={OUTPUT}", image]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BenchError(f"docker run failed: {done.stderr.strip()[-600:]}")
    return time.monotonic() - started


@dataclass(frozen=True)
class OnBridge:
    """Runs containers of one image with the files and variables of an algorithm, in the engine's own network."""

    client: docker.DockerClient
    image: str

    def run(
        self, given: bytes, *, token: str, environment: Mapping[str, str], databases: Mapping[str, Path]
    ) -> bytes:
        """Create, start, wait, read the log, as a node must; return the output. *databases* are by their paths inside."""
        with TemporaryDirectory(prefix="bench-run-") as name:
            folder = Path(name)
            for file, content in {"input": given, "output": b"", "token": token.encode()}.items():
                (folder / file).write_bytes(content)
            paths = {f"{file.upper()}_FILE": f"{FOLDER}/{file}" for file in ("input", "output", "token")}
            binds = [
                f"{folder}:{FOLDER}:rw",
                *(f"{file}:{inside}:ro" for inside, file in databases.items()),
            ]
            self._contain(binds, {**environment, **paths, "TEMPORARY_FOLDER": FOLDER})
            return (folder / "output").read_bytes()

    def _contain(self, binds: Sequence[str], environment: Mapping[str, str]) -> None:
        engine = self.client.api
        made = engine.create_container(
            self.image,
            name=f"{LABEL}-{secrets.token_hex(6)}",
            environment=contract.encoded(environment),
            host_config=engine.create_host_config(binds=list(binds)),
        )
        try:
            engine.start(made["Id"])
            code, log = engine.wait(made["Id"])["StatusCode"], engine.logs(made["Id"])
        finally:
            engine.remove_container(made["Id"], force=True, v=True)
        if code != 0:
            raise BenchError(f"by hand a container of {self.image} ended with {code}: {log[-1500:]!r}")
