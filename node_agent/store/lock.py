"""One agent per name and per state directory: a second one is refused, naming the first one's process."""

import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from node_agent.errors import ConfigError
from node_agent.store.disk import disk_errors

_ASKERS = 128
"""How many refused agents learn our process id; later ones are refused all the same."""
_PID_WIDTH = 16
_CREDENTIALS = struct.Struct("iII")  # pid, uid, gid: what SO_PEERCRED gives


class AgentLock:
    """Holds the name and the state directory until the process ends, however it ends."""

    def __init__(self, name: str, state_dir: Path) -> None:
        self._name = name
        self._file = _open_lock_file(state_dir / "lock", name)
        try:
            # The same name with another state directory would fight over the same containers.
            self._socket = _claim_name(name)
        except BaseException:
            os.close(self._file)
            raise

    def release(self) -> None:
        """Let the next agent in."""
        self._socket.close()
        os.close(self._file)


def _open_lock_file(path: Path, name: str) -> int:
    with _opening_errors(path), disk_errors():
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _hold(descriptor, name)
        except BaseException:
            os.close(descriptor)
            raise
    return descriptor


def _hold(descriptor: int, name: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise _refusal(name, os.pread(descriptor, _PID_WIDTH, 0).decode(errors="replace").strip()) from error
    # always as long: over what an earlier agent wrote it fits also on a full disk
    os.pwrite(descriptor, f"{os.getpid()}".ljust(_PID_WIDTH - 1).encode() + b"\n", 0)


@contextmanager
def _opening_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"The lock file {path} cannot be used: {error.strerror}.",
            hint="Make the agent's user the owner of the state directory and all in it (state_dir).",
        ) from error


def _claim_name(name: str) -> socket.socket:
    address = f"\0node-agent.{name}"
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        claim.bind(address)
        claim.listen(_ASKERS)
    except OSError as error:
        claim.close()
        raise _refusal(name, _holder_of(address)) from error
    return claim


def _holder_of(address: str) -> str:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        # Nobody takes these calls; when too many wait, one more must not wait with them.
        asking.setblocking(False)
        try:
            asking.connect(address)
        except OSError:
            return ""
        raw = asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        return str(_CREDENTIALS.unpack(raw)[0])


def _refusal(name: str, pid: str) -> ConfigError:
    return ConfigError(
        f"Another node-agent named '{name}' is running (process {pid or 'unknown'}).",
        hint="Stop it first, or give this one another name and another state_dir.",
    )


def running_pid(state_dir: Path) -> int | None:
    """Give the process id of the agent that holds *state_dir*; None when there is none."""
    try:
        file = (state_dir / "lock").open(encoding="ascii")
    except FileNotFoundError:
        return None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            text = file.read(_PID_WIDTH).strip()
            return int(text) if text.isdigit() else None
    return None
