"""The agent as a systemd service, under a real systemd."""

import base64
import contextlib
import json
import os
import secrets
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import docker
import pytest
import yaml

from node_agent.config import ANY_MACHINE, load
from tests.doubles.fake_server import FakeServer
from tests.interop.stage import eventually
from tests.lab.engine import EngineError, engine
from tests.lab.images import BASE, ImageError, python_base, script_image
from tests.lab.places import ROOT
from tests.lab.systemd import CHECKOUT, SystemdMachine, systemd_machine
from tests.lab.wheels import WheelError
from tests.ports import free_port

# The first time of all, the machine's image has to be made.
pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

START_SECONDS = 60
RUN_SECONDS = 60
WORST_EXPOSURE = 15
"""In tenths, as systemd-analyze counts."""

REMARK = "# a remark of the operator"

# Notes each start in the job's folder, waits there for a word, and tells how often it was started.
ALGORITHM = """\
import base64, json, os, time
with open("/mnt/tmp/starts", "a") as starts:
    starts.write("x")
while not os.path.exists("/mnt/tmp/go"):
    time.sleep(0.05)
path = base64.b32decode(os.environ["OUTPUT_FILE"].replace("!", "=")).decode()
with open("/mnt/tmp/starts") as starts, open(path, "w") as output:
    json.dump({"starts": len(starts.read())}, output)
"""


class Hospital:
    """A machine with the agent installed, and the server its agent works for."""

    def __init__(self, machine: SystemdMachine, server: FakeServer, client: docker.DockerClient) -> None:
        self.machine = machine
        self.server = server
        self.client = client
        self.image = script_image(client, "service", ALGORITHM)
        self._settings = {
            "name": machine.instance,
            "server": {"url": server.url, "api_key_file": "api.key"},
            "state_dir": str(machine.state_dir),
            "databases": [
                {"label": "default", "type": "csv", "uri": "/home/research/patients.csv"},
                {"label": "wide", "type": "parquet", "uri": "/home/research/patients.parquet"},
            ],
            "policy": {"algorithms": ["node-agent-lab/*"]},
            "images": {"pull": "missing"},
            "limits": {"cpus": 1, "memory": "128MiB", "pids": 64},
            # The engine is the host's, so what lies on this machine cannot be mounted for the probe.
            "network": {"proxy_port": free_port("0.0.0.0"), "probe_image": BASE},
        }

    def install_again(self) -> None:
        """Install over what is there, and what somebody changed meanwhile."""
        self.machine.run(
            *("sh", "-c"),
            f"echo '{REMARK}' >> /etc/node-agent/example.yaml; chmod 0777 /etc/node-agent /var/lib/node-agent",
        )
        self.machine.run("make", "-s", "-C", CHECKOUT, "install")

    def bring_data(self) -> None:
        """Make two databases in a home folder that only a group may read, and let the agent's user into the group."""
        make = (
            "import pandas as pd; rows = pd.DataFrame({'age': [30, 40]});"
            "rows.to_csv('/home/research/patients.csv'); rows.to_parquet('/home/research/patients.parquet')"
        )
        for command in (
            "groupadd research",
            "usermod -aG research node-agent",
            "install -d -m 0750 -g research /home/research",
            f'/opt/node-agent/bin/python -c "{make}"',
            "chgrp -R research /home/research",
            "chmod 0640 /home/research/patients.csv /home/research/patients.parquet",
        ):
            self.machine.run("sh", "-c", command)

    def configure(self, **changes: Any) -> None:
        """Write configuration and key; the key as a credential that only systemd can read."""
        content = yaml.safe_dump({**self._settings, **changes})
        self.machine.write(f"/etc/node-agent/{self.machine.instance}.yaml", content, mode="0640")
        self.give_key(self.server.api_key)

    def give_key(self, key: str) -> None:
        """Put the API key where the unit takes it from."""
        self.machine.run("install", "-d", "-m", "0700", "/etc/credstore")
        path = f"/etc/credstore/node-agent.{self.machine.instance}.key"
        self.machine.write(path, key, mode="0600", owner="root:root")

    def start(self) -> None:
        """Start the unit unless it runs; this ends when the agent says that it is ready."""
        self.machine.run("systemctl", "start", self.machine.unit, within=START_SECONDS)

    def stop(self) -> None:
        """Stop the unit."""
        self.machine.run("systemctl", "stop", self.machine.unit, within=START_SECONDS)

    def command(self, *words: str) -> tuple[int, str]:
        """Run a command of the agent from root's shell."""
        answer = self.machine.attempt(
            "node-agent", *words, "-c", f"/etc/node-agent/{self.machine.instance}.yaml"
        )
        return answer.code, answer.output

    # --- runs ---

    def submit(self) -> int:
        """Send a task and give the run's id."""
        return self.server.create_task(image=self.image).run_ids[0]

    def wait_until(self, run_id: int, status: str) -> None:
        """Wait for a status at the server."""
        try:
            eventually(
                lambda: self.server.run(run_id).status == status,
                within=RUN_SECONDS,
                what=f"run {run_id} to be {status}",
            )
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.machine.story()}") from None

    def let_go(self, run_id: int) -> None:
        """Tell the algorithm that it may end."""
        jobs = self.machine.state_dir / "jobs"
        folder = next(jobs.glob(f"{self.server.run(run_id).task.job_id}-*"))
        (folder / "go").touch()

    def result(self, run_id: int) -> Any:
        """Wait for the end of a run and give what its algorithm said."""
        self.wait_until(run_id, "completed")
        return json.loads(base64.b64decode(self.server.run(run_id).result or ""))

    def containers(self) -> list[Any]:
        """Give the containers of this agent's runs."""
        return list(
            self.client.containers.list(
                all=True, filters={"label": [f"node-agent.name={self.machine.instance}", "node-agent.run"]}
            )
        )

    def clear(self) -> None:
        """Remove what the agent made outside this machine."""
        for container in self.containers():
            container.remove(force=True)
        self.command("network", "remove")


