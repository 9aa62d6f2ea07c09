"""The Debian package, on a machine with a real systemd: installed, upgraded under running algorithms, removed, purged.

Also what only a machine shows where the agent is enabled as a package has it: a reboot.
"""

import contextlib
import secrets
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

from node_agent.runtime.firewall import table_name
from tests.doubles.fake_server import FakeServer
from tests.integration.test_service import WORST_EXPOSURE, Hospital
from tests.interop.stage import eventually
from tests.lab.engine import EngineError, engine
from tests.lab.images import ImageError, python_base
from tests.lab.package import FIRST, SECOND, PackageError, debian_package
from tests.lab.places import ROOT
from tests.lab.systemd import CHECKOUT, Answer, SystemdMachine, debian_image, systemd_machine
from tests.lab.wheels import WheelError
from tests.parts import say_missing

# The first time of all, machine and package have to be made.
pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

UNIT = "/usr/lib/systemd/system/node-agent@.service"
EARLIER = "/opt/node-agent/bin/node-agent"
# The machine is thrown away, and keeps no documents unless asked.
DPKG = ("dpkg", "--force-unsafe-io", "--path-include=/usr/share/doc/node-agent/*")


def machine_path(path: Path) -> str:
    """Say where the machine sees a file of the checkout."""
    return str(Path(CHECKOUT) / path.relative_to(ROOT))


class PackagedHospital(Hospital):
    """A machine that knows the agent from packages only."""

    def __init__(
        self,
        machine: SystemdMachine,
        server: FakeServer,
        client: docker.DockerClient,
        packages: dict[str, Path],
    ) -> None:
        super().__init__(machine, server, client)
        self._packages = packages
        self.refused = self._install_beside_another()
        self.first = self.install(FIRST)
        machine.write("/srv/patients.csv", "age\n30\n", mode="0644", owner="root:root")
        self.configure(
            databases=[{"label": "default", "type": "csv", "uri": "/srv/patients.csv"}],
            images={"pull": "missing"},
        )

    def install(self, version: str) -> Answer:
        """Install that version over whatever is there."""
        return self.machine.attempt(*DPKG, "--install", machine_path(self.package(version)))

    def package(self, version: str) -> Path:
        """Say where the package of a version lies on the host."""
        return self._packages[version]

    def ensure(self, version: str) -> None:
        """Have that version on the machine."""
        if self.version() != version:
            answer = self.install(version)
            assert answer.code == 0, answer.output

    def version(self) -> str:
        """Give the version that is installed; empty when none is."""
        asked = "${db:Status-Status} ${Version}"
        status, _, version = self.machine.attempt(
            "dpkg-query", "--show", f"--showformat={asked}", "node-agent"
        ).output.partition(" ")
        return version if status == "installed" else ""

    def _install_beside_another(self) -> Answer:
        self.machine.run("install", "-D", "-m", "0755", "/bin/true", EARLIER)
        answer = self.install(FIRST)
        self.machine.run("rm", "-r", "/opt/node-agent")
        return answer


@pytest.fixture(scope="module")
def _hospital() -> Iterator[PackagedHospital]:
    try:
        with contextlib.ExitStack() as stack:
            packages = {version: debian_package(version) for version in (FIRST, SECOND)}
            client = stack.enter_context(engine()).client()
            stack.callback(client.close)
            python_base(client)
            server = stack.enter_context(FakeServer())
            instance = f"lab-{secrets.token_hex(3)}"
            machine = stack.enter_context(systemd_machine(client, instance, image=debian_image))
            made = PackagedHospital(machine, server, client, packages)
            stack.callback(made.clear)
            yield made
    except (EngineError, ImageError, PackageError, WheelError) as error:
        say_missing(error)


@pytest.fixture
def hospital(_hospital: PackagedHospital, root: None) -> PackagedHospital:
    return _hospital


@pytest.fixture
def installed(hospital: PackagedHospital) -> PackagedHospital:
    hospital.ensure(hospital.version() or FIRST)
    return hospital


def test_a_package_beside_an_installation_by_hand_is_refused_with_the_way_out(
    hospital: PackagedHospital,
) -> None:
    assert hospital.refused.code != 0
    assert "make uninstall" in hospital.refused.output


def test_the_first_installation_says_what_comes_next(hospital: PackagedHospital) -> None:
    assert hospital.first.code == 0, hospital.first.output
    assert "systemctl enable --now node-agent@alpha" in hospital.first.output


def test_the_package_brings_command_user_folders_and_examples(installed: PackagedHospital) -> None:
    machine = installed.machine
    assert machine.run("node-agent", "--version") == "node-agent 0.1.0\n"
    machine.run("id", "node-agent")
    machine.run(
        "ls", "/usr/share/doc/node-agent/examples/service.yaml", "/usr/share/doc/node-agent/copyright"
    )
    rights = machine.run("stat", "-c", "%a %U %G", "/etc/node-agent", "/var/lib/node-agent").splitlines()
    assert rights == ["750 root node-agent", "700 node-agent node-agent"]


