"""One agent per name and per state directory: a second one is refused, naming the first one's process.

The state directory is locked by a file in it, the name by a file in a folder that only this user, or root, can write to.
An agent in another container on the host's network is found by an abstract socket; since every local user may bind one,
it counts only when root or this very user holds it.
"""

import errno
import fcntl
import os
import socket
import stat
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import structlog

from node_agent.errors import ConfigError
from node_agent.store.disk import disk_errors

log = structlog.get_logger()

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_ASKERS = 128
"""How many refused agents learn our process id; later ones are refused all the same."""
_PID_WIDTH = 16
_CREDENTIALS = struct.Struct("iII")  # pid, uid, gid: what SO_PEERCRED gives


class AgentLock:
    """Holds the name and the state directory until the process ends, however it ends."""

    def __init__(self, name: str, state_dir: Path) -> None:
        self._name = name
        with ExitStack() as held:
            held.callback(os.close, _open_lock_file(state_dir / "lock", name))
            # The same name with another state directory would fight over the same containers.
            folder = _folder_of_names()
            if folder is not None:
                held.callback(os.close, _open_lock_file(folder / f"{name}.lock", name))
            held.callback(_claim_name(name).close)
            self._held = held.pop_all()

    def release(self) -> None:
        """Let the next agent in."""
        self._held.close()


def _folder_of_names() -> Path | None:
    """Return a folder for the locks of names that no other ordinary user can write to; None when there is none."""
    uid = os.geteuid()
    own = os.environ.get("XDG_RUNTIME_DIR")
    places = [Path("/run")] if uid == 0 else [Path(own)] if own else []
    # where everybody may write, a folder that somebody else made first is not ours, and is left alone
    for folder in (*(place / "node-agent" for place in places), Path(f"/tmp/node-agent-{uid}")):  # noqa: S108
        with suppress(OSError):
            folder.mkdir(mode=0o700, exist_ok=True)
            found = folder.lstat()
            if stat.S_ISDIR(found.st_mode) and found.st_uid == uid and not found.st_mode & 0o022:
                return folder
    return None


def _open_lock_file(path: Path, name: str) -> int:
    with _opening_errors(path), disk_errors():
        descriptor = os.open(path, _FLAGS, 0o600)
        try:
            _check_file(os.fstat(descriptor), path)
            _hold(descriptor, name)
        except BaseException:
            os.close(descriptor)
            raise
    return descriptor


def _check_file(found: os.stat_result, path: Path) -> None:
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
        raise ConfigError(
            f"The lock file {path} is no file of the agent's own user.",
            hint="Remove it, and start the agent again.",
        )


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
        pid, uid = _holder_of(address)
        if uid in {0, os.geteuid()}:
            claim.close()
            raise _refusal(name, str(pid)) from error
        log.warning("name_squatted", holder=pid, user=uid)
    return claim


def _holder_of(address: str) -> tuple[int | None, int | None]:
    """Return process and user of who listens at an abstract address; None for both when nobody can tell."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        # Nobody takes these calls; when too many wait, one more must not wait with them.
        asking.setblocking(False)
        try:
            asking.connect(address)
        except OSError:
            return None, None
        raw = asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, uid, _ = _CREDENTIALS.unpack(raw)
        return pid, uid


def _refusal(name: str, pid: str) -> ConfigError:
    return ConfigError(
        f"Another node-agent named '{name}' is running (process {pid or 'unknown'}).",
        hint="Stop it first, or give this one another name and another state_dir.",
    )


def running_pid(state_dir: Path) -> int | None:
    """Give the process id of the agent that holds *state_dir*; None when there is none."""
    try:
        descriptor = os.open(state_dir / "lock", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            return None
        raise
    with os.fdopen(descriptor, encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            text = file.read(_PID_WIDTH).strip()
            return int(text) if text.isdigit() else None
    return None