@pytest.fixture(scope="module")
def _hospital() -> Iterator[Hospital]:
    try:
        with contextlib.ExitStack() as stack:
            client = stack.enter_context(engine()).client()
            stack.callback(client.close)
            python_base(client)
            server = stack.enter_context(FakeServer())
            machine = stack.enter_context(systemd_machine(client, f"lab-{secrets.token_hex(3)}"))
            made = Hospital(machine, server, client)
            stack.callback(made.clear)
            made.install_again()
            made.bring_data()
            made.configure()
            yield made
    except (EngineError, ImageError, WheelError) as error:
        if os.environ.get("CI") == "true":
            pytest.fail(f"missing in CI: {error}")
        pytest.skip(f"missing: {error}")


@pytest.fixture
def hospital(_hospital: Hospital, root: None) -> Hospital:
    return _hospital


@pytest.fixture
def unit_at_work(hospital: Hospital) -> Hospital:
    hospital.start()
    return hospital


@pytest.fixture
def unit_at_rest(hospital: Hospital) -> Iterator[Hospital]:
    hospital.stop()
    yield hospital
    hospital.stop()
    hospital.configure()
    hospital.machine.run("systemctl", "reset-failed", "node-agent@*")


# --- the unit itself ------------------------------------------------------------------------------------------


def test_the_unit_is_understood_without_a_complaint(hospital: Hospital) -> None:
    answer = hospital.machine.attempt("systemd-analyze", "verify", f"{hospital.machine.unit}.service")
    assert (answer.code, answer.output) == (0, "")


def test_the_unit_is_as_closed_as_the_engine_allows(hospital: Hospital) -> None:
    answer = hospital.machine.attempt(
        *("systemd-analyze", "security", "--offline=true", "--no-pager", f"--threshold={WORST_EXPOSURE}"),
        "/etc/systemd/system/node-agent@.service",
    )
    print(answer.output.strip().splitlines()[-1])
    assert answer.code == 0, answer.output


# --- start ----------------------------------------------------------------------------------------------------


