"""An engine without root, and a command beside it: as an ordinary user, inside the engine's own network namespace.

Owns the user, the folders and every process it starts; all of it is gone at the end. Must not know what the command
does. The processes live in a process namespace of their own, which ends with the command: nothing can be left behind.

    python -m tests.lab.rootless podman CMD     run CMD beside `podman system service`
    python -m tests.lab.rootless docker CMD     run CMD beside a rootless dockerd

A CMD that begins with `python3` gets the one that runs this, with the project's environment.
"""

import os
import pwd
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import docker
from docker.errors import DockerException

from tests.lab.engine import engine
from tests.lab.images import python_base, tiny_image
from tests.lab.places import ROOT, locked, say, timed

USER = "node-agent-lab"
FIRST_ID, IDS = 2_000_000_000, 65_536
START_SECONDS = 60
PROGRAMS = {
    "podman": ("podman", "slirp4netns", "newuidmap"),
    "docker": ("rootlesskit", "slirp4netns", "newuidmap", "dockerd"),
}
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class RootlessError(Exception):
    """An engine without root cannot be had on this machine; the text says why."""


# --- with root: the user, the folders, the images -------------------------------------------------------------


def run(kind: str, command: Sequence[str]) -> int:
    """Run *command* beside the engine and return its exit code."""
    _check(kind)
    with locked("rootless"), _user(), _folder() as folder:
        _save_images(folder / "images.tar")
        _hand_over(folder)
        return subprocess.call(
            [
                *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
                *(sys.executable, "-m", "tests.lab.rootless", "inside", kind, str(folder), *command),
            ],
            cwd=ROOT,
        )


def _check(kind: str) -> None:
    if os.geteuid() != 0:
        raise RootlessError("making an ordinary user needs root: run this as root")
    missing = [name for name in PROGRAMS[kind] if shutil.which(name, path=PATH) is None]
    if missing:
        raise RootlessError(f"not installed: {', '.join(missing)}; run tests/lab/setup.sh rootless")
    tunnel = Path("/dev/net/tun")
    if not tunnel.exists():
        raise RootlessError("there is no /dev/net/tun, which networks without root are made with")
    # What udev gives it wherever it runs.
    tunnel.chmod(0o666)


@contextmanager
def _user() -> Iterator[None]:
    ids = f"{FIRST_ID}-{FIRST_ID + IDS - 1}"
    _remove_user()
    _quietly("useradd", "--system", "--no-create-home", "--home-dir", "/nonexistent", USER)
    _quietly("usermod", "--add-subuids", ids, "--add-subgids", ids, USER)
    try:
        yield
    finally:
        _remove_user()


def _remove_user() -> None:
    with suppress(KeyError):
        pwd.getpwnam(USER)
        _quietly("userdel", USER)