def test_nothing_of_the_package_is_writable_or_started_but_what_has_to_be(
    installed: PackagedHospital,
) -> None:
    machine = installed.machine
    brought = "/usr/lib/node-agent /usr/share/doc/node-agent /usr/share/lintian/overrides/node-agent " + UNIT
    odd = machine.run(
        "sh", "-c", f"find {brought} ! -type l '(' ! -user root -o ! -group root -o -perm /6022 ')'"
    )
    assert odd == ""
    started = machine.run("find", "/usr/lib/node-agent", "-type", "f", "-perm", "/111")
    assert started.splitlines() == ["/usr/lib/node-agent/bin/node-agent"]


def test_the_packaged_unit_is_understood_and_as_closed_as_the_other(installed: PackagedHospital) -> None:
    machine = installed.machine
    understood = machine.attempt("systemd-analyze", "verify", f"{machine.unit}.service")
    assert (understood.code, understood.output) == (0, "")
    closed = machine.attempt(
        *("systemd-analyze", "security", "--offline=true", "--no-pager", f"--threshold={WORST_EXPOSURE}"),
        UNIT,
    )
    assert closed.code == 0, closed.output


def test_a_configuration_is_checked_the_way_the_service_sees_it(installed: PackagedHospital) -> None:
    machine = installed.machine
    code, output = installed.command("network", "ensure")
    assert code == 0, output
    checked = machine.attempt(
        *(
            "systemd-run",
            "--quiet",
            "--pipe",
            "--wait",
            "-p",
            "User=node-agent",
            "-p",
            "SupplementaryGroups=docker",
        ),
        *("-p", f"StateDirectory=node-agent/{machine.instance}", "-p", "StateDirectoryMode=0700"),
        *("-p", f"LoadCredential=api.key:node-agent.{machine.instance}.key"),
        *("-p", f"LoadCredential=private.pem:node-agent.{machine.instance}.pem"),
        *("-p", f"LoadCredential=registry.password:node-agent.{machine.instance}.registry"),
        *("node-agent", "check", "-c", f"/etc/node-agent/{machine.instance}.yaml"),
    )
    assert checked.code == 0, checked.output


def test_nothing_but_what_the_package_brought_lies_beside_the_program(installed: PackagedHospital) -> None:
    machine = installed.machine
    installed.command("config", "show")
    assert machine.run("dpkg", "--verify", "node-agent") == ""
    brought = set(machine.run("dpkg-query", "--listfiles", "node-agent").splitlines())
    there = set(machine.run("find", "/usr/lib/node-agent").splitlines())
    assert there <= brought


def at_work(hospital: PackagedHospital, runs: int) -> list[int]:
    """Send tasks and wait until all their algorithms run."""
    hospital.start()
    run_ids = [hospital.submit() for _ in range(runs)]
    for run_id in run_ids:
        hospital.wait_until(run_id, "active")
    return run_ids


def starts(hospital: PackagedHospital) -> set[tuple[str, str]]:
    """Give which containers there are and when each of them was started."""
    return {(found.id, found.attrs["State"]["StartedAt"]) for found in hospital.containers()}


def container_of(hospital: PackagedHospital, run_id: int) -> Any:
    (found,) = [c for c in hospital.containers() if c.labels["node-agent.run"] == str(run_id)]
    return found


def assert_nothing_is_left(hospital: PackagedHospital) -> None:
    machine = hospital.machine
    eventually(lambda: not hospital.containers(), within=60, what="the removal of the containers")
    eventually(lambda: not list((machine.state_dir / "runs").iterdir()), within=60, what="empty run folders")
    said = [line["MESSAGE"] for line in machine.journal()]
    assert not [text for text in said if "report_refused" in text], "a run was reported twice"


def test_a_restart_and_an_upgrade_bring_the_agent_back_and_no_algorithm_notices(
    hospital: PackagedHospital,
) -> None:
    machine = hospital.machine
    hospital.ensure(FIRST)
    run_ids = at_work(hospital, 2)
    before = starts(hospital)
    assert len(before) == 2
    pids = [machine.property("MainPID")]

    machine.run("systemctl", "restart", machine.unit)
    pids.append(machine.property("MainPID"))
    assert starts(hospital) == before

    hospital.ensure(SECOND)
    machine.wait_for("ActiveState", "active", within=60)
    pids.append(machine.property("MainPID"))
    assert len(set(pids)) == 3, "each time it is a new process"
    assert hospital.version() == SECOND
    assert starts(hospital) == before
    for run_id in run_ids:
        hospital.let_go(run_id)
        assert hospital.result(run_id) == {"starts": 1}
    assert_nothing_is_left(hospital)


def test_an_upgrade_that_breaks_off_leaves_the_version_before_at_work(installed: PackagedHospital) -> None:
    machine = installed.machine
    before = installed.version()
    (run_id,) = at_work(installed, 1)
    running = starts(installed)
    whole = installed.package(SECOND)
    machine.run("sh", "-c", f"head -c {whole.stat().st_size // 2} {machine_path(whole)} >/tmp/half.deb")
    assert machine.attempt(*DPKG, "--install", "/tmp/half.deb").code != 0
    machine.wait_for("ActiveState", "active", within=60)
    assert installed.version() == before
    assert starts(installed) == running
    installed.let_go(run_id)
    assert installed.result(run_id) == {"starts": 1}


