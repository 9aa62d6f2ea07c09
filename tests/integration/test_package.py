"""The Debian package, on a machine with a real systemd: installed, upgraded under a running algorithm, removed, purged."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from tests.doubles.fake_server import FakeServer
from tests.integration.test_service import WORST_EXPOSURE, Hospital
from tests.interop.stage import eventually
from tests.lab.engine import EngineError, engine
from tests.lab.images import ImageError, python_base
from tests.lab.package import PackageError, debian_package
from tests.lab.places import ROOT
from tests.lab.systemd import CHECKOUT, Answer, SystemdMachine, debian_image, systemd_machine
from tests.lab.wheels import WheelError

# The first time of all, machine and package have to be made.
pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

FIRST, SECOND = "0.1.0", "0.1.0+1"
UNIT = "/usr/lib/systemd/system/node-agent@.service"
EARLIER = "/opt/node-agent/bin/node-agent"
# The machine is thrown away, and keeps no documents unless asked.
DPKG = ("dpkg", "--force-unsafe-io", "--path-include=/usr/share/doc/node-agent/*")


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
        self.configure(databases=[{"label": "default", "type": "csv", "uri": "/srv/patients.csv"}])

    def install(self, version: str) -> Answer:
        """Install that version over whatever is there."""
        package = Path(CHECKOUT) / self._packages[version].relative_to(ROOT)
        return self.machine.attempt(*DPKG, "--install", str(package))

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
        if os.environ.get("CI") == "true":
            pytest.fail(f"missing in CI: {error}")
        pytest.skip(f"missing: {error}")


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


def test_an_upgrade_brings_the_agent_back_with_the_new_version_and_no_algorithm_notices(
    hospital: PackagedHospital,
) -> None:
    machine = hospital.machine
    hospital.ensure(FIRST)
    hospital.start()
    run_id = hospital.submit()
    hospital.wait_until(run_id, "active")
    (before,) = hospital.containers()
    first_pid = machine.property("MainPID")
    hospital.ensure(SECOND)
    machine.wait_for("ActiveState", "active", within=60)
    assert machine.property("MainPID") != first_pid
    assert hospital.version() == SECOND
    (after,) = hospital.containers()
    assert (after.id, after.attrs["State"]["StartedAt"]) == (before.id, before.attrs["State"]["StartedAt"])
    hospital.let_go(run_id)
    assert hospital.result(run_id) == {"starts": 1}
    eventually(lambda: not hospital.containers(), within=20, what="the removal of the container")


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
