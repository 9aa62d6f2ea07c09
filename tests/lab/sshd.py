"""A real secure shell server on loopback that forwards and does nothing else.

Owns the server's process, its host key and the one key it lets in. Needs root. Must not know what is forwarded.
"""

import getpass
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.ports import free_port

START_SECONDS = 15


class SshdError(Exception):
    """The server does not start; the text says why."""


@dataclass(frozen=True)
class Sshd:
    """A server that answers at 127.0.0.1."""

    port: int
    user: str
    host_key: str
    key_file: Path
    folder: Path

    def tunnel(self, target: str) -> dict[str, object]:
        """Give the tunnel's settings as a configuration has them."""
        return {
            "host": "127.0.0.1",
            "port": self.port,
            "user": self.user,
            "key_file": str(self.key_file),
            "host_key": self.host_key,
            "target": target,
        }


@contextmanager
def sshd() -> Iterator[Sshd]:
    """Run a server of its own on a free port."""
    program = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin")
    if program is None:
        raise SshdError("sshd is not installed: run tests/lab/setup.sh")
    with tempfile.TemporaryDirectory(prefix="lab-sshd-") as folder:
        found = _made(Path(folder))
        os.makedirs("/run/sshd", mode=0o755, exist_ok=True)  # noqa: PTH103 - it does not start without
        process = subprocess.Popen(
            [program, "-D", "-e", "-f", str(found.folder / "sshd_config")],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            _wait_until_answering(found, process)
            yield found
        finally:
            process.terminate()
            process.wait()


def new_key(path: Path) -> str:
    """Make a key pair; give its public part as known_hosts has it."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return " ".join(path.with_suffix(".pub").read_text().split()[:2])


def _made(folder: Path) -> Sshd:
    host_key = new_key(folder / "host")
    known = new_key(folder / "client")
    (folder / "known").write_text(known + "\n")
    found = Sshd(free_port(), getpass.getuser(), host_key, folder / "client", folder)
    (folder / "sshd_config").write_text(f"""\
Port {found.port}
ListenAddress 127.0.0.1
HostKey {folder / "host"}
AuthorizedKeysFile {folder / "known"}
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
AllowTcpForwarding local
PermitTTY no
ForceCommand /bin/false
""")
    return found


def _wait_until_answering(found: Sshd, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_SECONDS
    scan = ["ssh-keyscan", "-p", str(found.port), "127.0.0.1"]
    while time.monotonic() < deadline and process.poll() is None:
        if subprocess.run(scan, capture_output=True, check=False).stdout:
            return
        time.sleep(0.05)
    raise SshdError("sshd does not answer")
