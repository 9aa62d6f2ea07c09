"""The agent as an image, run as configs/compose.yaml says, against the engine of this machine."""

import base64
import contextlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
import yaml

from tests.doubles.fake_server import FakeServer
from tests.interop.stage import eventually
from tests.lab.agent_image import AGENT_IMAGE, agent_image, run_service, services, wait_until_healthy
from tests.lab.engine import EngineError, engine
from tests.lab.images import ImageError, script_image
from tests.lab.wheels import WheelError
from tests.parts import say_missing
from tests.ports import free_port

# The first time of all, every layer of the image has to be made.
pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

AGENT_USER = 64197
READY_SECONDS = 60
RUN_SECONDS = 60

# Tells who it is and the first line of the database it asked for.
ALGORITHM = """\
import base64, json, os
def env(name):
    return base64.b32decode(os.environ[name].replace("!", "=")).decode()
with open(env("DEFAULT_DATABASE_URI")) as database, open(env("OUTPUT_FILE"), "w") as output:
    json.dump({"uid": os.getuid(), "head": database.readline().strip()}, output)
"""


class Clinic:
    """What compose would have started, and the server the agent works for."""

    def __init__(self, client: docker.DockerClient, server: FakeServer, folder: Path) -> None:
        self.client = client
        self.server = server
        self.name = f"lab-{secrets.token_hex(3)}"
        self.image = script_image(client, "image-test", ALGORITHM)
        self._folder = folder
        self.state_dir = folder / "state"
        self.containers: dict[str, Any] = {}
        self._prepare()

    def _prepare(self) -> None:
        data, configuration = self._folder / "data", self._folder / "configuration"
        for path in (data, configuration, self.state_dir):
            path.mkdir()
        (data / "patients.csv").write_text("age,weight\n40,70\n")
        settings = {
            "name": self.name,
            "server": {"url": self.server.url, "api_key_file": "/etc/node-agent/agent.key"},
            "state_dir": str(self.state_dir),
            "databases": [{"label": "default", "type": "csv", "uri": str(data / "patients.csv")}],
            "policy": {"algorithms": ["node-agent-lab/*"]},
            "images": {"pull": "missing"},
            "limits": {"cpus": 1, "memory": "128MiB", "pids": 64},
            "network": {"proxy_port": free_port("0.0.0.0"), "probe_image": AGENT_IMAGE},
        }
        (configuration / "agent.yaml").write_text(yaml.safe_dump(settings))
        (configuration / "agent.key").write_text(self.server.api_key)
        for file in configuration.iterdir():
            os.chown(file, 0, AGENT_USER)
            file.chmod(0o640)
        os.chown(self.state_dir, AGENT_USER, AGENT_USER)
        self._folder.chmod(0o755)
        variables = {
            "NODE_AGENT_IMAGE": AGENT_IMAGE,
            "NODE_AGENT_CONFIG": str(configuration),
            "NODE_AGENT_STATE": str(self.state_dir),
            "NODE_AGENT_DATA": str(data),
            "DOCKER_GID": str(Path("/var/run/docker.sock").stat().st_gid),
        }
        self._services = services(variables)

    def up(self) -> None:
        """Start the services in the order they depend on each other."""
        self._start("network")
        wait_until_healthy(self.containers["network"])
        self._start("agent")

    def _start(self, service: str) -> None:
        self.containers[service] = run_service(self.client, f"{self.name}-{service}", self._services[service])

    def log(self, service: str) -> str:
        """Give what a service wrote."""
        return str(self.containers[service].logs().decode())

    def events(self) -> list[str]:
        """Give the names of what the agent logged."""
        lines = [line for line in self.log("agent").splitlines() if line.startswith("{")]
        return [json.loads(line)["event"] for line in lines]

    def wait_for(self, event: str) -> None:
        """Wait until the agent logged it."""
        try:
            eventually(lambda: event in self.events(), within=READY_SECONDS, what=event)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log('agent')[-3000:]}") from None

    def down(self) -> None:
        """Take everything away again."""
        of_runs = self.client.containers.list(all=True, filters={"label": f"node-agent.name={self.name}"})
        agent = self.containers.get("agent")
        for container in [*([agent] if agent else []), *of_runs]:
            container.remove(force=True, v=True)
        if "network" in self.containers:
            command = ["node-agent", "network", "remove", "-c", "/etc/node-agent/agent.yaml"]
            self.containers["network"].exec_run(command)
            self.containers["network"].remove(force=True, v=True)


