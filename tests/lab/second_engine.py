"""A Docker engine of a test's own, which may be stopped, killed and started again while others use the machine's.

Owns its process, its folder and its bridge. Must not know agents or algorithms. It touches nothing that two engines would
share: it has no firewall rules, so that nothing is proven shut in on it, and a bridge of its own. (An engine that is told
to have none removes `docker0`, whosever it is.) Its image is made of this machine's own shell and the programs a small
algorithm needs.
"""

import contextlib
import io
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import docker
from docker.errors import DockerException

from tests.lab.engine import EngineError, client_of

START_SECONDS = 60
STOP_SECONDS = 60
PROGRAMS = ("sh", "cat", "tr", "sed", "base32", "sleep")
_LIBRARY = re.compile(r"(/\S+) \(0x")


class SecondEngine:
    """One `dockerd` on a socket and in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._bridge = f"ne-{secrets.token_hex(4)}"
        _ip("link", "add", self._bridge, "type", "bridge")
        _ip("address", "add", f"198.19.{secrets.randbelow(256)}.1/29", "dev", self._bridge)
        _ip("link", "set", self._bridge, "up")

    @property
    def host(self) -> str:
        """Give its address."""
        return f"unix://{self._folder / 'socket'}"

    def client(self) -> docker.DockerClient:
        """Return a new client of it."""
        return client_of(self.host)

    def start(self, *words: str) -> None:
        """Start it with these options, and wait until it answers."""
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [_program(), *self._options(), *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise EngineError(f"a second engine does not start:\n{self._log_tail()}")
            time.sleep(0.1)

    def _options(self) -> list[str]:
        places = {"data-root": "data", "exec-root": "exec", "pidfile": "pid"}
        kept_apart = [f"--bridge={self._bridge}", "--iptables=false", "--ip6tables=false"]
        return [f"--host={self.host}", *(f"--{k}={self._folder / v}" for k, v in places.items()), *kept_apart]

    def _answers(self) -> bool:
        # not by the library: what it opened in vain it leaves open
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
            asking.settimeout(5)
            try:
                asking.connect(str(self._folder / "socket"))
                asking.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
                return asking.recv(1000).startswith(b"HTTP/1.0 200")
            except OSError:
                return False

    def stop(self) -> None:
        """Stop it as the service does; without `--live-restore` its containers end with it."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a crash would; the part of it that holds the containers dies with it."""
        part = self._folder / "exec" / "containerd" / "containerd.pid"
        process = Path("/proc", part.read_text().strip()) if part.exists() else None
        self._end(signal.SIGKILL)
        deadline = time.monotonic() + STOP_SECONDS
        while process is not None and _is_alive(process):
            assert time.monotonic() < deadline, "the engine's own part outlives it"
            time.sleep(0.01)
        # until the machine's first process takes note of a death, the next engine takes the dead one for its own
        for noted in (part, self._folder / "pid"):
            noted.unlink(missing_ok=True)

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(how)
            process.wait(STOP_SECONDS)

    def clean_up(self) -> None:
        """Remove its containers, stop it, and take its mounts away."""
        if self._process is None or self._process.poll() is not None:
            # its containers may have outlived it, and only an engine removes them
            with contextlib.suppress(EngineError):
                self.start()
        if self._answers():
            with contextlib.suppress(DockerException), contextlib.closing(self.client()) as client:
                for container in client.containers.list(all=True, ignore_removed=True):
                    container.remove(force=True)
        self.stop()
        inside = f"{self._folder}/"
        mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for place in sorted((m for m in mounts if m.startswith(inside)), reverse=True):
            subprocess.run(["umount", "--lazy", place], check=False)
        _ip("link", "delete", self._bridge)

    def _log_tail(self) -> str:
        return (self._folder / "log").read_text(errors="replace")[-2000:]


@contextlib.contextmanager
def second_engine() -> Iterator[SecondEngine]:
    """Provide a second engine that runs; it may be stopped and started meanwhile."""
    if os.geteuid() != 0:
        raise EngineError("a second engine needs root")
    folder = Path(tempfile.mkdtemp(prefix="engine-"))
    made = SecondEngine(folder)
    try:
        made.start()
        yield made
    finally:
        made.clean_up()
        shutil.rmtree(folder, ignore_errors=True)


def imported_image(client: docker.DockerClient, name: str, script: str) -> str:
    """Make an image that runs *script* with this machine's shell, without any other image."""
    tag = f"node-agent-lab/{name}"
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for file in _files():
            archive.add(file.resolve(), arcname=str(file))
        entry = tarfile.TarInfo("script.sh")
        entry.size, entry.mode = len(script.encode()), 0o644
        archive.addfile(entry, io.BytesIO(script.encode()))
        for folder in ("mnt", "tmp", "proc", "dev", "sys", "etc"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
    client.api.import_image_from_data(
        content.getvalue(), tag, "latest", changes=[f"ENTRYPOINT {json.dumps(['/bin/sh', '/script.sh'])}"]
    )
    return f"{tag}:latest"


def _is_alive(process: Path) -> bool:
    try:
        state = (process / "stat").read_text().rpartition(") ")[2][0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def _files() -> set[Path]:
    """List the programs under /bin, and every library they load."""
    found = {Path("/bin", program) for program in PROGRAMS}
    for program in list(found):
        said = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
        found |= {Path(library) for library in _LIBRARY.findall(said)}
    return found


def _program() -> str:
    found = shutil.which("dockerd", path="/usr/bin:/usr/sbin:/usr/local/bin:/usr/local/sbin")
    if found is None:
        raise EngineError("dockerd is not installed: run tests/lab/setup.sh")
    return found
