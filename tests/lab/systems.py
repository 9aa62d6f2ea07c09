"""Systems made by mmdebstrap, and the Python 3.11 that vantage6 4.15.2 needs where this machine has another one.

Owns archives of root folders, one unpacked root of Debian 12, and launchers for programs in it. Must not know images,
servers or what the programs do.

The real vantage6 server, client and algorithm tools have no packages for Python 3.12 and newer. A launcher runs a program
with the `/usr` of Debian 12 in a mount namespace of its own: paths, network, users and everything else are this machine's.
"""

import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.lab.places import lab_dir, locked, timed

OLD_SUITE = "bookworm"
OLD_PYTHON = (3, 11)
OLD_PACKAGES = ("python3", "ca-certificates")
"""What the root of Debian 12 has beside the minimum: it is the base of images too."""
LAUNCHER = """\
#!/bin/sh
# Runs {program} with the /usr of Debian 12, and everything else as this machine has it.
exec unshare --mount /bin/sh -c '
  mount --bind /usr/local "$0/local" && mount --bind /usr/src "$0/src" && mount --rbind "$0" /usr && exec "$@"
' {usr} {program} "$@"
"""


class RootError(Exception):
    """A system cannot be made; the text says which and why."""


def host_suite() -> str:
    """Return the code name of this machine's own release."""
    lines = Path("/etc/os-release").read_text().splitlines()
    for name, _, value in (line.partition("=") for line in lines):
        if name == "VERSION_CODENAME":
            return value.strip('"')
    raise RootError("/etc/os-release names no VERSION_CODENAME: the lab needs Debian or Ubuntu")


def bootstrap(suite: str, packages: Sequence[str], archive: Path) -> None:
    """Write the root folder of *suite* with these *packages* into a tar *archive*, whole or not at all."""
    unfinished = archive.with_suffix(".new")
    command = [
        *("mmdebstrap", "--quiet", "--variant=minbase", "--format=tar", f"--include={','.join(packages)}"),
        '--aptopt=Acquire::Languages "none"',
        # an older release is not signed anew for ever, and its packages stay the same
        '--aptopt=Acquire::Check-Valid-Until "false"',
        *(f"--dpkgopt=path-exclude=/usr/share/{part}/*" for part in ("doc", "man", "locale")),
        *(suite, str(unfinished)),
    ]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        unfinished.unlink(missing_ok=True)
        raise RootError(f"mmdebstrap cannot make a root folder of {suite}: {done.stderr.strip()[-600:]}")
    unfinished.rename(archive)


def old_archive() -> Path:
    """Return the archive with Debian 12 and its Python 3.11, made at the first call."""
    archive = lab_dir("cache") / f"{OLD_SUITE}.tar"
    with locked(OLD_SUITE):
        if not archive.exists():
            with timed("making a root folder of Debian 12 with mmdebstrap"):
                bootstrap(OLD_SUITE, OLD_PACKAGES, archive)
    return archive


def old_python() -> Path:
    """Return a Python 3.11: the one that runs this, or a launcher of Debian 12's."""
    if is_old_python_here():
        return Path(sys.executable)
    program = _old_root() / "python3.11"
    with locked(f"{OLD_SUITE}-launcher"):
        write_launcher(program, "/usr/bin/python3.11")
    return program


def is_old_python_here() -> bool:
    """Check whether the Python that runs this is the one that vantage6 4.15.2 supports."""
    return sys.version_info[:2] == OLD_PYTHON


def write_launcher(path: Path, program: str) -> None:
    """Write an executable file that runs *program* with the `/usr` of Debian 12."""
    text = LAUNCHER.format(usr=shlex.quote(str(_old_root() / "root" / "usr")), program=shlex.quote(program))
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.new")
    unfinished.write_text(text)
    unfinished.chmod(0o755)
    unfinished.rename(path)


def _old_root() -> Path:
    """Return the folder with the unpacked root of Debian 12, unpacked at the first call."""
    folder = lab_dir("systems", OLD_SUITE)
    archive = old_archive()
    with locked(f"{OLD_SUITE}-root"):
        if not (folder / "root").exists():
            unfinished = lab_dir("systems", f"{OLD_SUITE}.new")
            done = subprocess.run(
                ["tar", "-xpf", str(archive), "-C", str(unfinished)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode != 0:
                raise RootError(
                    f"the root folder of Debian 12 cannot be unpacked: {done.stderr.strip()[-600:]}"
                )
            unfinished.rename(folder / "root")
    return folder
