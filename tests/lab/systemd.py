"""A machine with a real systemd, in a container: the agent installed as `make install` does it, units started and asked.

Owns its image, the container, and the way into it. Must not know what an agent does. The machine shares the host's
network and engine, and its state folder lies at the same place on the host, since the engine looks for mounts there.
"""

import contextlib
import hashlib
import io
import json
import shlex
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
from docker.errors import ImageNotFound

from tests.lab.images import LABEL, REPOSITORY, ImageError
from tests.lab.places import ROOT, lab_dir, locked, timed
from tests.lab.systems import bootstrap, host_suite
from tests.lab.wheels import dependencies, dependency_wheels

DEBIAN_NAME, DEBIAN_TAG = f"{REPOSITORY}/debian", "latest"
DEBIAN = f"{DEBIAN_NAME}:{DEBIAN_TAG}"
PACKAGES = (
    *("python3", "python3-venv", "ca-certificates", "nftables", "make"),
    *("systemd", "systemd-sysv", "dbus"),
)
STATE_ROOT = Path("/var/lib/node-agent")
CHECKOUT = "/usr/src/node-agent"
WHEELS = "/usr/src/wheels"
BOOT_SECONDS = 60
COMMAND_SECONDS = 120
CAPABILITIES = [
    *("SYS_ADMIN", "NET_ADMIN", "SYS_PTRACE", "DAC_READ_SEARCH"),
    *("SETPCAP", "AUDIT_WRITE", "SYS_NICE"),
]
# What systemd mounts for a service's credentials reaches the service only where mounts are shared, as on a real machine.
INIT = "mount --make-rshared / && exec /sbin/init"
OFFLINE = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": WHEELS}


class MachineError(Exception):
    """The machine does not do what was asked; the text says what came back."""


# --- images ---------------------------------------------------------------------------------------------------


def debian_image(client: docker.DockerClient) -> str:
    """Return an image with systemd, Python and nftables: a small server as a data owner has it."""
    with locked("images"):
        if not _exists(client, DEBIAN):
            with timed("making a Debian image with systemd by mmdebstrap"):
                _bootstrap(client)
    return DEBIAN


def installed_image(client: docker.DockerClient) -> str:
    """Return an image where `make install` was run once; only what the agent stands on has to be up to date in it."""
    base = client.images.get(debian_image(client))
    recipe = [str(base.id), *dependencies()]
    tag = f"{REPOSITORY}/systemd:{hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:12]}"
    with locked("images"):
        if not _exists(client, tag):
            with timed("installing the agent on a machine with systemd"):
                _install(client, tag)
    return tag


def _exists(client: docker.DockerClient, tag: str) -> bool:
    try:
        client.images.get(tag)
    except ImageNotFound:
        return False
    return True


def _bootstrap(client: docker.DockerClient) -> None:
    archive = lab_dir("cache") / "debian.tar"
    bootstrap(host_suite(), PACKAGES, archive)
    client.api.import_image_from_file(str(archive), DEBIAN_NAME, DEBIAN_TAG, changes=[f"LABEL {LABEL}=1"])
    archive.unlink()


def _install(client: docker.DockerClient, tag: str) -> None:
    container = client.containers.create(
        DEBIAN,
        ["make", "-s", "-C", CHECKOUT, "install"],
        environment=OFFLINE,
        volumes=_sources(client),
        labels={LABEL: "1"},
        network_mode="none",
    )
    try:
        container.start()
        if container.wait()["StatusCode"] != 0:
            raise ImageError(f"make install failed:\n{container.logs().decode()[-2000:]}")
        repository, _, version = tag.rpartition(":")
        container.commit(repository, version, changes=f"LABEL {LABEL}=1")
    finally:
        container.remove(force=True)


def python_of(client: docker.DockerClient, image: str) -> str:
    """Return the version of Python in an image."""
    show = "import sys; print('%d.%d' % sys.version_info[:2])"
    said = client.containers.run(image, ["python3", "-c", show], remove=True, network_mode="none")
    return str(said.decode().strip())


def _sources(client: docker.DockerClient) -> dict[str, dict[str, str]]:
    wheels = dependency_wheels(python_of(client, DEBIAN))
    return {
        str(ROOT): {"bind": CHECKOUT, "mode": "ro"},
        str(wheels): {"bind": WHEELS, "mode": "ro"},
    }


# --- the machine ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """What came of a command."""

    code: int
    output: str