def test_ready_means_logged_in_and_shut_in_and_the_status_says_so_in_a_line(unit_at_work: Hospital) -> None:
    machine = unit_at_work.machine
    assert machine.property("ActiveState") == "active"
    events = [
        line["MESSAGE"] for line in machine.journal() if "node-agent" in line.get("SYSLOG_IDENTIFIER", "")
    ]
    said = [json.loads(text)["event"] for text in events if text.startswith("{")]
    last_start = said[len(said) - said[::-1].index("agent_starting") :]
    assert last_start.index("isolation_proven") < last_start.index("agent_ready")
    status = eventually(lambda: machine.property("StatusText"), within=10, what="a status")
    assert "working" in status
    assert unit_at_work.command("status")[0] == 0


def test_the_agent_has_no_rights_to_speak_of(unit_at_work: Hospital) -> None:
    machine = unit_at_work.machine
    pid = machine.property("MainPID")
    lines = machine.run("cat", f"/proc/{pid}/status").splitlines()
    status = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
    assert {int(status[f"Cap{kind}"], 16) for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {0}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert status["Uid"].split()[0] == machine.run("id", "-u", "node-agent").strip()
    assert machine.run("stat", "-c", "%a %U", str(machine.state_dir)).split() == ["700", "node-agent"]


def test_databases_in_a_home_folder_are_read_through_a_group(unit_at_work: Hospital) -> None:
    server = unit_at_work.server
    facts = eventually(lambda: server.node().facts, within=20, what="what the node shares of its databases")
    assert {label: "age" in names for label, names in facts["database_columns"].items()} == {
        "columns_default": True,
        "columns_wide": True,
    }


def test_an_agent_whose_server_is_away_waits_for_it_and_says_so(unit_at_rest: Hospital) -> None:
    machine = unit_at_rest.machine
    unit_at_rest.server.stop()
    try:
        machine.run("systemctl", "start", "--no-block", machine.unit)
        said = eventually(lambda: machine.property("StatusText"), within=START_SECONDS, what="a status")
        assert "refused" in said
        assert machine.property("ActiveState") == "activating"
    finally:
        unit_at_rest.server.start()
    machine.wait_for("ActiveState", "active", within=START_SECONDS)


def test_an_engine_that_is_away_at_the_start_is_asked_again(unit_at_rest: Hospital) -> None:
    machine = unit_at_rest.machine
    machine.run("mv", "/run/docker.sock", "/run/docker.sock.away")
    try:
        machine.run("systemctl", "start", "--no-block", machine.unit)
        machine.wait_for("SubState", "auto-restart", within=START_SECONDS)
    finally:
        machine.run("mv", "/run/docker.sock.away", "/run/docker.sock")
    machine.wait_for("ActiveState", "active", within=START_SECONDS)


def test_a_key_the_server_does_not_know_ends_the_service_and_is_not_tried_again(
    unit_at_rest: Hospital,
) -> None:
    machine = unit_at_rest.machine
    unit_at_rest.give_key("6a3cd27e-0000-4000-8000-000000000000")
    assert machine.attempt("systemctl", "start", machine.unit).code != 0
    assert machine.property("ActiveState") == "failed", "systemd would be about to try again"
    assert machine.property("ExecMainStatus") == "77"


def test_a_fault_in_the_configuration_ends_the_service_with_its_place_and_is_not_tried_again(
    unit_at_rest: Hospital,
) -> None:
    machine = unit_at_rest.machine
    unit_at_rest.configure(limits={"memory": "much"})
    assert machine.attempt("systemctl", "start", machine.unit).code != 0
    assert machine.property("ActiveState") == "failed", "systemd would be about to try again"
    assert machine.property("ExecMainStatus") == "78"
    assert "limits.memory" in machine.story()


# --- runs -----------------------------------------------------------------------------------------------------


def test_a_killed_agent_is_started_again_and_takes_up_the_algorithm_that_ran_on(
    unit_at_work: Hospital,
) -> None:
    machine = unit_at_work.machine
    run_id = unit_at_work.submit()
    unit_at_work.wait_until(run_id, "active")
    (before,) = unit_at_work.containers()
    first_pid = machine.property("MainPID")
    machine.run("systemctl", "kill", "--signal=KILL", "--kill-whom=main", machine.unit)
    eventually(
        lambda: machine.property("MainPID") not in {"0", first_pid}, within=START_SECONDS, what="a new agent"
    )
    machine.wait_for("ActiveState", "active", within=START_SECONDS)
    (after,) = unit_at_work.containers()
    assert (after.id, after.attrs["State"]["StartedAt"]) == (before.id, before.attrs["State"]["StartedAt"])
    unit_at_work.let_go(run_id)
    assert unit_at_work.result(run_id) == {"starts": 1}
    eventually(lambda: not unit_at_work.containers(), within=20, what="the removal of the container")


def test_stopping_the_service_leaves_the_algorithm_running_for_the_next_start(unit_at_work: Hospital) -> None:
    machine = unit_at_work.machine
    run_id = unit_at_work.submit()
    unit_at_work.wait_until(run_id, "active")
    unit_at_work.stop()
    assert (machine.property("ActiveState"), machine.property("Result")) == ("inactive", "success")
    (container,) = unit_at_work.containers()
    assert container.status == "running"
    unit_at_work.let_go(run_id)
    unit_at_work.start()
    assert unit_at_work.result(run_id) == {"starts": 1}


def test_the_journal_carries_the_run_id_in_each_line_about_a_run(unit_at_work: Hospital) -> None:
    run_id = unit_at_work.submit()
    unit_at_work.wait_until(run_id, "active")
    unit_at_work.let_go(run_id)
    unit_at_work.result(run_id)
    messages = [line["MESSAGE"] for line in unit_at_work.machine.journal()]
    lines = [json.loads(text) for text in messages if text.startswith("{")]
    about = [line["to"] for line in lines if line["event"] == "run_advanced" and line["run_id"] == run_id]
    assert about[:4] == ["admitted", "pulled", "created", "running"]
    assert unit_at_work.server.api_key not in "".join(messages)


# --- installing -----------------------------------------------------------------------------------------------


def test_uninstalling_asks_to_stop_first(unit_at_work: Hospital) -> None:
    refused = unit_at_work.machine.attempt("make", "-s", "-C", CHECKOUT, "uninstall")
    assert refused.code != 0
    assert f"{unit_at_work.machine.unit}.service" in refused.output


def test_uninstalling_keeps_configuration_and_state_and_takes_everything_else(hospital: Hospital) -> None:
    with systemd_machine(hospital.client, f"lab-{secrets.token_hex(3)}") as machine:
        other = Hospital(machine, hospital.server, hospital.client)
        other.configure(server={"url": hospital.server.url, "api_key_file": "/etc/node-agent/any.key"})
        code, output = other.command("network", "ensure")
        assert code == 0, output
        (machine.state_dir / "journal.sqlite").touch()
        machine.run("make", "-s", "-C", CHECKOUT, "uninstall")
        assert machine.attempt("sh", "-c", "command -v node-agent || ls /opt/node-agent").code != 0
        assert machine.attempt("systemctl", "cat", machine.unit).code != 0
        assert not hospital.client.networks.list(names=[f"node-agent-{machine.instance}"])
        kept = [str(machine.state_dir / "journal.sqlite"), "/etc/node-agent/example.yaml"]
        machine.run("ls", *kept, f"/etc/node-agent/{machine.instance}.yaml")
        machine.run("id", "node-agent")


def test_installing_again_keeps_what_the_operator_wrote_and_closes_the_folders(hospital: Hospital) -> None:
    machine = hospital.machine
    assert REMARK in machine.run("cat", "/etc/node-agent/example.yaml")
    rights = machine.run("stat", "-c", "%a %U %G", "/etc/node-agent", "/var/lib/node-agent").splitlines()
    assert rights == ["750 root node-agent", "700 node-agent node-agent"]


def test_the_example_that_is_installed_is_a_valid_configuration() -> None:
    assert load(ROOT / "systemd" / "example.yaml", machine=ANY_MACHINE).name == "example"


def test_who_may_not_install_is_told_in_a_sentence(root: None, missing: Callable[[str], NoReturn]) -> None:
    script = ROOT / "systemd" / "install.sh"
    asked = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-s", "install"]
    done = subprocess.run(
        asked, input=script.read_text(), capture_output=True, text=True, cwd=Path("/"), check=False
    )
    assert (done.returncode, done.stderr) == (1, "install: this needs root: run it with sudo\n")
