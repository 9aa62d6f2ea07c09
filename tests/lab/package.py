"""The agent as a Debian package, built the way `make deb` builds it, without a package index.

Owns the folder it is built in. Must not know what is done with a package.
"""

import os
import subprocess
import sys
from pathlib import Path

from tests.lab.places import ROOT, lab_dir, locked, timed
from tests.lab.wheels import dependency_wheels

BUILD = ROOT / "packaging" / "debian" / "build.sh"
SYSTEM_PYTHON = "/usr/bin/python3"
ANY_VERSION = "0.0.1"


class PackageError(Exception):
    """The package cannot be built; the text says why."""


def debian_package(version: str) -> Path:
    """Build the package from the checkout as it stands, with that version; what the agent stands on is kept between two."""
    work = lab_dir("deb")
    environment = {
        **os.environ,
        "VERSION": version,
        "SYSTEM_PYTHON": SYSTEM_PYTHON,
        "WORK": str(work.relative_to(ROOT)),
        "OUT": str(work.relative_to(ROOT)),
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(dependency_wheels(_python_version())),
    }
    with locked("deb"), timed(f"building the Debian package {version}"):
        done = subprocess.run(
            [BUILD], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
    if done.returncode != 0:
        raise PackageError(f"the Debian package cannot be built:\n{done.stderr.strip()[-2000:]}")
    (package,) = work.glob(f"node-agent_{version}_*.deb")
    return package


def _python_version() -> str:
    show = "import sys; print('%d.%d' % sys.version_info[:2])"
    done = subprocess.run([SYSTEM_PYTHON, "-c", show], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise PackageError(f"{SYSTEM_PYTHON} does not run: {done.stderr.strip()[-300:]}")
    return done.stdout.strip()


if __name__ == "__main__":
    try:
        print(debian_package(*(sys.argv[1:] or [ANY_VERSION])))
    except PackageError as error:
        sys.exit(f"lab: {error}")
