"""The agent as a systemd service, under a real systemd."""

import base64
import contextlib
import json
import secrets
import signal
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
from tests.parts import say_missing
from tests.ports import free_port

# The first time of all, the machine's image has to be made.
pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

WAIT_SECONDS = 180
"""For everything: a machine under load takes long, and who waits for what comes does not wait longer for it."""
WORST_EXPOSURE = 15
"""In tenths, as systemd-analyze counts."""

REMARK = "# a remark of the operator"
REGISTRY_PASSWORD = "a-password-of-the-lab"
MIB = 2**20
MANY = 4
"""As many as may run at once unless the owner says otherwise."""
WATCHDOG_SECONDS = 5
RESTART_SECONDS = 0.1
DROP_IN = "/etc/systemd/system/node-agent@.service.d/impatient.conf"

# Stops one thread, the one of the control loop, while all others go on; tells of which signal the process ended.
HOLD_MAIN_THREAD = """\
import ctypes, os, sys
ATTACH, ANY_THREAD = 16, 0x40000000
pid, libc = int(sys.argv[1]), ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
if libc.ptrace(ATTACH, pid, None, None) != 0:
    sys.exit(os.strerror(ctypes.get_errno()))
status = 0x7F
while os.WIFSTOPPED(status):
    _, status = os.waitpid(pid, ANY_THREAD)
print(os.WTERMSIG(status))
"""

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
            "images": {
                "pull": "missing",
                "registries": [
                    {"host": "registry.example.org", "username": "a", "password_file": "registry.password"}
                ],
            },
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
        """Put the API key where the unit takes it from, and a registry's password beside it."""
        self.machine.run("install", "-d", "-m", "0700", "/etc/credstore")
        path = f"/etc/credstore/node-agent.{self.machine.instance}"
        self.machine.write(f"{path}.key", key, mode="0600", owner="root:root")
        self.machine.write(f"{path}.registry", REGISTRY_PASSWORD, mode="0600", owner="root:root")

    def start(self) -> None:
        """Start the unit unless it runs; this ends when the agent says that it is ready."""
        self.machine.run("systemctl", "start", self.machine.unit, within=WAIT_SECONDS)

    def stop(self) -> None:
        """Stop the unit."""
        self.machine.run("systemctl", "stop", self.machine.unit, within=WAIT_SECONDS)

    def command(self, *words: str) -> tuple[int, str]:
        """Run a command of the agent from root's shell."""
        answer = self.machine.attempt(
            "node-agent", *words, "-c", f"/etc/node-agent/{self.machine.instance}.yaml"
        )
        return answer.code, answer.output

    def said(self, event: str) -> list[dict[str, Any]]:
        """Give the journal's entries of one event."""
        return self.machine.journal(NODE_AGENT_EVENT=event)

    def wait_for_another(self, event: str, known: int) -> dict[str, Any]:
        """Wait until the journal has more than *known* entries of an event, and give the last one."""
        eventually(
            lambda: len(self.said(event)) > known,
            within=WAIT_SECONDS,
            what=f"{event} in {self.machine.unit}",
        )
        return self.said(event)[-1]

    def reload(self, event: str) -> dict[str, Any]:
        """Have the configuration read again, and wait for what the agent says of it."""
        known = len(self.said(event))
        self.machine.run("systemctl", "reload", self.machine.unit, within=WAIT_SECONDS)
        return self.wait_for_another(event, known)

    # --- runs ---

    def submit(self) -> int:
        """Send a task and give the run's id."""
        return self.server.create_task(image=self.image).run_ids[0]

    def wait_until(self, run_id: int, status: str) -> None:
        """Wait for a status at the server."""
        try:
            eventually(
                lambda: self.server.run(run_id).status == status,
                within=WAIT_SECONDS,
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
                all=True,
                filters={"label": [f"node-agent.name={self.machine.instance}", "node-agent.run"]},
                ignore_removed=True,
            )
        )

    def settle(self) -> None:
        """End the runs that a test left, as one that failed may, and have their containers removed."""
        left = {run.task.id for run in self.server.world.runs.values() if run.finished_at is None}
        if not left and not self.containers():
            return
        if left:
            # whatever the agent was in the middle of
            self.configure()
            self.machine.run("systemctl", "restart", self.machine.unit, within=WAIT_SECONDS)
        self.start()
        for task_id in left:
            self.server.kill(task_id)
        eventually(self._is_idle, within=WAIT_SECONDS, what="the end of every run")

    def _is_idle(self) -> bool:
        """Tell whether neither the engine nor the agent's journal has a run that is not over."""
        code, output = self.command("runs", "--json")
        return (
            code == 0
            and {row["state"] for row in json.loads(output)} <= {"removed"}
            and not self.containers()
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
        say_missing(error)


@pytest.fixture
def hospital(_hospital: Hospital, root: None) -> Iterator[Hospital]:
    """The machine all tests share; whatever becomes of a test, the next one finds no run of it."""
    yield _hospital
    _hospital.settle()


@pytest.fixture
def unit_at_work(hospital: Hospital) -> Hospital:
    hospital.start()
    return hospital


@pytest.fixture
def changing_unit(unit_at_work: Hospital) -> Iterator[Hospital]:
    """A unit whose configuration changes; at the end it works with the usual one again."""
    yield unit_at_work
    unit_at_work.configure()
    unit_at_work.reload("configuration_reloaded")


@pytest.fixture
def impatient_unit(unit_at_rest: Hospital) -> Iterator[Hospital]:
    """A unit whose watchdog bites soon, and which is started again at once."""
    machine = unit_at_rest.machine
    machine.run("install", "-d", Path(DROP_IN).parent.as_posix())
    machine.write(
        DROP_IN, f"[Service]\nWatchdogSec={WATCHDOG_SECONDS}s\nRestartSec={RESTART_SECONDS}s\n", mode="0644"
    )
    try:
        machine.run("systemctl", "daemon-reload")
        unit_at_rest.start()
        yield unit_at_rest
    finally:
        machine.run("rm", DROP_IN)
        machine.run("systemctl", "daemon-reload")


@pytest.fixture
def unit_at_rest(hospital: Hospital) -> Iterator[Hospital]:
    """A unit that is stopped; at the end it works, or could be started, with the usual configuration."""
    hospital.stop()
    yield hospital
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
    said = [entry["NODE_AGENT_EVENT"] for entry in machine.journal() if "NODE_AGENT_EVENT" in entry]
    last_start = said[len(said) - said[::-1].index("agent_starting") :]
    assert last_start.index("isolation_proven") < last_start.index("agent_ready")
    status = eventually(lambda: machine.property("StatusText"), within=WAIT_SECONDS, what="a status")
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
    facts = eventually(
        lambda: server.node().facts, within=WAIT_SECONDS, what="what the node shares of its databases"
    )
    assert {label: "age" in names for label, names in facts["database_columns"].items()} == {
        "columns_default": True,
        "columns_wide": True,
    }


def test_an_agent_whose_server_is_away_waits_for_it_and_says_so(unit_at_rest: Hospital) -> None:
    machine = unit_at_rest.machine
    unit_at_rest.server.stop()
    try:
        machine.run("systemctl", "start", "--no-block", machine.unit)
        said = eventually(lambda: machine.property("StatusText"), within=WAIT_SECONDS, what="a status")
        assert "refused" in said
        assert machine.property("ActiveState") == "activating"
    finally:
        unit_at_rest.server.start()
    machine.wait_for("ActiveState", "active", within=WAIT_SECONDS)


def test_an_engine_that_is_away_at_the_start_is_asked_again(unit_at_rest: Hospital) -> None:
    machine = unit_at_rest.machine
    machine.run("mv", "/run/docker.sock", "/run/docker.sock.away")
    try:
        machine.run("systemctl", "start", "--no-block", machine.unit)
        machine.wait_for("SubState", "auto-restart", within=WAIT_SECONDS)
    finally:
        machine.run("mv", "/run/docker.sock.away", "/run/docker.sock")
    machine.wait_for("ActiveState", "active", within=WAIT_SECONDS)


def test_a_key_the_server_does_not_know_ends_the_service_and_is_not_tried_again(
    unit_at_rest: Hospital,
) -> None:
    machine = unit_at_rest.machine
    unit_at_rest.give_key("6a3cd27e-0000-4000-8000-000000000000")
    assert machine.attempt("systemctl", "start", machine.unit).code != 0
    assert machine.property("ActiveState") == "failed", "systemd would be about to try again"
    assert machine.property("ExecMainStatus") == "77"
    assert "agent_ended" in machine.story()


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
        lambda: machine.property("MainPID") not in {"0", first_pid}, within=WAIT_SECONDS, what="a new agent"
    )
    machine.wait_for("ActiveState", "active", within=WAIT_SECONDS)
    (after,) = unit_at_work.containers()
    assert (after.id, after.attrs["State"]["StartedAt"]) == (before.id, before.attrs["State"]["StartedAt"])
    unit_at_work.let_go(run_id)
    assert unit_at_work.result(run_id) == {"starts": 1}
    eventually(
        lambda: not unit_at_work.containers(), within=WAIT_SECONDS, what="the removal of the container"
    )


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


