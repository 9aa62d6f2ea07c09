"""Run the project's make targets on a fresh system of a Debian or Ubuntu release, as a new machine would.

    python -m tests.environments.fresh trixie             `make demo` and `make test`
    python -m tests.environments.fresh sid unit           other targets

The system is a root folder made by mmdebstrap with `make` in it, in mount, process, network, host name and IPC namespaces
of its own; a clean clone of the committed HEAD lies in it. It installs what it needs by itself, its own Docker engine
included. Of this machine it uses the kernel, and what reaches the package registries: the network (behind NAT), name
servers, certificate authorities, proxies and package index settings. When it ends, all its processes end with it, and
everything is removed.

Exit code 0: every target passed and left nothing behind.
"""

import argparse
import contextlib
import os
import re
import secrets
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.environments.leftovers import Leftovers, left_in
from tests.environments.uplink import UplinkError, uplink
from tests.lab.places import ROOT, lab_dir, locked, say, timed
from tests.lab.systems import RootError, bootstrap

CHECKOUT = "usr/src/node-agent"
PACKAGES = ("make", "ca-certificates")
DEFAULT_TARGETS = ("demo", "test")
# How pip, npm, apt and curl reach their registries on this machine.
PASSED_VARIABLES = re.compile(
    r"(?i)(http_proxy|https_proxy|no_proxy|ssl_cert_file|ssl_cert_dir|requests_ca_bundle|curl_ca_bundle"
    r"|node_extra_ca_certs|pip_cert|pip_index_url|pip_default_timeout|npm_config_\w+|pytest_addopts)$"
)
PASSED_FILES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pip.conf", "/etc/npmrc")
PASSED_APT_SETTINGS = re.compile(r"^\s*Acquire::(https?::|Check-|IndexTargets|Retries)")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class FreshError(Exception):
    """No fresh system can be had on this machine; the text says why and what to do."""


# --- the root folder ------------------------------------------------------------------------------------------


def archive_of(release: str) -> Path:
    """Return the archive with the root of *release*, made at the first call."""
    archive = lab_dir("fresh") / f"{release}.tar"
    with locked(f"fresh-{release}"):
        if not archive.exists():
            with timed(f"making a root folder of {release} with mmdebstrap"):
                bootstrap(release, PACKAGES, archive)
    return archive


@contextlib.contextmanager
def _root_folder(release: str, *, keep: bool) -> Iterator[Path]:
    folder = lab_dir("fresh") / f"{release}-{'kept' if keep else secrets.token_hex(3)}"
    root = folder / "root"
    try:
        if not root.exists():
            root.mkdir(parents=True)
            _run("tar", "-xpf", str(archive_of(release)), "-C", str(root))
        _copy_settings(root)
        _clone(root / CHECKOUT)
        yield root
    finally:
        if keep:
            say(f"kept for the next run with --keep: {folder}")
        else:
            # a mount that was left here by mistake must not be emptied
            _run("rm", "-rf", "--one-file-system", str(folder))


def _copy_settings(root: Path) -> None:
    for name in PASSED_FILES:
        target = root / name.lstrip("/")
        if Path(name).is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(name, target)
    settings = [
        line
        for file in sorted(Path("/etc/apt/apt.conf.d").glob("*"))
        for line in file.read_text(errors="replace").splitlines()
        if PASSED_APT_SETTINGS.match(line)
    ]
    (root / "etc/apt/apt.conf.d/99-this-machine").write_text("\n".join([*settings, ""]))
    (root / "etc/hostname").write_text("fresh\n")
    (root / "etc/hosts").write_text("127.0.0.1 localhost fresh\n::1 localhost\n")


