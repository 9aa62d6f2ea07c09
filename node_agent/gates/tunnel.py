"""The secure shell's client as a way to a server in another network; its host key is pinned.

Owns the options, the file with the known key, and the process. The client listens on a socket in our own folder, which
nobody but the agent can open.
"""

import base64
import binascii
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import structlog

from node_agent.domain.service import Tunnel
from node_agent.errors import ConfigError, Transient
from node_agent.gates.child import Child, Program

log = structlog.get_logger()

SCAN_SECONDS = 10
_CHANGED = "Host key verification failed"
_SEEN = "fingerprint for the "
_ALIVE = ("ServerAliveInterval=15", "ServerAliveCountMax=3", "ConnectTimeout=15", "TCPKeepAlive=yes")
_NOTHING_ELSE = (
    "BatchMode=yes",
    "StrictHostKeyChecking=yes",
    "GlobalKnownHostsFile=/dev/null",
    "UpdateHostKeys=no",
    "CheckHostIP=no",
    "IdentitiesOnly=yes",
    "IdentityAgent=none",
    "PreferredAuthentications=publickey",
    "ForwardAgent=no",
    "ForwardX11=no",
    "PermitLocalCommand=no",
    "ControlMaster=no",
    "ControlPath=none",
)
_OWN_SOCKET = ("ExitOnForwardFailure=yes", "StreamLocalBindMask=0177", "StreamLocalBindUnlink=yes")


def ssh_program(name: str = "ssh") -> str:
    """Find the secure shell's client. Raises ConfigError."""
    program = shutil.which(name)
    if program is None:
        raise ConfigError(
            f"A tunnel is configured (services), and the program {name} is not installed.",
            hint="Install the Debian package openssh-client, or remove the tunnel.",
        )
    return program


def fingerprint_of(host_key: str) -> str:
    """Give the fingerprint of a pinned key, in whichever form it was given."""
    if host_key.startswith("SHA256:"):
        return host_key.rstrip("=")
    digest = hashlib.sha256(base64.b64decode(host_key.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def ssh_words(name: str, tunnel: Tunnel, *, known_hosts: Path) -> tuple[str, ...]:
    """Write the client's arguments up to where it goes; no secret is in them, since everybody can see them."""
    options = (*_NOTHING_ELSE, *_ALIVE, f"UserKnownHostsFile={known_hosts}", f"HostKeyAlias={name}")
    return (
        *("-F", "none", "-T", "-a", "-x", "-p", str(tunnel.port), "-l", tunnel.user),
        *("-i", str(tunnel.key_file)),
        *_words(options),
    )


def _words(options: Iterable[str]) -> tuple[str, ...]:
    return tuple(word for option in options for word in ("-o", option))


class TunnelChild:
    """One tunnel, kept up."""

    def __init__(self, name: str, tunnel: Tunnel, *, folder: Path) -> None:
        self.name = name
        self._tunnel = tunnel
        self._folder = folder
        self._child: Child | None = None
        self._grip: int | None = None
        self._says = ""

    @property
    def socket(self) -> str:
        """Give the socket's place in a form short enough for the kernel, however deep our folder lies."""
        return f"/proc/self/fd/{self._grip}/{self.name}.sock"

    @property
    def trouble(self) -> str:
        """Say what stands in the way, as far as the client said."""
        return self._says or "it is being made"

    def start(self) -> None:
        """Begin to make the tunnel and keep it; a server that is away is no fault. Raises ConfigError."""
        known_hosts = self._folder / f"{self.name}.known"
        command = (ssh_program(), *ssh_words(self.name, self._tunnel, known_hosts=known_hosts))
        self._grip = os.open(self._folder, os.O_PATH | os.O_DIRECTORY)
        forward = ("-N", "-L", f"./{self.name}.sock:{self._tunnel.target}", *_words(_OWN_SOCKET))
        program = Program(
            name=f"tunnel-{self.name}",
            command=(*command, *forward, "--", self._tunnel.host),
            mark=f"UserKnownHostsFile={known_hosts}",
            folder=self._folder,
            user=(os.geteuid(), os.getegid()),
            environment={"HOME": str(self._folder)},
        )
        self._child = Child(program, heard=self._heard, prepare=lambda: self._pin(known_hosts))
        self._child.start()

    def stop(self) -> None:
        """End the tunnel; not started is fine."""
        if self._child is not None:
            self._child.stop()
        if self._grip is not None:
            os.close(self._grip)
            self._grip = None
        (self._folder / f"{self.name}.sock").unlink(missing_ok=True)

    def _pin(self, known_hosts: Path) -> None:
        known_hosts.write_text(f"{self.name} {pinned_key(self._tunnel)}\n")

    def _heard(self, line: str) -> None:
        if _SEEN in line or _CHANGED in line or not self._says:
            self._says = line
        if _CHANGED in line:
            log.error(
                "tunnel_refused",
                gate=self.name,
                host=self._tunnel.host,
                expected=fingerprint_of(self._tunnel.host_key),
                reason="the server shows another host key than services[].tunnel.host_key",
                todo="Ask its administrator for the key. If it was replaced on purpose, write the new one.",
            )


def pinned_key(tunnel: Tunnel) -> str:
    """Give the one key that is accepted; a fingerprint is looked for among those the server shows. Raises Transient."""
    if not tunnel.host_key.startswith("SHA256:"):
        return tunnel.host_key
    shown = _scanned(tunnel)
    expected = fingerprint_of(tunnel.host_key)
    for key in shown:
        if fingerprint_of(key) == expected:
            return key
    seen = ", ".join(fingerprint_of(key) for key in shown) or "none"
    log.error(
        "tunnel_refused",
        gate=tunnel.host,
        host=tunnel.host,
        expected=expected,
        reason=f"the server shows other host keys: {seen}",
        todo="Ask its administrator for the key. If it was replaced on purpose, write the new one.",
    )
    raise Transient(f"{tunnel.host} shows none of the expected host keys.")


def _scanned(tunnel: Tunnel) -> list[str]:
    command = [ssh_program("ssh-keyscan"), "-T", str(SCAN_SECONDS), "-p", str(tunnel.port), tunnel.host]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=2 * SCAN_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Transient(f"{tunnel.host} could not be asked for its host keys.") from error
    lines = [line.split() for line in done.stdout.splitlines() if line and not line.startswith("#")]
    keys = [" ".join(words[1:3]) for words in lines if len(words) >= 3]  # noqa: PLR2004 - host, type, key
    if not keys:
        raise Transient(f"{tunnel.host} port {tunnel.port} shows no host key; is it a secure shell server?")
    return [key for key in keys if _is_key(key)]


def _is_key(text: str) -> bool:
    try:
        return bool(base64.b64decode(text.split()[1], validate=True))
    except (binascii.Error, IndexError):
        return False