def test_the_journal_is_asked_by_run_and_by_event_and_holds_no_secret(unit_at_work: Hospital) -> None:
    run_id = unit_at_work.submit()
    unit_at_work.wait_until(run_id, "active")
    unit_at_work.let_go(run_id)
    unit_at_work.result(run_id)
    machine = unit_at_work.machine
    about = machine.journal(NODE_AGENT_RUN_ID=run_id, NODE_AGENT_EVENT="run_advanced")
    assert [entry["NODE_AGENT_TO"] for entry in about][:4] == ["admitted", "pulled", "created", "running"]
    assert {(entry["PRIORITY"], entry["SYSLOG_IDENTIFIER"], entry["_TRANSPORT"]) for entry in about} == {
        ("6", "node-agent", "journal")
    }
    assert about[0]["MESSAGE"].startswith("run_advanced ")
    written = json.dumps(machine.journal())
    assert unit_at_work.server.api_key not in written
    assert REGISTRY_PASSWORD not in written


def test_a_restart_interrupts_none_of_many_algorithms(unit_at_work: Hospital) -> None:
    machine = unit_at_work.machine
    run_ids = [unit_at_work.submit() for _ in range(MANY)]
    for run_id in run_ids:
        unit_at_work.wait_until(run_id, "active")
    before = {container.id: container.attrs["State"]["StartedAt"] for container in unit_at_work.containers()}
    waiting = unit_at_work.submit()
    machine.run("systemctl", "restart", machine.unit, within=WAIT_SECONDS)
    after = {container.id: container.attrs["State"]["StartedAt"] for container in unit_at_work.containers()}
    assert len(before) == MANY
    assert after == before
    for run_id in run_ids:
        unit_at_work.let_go(run_id)
    assert [unit_at_work.result(run_id) for run_id in run_ids] == [{"starts": 1}] * MANY
    unit_at_work.wait_until(waiting, "active")
    unit_at_work.let_go(waiting)
    assert unit_at_work.result(waiting) == {"starts": 1}


