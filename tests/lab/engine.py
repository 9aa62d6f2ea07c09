"""A Docker engine for tests: the one that already answers, or one started for as long as it is needed.

Owns starting and stopping `dockerd` on a machine where nobody else does. Must not know images or containers.

Every user of the engine holds a shared lock. Whoever leaves last stops the engine, and only an engine that the
lab started: a nested command finds the lock taken and leaves the engine alone, and one left over after `kill -9`
is stopped by the next user.

    python -m tests.lab.engine start        start it and leave it running
    python -m tests.lab.engine stop         stop it, if the lab started it
    python -m tests.lab.engine run -- CMD   run CMD with the engine up, and return its exit code
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, flock
from pathlib import Path
from types import FrameType
from typing import IO, Any

import docker
from docker.errors import DockerException

from tests.lab.places import lab_dir, locked, say

DEFAULT_HOST = "unix:///var/run/docker.sock"
OLDEST_API = (1, 41)
"""Of Docker 20.10."""
START_SECONDS = 60
STOP_SECONDS = 40
# Files a killed engine leaves behind. A new one refuses to start while their number belongs to any process.
LEFTOVERS = {
    "dockerd": Path("/var/run/docker.pid"),
    "containerd": Path("/var/run/docker/containerd/containerd.pid"),
}


class EngineError(Exception):
    """No Docker engine can be had on this machine; the text says why and what to do."""


@dataclass(frozen=True)
class Engine:
    """An engine that answers."""

    docker_host: str

    def client(self) -> docker.DockerClient:
        """Return a new client for this engine."""
        return client_of(self.docker_host)


def client_of(host: str, *, timeout: int = 60) -> docker.DockerClient:
    """Return a new client. Raises DockerException when nobody listens, and leaves nothing open then."""
    if host.startswith("unix://"):
        _knock(host.removeprefix("unix://"))
    return docker.DockerClient(base_url=host, timeout=timeout)


def _knock(path: str) -> None:
    # the library leaves open what it opened in vain, and whatever test runs next is blamed for it
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as knocking:
        knocking.settimeout(5)
        try:
            knocking.connect(path)
        except OSError as error:
            raise DockerException(f"no engine listens at {path}: {error}") from error


@contextmanager
def engine() -> Iterator[Engine]:
    """Provide an engine, and stop it at the end if this was its last user and the lab started it."""
    with _users_lock() as lock, _terminating_cleanly():
        found = _ensure_running()
        try:
            yield found
        finally:
            _stop_if_last(lock)


@contextmanager
def _users_lock() -> Iterator[IO[str]]:
    with (lab_dir() / "engine.users").open("w") as lock:
        flock(lock, LOCK_SH)
        yield lock


@contextmanager
def _terminating_cleanly() -> Iterator[None]:
    """Turn SIGTERM into an exit that unwinds, unless the program has its own answer to it."""
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    with suppress(
        ValueError
    ):  # only the main thread may set signals; elsewhere the program's own answer counts
        signal.signal(signal.SIGTERM, _exit_on_signal)
    try:
        yield
    finally:
        with suppress(ValueError):
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _exit_on_signal(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _ensure_running() -> Engine:
    with locked("engine-start"):
        found = _answering()
        if found is not None:
            return found
        _start()
        return _wait_until_answering()


def _answering() -> Engine | None:
    """Return the engine that answers already; raise when it is one that the tests cannot work with."""
    for host in (os.environ.get("DOCKER_HOST"), DEFAULT_HOST):
        description = _described(host) if host else None
        if description is not None:
            if reason := unfit(*description):
                raise EngineError(f"The engine that answers at {host} {reason}")
            return Engine(str(host))
    return None


def _described(host: str) -> tuple[Mapping[str, Any], Mapping[str, Any]] | None:
    """Return what the engine says of its version and of itself; None when none answers."""
    try:
        client = client_of(host, timeout=5)
    except DockerException:
        return None
    try:
        return client.version(), client.info()
    except (DockerException, OSError):
        return None
    finally:
        client.close()


def unfit(version: Mapping[str, Any], info: Mapping[str, Any]) -> str:
    """Return why the tests cannot work with an engine that describes itself so, and what to do; empty when they can."""
    names = [str(part.get("Name", "")) for part in version.get("Components") or ()]
    if any("podman" in name.lower() for name in names):
        return "is Podman, and the tests need Docker: stop it (systemctl stop podman.socket), or unset DOCKER_HOST."
    if tuple(map(int, str(version.get("ApiVersion", "0")).split("."))) < OLDEST_API:
        return f"is Docker {version.get('Version')}, and 20.10 or newer is needed: upgrade it."
    if "name=rootless" in (info.get("SecurityOptions") or ()):
        return "runs without root, and the tests need one with root: unset DOCKER_HOST (make rootless has its own)."
    return ""


def _start() -> None:
    dockerd = _dockerd()
    say("starting the Docker engine …")
    if Path("/run/systemd/system").is_dir():
        done = subprocess.run(["systemctl", "start", "docker"], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise EngineError(
                f"the Docker service does not start: {done.stderr.strip()} (journalctl -u docker)"
            )
        _state_file().write_text("systemd")
        return
    _clear_leftovers()
    with _log_file().open("w") as log:
        # A session of its own: Ctrl-C in the terminal must reach the tests first, the engine only through us.
        process = subprocess.Popen(
            [dockerd, "--host", DEFAULT_HOST],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    _state_file().write_text(str(process.pid))


def _dockerd() -> str:
    for directory in ("/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin"):
        candidate = Path(directory, "dockerd")
        if candidate.exists():
            if os.geteuid() != 0:
                raise EngineError("no Docker engine answers, and starting one needs root: run this as root")
            return str(candidate)
    raise EngineError("no Docker engine answers and dockerd is not installed: run tests/lab/setup.sh")


def _clear_leftovers() -> None:
    for program, pid_file in LEFTOVERS.items():
        if pid_file.exists() and not _is_running(program, pid_file.read_text().strip()):
            pid_file.unlink()


def _is_running(program: str, pid: str) -> bool:
    """Tell whether *pid* is that program and alive; a killed one may stay listed as a zombie for long."""
    try:
        stat = Path("/proc", pid, "stat").read_text()
    except (OSError, ValueError):
        return False
    name, _, rest = stat.partition("(")[2].rpartition(")")
    return name == program and not rest.strip().startswith("Z")


def _wait_until_answering() -> Engine:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        found = _answering()
        if found is not None:
            return found
        if _has_died():
            break
        time.sleep(0.2)
    raise EngineError(f"the Docker engine does not start; the end of {_log_file()}:\n{_log_tail()}")


def _has_died() -> bool:
    pid = _state_file().read_text()
    return pid.isdigit() and not _is_running("dockerd", pid)


def _log_tail() -> str:
    with suppress(OSError):
        return "\n".join(_log_file().read_text(errors="replace").splitlines()[-8:])
    return "(systemd: journalctl -u docker)"


def _state_file() -> Path:
    return lab_dir() / "engine.started"


def _keep_file() -> Path:
    return lab_dir() / "engine.keep"


def _log_file() -> Path:
    return lab_dir("log") / "dockerd.log"


def _stop_if_last(users: IO[str]) -> None:
    if _keep_file().exists() or not _state_file().exists():
        return
    try:
        flock(users, LOCK_EX | LOCK_NB)
    except BlockingIOError:
        return
    _stop()


def _stop() -> None:
    started = _state_file().read_text()
    _state_file().unlink()
    if started == "systemd":
        subprocess.run(["systemctl", "stop", "docker.socket", "docker"], check=False)
    elif _is_running("dockerd", started):
        _terminate(int(started))


def _terminate(pid: int) -> None:
    say("stopping the Docker engine …")
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while _is_running("dockerd", str(pid)):
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            return
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
        time.sleep(0.1)


def start() -> int:
    """Start the engine and leave it running until `stop`."""
    found = _ensure_running()
    if _state_file().exists():
        _keep_file().touch()
    say(f"the engine answers at {found.docker_host}")
    return 0


def stop() -> int:
    """Stop the engine if the lab started it."""
    _keep_file().unlink(missing_ok=True)
    if not _state_file().exists():
        say("no engine of the lab is running")
        return 0
    with (lab_dir() / "engine.users").open("w") as users:
        _stop_if_last(users)
    if _state_file().exists():
        say("the engine is in use; its last user will stop it")
    return 0


def run(command: Sequence[str]) -> int:
    """Run *command* with the engine up and return its exit code."""
    with engine() as found:
        child = subprocess.Popen(command, env={**os.environ, "DOCKER_HOST": found.docker_host})
        with _passing_signals_to(child):
            code = child.wait()
    return 128 - code if code < 0 else code


@contextmanager
def _passing_signals_to(child: "subprocess.Popen[bytes]") -> Iterator[None]:
    """Wait out the child's own ending: the terminal sends Ctrl-C to it too, others send SIGTERM only to us."""

    def forward(number: int, _frame: FrameType | None) -> None:
        child.send_signal(number)

    before = [
        (signal.SIGINT, signal.signal(signal.SIGINT, signal.SIG_IGN)),
        (signal.SIGTERM, signal.signal(signal.SIGTERM, forward)),
    ]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def main(arguments: Sequence[str]) -> int:
    """Run one of the commands in the module's docstring."""
    match list(arguments):
        case ["start"]:
            return start()
        case ["stop"]:
            return stop()
        case ["run", "--", *command] if command:
            return run(command)
    print(__doc__, file=sys.stderr)
    return 64


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except EngineError as error:
        say(str(error))
        sys.exit(1)