def _quietly(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RootlessError(f"{command[0]} failed: {done.stderr.strip()}")


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="rl-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        for part in ("home", "run", "lab", "project", "python", "storage"):
            (folder / part).mkdir(mode=0o700)
        yield folder


def _save_images(archive: Path) -> None:
    """Take the images from the machine's own engine: making them anew would take minutes."""
    with engine() as found:
        client = found.client()
        names = [python_base(client), tiny_image(client)]
        with timed("saving images for the engine without root"), archive.open("wb") as file:
            answer = client.api.get(f"{client.api.base_url}/images/get", params={"names": names}, stream=True)
            answer.raise_for_status()
            shutil.copyfileobj(answer.raw, file)
        client.close()


def _hand_over(folder: Path) -> None:
    user = pwd.getpwnam(USER)
    for path in (folder, *folder.rglob("*")):
        os.chown(path, user.pw_uid, user.pw_gid)


# --- inside the namespace: still root, but nothing that is done here is seen outside ----------------------------


def inside(kind: str, folder: Path, command: Sequence[str]) -> int:
    """Show the user the project, start the engine, run the command, and end all with this process."""
    project = folder / "project"
    # The user may not be allowed into the folders above the project, and must not write into it.
    for words in (
        ("mount", "--make-rprivate", "/"),
        ("mount", "--make-shared", "/"),
        ("mount", "--bind", str(ROOT), str(project)),
        ("mount", "--bind", str(folder / "lab"), str(project / ".lab")),
    ):
        _quietly(*words)
    _show_python(folder)
    starting = {"podman": _start_podman, "docker": _start_docker}[kind]
    prefix, host = starting(folder)
    environment = {**_environment(folder), "DOCKER_HOST": host, "ROOTLESS_ENGINE": kind}
    _load_images(host, folder / "images.tar")
    return subprocess.call(_as_user([*prefix, *command]), env=environment, cwd=project)


def _show_python(folder: Path) -> None:
    """Show a Python of root's own, as version managers install it, at the same place: it finds its parts by that."""
    python = Path(sys.base_prefix)
    hidden = next((path for path in reversed(python.parents) if not path.stat().st_mode & 0o001), None)
    if hidden is None:
        return
    _quietly("mount", "--bind", str(python), str(folder / "python"))
    _quietly("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", str(hidden))
    python.mkdir(parents=True)
    _quietly("mount", "--bind", str(folder / "python"), str(python))


def _environment(folder: Path) -> dict[str, str]:
    return {
        "HOME": str(folder / "home"),
        "XDG_RUNTIME_DIR": str(folder / "run"),
        "XDG_STATE_HOME": str(folder / "home"),
        "PATH": f"{sys.base_prefix}/bin:{PATH}",
        "PYTHONPATH": str(folder / "project" / Path(sysconfig.get_path("purelib")).relative_to(ROOT)),
        "CI": os.environ.get("CI", ""),
        "PYTHONDONTWRITEBYTECODE": "1",
        "LANG": "C.UTF-8",
    }


def _as_user(command: Sequence[str]) -> list[str]:
    return ["setpriv", "--reuid", USER, "--regid", USER, "--clear-groups", *command]


def _start_podman(folder: Path) -> tuple[list[str], str]:
    podman = [
        *("podman", "--storage-driver", "overlay", "--root", str(folder / "storage")),
        *("--runroot", str(folder / "run" / "containers"), "--events-backend", "file"),
        # crun refuses machines that mount both versions of cgroups.
        *("--runtime", shutil.which("runc", path=PATH) or "crun", "--cgroup-manager", "cgroupfs"),
    ]
    host = f"unix://{folder}/run/engine.sock"
    _start(folder, [*podman, "system", "service", "--time=0", host], host)
    return [*podman, "unshare", "--rootless-netns"], host


def _start_docker(folder: Path) -> tuple[list[str], str]:
    host = f"unix://{folder}/run/engine.sock"
    state = folder / "run" / "rootlesskit"
    rootlesskit = [
        *("rootlesskit", "--net=slirp4netns", "--mtu=65520", "--slirp4netns-sandbox=auto"),
        *("--slirp4netns-seccomp=auto", "--disable-host-loopback", "--port-driver=builtin"),
        *("--copy-up=/etc", "--copy-up=/run", "--propagation=rslave", f"--state-dir={state}"),
    ]
    # What the machine's own engine has there is seen as links that nobody but root can follow.
    own_run = 'rm -f /run/docker /run/containerd /run/xtables.lock; exec "$@"'
    dockerd = [
        *("sh", "-c", own_run, "sh"),
        *("dockerd", "--rootless", "--host", host, "--data-root", str(folder / "storage")),
        *("--exec-root", str(folder / "run" / "exec"), "--pidfile", str(folder / "run" / "pid")),
    ]
    _start(folder, [*rootlesskit, *dockerd], host)
    child = (state / "child_pid").read_text().strip()
    return [
        "nsenter",
        "--target",
        child,
        "--user",
        "--preserve-credentials",
        "--mount",
        "--net",
        f"--wdns={folder}/project",
    ], host


def _start(folder: Path, command: Sequence[str], host: str) -> None:
    log = folder / "engine.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            _as_user(command),
            env=_environment(folder),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=folder,
        )
    deadline = time.monotonic() + START_SECONDS
    while not _answers(host):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RootlessError(f"the engine does not start:\n{log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.2)


def _answers(host: str) -> bool:
    try:
        client = docker.DockerClient(base_url=host, timeout=10)
    except DockerException:
        return False
    client.close()
    return True


def _load_images(host: str, archive: Path) -> None:
    client = docker.DockerClient(base_url=host, timeout=300)
    with timed("loading images"), archive.open("rb") as file:
        # Engines answer in words of their own, so only what is there afterwards counts.
        for _ in client.api.load_image(file):
            pass
    client.close()


def main(arguments: Sequence[str]) -> int:
    """Run one of the commands in the module's docstring."""
    match list(arguments):
        case [("podman" | "docker") as kind, *command] if command:
            return run(kind, command)
        case ["inside", kind, folder, *command]:
            return inside(kind, Path(folder), command)
    print(__doc__, file=sys.stderr)
    return 64


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except RootlessError as error:
        say(str(error))
        sys.exit(1)