def test_a_drained_service_has_reported_everything_and_stays_stopped(unit_at_work: Hospital) -> None:
    machine = unit_at_work.machine
    run_id = unit_at_work.submit()
    unit_at_work.wait_until(run_id, "active")
    asked, restarts = len(unit_at_work.said("stop_asked")), machine.property("NRestarts")
    drain = f"node-agent drain -c /etc/node-agent/{machine.instance}.yaml"
    machine.run("sh", "-c", f"({drain} > /tmp/said 2>&1; echo $? > /tmp/drained) > /dev/null 2>&1 &")
    unit_at_work.wait_for_another("stop_asked", asked)
    late = unit_at_work.submit()
    eventually(
        lambda: machine.journal(NODE_AGENT_EVENT="run_received", NODE_AGENT_RUN_ID=late),
        within=WAIT_SECONDS,
        what="the agent to know of the late run",
    )
    unit_at_work.let_go(run_id)
    machine.wait_for("ActiveState", "inactive", within=WAIT_SECONDS)
    assert unit_at_work.result(run_id) == {"starts": 1}
    assert (machine.property("Result"), machine.property("NRestarts")) == ("success", restarts)
    eventually(
        lambda: machine.attempt("test", "-s", "/tmp/drained").code == 0,
        within=WAIT_SECONDS,
        what="the command",
    )
    assert machine.run("cat", "/tmp/drained") == "0\n", machine.run("cat", "/tmp/said")
    assert unit_at_work.server.run(late).status == "pending"
    unit_at_work.start()
    unit_at_work.wait_until(late, "active")
    unit_at_work.let_go(late)
    assert unit_at_work.result(late) == {"starts": 1}


# --- reloading ------------------------------------------------------------------------------------------------