@pytest.fixture(scope="module")
def _clinic() -> Iterator[Clinic]:
    try:
        with contextlib.ExitStack() as stack:
            client = stack.enter_context(engine()).client()
            stack.callback(client.close)
            client.api.timeout = 300  # a layer with everything the agent stands on takes its time
            agent_image(client)
            server = stack.enter_context(FakeServer())
            folder = Path(tempfile.mkdtemp(prefix="lab-image-"))
            stack.callback(shutil.rmtree, folder)
            made = Clinic(client, server, folder)
            stack.callback(made.down)
            made.up()
            made.wait_for("server_online")
            yield made
    except (EngineError, ImageError, WheelError) as error:
        say_missing(error)


@pytest.fixture
def clinic(root: None, _clinic: Clinic) -> Clinic:
    return _clinic


def test_the_agent_of_the_image_proves_the_isolation_and_runs_a_task(clinic: Clinic) -> None:
    events = clinic.events()
    assert events.index("isolation_proven") < events.index("server_online")
    run_id = clinic.server.create_task(image=clinic.image, databases=[{"label": "default"}]).run_ids[0]
    eventually(
        lambda: clinic.server.run(run_id).finished_at, within=RUN_SECONDS, what=f"the end of run {run_id}"
    )
    run = clinic.server.run(run_id)
    assert run.status == "completed", f"{run.log}\n{clinic.log('agent')[-3000:]}"
    assert json.loads(base64.b64decode(run.result or "")) == {"uid": AGENT_USER, "head": "age,weight"}


def test_the_agent_in_its_container_is_nobody_and_has_no_rights(clinic: Clinic) -> None:
    agent = clinic.containers["agent"]
    text = agent.exec_run(["cat", "/proc/1/status"]).output.decode()
    status = {name: value.split() for name, _, value in (line.partition(":") for line in text.splitlines())}
    assert status["Uid"] == [str(AGENT_USER)] * 4
    assert {int(status[f"Cap{kind}"][0], 16) for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {0}
    assert status["NoNewPrivs"] == ["1"]
    assert agent.exec_run(["touch", "/etc/passwd"]).exit_code != 0


def test_the_healthcheck_of_the_image_tells_a_running_agent_from_one_that_is_not(clinic: Clinic) -> None:
    agent = clinic.containers["agent"]
    command = clinic.client.images.get(AGENT_IMAGE).attrs["Config"]["Healthcheck"]["Test"]
    assert command[0] == "CMD"
    assert agent.exec_run(command[1:]).exit_code == 0
    assert clinic.containers["network"].exec_run(command[1:], user=str(AGENT_USER)).exit_code == 3


def test_a_container_stopped_by_the_engine_ends_well_and_comes_back(clinic: Clinic) -> None:
    agent = clinic.containers["agent"]
    agent.stop(timeout=30)
    agent.reload()
    assert agent.attrs["State"]["ExitCode"] == 0
    ready = clinic.events().count("agent_ready")
    agent.start()
    eventually(lambda: clinic.events().count("agent_ready") > ready, within=READY_SECONDS, what="ready again")


def test_nothing_that_installs_is_left_beside_the_agent(clinic: Clinic) -> None:
    agent = clinic.containers["agent"]
    assert agent.exec_run(["/opt/node-agent/bin/python", "-c", "import pandas"]).exit_code == 0
    assert agent.exec_run(["/opt/node-agent/bin/python", "-c", "import pip"]).exit_code == 1
    assert agent.exec_run(["test", "-e", "/build"]).exit_code == 1