def _clone(target: Path) -> None:
    """Clone the committed HEAD: what is not committed is not tested."""
    changed = _output("git", "-C", str(ROOT), "status", "--porcelain").strip()
    if changed:
        say(
            f"{len(changed.splitlines())} files differ from the last commit; the clone does not have the changes"
        )
    if target.exists():
        _run("git", "-C", str(target), "fetch", "--quiet", str(ROOT), "HEAD")
        _run("git", "-C", str(target), "reset", "--quiet", "--hard", "FETCH_HEAD")
    else:
        _run("git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(target))


# --- running in it --------------------------------------------------------------------------------------------


def run(release: str, targets: Sequence[str], *, keep: bool) -> int:
    """Run `make TARGET` for each in a fresh system and return 0 when all passed and nothing was left."""
    _check()
    with _root_folder(release, keep=keep) as root, uplink(root) as space:
        command = [
            *("nsenter", f"--net={space}"),
            *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--uts", "--ipc"),
            *(sys.executable, "-m", "tests.environments.fresh", "--inside", str(root), release, *targets),
        ]
        return subprocess.call(command, cwd=ROOT, env={**_environment(), "PYTHONPATH": str(ROOT)})


def _check() -> None:
    if os.geteuid() != 0:
        raise FreshError("namespaces and mounts need root: run this as root or with sudo")
    missing = [
        name for name in ("mmdebstrap", "unshare", "nsenter", "ip", "git") if shutil.which(name) is None
    ]
    if missing:
        raise FreshError(f"not installed: {', '.join(missing)}; run tests/lab/setup.sh fresh")


def _environment() -> dict[str, str]:
    passed = {name: value for name, value in os.environ.items() if PASSED_VARIABLES.match(name)}
    return {**passed, "PATH": PATH, "HOME": "/root", "LANG": "C.UTF-8", "TERM": "dumb"}


def inside(root: Path, release: str, targets: Sequence[str]) -> int:
    """Enter *root* as the first process of the new namespaces, run the targets, and report."""
    _enter(root)
    before = left_in(Path("/" + CHECKOUT))
    results = [(target, *_make(target)) for target in targets]
    left = left_in(Path("/" + CHECKOUT)).beyond(before)
    return _report(release, results, left)


def _enter(root: Path) -> None:
    where = str(root)
    for words in (
        ("--make-rprivate", "/"),
        ("--bind", where, where),
        ("-t", "proc", "proc", f"{where}/proc"),
        ("-t", "sysfs", "sysfs", f"{where}/sys"),
        ("--rbind", "/sys/fs/cgroup", f"{where}/sys/fs/cgroup"),
        ("-t", "devtmpfs", "devtmpfs", f"{where}/dev"),
        ("-t", "devpts", "-o", "newinstance,mode=620,ptmxmode=666", "devpts", f"{where}/dev/pts"),
        ("-t", "tmpfs", "-o", "mode=1777", "tmpfs", f"{where}/dev/shm"),
        ("-t", "tmpfs", "-o", "mode=755", "tmpfs", f"{where}/run"),
    ):
        _run("mount", *words)
    old = root / "mnt"
    os.chdir(root)
    _run("pivot_root", ".", str(old))
    os.chroot(".")
    os.chdir("/")
    _run("umount", "--lazy", "/mnt")
    # as an init system leaves it: what is mounted here is seen by the engine
    _run("mount", "--make-rshared", "/")
    _run("hostname", "fresh")


def _make(target: str) -> tuple[int, float]:
    say(f"make {target}")
    started = time.monotonic()
    process = subprocess.Popen(["make", *shlex.split(target)], cwd=f"/{CHECKOUT}", env=_environment())
    code = _wait_as_first_process(process.pid)
    return code, time.monotonic() - started


def _wait_as_first_process(pid: int) -> int:
    """Wait for *pid*; the first process of a namespace also inherits every orphan and has to reap it."""
    while True:
        found, status = os.wait()
        if found == pid:
            return os.waitstatus_to_exitcode(status)


def _report(release: str, results: Sequence[tuple[str, int, float]], left: Leftovers) -> int:
    print(f"\n{release}: {_output('uname', '-r').strip()}, {_version('dockerd')}, {_version('python3')}")
    for target, code, seconds in results:
        verdict = "passed" if code == 0 else f"failed with exit code {code}"
        print(f"  make {target:12} {verdict} after {seconds // 60:.0f} min {seconds % 60:.0f} s")
    print(f"  left behind: {left or 'nothing'}", flush=True)
    return 0 if not left and all(code == 0 for _, code, _ in results) else 1


def _version(program: str) -> str:
    path = shutil.which(program, path=PATH)
    return _output(path, "--version").strip() if path else f"no {program}"


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _run(*command: str) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise FreshError(f"{shlex.join(command)}: {done.stderr.strip()[-600:]}")


def main(arguments: Sequence[str]) -> int:
    """Run the command in the module's docstring."""
    parser = argparse.ArgumentParser(prog="make fresh", description="Run make targets on a fresh system.")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    parser.add_argument(
        "--keep", action="store_true", help="keep the system, and go on with it the next time"
    )
    parser.add_argument("release", help="bookworm, trixie, sid, …")
    parser.add_argument(
        "targets", nargs="*", default=DEFAULT_TARGETS, help="what `make` is called with, one by one"
    )
    found = parser.parse_args(arguments)
    if found.inside is not None:
        return inside(found.inside, found.release, found.targets)
    return run(found.release, found.targets, keep=found.keep)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (FreshError, RootError, UplinkError) as error:
        say(str(error))
        sys.exit(1)
