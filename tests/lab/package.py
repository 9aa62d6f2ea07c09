"""The agent as a Debian package, built the way `make deb` builds it, without a package index.

Owns the folder it is built in. Must not know what is done with a package.
"""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from tests.lab.places import ROOT, lab_dir, locked, timed
from tests.lab.wheels import dependency_wheels

BUILD = ROOT / "packaging" / "debian" / "build.sh"
SYSTEM_PYTHON = "/usr/bin/python3"
FIRST, SECOND = "0.1.0", "0.1.0+1"
"""The versions that tests install, one over the other."""
PACKED = (
    "node_agent",
    "packaging",
    "systemd",
    "configs",
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "CHANGELOG.md",
)


class PackageError(Exception):
    """The package cannot be built; the text says why."""


def debian_package(version: str) -> Path:
    """Give the package of the checkout as it stands, with that version; built when anything that is packed has changed."""
    with locked("deb"):
        work = lab_dir("deb")
        stamp = work / f"{version}.stamp"
        content = _content()
        if not stamp.exists() or stamp.read_text() != content:
            stamp.unlink(missing_ok=True)
            _build(version, work)
            stamp.write_text(content)
        (package,) = work.glob(f"node-agent_{version}_*.deb")
        return package


def _content() -> str:
    """Name what a package would be made of now."""
    names = (path for part in PACKED for path in [ROOT / part, *(ROOT / part).rglob("*")])
    found = hashlib.sha256()
    for path in sorted(name for name in names if name.is_file() and name.suffix != ".pyc"):
        found.update(f"{path.relative_to(ROOT)} {path.stat().st_mode}\n".encode())
        found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()


def _build(version: str, work: Path) -> None:
    environment = {
        **os.environ,
        "VERSION": version,
        "SYSTEM_PYTHON": SYSTEM_PYTHON,
        "WORK": str(work.relative_to(ROOT)),
        "OUT": str(work.relative_to(ROOT)),
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(dependency_wheels(_python_version())),
    }
    with timed(f"building the Debian package {version}"):
        done = subprocess.run(
            [BUILD], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
    if done.returncode != 0:
        raise PackageError(f"the Debian package cannot be built:\n{done.stderr.strip()[-2000:]}")


def _python_version() -> str:
    show = "import sys; print('%d.%d' % sys.version_info[:2])"
    done = subprocess.run([SYSTEM_PYTHON, "-c", show], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise PackageError(f"{SYSTEM_PYTHON} does not run: {done.stderr.strip()[-300:]}")
    return done.stdout.strip()


if __name__ == "__main__":
    try:
        print(debian_package(*(sys.argv[1:] or [FIRST])))
    except PackageError as error:
        sys.exit(f"lab: {error}")