class SystemdMachine:
    """A machine that has booted; *instance* is the one agent whose state folder it shares with the host."""

    def __init__(self, container: Any, instance: str) -> None:
        self._container = container
        self.instance = instance
        self.unit = f"node-agent@{instance}"
        self.state_dir = STATE_ROOT / instance

    def attempt(self, *words: str, within: float = COMMAND_SECONDS) -> Answer:
        """Run a command and give what came of it."""
        code, output = self._container.exec_run(["timeout", str(within), *words], environment=OFFLINE)
        return Answer(int(code), output.decode(errors="replace"))

    def run(self, *words: str, within: float = COMMAND_SECONDS) -> str:
        """Run a command that must go well and give its output."""
        answer = self.attempt(*words, within=within)
        if answer.code != 0:
            raise MachineError(
                f"{shlex.join(words)}: exit code {answer.code}\n{answer.output}\n{self.story()}"
            )
        return answer.output

    def write(self, path: str, content: str, *, mode: str, owner: str = "root:node-agent") -> None:
        """Put a file there."""
        name, encoded = Path(path).name, content.encode()
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(encoded), 0o600
            tar.addfile(entry, io.BytesIO(encoded))
        self._container.put_archive(str(Path(path).parent), archive.getvalue())
        self.run("chown", owner, path)
        self.run("chmod", mode, path)

    def shut_down(self) -> None:
        """Switch the machine off in order: every service is stopped first."""
        self._container.stop(timeout=BOOT_SECONDS)

    def cut_power(self) -> None:
        """Switch the machine off in the middle of whatever it does."""
        self._container.kill()
        self._container.wait()

    def boot(self) -> None:
        """Switch the machine on; this ends when every service that was enabled is ready."""
        self._container.start()
        _wait_until_up(self)

    def property(self, name: str) -> str:
        """Ask systemd for a property of the unit."""
        return self.run("systemctl", "show", "--value", f"--property={name}", self.unit).strip()

    def wait_for(self, name: str, value: str, *, within: float) -> None:
        """Wait until a property of the unit has that value."""
        deadline = time.monotonic() + within
        while (found := self.property(name)) != value:
            if time.monotonic() > deadline:
                raise MachineError(f"{self.unit}: {name} is {found!r}, not {value!r}\n{self.story()}")
            time.sleep(0.1)

    def journal(self, **fields: Any) -> list[dict[str, Any]]:
        """Give the unit's entries as `journalctl -o json` writes them; only those with these *fields*."""
        asked = [f"{name}={value}" for name, value in fields.items()]
        text = self.run("journalctl", "--no-pager", "-o", "json", "-u", self.unit, *asked)
        return [json.loads(line) for line in text.splitlines()]

    def story(self) -> str:
        """Give the end of the unit's journal, for a person."""
        return self.attempt("journalctl", "--no-pager", "-n", "40", "-o", "cat", "-u", self.unit).output[
            -6000:
        ]


@contextlib.contextmanager
def systemd_machine(
    client: docker.DockerClient,
    instance: str,
    *,
    image: Callable[[docker.DockerClient], str] = installed_image,
) -> Iterator[SystemdMachine]:
    """Boot a machine for one agent; at the end the machine and the agent's state folder are gone."""
    state_dir = STATE_ROOT / instance
    state_dir.mkdir(parents=True)
    container = _boot(client, image(client), state_dir)
    try:
        machine = SystemdMachine(container, instance)
        _wait_until_up(machine)
        _copy_engine_group(machine)
        yield machine
    finally:
        container.remove(force=True, v=True)
        _remove_state(state_dir)


def _boot(client: docker.DockerClient, image: str, state_dir: Path) -> Any:
    # A machine with the older control groups gives systemd its place in the host's tree, a newer one a tree of its own.
    unified = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    return client.containers.run(
        image,
        ["/bin/sh", "-c", INIT],
        detach=True,
        labels={LABEL: "1"},
        network_mode="host",
        stop_signal="SIGRTMIN+3",
        cap_add=CAPABILITIES,
        security_opt=["seccomp=unconfined"],
        cgroupns="private" if unified else "host",
        tmpfs={"/run": "", "/run/lock": "", "/tmp": ""},
        environment={"container": "docker"},
        volumes={
            **_sources(client),
            "/sys/fs/cgroup": {"bind": "/sys/fs/cgroup", "mode": "rw"},
            _socket(client): {"bind": "/srv/docker.sock", "mode": "rw"},
            str(state_dir): {"bind": str(state_dir), "mode": "rw"},
        },
    )


def _socket(client: docker.DockerClient) -> str:
    address = client.api.base_url
    found = "/var/run/docker.sock" if address.startswith("http+docker") else address
    return str(Path(found).resolve())


def _wait_until_up(machine: SystemdMachine) -> None:
    deadline = time.monotonic() + BOOT_SECONDS
    while (answer := machine.attempt("systemctl", "is-system-running")).output.strip() != "running":
        if time.monotonic() > deadline:
            units = machine.attempt("systemctl", "--failed", "--no-legend").output
            raise MachineError(f"the machine has not booted: {answer.output.strip()}\n{units}")
        time.sleep(0.2)


def _copy_engine_group(machine: SystemdMachine) -> None:
    """Give the machine the engine as a package would: its socket in the usual place, and the group it belongs to."""
    gid = machine.run("stat", "-c", "%g", "/srv/docker.sock").strip()
    machine.run("groupadd", "--non-unique", "--gid", gid, "docker")
    # also after a reboot, which empties /run
    link = "L /run/docker.sock - - - - /srv/docker.sock\n"
    machine.write("/etc/tmpfiles.d/engine.conf", link, mode="0644", owner="root:root")
    machine.run("systemd-tmpfiles", "--create", "/etc/tmpfiles.d/engine.conf")


def _remove_state(state_dir: Path) -> None:
    subprocess.run(["rm", "-rf", str(state_dir)], check=True)
    with contextlib.suppress(OSError):  # it stays when another agent keeps its state there
        STATE_ROOT.rmdir()