def test_a_journal_of_a_newer_package_ends_the_service_with_the_reason_and_is_left_as_it_is(
    installed: PackagedHospital,
) -> None:
    machine = installed.machine
    installed.start()
    installed.stop()
    path = machine.state_dir / "journal.sqlite"
    set_version(path, by=1)
    content = path.read_bytes()
    try:
        assert machine.attempt("systemctl", "start", machine.unit).code != 0
        assert (machine.property("ActiveState"), machine.property("ExecMainStatus")) == ("failed", "78")
        assert "newer node-agent" in machine.story()
        assert path.read_bytes() == content
    finally:
        set_version(path, by=-1)
        machine.run("systemctl", "reset-failed", machine.unit)


def set_version(path: Path, *, by: int) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        connection.execute(f"PRAGMA user_version = {version + by}")


# --- the machine is rebooted ------------------------------------------------------------------------------------


def test_after_a_reboot_in_order_each_run_ends_once_with_what_became_of_its_container(
    installed: PackagedHospital,
) -> None:
    machine = installed.machine
    finished, ended = at_work(installed, 2)
    machine.run("systemctl", "enable", machine.unit)
    machine.shut_down()
    # the engine stops last: one algorithm came to its end, the other was ended
    installed.let_go(finished)
    container_of(installed, finished).wait(timeout=60)
    container_of(installed, ended).kill()
    forget_firewall(machine)
    machine.boot()
    assert machine.property("ActiveState") == "active"
    assert table_name(machine.instance) in tables(), "the firewall rule is loaded again"
    assert installed.result(finished) == {"starts": 1}
    run = over(installed, ended)
    # a busy engine may have forgotten who asked for it, and then says what it can have been
    assert "engine" in run.log, run.log
    assert_nothing_is_left(installed)


def test_after_a_power_cut_that_took_the_engines_containers_too_each_run_still_ends_once(
    installed: PackagedHospital,
) -> None:
    machine = installed.machine
    run_ids = at_work(installed, 2)
    machine.run("systemctl", "enable", machine.unit)
    machine.cut_power()
    for container in installed.containers():
        container.remove(force=True)
    forget_firewall(machine)
    machine.boot()
    for run_id in run_ids:
        run = over(installed, run_id)
        assert "disappeared" in run.log, run.log
    assert_nothing_is_left(installed)
    # and the machine is a good one again
    (next_one,) = at_work(installed, 1)
    installed.let_go(next_one)
    assert installed.result(next_one) == {"starts": 1}


def forget_firewall(machine: SystemdMachine) -> None:
    """Do what a reboot does to the rules of the firewall; the machine shares them with its host."""
    subprocess.run(["nft", "delete", "table", "inet", table_name(machine.instance)], check=True)


def tables() -> str:
    return subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout


def over(hospital: PackagedHospital, run_id: int) -> Any:
    """Wait until the server has the final report of a run that did not come to its own end."""
    try:
        eventually(
            lambda: hospital.server.run(run_id).finished_at is not None,
            within=60,
            what=f"the end of {run_id}",
        )
    except AssertionError as error:
        raise AssertionError(f"{error}\n{hospital.machine.story()}") from None
    run = hospital.server.run(run_id)
    assert run.status not in {"completed", "active"}
    assert not run.result
    return run


# --- stopped, removed, purged -----------------------------------------------------------------------------------


def test_an_instance_that_was_stopped_stays_stopped_when_the_package_changes(
    installed: PackagedHospital,
) -> None:
    machine = installed.machine
    installed.stop()
    again = installed.install(installed.version())
    assert again.code == 0, again.output
    assert machine.property("ActiveState") == "inactive"


def test_removing_and_purging_stop_the_agent_and_keep_what_is_the_operators(
    installed: PackagedHospital,
) -> None:
    machine = installed.machine
    installed.start()
    machine.run("systemctl", "enable", machine.unit)
    operators = [f"/etc/node-agent/{machine.instance}.yaml", str(machine.state_dir / "journal.sqlite")]

    machine.run("dpkg", "--remove", "node-agent")
    assert machine.property("ActiveState") == "inactive"
    machine.run("sh", "-c", f"! command -v node-agent && ! test -e /usr/lib/node-agent && ! test -e {UNIT}")
    assert not installed.client.networks.list(names=[f"node-agent-{machine.instance}"])
    machine.run("ls", *operators)

    said = machine.run("dpkg", "--purge", "node-agent")
    assert "/etc/node-agent" in said
    assert "/var/lib/node-agent" in said
    machine.run("ls", *operators)
    machine.run("id", "node-agent")
    assert machine.run("find", "/etc/systemd/system", "-name", "node-agent@*") == ""