def test_policy_limits_and_log_count_for_the_next_run_after_a_reload(changing_unit: Hospital) -> None:
    machine = changing_unit.machine
    pid = machine.property("MainPID")
    first = changing_unit.submit()
    changing_unit.wait_until(first, "active")
    changing_unit.configure(
        limits={"cpus": 1, "memory": "160MiB", "pids": 64, "concurrent_runs": 5}, logging={"level": "debug"}
    )
    entry = changing_unit.reload("configuration_reloaded")
    assert json.loads(entry["NODE_AGENT_SETTINGS"]) == [
        "limits.concurrent_runs",
        "limits.memory",
        "logging.level",
    ]
    second = changing_unit.submit()
    changing_unit.wait_until(second, "active")
    assert {box.attrs["HostConfig"]["Memory"] for box in changing_unit.containers()} == {128 * MIB, 160 * MIB}
    assert machine.journal(PRIORITY=7)
    changing_unit.configure(policy={"algorithms": ["node-agent-lab/other"]})
    changing_unit.reload("configuration_reloaded")
    third = changing_unit.submit()
    changing_unit.wait_until(third, "not allowed")
    changing_unit.let_go(first)
    changing_unit.let_go(second)
    assert [changing_unit.result(run_id) for run_id in (first, second)] == [{"starts": 1}] * 2
    assert machine.property("MainPID") == pid
    machine.wait_for("ActiveState", "active", within=WAIT_SECONDS)


def test_a_faulty_file_is_refused_with_every_fault_and_the_old_settings_stay(changing_unit: Hospital) -> None:
    machine = changing_unit.machine
    pid = machine.property("MainPID")
    changing_unit.configure(limits={"memory": "much"}, policy={"algorithm": []})
    entry = changing_unit.reload("reload_refused")
    assert (entry["PRIORITY"], entry["_PID"]) == ("3", pid)
    faults = " ".join(json.loads(entry["NODE_AGENT_FAULTS"]))
    assert "limits.memory" in faults
    assert "policy.algorithm" in faults
    machine.wait_for("ActiveState", "active", within=WAIT_SECONDS)
    run_id = changing_unit.submit()
    changing_unit.wait_until(run_id, "active")
    changing_unit.let_go(run_id)
    assert changing_unit.result(run_id) == {"starts": 1}


def test_what_only_a_restart_takes_up_is_named_and_left_as_it_was(changing_unit: Hospital) -> None:
    changing_unit.configure(server={"url": "http://127.0.0.1:9/api", "api_key_file": "api.key"}, databases=[])
    entry = changing_unit.reload("restart_needed")
    assert json.loads(entry["NODE_AGENT_SETTINGS"]) == ["server.url", "databases"]
    run_id = changing_unit.submit()
    changing_unit.wait_until(run_id, "active")
    changing_unit.let_go(run_id)
    assert changing_unit.result(run_id) == {"starts": 1}


# --- the watchdog ---------------------------------------------------------------------------------------------


def test_a_control_loop_that_hangs_is_bitten_and_its_algorithm_runs_on(impatient_unit: Hospital) -> None:
    machine = impatient_unit.machine
    run_id = impatient_unit.submit()
    impatient_unit.wait_until(run_id, "active")
    pid, restarts = machine.property("MainPID"), int(machine.property("NRestarts"))
    # returns when the process has ended
    ended = machine.run("python3", "-c", HOLD_MAIN_THREAD, pid, within=WAIT_SECONDS)
    assert ended.strip() == str(int(signal.SIGABRT))
    machine.wait_for("NRestarts", str(restarts + 1), within=WAIT_SECONDS)
    machine.wait_for("ActiveState", "active", within=WAIT_SECONDS)
    assert "watchdog timeout" in machine.story().lower()
    impatient_unit.let_go(run_id)
    assert impatient_unit.result(run_id) == {"starts": 1}


def test_a_server_that_is_away_is_no_matter_for_the_watchdog(impatient_unit: Hospital) -> None:
    machine = impatient_unit.machine
    before = [machine.property(name) for name in ("MainPID", "NRestarts")]
    impatient_unit.server.stop()
    try:
        eventually(
            lambda: "offline" in machine.property("StatusText"),
            within=WAIT_SECONDS,
            what="the status to say so",
        )
        fed = fed_at(machine)
        eventually(
            lambda: fed_at(machine) > fed + WATCHDOG_SECONDS, within=WAIT_SECONDS, what="signs of life"
        )
    finally:
        impatient_unit.server.start()
    assert [machine.property(name) for name in ("MainPID", "NRestarts")] == before


def fed_at(machine: SystemdMachine) -> float:
    """Say when the last sign of life came, in seconds."""
    return int(machine.property("WatchdogTimestampMonotonic")) / 1e6


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
