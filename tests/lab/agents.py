"""Node agents as processes: written a configuration, started as a person would, stopped or killed, cleaned up after.

Owns the configuration file, the process and its log. Everything is asked of the agent through its command line.
"""

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import docker
import yaml

from tests.lab.engine import DEFAULT_HOST, client_of
from tests.ports import free_port

READY_SECONDS = 40
STOP_SECONDS = 20
LABEL = "node-agent.name"
KEEPER = "node-agent.keeper"
PROBE = "node-agent.probe"


class AgentError(Exception):
    """The agent did not do what was asked; the text holds the end of its log."""


def _surroundings() -> dict[str, str]:
    """Return the variables of this process, but for one: an installed agent has its byte code, and need not compile."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Give *base* with *changes* laid over it, section by section."""
    result = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if both else value
    return result


class AgentProcess:
    """One agent with its own state directory, configuration, log and network; made for one node of a server."""

    def __init__(
        self,
        *,
        server_url: str,
        api_key: str,
        databases: Mapping[str, Path] | None = None,
        name: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.before: tuple[str, ...] = ()
        """Words in front of the command that starts the agent."""
        self.environment: dict[str, str] = {}
        """Variables of the agent's process besides those of this one."""
        self.name = name or f"lab-{secrets.token_hex(3)}"
        self._folder = tempfile.TemporaryDirectory(prefix=f"{self.name}-")
        self.folder = Path(self._folder.name)
        self.state_dir = self.folder / "state"
        self.config_file = self.folder / f"{self.name}.yaml"
        self.log_file = self.folder / "agent.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._docker_host: str | None = (settings or {}).get("docker_host")
        self._write(server_url, api_key, databases or {}, settings or {})

    def _write(
        self, url: str, api_key: str, databases: Mapping[str, Path], settings: Mapping[str, Any]
    ) -> None:
        key_file = self.folder / "api.key"
        key_file.write_text(api_key)
        key_file.chmod(0o600)
        base = {
            "name": self.name,
            "server": {"url": url, "api_key_file": str(key_file)},
            "state_dir": str(self.state_dir),
            "databases": [
                {"label": label, "type": "csv", "uri": str(path)} for label, path in databases.items()
            ],
            "policy": {"algorithms": ["node-agent-lab/*"]},
            "images": {"pull": "missing"},
            "network": {"proxy_port": free_port("0.0.0.0")},
            "logging": {"format": "json"},
        }
        self.config_file.write_text(yaml.safe_dump(merged(base, settings)))

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.clean_up()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.clean_up()

    # --- the process ------------------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """Return the process id of the running agent."""
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Tell whether the process was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def launch(self) -> None:
        """Start the process without waiting for anything."""
        self._marker = len(self.log_lines())
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                [*self.before, sys.executable, "-m", "node_agent", "run", "-c", str(self.config_file)],
                env=_surroundings() | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # The lab's own signals (Ctrl-C above all) are not the agent's.
                start_new_session=True,
            )

    def start(self) -> None:
        """Start the agent and wait until it is online and works."""
        self.launch()
        self.wait_until_ready()

    def wait_until_ready(self) -> None:
        """Wait until the machine is proven and the server has said that the node is in."""
        for event in ("agent_ready", "server_online"):
            self.wait_for(event, within=READY_SECONDS)

    def wait_for(self, event: str, *, within: float, **facts: Any) -> dict[str, Any]:
        """Wait for a log line with that event, and those facts in it, since the last start."""
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            for line in self.log_lines()[self._marker :]:
                if line.get("event") == event and facts.items() <= line.items():
                    return line
            if self._process is None or self._process.poll() is not None:
                raise AgentError(f"{self.name} ended while it was awaited:\n{self.log_tail()}")
            time.sleep(0.05)
        raise AgentError(f"{self.name}: no {event} {facts or ''} within {within} s:\n{self.log_tail()}")

    def wait(self, within: float) -> int:
        """Wait for the end of the process and return its exit code."""
        assert self._process is not None
        try:
            return self._process.wait(within)
        except subprocess.TimeoutExpired as error:
            raise AgentError(f"{self.name} still runs after {within} s:\n{self.log_tail()}") from error

    def stop(self) -> None:
        """Ask the agent to stop, as the service does, and see to it that it does."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self.wait(STOP_SECONDS)
        except AgentError:
            self._process.kill()
            self._process.wait()
            raise

    def kill(self) -> None:
        """End the agent as a power cut would."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    # --- what it says -----------------------------------------------------------------------------------------

    def log_lines(self) -> list[dict[str, Any]]:
        """Return every line of the log that is JSON."""
        if not self.log_file.exists():
            return []
        lines = []
        for line in self.log_file.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                lines.append(json.loads(line))
        return lines

    def log_tail(self) -> str:
        """Return the end of the log, as it is."""
        return self.log_file.read_text(errors="replace")[-4000:] if self.log_file.exists() else "(no log)"

    def command(self, *words: str, within: float = 60) -> "subprocess.CompletedProcess[str]":
        """Run `node-agent WORDS -c FILE` and return what came of it."""
        return subprocess.run(
            [sys.executable, "-m", "node_agent", *words, "-c", str(self.config_file)],
            capture_output=True,
            text=True,
            timeout=within,
            check=False,
        )

    def runs(self) -> list[dict[str, Any]]:
        """Return the journal as `node-agent runs --json` tells it."""
        done = self.command("runs", "--json")
        assert done.returncode == 0, done.stderr
        listed: list[dict[str, Any]] = json.loads(done.stdout)
        return listed

    # --- cleaning up ------------------------------------------------------------------------------------------

    def containers(self, *, everything: bool = True) -> list[Any]:
        """Return the containers with this agent's label, but for those that keep its network ready or probe it."""
        return [found for found in self._labelled(everything) if not {KEEPER, PROBE} & set(found.labels)]

    def of_no_run(self) -> set[str]:
        """Return the ids of the containers that keep the network ready, or probe it."""
        return {found.id for found in self._labelled() if {KEEPER, PROBE} & set(found.labels)}

    def holders(self) -> list[Any]:
        """Return the containers that keep a network namespace ready."""
        return [found for found in self._labelled() if KEEPER in found.labels]

    def holder_of(self, container: Any) -> str:
        """Return the id of the container whose network namespace a run has joined; empty when it has its own."""
        mode = str(container.attrs["HostConfig"]["NetworkMode"])
        return mode.removeprefix("container:") if mode.startswith("container:") else ""

    def address_of(self, container: Any) -> str:
        """Return the address of a run's container in the isolated network."""
        with contextlib.closing(self.engine()) as client:
            found = client.api.inspect_container(self.holder_of(container) or container.id)
        (network,) = found["NetworkSettings"]["Networks"].values()
        return str(network["IPAddress"])

    def _labelled(self, everything: bool = True) -> list[Any]:
        with contextlib.closing(self.engine()) as client:
            found: list[Any] = client.containers.list(
                all=everything, ignore_removed=True, filters={"label": f"{LABEL}={self.name}"}
            )
            return found

    def engine(self) -> docker.DockerClient:
        """Return a new client of the engine this agent uses."""
        return client_of(self._docker_host or os.environ.get("DOCKER_HOST") or DEFAULT_HOST)

    def clean_up(self) -> None:
        """Remove everything of this agent: containers, network, firewall rule, files."""
        if self._process is not None and self._process.poll() is None:
            self.kill()
        with contextlib.suppress(docker.errors.DockerException):
            for container in self._labelled():
                container.remove(force=True, v=True)
        self.command("network", "remove")
        shutil.rmtree(self.folder, ignore_errors=True)
        self._folder.cleanup()


@contextlib.contextmanager
def agents_for(
    server: Any,
    databases: Mapping[str, Mapping[str, Path]],
    settings: Mapping[str, Any] | None = None,
) -> Iterator[dict[str, AgentProcess]]:
    """Run one agent for each organization in *databases*, all starting at the same time; *server* is a RealServer."""
    agents = {
        organization: AgentProcess(
            server_url=server.url,
            api_key=server.api_keys[organization],
            name=f"lab-{organization}-{os.getpid()}",
            databases=sources,
            settings=settings,
        )
        for organization, sources in databases.items()
    }
    with contextlib.ExitStack() as stack:
        for agent in agents.values():
            stack.callback(agent.clean_up)
            agent.launch()
            stack.callback(agent.stop)
        for agent in agents.values():
            agent.wait_until_ready()
        yield agents
